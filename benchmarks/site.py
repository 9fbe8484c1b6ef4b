"""The pages of this repository as a site that needs no network: `make docs`.

    python -m benchmarks.site            writes site/index.html, with the tools of .venv-docs

The Markdown files are gathered as they are, in their own folders, so that their links hold. Added
are equations as MathML, a page per paper with each equation beside the lines that compute it, a
page for each file that a link names, and the API. The tools are those of requirements-docs.txt, in
an environment of their own; `--gather DIR` needs none of them and writes the gathered pages alone.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks import PAPERS, ROOT, mathml
from benchmarks.papers import paper
from benchmarks.recorded import write_text
from shared.protocol import BadInput

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
PICTURES = {".svg", ".png"}
LONGEST = 70  # lines of code that are shown beside an equation
Nav = list[dict[str, Any]]


# --- pages ----------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """The Markdown files that make the site, from the repository's folder."""
    readmes = [ROOT / name / "README.md" for name in (*PAPERS, "shared")]
    found = [*ROOT.glob("*.md"), *readmes, *ROOT.glob("docs/**/*.md")]
    return sorted(path.relative_to(ROOT) for path in found if path.exists())


def gather(folder: Path) -> Nav:
    """Write all pages into `folder`, a new one; what the site's navigation is."""
    linked: set[Path] = set()
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        relink = functools.partial(relinked, page=page, linked=linked)
        write_text(folder / page, mathml.typeset(LINK.sub(relink, text)))
    for name in PAPERS:
        write_text(folder / name / "equations.md", mathml.typeset(equations_page(name)))
        write_text(folder / name / "api.md", api_page(name, modules_of(name)))
    write_text(folder / "shared" / "api.md", api_page("shared", shared_modules()))
    for path in sorted(linked):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in PICTURES:
            shutil.copyfile(ROOT / path, folder / path)
        else:
            code = (ROOT / path).read_text(encoding="utf-8")
            kind = path.suffix.lstrip(".") or "text"
            fenced = f'# {path}\n\n````{kind} linenums="1"\n{code}\n````\n'
            write_text(folder / f"{path}.md", fenced)
    for name in ("site.css", "iframe-worker.js"):
        shutil.copyfile(ROOT / "docs" / name, folder / name)
    return navigation()


def relinked(match: re.Match[str], page: Path, linked: set[Path]) -> str:
    """A link to a file that is no page: to a page made of it, or to a copy of the picture."""
    mark, words, target = match.groups()
    place, hash_sign, anchor = target.partition("#")
    if re.match(r"https?:|mailto:", target) or not place:
        return match[0]
    path = Path(os.path.normpath(page.parent / place))
    if (ROOT / path).is_dir():
        path = path / "README.md"
    if not (ROOT / path).is_file():
        raise BadInput(f"{page}: the link {target} leads nowhere")
    if path.suffix == ".md":
        return match[0]
    linked.add(path)
    if mark or path.suffix in PICTURES:
        return match[0]
    return f"[{words}]({place}.md{hash_sign}{anchor})"


def navigation() -> Nav:
    methods = [
        {
            name: [
                {"The method": f"{name}/README.md"},
                {"Equations beside code": f"{name}/equations.md"},
                {"Facts of the paper": f"docs/papers/{name}.md"},
                {"API": f"{name}/api.md"},
            ]
        }
        for name in PAPERS
    ]
    for entry, name in zip(methods, PAPERS):
        if not (ROOT / "docs" / "papers" / f"{name}.md").exists():
            del entry[name][2]
    listed: Nav = [
        {"Overview": "README.md"},
        {"What was found": "docs/findings.md"},
        {"Methods": methods},
        {"How a verdict is reached": "docs/verdicts.md"},
        {"Commands": "docs/commands.md"},
        {"Data and models": "docs/data.md"},
        {"Add a paper": "CONTRIBUTING.md"},
    ]
    named = {place for entry in listed for place in entry.values() if isinstance(place, str)}
    for page in sorted(set(map(str, pages())) - named):
        if re.fullmatch(r"docs/\w+\.md", page):
            title = (ROOT / page).read_text(encoding="utf-8").split("\n", 1)[0]
            listed.insert(-1, {title.removeprefix("# "): page})
    listed.append(
        {"Shared parts": [{"Hypergradients": "shared/README.md"}, {"API": "shared/api.md"}]}
    )
    return listed


# --- equations beside code ------------------------------------------------------------------------


