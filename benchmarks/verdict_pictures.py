"""The pictures of docs/verdicts.md, in the report's own drawing: for, within, cannot tell.

    python -m benchmarks.verdict_pictures     writes docs/pictures/verdict-*.svg

Differences are made up. A picture stands alone: it brings its colours, for light pages and dark.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

from benchmarks import ROOT, plots
from benchmarks.rules import claim_verdict, evidence

MATERIAL = 1.0
LIMITS = (-2.4, 2.4)
CASES = {  # differences per seed, item interval
    "for": ((1.6, 1.2, 2.0, 1.5, 1.1, 1.7, 1.3, 1.9), (1.1, 2.0)),
    "within": ((0.25, -0.1, 0.15, 0.3, -0.05, 0.2, 0.1, -0.05), (-0.5, 0.7)),
    "cannot-tell": ((1.0, -1.9, 0.5, 1.5, -0.9, 1.6, 0.2, -0.4), (-0.7, 0.9)),
}
# Those of templates/style.css: ink, line, for, against, neutral.
LIGHT = ("#1d2126", "#dcdfe2", "#1668ab", "#b24a0c", "#62696f")
DARK = ("#e4e7ea", "#343a40", "#62aeee", "#f0975a", "#a3abb2")


def variables(colours: tuple[str, ...]) -> str:
    ink, line, *tones = colours
    named = zip(("for", "against", "neutral"), tones)
    return f"color:{ink};--line:{line};" + ";".join(f"--{name}:{tone}" for name, tone in named)


def draw(name: str) -> str:
    """A whole SVG file."""
    d, items = CASES[name]
    shown = evidence(d, 0.0, MATERIAL)
    holm = (shown.p_for, shown.p_against)  # the only claim: nothing to adjust for
    within = shown.p_within if shown.p_within is not None else 1.0
    word, _ = claim_verdict(shown, 0.0, holm, items, material=MATERIAL, p_holm_within=within)
    row = plots.Row(
        label="method − opponent",
        d=d,
        effect=shown.effect,
        ci95=shown.ci95,
        item_ci95=items,
        threshold=0.0,
        tone=plots.FOR if word == "SUPPORTED" else plots.NEUTRAL,
        failed=[False] * len(d),
        band=(-MATERIAL, MATERIAL),
    )
    alt = f"{word}: effect {shown.effect:+.2f} of {len(d)} seeds; the band is ±{MATERIAL:g}."
    figure = plots.forest([row], f"points: {word}", LIMITS)
    svg, width = plots.to_svg(figure, alt, f"verdict-{name}")
    return alone(svg, width)


def alone(svg: str, width: int) -> str:
    """What `plots.to_svg` gives, as a file: with its size, and colours for light pages and dark."""
    _, _, across, down = svg.split('"', 2)[1].split()  # of the viewBox
    height = round(width * float(down) / float(across))
    dark = f"@media (prefers-color-scheme:dark){{svg{{{variables(DARK)}}}}}"
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" '
    )
    css = f"<style>svg{{{variables(LIGHT)};font-family:sans-serif}}{dark}</style>"
    opening, rest = svg.removeprefix("<svg ").split(">", 1)
    return f"{head}{opening}>\n{css}{rest}\n"


def main() -> int:
    matplotlib.use("Agg")
    folder = ROOT / "docs" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        path: Path = folder / f"verdict-{name}.svg"
        path.write_text(draw(name), encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
