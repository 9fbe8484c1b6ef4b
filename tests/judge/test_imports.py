"""The judge's modules import one another downwards: none reaches itself again."""

from __future__ import annotations

import ast
from pathlib import Path


def imported(path: Path, root: Path) -> set[str]:
    """The judge's modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = str(node.module)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    files = {name: root.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    return {
        name for name, file in files.items() if name.startswith("benchmarks.") and file.exists()
    }


def test_no_module_of_the_judge_reaches_itself(root):
    files = sorted((root / "benchmarks").rglob("*.py"))
    names = {".".join(f.relative_to(root).with_suffix("").parts): f for f in files}
    below = {name: imported(file, root) for name, file in names.items()}
    reached = {name: set(modules) for name, modules in below.items()}
    for _ in names:  # as long as the longest chain can be
        for modules in reached.values():
            modules |= {name for module in list(modules) for name in below.get(module, ())}
    assert [name for name, modules in reached.items() if name in modules] == []
    assert "benchmarks.rules" in reached["benchmarks.reproduce"]  # the search finds something


def test_methods_never_import_the_judge(root):
    for folder in (root / "shared", *(file.parent for file in root.glob("*/protocol.yaml"))):
        for file in folder.rglob("*.py"):
            assert not imported(file, root), file
