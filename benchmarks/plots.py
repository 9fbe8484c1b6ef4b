"""The figures that every paper's page has, and the way from a matplotlib figure to inline SVG.

An SVG of ours carries no colour of its own for ink, grid and verdicts: it is drawn with the
stand-ins below, which `to_svg` replaces by `currentColor` and CSS variables, so that one file is
readable in light, dark and print. Text stays text (the page's font). Figures are drawn at about 420
CSS pixels, the width of a telephone, and tile on wide screens.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.arms import Point
from benchmarks.recorded import Numbers, finite
from benchmarks.words import number

# Stand-in colour -> CSS. Odd values, so that a colour of a method's own figure never collides with
# one of them; each is readable by itself, on white as on black, without the style sheet.
INK, FAINT = "#7b7b7d", "#8f8f91"
FOR, AGAINST, NEUTRAL = "#2f7fc1", "#c9631f", "#7f8489"
STAND_INS = {
    INK: "currentColor",
    FAINT: "var(--line)",
    FOR: "var(--for)",
    AGAINST: "var(--against)",
    NEUTRAL: "var(--neutral)",
}

# After Okabe and Ito, darkened or lightened to at least 3:1 against white and the dark page.
CYCLE = ["#1f83c4", "#d0641b", "#109c77", "#c06a99", "#a98310", "#7f77d8", "#4f9fb8", "#8b8b8b"]
DASHES: list[Any] = ["-", (0, (4, 1.6)), (0, (1.2, 1.4))]
WIDTH = 4.4  # inches; 422 CSS pixels


@dataclass(frozen=True)
class Picture:
    """A figure as the templates place it. `svg` is trusted markup, caption and alt plain text."""

    name: str
    svg: str
    caption: str
    alt: str
    width: int  # natural width in CSS pixels


def style() -> AbstractContextManager[None]:
    """Defaults under which our figures and those of the methods are drawn."""
    return matplotlib.style.context(Path(__file__).with_suffix(".mplstyle"))


def to_svg(figure: Figure, alt: str, key: str) -> tuple[str, int]:
    """(inline SVG, natural width in CSS pixels). The same figure and key give the same bytes.

    `key` is unique in a page: it salts and prefixes the ids, so that two figures never meet.
    """
    buffer = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    salted: Any = {"svg.hashsalt": key, "svg.fonttype": "none"}
    with matplotlib.rc_context(salted):
        tight: Any = {"bbox_inches": "tight", "pad_inches": 0.03, "transparent": True}
        figure.savefig(buffer, format="svg", metadata=empty, **tight)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9]", "-", key)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", svg)
    for stand_in, css in STAND_INS.items():
        svg = svg.replace(stand_in, css)
    box = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', svg)
    if box is None:
        raise ValueError(f"figure {key}: an SVG without a viewBox; update the pin of matplotlib")
    width = round(float(box[1]) * 96 / 72)
    opening = f'<svg viewBox="0 0 {box[1]} {box[2]}" role="img" aria-label="{html.escape(alt)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    return re.sub(r"\n\s*", "\n", svg).strip(), width


def picture(figure: Figure, name: str, caption: str, alt: str, key: str) -> Picture:
    svg, width = to_svg(figure, alt, key)
    return Picture(name, svg, caption, alt, width)


# --- the figures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the forest: paired differences d and what was made of them."""

    label: str
    d: Numbers
    effect: float | None
    ci95: Numbers | None
    item_ci95: Numbers | None
    threshold: float
    tone: str  # FOR, AGAINST or NEUTRAL
    failed: Sequence[bool]  # per seed: a run behind this d diverged
    material: float | None = None  # a mark of its own
    band: tuple[float, float] | None = None  # differences that would not matter


