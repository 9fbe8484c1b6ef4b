"""Figures of a recorded result as files, for the README of a paper.

    python -m benchmarks.page_pictures dasgm collapse correlations
                                           writes dasgm/pictures/collapse.svg and correlations.svg

They are the figures of the paper's `figures.py` that the report shows, drawn from what is committed
(`results/cpu.json`, the records beside it). A file stands alone, on light pages and dark. A
recording draws those that are there anew.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from benchmarks import ROOT, plots, recorded
from benchmarks.verdict_pictures import alone
from shared.protocol import BadInput


def write(paper: str, names: list[str], scale: str) -> list[Path]:
    """The files. BadInput for a result or a figure that is not there."""
    result = recorded.recorded(ROOT / paper, scale)
    if result is None:
        raise BadInput(f"{paper} has no recorded result at scale {scale}; make record-{paper}")
    module = importlib.import_module(f"{paper}.figures")
    with plots.style():
        figures = module.figures(result.document(), {})
    made = {name: (alt, figure) for name, _, alt, figure in figures}
    written = []
    for name in names:
        if name not in made:
            raise BadInput(
                f"{paper}: no figure {name} from this result; it gives {', '.join(made)}"
            )
        alt, figure = made[name]
        with plots.style():
            svg, width = plots.to_svg(figure, alt, f"{paper}-{name}")
        path = ROOT / paper / "pictures" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(alone(svg, width), encoding="utf-8")
        written.append(path)
    pyplot.close("all")
    return written


def drawn(paper: str) -> list[str]:
    """Names of the figures that a README of this paper embeds: files here but the method's own."""
    files = (ROOT / paper / "pictures").glob("*.svg")
    return sorted(path.stem for path in files if path.stem != "method")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page_pictures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("paper")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--scale", default="cpu")
    options = parser.parse_args()
    matplotlib.use("Agg")
    try:
        for path in write(options.paper, options.names, options.scale):
            print(path.relative_to(ROOT))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
