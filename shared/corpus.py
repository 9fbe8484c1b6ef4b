"""The documentation corpus: prose of the docstrings of the installed scientific packages."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import re
import warnings
from pathlib import Path

from shared.sources import MissingInput

PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "transformers": "transformers",
}
# Written by the build or the installer, or there only for some Pythons.
_BUILT = re.compile(
    r"(^|/)(_?version|__config__|_distributor_init\w*|_built_with_meson|_build_config|_init_local)"
    r"\.py$|^numpy/distutils/"
)
_SKIPPED_FOLDERS = {"tests", "testing", "_internal", "__pycache__"}
MIN_CHARACTERS = 50

# Prose ends where the first section, field list, example or directive begins.
_SECTION_NAMES = (
    "parameters?|params|args?|arguments|keyword args|keyword arguments|other parameters|returns?|"
    "yields?|raises|see also|notes?|examples?|example usage|usage|references|attributes|methods|"
    "warns|warnings?|shape|inputs?|outputs?"
)
_SECTION = re.compile(
    rf"^[ \t]*(?:(?:{_SECTION_NAMES})[ \t]*\n[ \t]*[-=~]{{3,}}"
    rf"|(?:{_SECTION_NAMES})[ \t]*:{{1,2}}[ \t]*$"
    r"|:(?:param|return|type|rtype)|>>> |\.\. |@|```)",
    re.MULTILINE | re.IGNORECASE,
)


def near(text: str) -> str:
    """Equal for near duplicates: lower case, no digits, words and signs only."""
    return re.sub(r"[\d\s]+", "", text.lower())


@functools.cache
def load() -> tuple[list[tuple[str, str]], str]:
    """(module, text) of the whole corpus, and its sha256."""
    from shared import runs  # torch: not for who only asks where a folder is

    corpus = list(map(tuple, runs.cached(("documentation corpus",), _harvest, noted=False)))
    return corpus, hashlib.sha256(json.dumps(corpus, ensure_ascii=True).encode()).hexdigest()


def _harvest() -> list[tuple[str, str]]:
    """Prose of all docstrings of PACKAGES, one text per near-duplicate key, by file and line."""
    print("reading the documentation corpus from the installed packages (35 s, once)", flush=True)
    corpus: dict[str, tuple[str, str]] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            remedy = "remedy:  pip install -r requirements.txt"
            raise MissingInput(f"package {package} is not installed\n  {remedy}")
        root = Path(spec.submodule_search_locations[0])
        names = {path.relative_to(root.parent).as_posix(): path for path in root.rglob("*.py")}
        for name in sorted(names):
            if _BUILT.search(name) or _SKIPPED_FOLDERS & set(name.split("/")):
                continue
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for docstring in docstrings(names[name].read_text("utf-8", errors="replace")):
                text = prose(docstring)
                if len(text) >= MIN_CHARACTERS:
                    corpus.setdefault(near(text), (module, text))
    return list(corpus.values())


def docstrings(source: str) -> list[str]:
    """Docstrings of a file in order of their place; one that this Python cannot parse has none."""
    if '"""' not in source and "'''" not in source:
        return []
    try:
        with warnings.catch_warnings(action="ignore"):  # other people's escape sequences
            waiting: list[ast.AST] = [ast.parse(source)]
    except SyntaxError:
        return []
    texts = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            texts.append(ast.get_docstring(node) or "")
        # expressions hold no docstrings: walking statements alone is several times faster
        children = [
            n for n in ast.iter_child_nodes(node) if isinstance(n, (ast.stmt, ast.excepthandler))
        ]
        waiting += reversed(children)
    return [text for text in texts if text]


def prose(docstring: str) -> str:
    """What stands before the first section of a docstring, on one line."""
    return re.sub(r"\s+", " ", _SECTION.split(docstring, maxsplit=1)[0]).strip()