def forest(rows: Sequence[Row], unit: str, limits: tuple[float, float] | None = None) -> Figure:
    """Per row: a dot per seed, the t interval (thick), the item interval (thin), the threshold,
    and the band of what would not matter. `limits`: of the axis, where several figures share it."""
    with style():
        figure = Figure(figsize=(WIDTH, 0.5 + 0.66 * len(rows)))
        axes = figure.add_subplot()
        axes.axvline(0, color=FAINT, linewidth=0.7, zorder=0)
        for i, row in enumerate(rows):
            forest_row(axes, row, -float(i))
        values = [0.0]
        for row in rows:
            ends = [row.threshold, row.material, *row.d, *(row.ci95 or []), *(row.item_ci95 or [])]
            values += finite([*ends, *(row.band or [])])
        spread = (max(values) - min(values)) or 1.0
        margin = 0.06 * spread
        axes.set_xlim(limits or (min(values) - margin, max(values) + margin))
        axes.set_ylim(-len(rows) + 0.5, 0.55)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"difference, {unit}")
    return figure


def forest_row(axes: Axes, row: Row, y: float) -> None:
    effect = "no result" if row.effect is None else number(row.effect, signed=True)
    across: Any = {"transform": axes.get_yaxis_transform(), "va": "center"}
    axes.text(0, y + 0.4, row.label, fontsize=8.5, **across)
    axes.text(1, y + 0.4, effect.replace("-", "−"), ha="right", color=row.tone, **across)
    if row.band:
        (low, high), (bottom, top) = row.band, (y - 0.4, y + 0.22)
        axes.fill([low, high, high, low], [bottom, bottom, top, top], FAINT, lw=0, zorder=0.5)
    marks = [(row.threshold, 1.0, (2, 1.5)), (row.material, 0.8, (0.8, 1.6))]
    for value, width, dashes in marks:
        if value is not None:
            ends = [y - 0.4, y + 0.22]
            axes.plot([value] * 2, ends, color=INK, linewidth=width, linestyle=(0, dashes))
    for failed, face, alpha in ((False, row.tone, 0.75), (True, "none", 1.0)):
        pairs = zip(row.d, row.failed, strict=False)
        shown = finite([d for d, whether in pairs if bool(whether) is failed])
        look: Any = {"markerfacecolor": face, "markeredgecolor": row.tone, "alpha": alpha}
        axes.plot(shown, [y + 0.08] * len(shown), "o", markersize=4.6, **look)
    bar(axes, row.ci95, y - 0.13, row.tone, 3.2)
    bar(axes, row.item_ci95, y - 0.28, row.tone, 1.1)
    for x in finite([row.effect]):
        edge: Any = {"markeredgecolor": INK, "markeredgewidth": 0.6}
        axes.plot(x, y - 0.13, "D", markersize=4.5, color=row.tone, **edge)


def bar(axes: Axes, interval: Numbers | None, y: float, color: str, width: float) -> None:
    ends = finite(interval)
    if len(ends) == 2:
        axes.plot(ends, [y, y], color=color, linewidth=width, solid_capstyle="butt")


def strips(arms: Sequence[tuple[str, str, Sequence[Point]]], label: str) -> Figure:
    """A row per arm (name, tone, points in order of seeds); a tick at the mean."""
    with style():
        figure = Figure(figsize=(WIDTH, 0.55 + 0.24 * len(arms)))
        axes = figure.add_subplot()
        means = [fmean(point.value for point in points) for _, _, points in arms]
        usual = [p.value for _, _, points in arms for p in points if not p.diverged] + means
        low, high = min(usual), max(usual)
        margin = 0.05 * (high - low) or 1.0
        axes.set_xlim(low - 3 * margin, high + margin)
        for i, (_, tone, points) in enumerate(arms):
            axes.axhline(-i, color=FAINT, linewidth=0.5, zorder=0)
            placed: dict[str, list[tuple[float, float]]] = {}
            for k, (_, value, diverged) in enumerate(points):
                # The place within the row is the seed's rank, the same in all rows: a bad seed
                # shows as a line of points.
                y = -i + 0.22 - 0.44 * (k / (len(points) - 1) if len(points) > 1 else 0.5)
                mark = "x" if diverged else "o"
                if diverged and value < low - margin:
                    # A collapse to chance would squeeze all else into a corner: it stands at the
                    # edge with its value.
                    axes.plot(low - 2.4 * margin, y, mark, markersize=4.5, color=tone)
                    text: Any = {"va": "center", "fontsize": 7.5, "color": tone}
                    axes.text(low - 1.9 * margin, y, f"{value:.3g}", **text)
                else:
                    placed.setdefault(mark, []).append((value, y))
            for mark, places in placed.items():  # one artist: one for each point costs seconds
                axes.plot(*zip(*places), mark, markersize=3.8, color=tone, alpha=0.85)
            axes.plot([means[i]] * 2, [-i - 0.36, -i + 0.36], color=INK, linewidth=1.6)
        axes.set_yticks([-i for i in range(len(arms))], [name for name, _, _ in arms])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-len(arms) + 0.45, 0.55)
        axes.set_xlabel(label)
    return figure


