"""README commands exist and fit: targets, modules, options, arms, tasks; links and tables too."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import PAPERS
from shared import protocol

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


def commands(page: Path) -> list[str]:
    """Lines of ```sh blocks, without comments and here-documents (<<'END' ... END)."""
    lines = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        block = re.sub(
            r"<<'(\w+)'\n.*?^\1$", "", block.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE
        )
        for line in block.splitlines():
            line = re.sub(r"\s+#.*", "", line).strip()
            if line and not line.startswith("#"):
                lines.append(line)
    return lines


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w%-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_a_page(page):
    for command in commands(page):
        words = [w for w in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        if words[0] == "make":
            for word in words[1:]:
                name = re.sub(r"^(reproduce|record|list)-.*", r"\1-%", word)
                assert name in targets(), f"{page.name}: no target {word}"
                paper = word.partition("-")[2].replace("-", "_")
                if name.endswith("-%"):
                    assert paper in PAPERS, f"{page.name}: {command}"
        elif words[:2] == ["python", "-m"] and words[2].split(".")[-1] == "train":
            paper = protocol.Protocol(ROOT / words[2].split(".")[0])
            options = dict(zip(words[3::2], words[4::2])) if "--tiny" not in words else {}
            scale = options.pop("--scale", "cpu")
            arm = options.pop("--arm", paper.selected(scale)[0])
            paper.node(
                scale,
                arm,
                options.pop("--task", paper.arm_tasks(arm, scale)[0]),
                int(options.pop("--seed", 0)),
            )
            unknown = {
                o.lstrip("-").replace("-", "_") for o in options if not o.startswith("--uses.")
            } - set(paper.defaults)
            assert not unknown, f"{page.name}: {command}: {unknown}"
        elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in {*PAPERS, "benchmarks"}:
            module = ROOT / words[2].replace(".", "/")
            assert any(f.exists() for f in (module.with_suffix(".py"), module / "__main__.py")), (
                f"{page.name}: {command}"
            )
        else:
            assert words[0] in {
                ".",
                "git",
                "pip",
                "hf",
                "export",
                "cd",
                "python",
                "open",
                "accelerate",
            }, f"{page.name}: {command}"


# --- "Read one method in an hour" -------------------------------------------------------------


def hour(paper: str) -> str:
    text = (ROOT / paper / "README.md").read_text()
    assert text.count("## Read one method in an hour\n") == 1, (
        f"{paper}/README.md has no such section"
    )
    return text.split("## Read one method in an hour\n")[1].split("\n## ")[0]


def exercise(paper: str) -> tuple[str, str, str, list[str]]:
    """(file, the line, what it becomes, the words of the command)."""
    parts = re.search(
        r"\*\*Exercise\.\*\* In `([^`]+)` replace\n\n```python\n(.*?)\n```\n\n"
        r"by\n\n```python\n(.*?)\n```\n\nand run `([^`]+)`",
        hour(paper),
    )
    assert parts, f"{paper}/README.md: the exercise does not read as those of the other papers do"
    return parts[1], parts[2], parts[3], shlex.split(parts[4])


def defined(path: Path) -> set[str]:
    """Names of the functions, methods and classes of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def files_of_tests(paper: str) -> list[str]:
    """Files of tests of one paper, from the repository's folder."""
    files = ROOT.glob(f"tests/{paper}/test_*.py")
    return [str(file.relative_to(ROOT)) for file in files]


def names_in(place: str) -> set[str]:
    """Names defined in a file of tests, or in all those of a folder."""
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).glob("test_*.py"))
    return {name for file in files for name in defined(file)}