def equations_page(name: str) -> str:
    """Each equation of the paper's README that names a function, then that function."""
    readme = (ROOT / name / "README.md").read_text(encoding="utf-8")
    parts = [f"# {paper(name).title}: equations beside code"]
    parts.append(f"The lines are those of `{name}/`; symbols are in [the method](README.md).")
    shown: set[tuple[str, int]] = set()
    for head, rows in mathml.tables(readme):
        if not (places := [i for i, title in enumerate(head) if "equation" in title]):
            continue
        for row in rows:
            place, found_here = places[0], list(excerpts(name, " ".join(row[places[0] + 1 :])))
            numbered = re.match(r"\(\d+\)(?:, \(\d+\))*", row[place])
            number = row[0] if place else numbered[0] if numbered else ""
            number = number or (f"`{found_here[0][1].name}`" if found_here else "")
            if "$" in row[place]:
                parts.append(f"## {number or 'Equation'}\n\n{row[place]}")
            for file, found in found_here:
                where = (file, found.lineno)
                parts.append(f"`{file}`, as above." if where in shown else code(file, found))
                shown.add(where)
    return "\n\n".join(parts) + "\n"


def code(file: str, found: Any) -> str:
    """The lines of a class or function, fenced, with their numbers."""
    first, last = found.lineno, min(found.end_lineno, found.lineno + LONGEST - 1)
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()[first - 1 : last]
    rest = [f"# ... to line {found.end_lineno}"] if last < found.end_lineno else []
    text = "\n".join([*lines, *rest])
    return f'```python linenums="{first}" title="{file}"\n{text}\n```'


def excerpts(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """(file, syntax tree) of what `text` names in backquotes: `method.count`, `.weighted_loss`,
    which is of the module before it; at first that is the method's."""
    module = "method"
    for quoted in re.findall(r"`([\w.]+)`", text):
        names = [word for word in quoted.split(".") if word]
        if (ROOT / name / f"{names[0]}.py").exists():
            module, *names = names
        file = f"{name}/{module}.py"
        if names and (found := definition(ROOT / file, names)):
            yield file, found


def definition(path: Path, names: list[str]) -> Any | None:
    """The class or function of that name in a file; None if it is not there."""
    node: Any = ast.parse(path.read_text(encoding="utf-8"))
    for name in names:
        inside = [n for n in node.body if getattr(n, "name", None) == name]
        if not inside:
            return None
        node = inside[0]
    return node


# --- API ------------------------------------------------------------------------------------------


def modules_of(name: str) -> list[str]:
    """The method's module, and those that the examples of its README import."""
    readme = (ROOT / name / "README.md").read_text(encoding="utf-8")
    imported = re.findall(rf"^\s*from {name} import ([\w, ]+)", readme, re.MULTILINE)
    named = {word.strip() for line in imported for word in line.split(",")}
    named |= set(re.findall(rf"^\s*from {name}\.(\w+) import", readme, re.MULTILINE))
    there = sorted(word for word in named - {"method"} if (ROOT / name / f"{word}.py").exists())
    return [f"{name}.{word}" for word in ["method", *there, "evaluate"]]


def shared_modules() -> list[str]:
    return [
        f"shared.{path.stem}" for path in sorted(ROOT.glob("shared/*.py")) if path.stem[0] != "_"
    ]


def api_page(name: str, modules: list[str]) -> str:
    parts = [f"# API of {name}\n"]
    parts += [
        f"## {module}\n\n::: {module}\n    options:\n      heading_level: 3\n" for module in modules
    ]
    return "\n".join(parts)


# --- the build ------------------------------------------------------------------------------------


def tools(root: Path) -> Path:
    """The Python of .venv-docs, which is made where requirements-docs.txt has changed."""
    wanted = root / "requirements-docs.txt"
    mark, python = root / ".venv-docs" / "made-from", root / ".venv-docs" / "bin" / "python"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if not (mark.exists() and mark.read_text(encoding="utf-8") == digest):
        subprocess.run([sys.executable, "-m", "venv", "--clear", root / ".venv-docs"], check=True)
        install: list[str | Path] = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            wanted,
        ]
        subprocess.run([python, *install], check=True)
        write_text(mark, digest)
    return python


def build(python: Path, out: Path) -> None:
    """The site in `out`; an unknown link or heading stops it."""
    place = ROOT / ".cache" / "site"
    shutil.rmtree(place, ignore_errors=True)
    nav = gather(place / "pages")
    handlers = {"python": {"paths": [str(ROOT)]}}
    config = {
        "INHERIT": str(ROOT / "docs" / "mkdocs.yml"),
        "docs_dir": str(place / "pages"),
        "site_dir": str(out.resolve()),
        "nav": nav,
        "plugins": {"mkdocstrings": {"handlers": handlers}},
    }
    write_text(place / "mkdocs.yml", yaml.safe_dump(config, sort_keys=False))
    command: list[str | Path] = [
        python,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--clean",
        "-f",
        place / "mkdocs.yml",
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    subprocess.run(command, check=True, env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.site", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="(default: site/)")
    parser.add_argument("--python", type=Path, help="one that has mkdocs (default: .venv-docs)")
    parser.add_argument("--gather", type=Path, metavar="DIR", help="write the pages there, no site")
    options = parser.parse_args()
    try:
        if options.gather:
            gather(options.gather)
            print(options.gather)
            return 0
        build(options.python or tools(ROOT), options.out)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        print("  remedy:  see above; without a network, PIP_* may name a folder", file=sys.stderr)
        return 2
    print(options.out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