SPEED_MARKS = (  # what a line of the speed figure shows: name, marker, colour
    ("ours", "o", FOR),
    ("official way, our code", "D", AGAINST),
    ("official, measured by us", "s", CYCLE[4]),
    ("reached (bound)", "|", INK),
    ("floor", "|", CYCLE[2]),
)


def speed(works: Sequence[tuple[str, dict[str, float | None], Sequence[float | None]]]) -> Figure:
    """A line per work: (name, mark -> plain steps, range of ours over rounds), logarithmic."""
    with style():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.4 * len(works)))
        axes = figure.add_subplot()
        for i, (name, values, ends) in enumerate(works):
            across = axes.get_yaxis_transform()
            axes.text(0, 0.36 - i, name, transform=across, va="center", fontsize=8)
            axes.axhline(-i, color=FAINT, linewidth=0.5, zorder=0)
            bar(axes, ends, -i, FOR, 1.4)
            for mark, shape, colour in SPEED_MARKS:
                if (value := values.get(mark)) is not None:
                    size = 9 if shape == "|" else 4.2
                    label = mark if mark not in axes.get_legend_handles_labels()[1] else None
                    look: Any = {"color": colour, "markersize": size, "linestyle": "none"}
                    axes.plot(value, -i, shape, label=label, **look)
        steps = [v for _, values, _ in works for v in values.values() if v is not None]
        ticks = [t for t in (0.5, 1, 2, 3, 5, 10, 20, 40) if min(steps) / 2 < t < max(steps) * 2]
        axes.set(xscale="log", xlabel="one step / one plain step", ylim=(-len(works) + 0.5, 0.7))
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        below = (0.5, -0.45 / figure.get_figheight() * 1.2)
        spaced: Any = {"ncols": 2, "handletextpad": 0.3, "columnspacing": 1}
        axes.legend(loc="upper center", bbox_to_anchor=below, **spaced)
    return figure


def curves(arms: dict[str, list[list[tuple[float, float]]]], label: str, bins: int = 40) -> Figure:
    """arm -> a curve [(step, value)] per seed. Line: mean over seeds in each bin of steps."""
    with style():
        figure = Figure(figsize=(WIDTH, 2.5 + 0.15 * math.ceil(len(arms) / 3)))
        axes = figure.add_subplot()
        steps = [step for seeds in arms.values() for curve in seeds for step, _ in curve]
        last = max(steps, default=0.0)
        width = max(last, 1.0) / bins
        for i, (arm, seeds) in enumerate(arms.items()):
            sums: dict[int, list[float]] = {}
            for curve in seeds:
                for step, value in curve:
                    sums.setdefault(min(int(step / width), bins - 1), []).append(value)
            xs = [(b + 0.5) * width for b in sorted(sums)]
            ys = [sum(sums[b]) / len(sums[b]) for b in sorted(sums)]
            look: Any = {"color": CYCLE[i % 8], "linestyle": DASHES[i // 8 % 3]}
            few = "o" if len(xs) < 3 else None
            axes.plot(xs, ys, marker=few, markersize=3, label=arm, **look)
        axes.grid(axis="y")
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        spaced: Any = {"ncols": 3, "handlelength": 1.8, "columnspacing": 1.0}
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), **spaced)
    return figure