@pytest.mark.parametrize("paper", PAPERS)
def test_the_hour_names_what_there_is(paper):
    text = hour(paper)
    assert f"python -m {paper}.train --tiny" in text
    steps = re.findall(r"`(\w+/\w+\.py)`: ((?:`\w+`(?:, |,\n +)?)+)", text)
    assert len(steps) >= 3
    for file, names in steps:
        missing = set(re.findall(r"`(\w+)`", names)) - defined(ROOT / file)
        assert not missing, f"{paper}/README.md: {file} defines no {missing}"
    tests = set().union(*(defined(ROOT / file) for file in files_of_tests(paper)))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named and named <= tests, f"{paper}/README.md: no such test: {named - tests}"
    minutes = [int(m) for m in re.findall(r"^\d\. \((\d+)", text, re.MULTILINE)]
    assert 55 <= sum(minutes) <= 65


@pytest.mark.parametrize("paper", PAPERS)
def test_the_exercise_changes_a_line_that_is_there(paper):
    file, old, new, command = exercise(paper)
    code = (ROOT / file).read_text()
    assert code.count(old) == 1, (
        f"{paper}/README.md quotes a line that {file} has {code.count(old)} times: {old}"
    )
    assert new != old and new not in code.splitlines()
    ast.parse(code.replace(old, new))
    assert command[:3] == ["python", "-m", "pytest"]
    assert command[3] in [*files_of_tests(paper), f"tests/{paper}"]
    assert command[4] == "-k"
    chosen = [word for word in command[5].split() if word != "or"]
    for word in chosen:
        assert any(word in name for name in names_in(command[3])), (
            f"{paper}/README.md: -k {word} picks no test"
        )


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_the_exercise_breaks_what_it_says(paper, tmp_path):
    """In a copy: at least one of the tests that the page names fails under its command."""
    file, old, new, command = exercise(paper)
    leave = shutil.ignore_patterns(".*", "runs", "report", "results", "__pycache__")
    for name in (paper, "shared", "benchmarks", "tests", "pyproject.toml"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name, ignore=leave) if source.is_dir() else shutil.copy(
            source, tmp_path
        )
    for good in (True, False):
        if not good:
            code = (tmp_path / file).read_text()
            (tmp_path / file).write_text(code.replace(old, new))
        words = [sys.executable, *command[1:], "-p", "no:cacheprovider"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE))
        if good:
            assert done.returncode == 0, done.stdout
        else:
            assert failed and failed <= set(re.findall(r"`(test_\w+)`", hour(paper))), (
                failed,
                done.stdout,
            )


def test_make_without_a_target_prints_help():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "make reproduce-autolora" in done.stdout
    for name in targets() - {"help"}:
        assert name in done.stdout, f"make help does not list {name}"


def test_pages_name_every_target():
    named = ("README.md", "CONTRIBUTING.md", "shared/README.md", "docs/commands.md", "docs/data.md")
    text = "".join((ROOT / name).read_text() for name in [*named, "docs/speed.md"])
    for name in targets():
        if name not in {"help", "setup", "reproduce"}:
            assert f"make {name.replace('%', '')}" in text, f"no page mentions make {name}"


def headings(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page", [*PAGES, *ROOT.glob("docs/papers/*.md")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
        assert not anchor or anchor in headings(target), f"{page.relative_to(ROOT)}: {link}"


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_committed_files_name_no_machine():
    """No path of a machine, host of a registry or tool of a workplace in a tracked file."""
    pattern = re.compile(r"(^|[^\w.])/(work|farm|opt/(pypi|wheels))/")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix not in {".npz", ".png", ".gz"} and path.exists():
            hit = pattern.search(path.read_text(errors="ignore"))
            assert not hit, f"{name}: {hit[0]}"


def test_a_wrong_python_is_refused_in_one_line(tmp_path):
    for words, text in (
        (["PYTHON=/nowhere/python"], "needs Python 3.11"),
        (["PYTHON="], "no Python 3.11 or newer"),
        (["ENV=none", "PYTHON="], "ENV=none needs PYTHON"),
    ):
        env = {
            k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))
        }  # of a make around us
        done = subprocess.run(
            ["make", "-s", "setup", *words], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode != 0 and text in done.stderr and "Traceback" not in done.stderr, (
            done.stderr
        )
    assert sys.version_info >= (3, 11)
