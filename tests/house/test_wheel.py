"""`pip install .`: what the wheel holds, and that a method runs from it in an empty environment."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import PAPERS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmarks", "shared", *PAPERS)


def tracked() -> list[Path]:
    """Files of the checkout that are not ignored, committed or not."""
    words = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in names.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves build/ where it works."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if name.parts[0] in {*PACKAGES, "pyproject.toml", "README.md", "LICENSE"}:
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "copy" / name)
    words = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    words += ["--no-index", "-w", str(folder), str(folder / "copy")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_what_its_code_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    packaged = {str(name) for name in tracked() if name.parts[0] in PACKAGES}
    # drawings and notes that only the checkout's pages show
    lacking = {name for name in packaged - inside if not name.startswith("shared/cost")}
    assert not lacking
    assert inside <= packaged
    assert {f"{name}/py.typed" for name in PACKAGES} <= inside


def test_the_wheel_declares_what_its_code_imports(wheel):
    """Every third-party module imported anywhere is one of a declared or an optional package."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    declared = {Requirement(line).name for line in metadata.get_all("Requires-Dist", [])}
    modules = {name.replace("-", "_").lower() for name in declared}
    modules |= {"sklearn", "yaml", "markupsafe", "pil"}  # other names, and what comes with these
    modules |= {"submitit", "rdkit", "nltk"}  # where a user has them: README
    imported: dict[str, str] = {}
    for path in tracked():
        if path.parts[0] in PACKAGES and path.suffix == ".py" and "template" not in path.parts:
            if path.name == "peers.py":
                continue  # other libraries, in an environment of their own
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                imported |= {name.split(".")[0]: str(path) for name in names}
    own = {*PACKAGES, *sys.stdlib_module_names, ""}
    undeclared = {n: where for n, where in imported.items() if n.lower() not in modules | own}
    assert not undeclared, sorted(undeclared.items())


def test_pins_are_within_what_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
    cuda = (ROOT / "requirements-cuda.txt").read_text()
    pins |= dict(re.findall(r"^([\w.-]+)==(\S+)", cuda, re.MULTILINE))
    extras = project["optional-dependencies"].values()
    for line in (*project["dependencies"], *(line for extra in extras for line in extra)):
        requirement = Requirement(line)
        assert requirement.name in pins, f"{requirement.name} has no pin in requirements.txt"
        assert requirement.specifier.contains(pins[requirement.name]), line


def installed(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel and, by a .pth file, the packages that are here already.

    The interpreter does not see this checkout: only the wheel."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    words = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", "install", *words, str(wheel)], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip()
    here = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout
    Path(there, "packages_of_the_checkout.pth").write_text(here, encoding="utf-8")
    return python


def environment() -> dict[str, str]:
    leave = ("REPRO_", "PYTHON")
    return {k: v for k, v in os.environ.items() if not k.startswith(leave)}


@pytest.mark.slow
def test_every_method_runs_from_the_wheel_and_writes_where_it_was_started(wheel, tmp_path):
    python, place = installed(wheel, tmp_path), tmp_path / "elsewhere"
    place.mkdir()
    for paper in PAPERS:
        words = [str(python), "-m", f"{paper}.train", "--tiny"]
        done = subprocess.run(
            words, cwd=place, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, (paper, done.stdout[-2000:], done.stderr[-2000:])
        assert list((place / "runs" / paper).rglob("record.json")), f"{paper}: no run in {place}"
    site = next((tmp_path / "env" / "lib").glob("*/site-packages"))
    assert not (site / "runs").exists() and not (site / ".cache").exists()


@pytest.mark.slow
def test_pip_installs_everything_that_is_declared(wheel, tmp_path):
    """A whole installation from a registry, where one is reached; then the shortest run."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    words = ["--quiet", "--disable-pip-version-check", "-c", str(ROOT / "requirements.txt")]
    done = subprocess.run(
        [python, "-m", "pip", "install", *words, str(wheel)], capture_output=True, text=True
    )
    if done.returncode and re.search(r"No matching distribution|connection|resolve", done.stderr):
        pytest.skip(f"no registry with the packages: {done.stderr.strip().splitlines()[-1][:120]}")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [python, "-m", "tapweight.train", "--tiny"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs" / "tapweight").rglob("record.json"))
