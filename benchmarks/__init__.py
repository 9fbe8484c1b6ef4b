"""The judge: runs a paper's protocol, derives verdicts and reports them. Methods never import it.

A paper registers itself: `PAPERS` are the directories of this checkout that have a `paper.yaml`, in
the order that its line `order: 3` asks for. Its other lines are read by `benchmarks.papers`.
"""

import re
from pathlib import Path

import shared as shared  # first of all: it names a package that is not installed

ROOT = Path(__file__).resolve().parents[1]


def _order(file: Path) -> tuple[float, str]:
    """The line is searched, not parsed: importing the judge reads no YAML. Without one: last."""
    order = re.search(r"^order: (\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return float(order[1]) if order else float("inf"), file.parent.name


PAPERS = tuple(file.parent.name for file in sorted(ROOT.glob("*/paper.yaml"), key=_order))
