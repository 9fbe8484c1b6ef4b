"""The figures that every paper's page has, and the way from a matplotlib figure to inline SVG.

An SVG of ours carries no colour of its own for ink, grid and verdicts: it is drawn with the stand-ins below, which
`to_svg` replaces by `currentColor` and CSS variables, so that one file is readable in light, dark and print. Text stays
text (the page's font). Figures are drawn at about 420 CSS pixels, the width of a telephone, and tile on wide screens.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import readme

# Stand-in colour -> CSS. Odd values, so that a colour chosen by a method's own figure never collides with one of them;
# each is also readable by itself, on white as on black, should a viewer ignore the style sheet.
INK, FAINT = "#7b7b7d", "#8f8f91"
FOR, AGAINST, NEUTRAL = "#2f7fc1", "#c9631f", "#7f8489"
STAND_INS = {
    INK: "currentColor",
    FAINT: "var(--line)",
    FOR: "var(--for)",
    AGAINST: "var(--against)",
    NEUTRAL: "var(--neutral)",
}

# After Okabe and Ito, darkened or lightened to at least 3:1 against white and against the dark page.
CYCLE = ["#1f83c4", "#d0641b", "#109c77", "#c06a99", "#a98310", "#7f77d8", "#4f9fb8", "#8b8b8b"]
DASHES: list[Any] = ["-", (0, (4, 1.6)), (0, (1.2, 1.4))]
WIDTH = 4.4  # inches; 422 CSS pixels


@dataclass(frozen=True)
class Picture:
    """A figure as the templates place it. `svg` is trusted markup; caption and alt are plain text."""

    name: str
    svg: str
    caption: str
    alt: str
    width: int  # natural width in CSS pixels


@contextmanager
def style() -> Iterator[None]:
    """Defaults under which our figures and those of the methods are drawn."""
    rc: Any = {
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",  # measured with this (wide) font, shown with the page's: nothing overlaps
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.labelsize": 8.5,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "lines.linewidth": 1.4,
        "grid.color": FAINT,
        "grid.linewidth": 0.5,
        "axes.prop_cycle": cycler(color=CYCLE),
        "image.cmap": "cividis",  # the same to colour-blind eyes, and legible on both pages
    }
    for name in (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    ):
        rc[name] = INK
    with matplotlib.rc_context(rc):
        yield


def to_svg(figure: Figure, alt: str, key: str) -> tuple[str, int]:
    """(inline SVG, natural width in CSS pixels). The same figure and key give the same bytes.

    `key` is unique in a page: it salts and prefixes the ids, so that clip paths of two figures never meet.
    """
    buffer = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    salted: Any = {"svg.hashsalt": key, "svg.fonttype": "none"}
    with matplotlib.rc_context(salted):
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.03,
            metadata=empty,
            transparent=True,
        )
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
        raise ValueError(
            f"figure {key}: matplotlib wrote an SVG without a viewBox; update the pin of matplotlib"
        )
    width = round(float(box[1]) * 96 / 72)
    opening = f'<svg viewBox="0 0 {box[1]} {box[2]}" role="img" aria-label="{html.escape(alt)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    return re.sub(r"\n\s*", "\n", svg).strip(), width


def picture(figure: Figure, name: str, caption: str, alt: str, key: str) -> Picture:
    svg, width = to_svg(figure, alt, key)
    return Picture(name, svg, caption, alt, width)


# --- the figures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the forest: paired differences d and what was made of them. Missing numbers are None."""

    label: str
    d: Sequence[float | None]
    effect: float | None
    ci95: Sequence[float | None] | None
    item_ci95: Sequence[float | None] | None
    threshold: float
    tone: str  # FOR, AGAINST or NEUTRAL
    failed: Sequence[bool]  # per seed: a run behind this d diverged
    material: float | None = None


def finite(values: Sequence[float | None] | None) -> list[float]:
    return [float(v) for v in values or [] if v is not None and math.isfinite(v)]


def forest(rows: Sequence[Row], unit: str) -> Figure:
    """Per row: a dot per seed, the t interval (thick), the item interval (thin), the threshold (dashed tick)."""
    with style():
        figure = Figure(figsize=(WIDTH, 0.5 + 0.66 * len(rows)))
        axes = figure.add_subplot()
        axes.axvline(0, color=FAINT, linewidth=0.7, zorder=0)
        seen = [0.0]
        for i, row in enumerate(rows):
            y = -float(i)
            seen += [row.threshold, *finite(row.d), *finite(row.ci95), *finite(row.item_ci95)]
            text = readme.number(row.effect, signed=True).replace("-", "−")
            text = text if row.effect is not None else "no result"
            axes.text(
                0,
                y + 0.4,
                row.label,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=8.5,
            )
            axes.text(
                1,
                y + 0.4,
                text,
                transform=axes.get_yaxis_transform(),
                va="center",
                ha="right",
                color=row.tone,
            )
            axes.plot(
                [row.threshold] * 2,
                [y - 0.4, y + 0.22],
                color=INK,
                linewidth=1,
                linestyle=(0, (2, 1.5)),
            )
            if row.material is not None:
                seen.append(row.material)
                axes.plot(
                    [row.material] * 2,
                    [y - 0.4, y + 0.22],
                    color=INK,
                    linewidth=0.8,
                    linestyle=(0, (0.8, 1.6)),
                )
            for value, failed in zip(row.d, row.failed, strict=False):
                if value is not None and math.isfinite(value):
                    axes.plot(
                        value,
                        y + 0.08,
                        "o",
                        markersize=4.6,
                        markerfacecolor="none" if failed else row.tone,
                        markeredgecolor=row.tone,
                        alpha=1 if failed else 0.75,
                    )
            bar(axes, row.ci95, y - 0.13, row.tone, 3.2)
            bar(axes, row.item_ci95, y - 0.28, row.tone, 1.1)
            if row.effect is not None and math.isfinite(row.effect):
                axes.plot(
                    row.effect,
                    y - 0.13,
                    "D",
                    markersize=4.5,
                    color=row.tone,
                    markeredgecolor=INK,
                    markeredgewidth=0.6,
                )
        spread = (max(seen) - min(seen)) or 1.0
        axes.set_xlim(min(seen) - 0.06 * spread, max(seen) + 0.06 * spread)
        axes.set_ylim(-len(rows) + 0.5, 0.55)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"difference, {unit}")
    return figure


def bar(
    axes: Axes, interval: Sequence[float | None] | None, y: float, color: str, width: float
) -> None:
    ends = finite(interval)
    if len(ends) == 2:
        axes.plot(ends, [y, y], color=color, linewidth=width, solid_capstyle="butt")


def strips(arms: Sequence[tuple[str, str, Sequence[tuple[float, bool]]]], label: str) -> Figure:
    """A row per arm: (name, tone, [(score, diverged)] in order of seeds); a tick at the mean."""
    with style():
        figure = Figure(figsize=(WIDTH, 0.55 + 0.24 * len(arms)))
        axes = figure.add_subplot()
        means = [sum(v for v, _ in points) / len(points) for _, _, points in arms if points]
        usual = [v for _, _, points in arms for v, diverged in points if not diverged] + means
        low, high = min(usual), max(usual)
        margin = 0.05 * (high - low) or 1.0
        axes.set_xlim(low - 3 * margin, high + margin)
        for i, (_, tone, points) in enumerate(arms):
            axes.axhline(-i, color=FAINT, linewidth=0.5, zorder=0)
            for k, (value, diverged) in enumerate(points):
                # The place within the row is the seed's rank, the same in all rows: a bad seed shows as a line of points.
                y = -i + 0.22 - 0.44 * (k / (len(points) - 1) if len(points) > 1 else 0.5)
                if diverged and value < low - margin:
                    # A collapse to chance would squeeze all else into a corner: it stands at the edge with its value.
                    axes.plot(low - 2.4 * margin, y, "x", markersize=4.5, color=tone)
                    axes.text(
                        low - 1.9 * margin, y, f"{value:.3g}", va="center", fontsize=7.5, color=tone
                    )
                else:
                    axes.plot(
                        value, y, "x" if diverged else "o", markersize=3.8, color=tone, alpha=0.85
                    )
            if points:
                mean = sum(v for v, _ in points) / len(points)
                axes.plot([mean, mean], [-i - 0.36, -i + 0.36], color=INK, linewidth=1.6)
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
    """A line per work: (name, mark -> plain steps, range of ours over rounds), logarithmic; the name stands above its line."""
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
                    axes.plot(
                        value,
                        -i,
                        shape,
                        color=colour,
                        markersize=size,
                        linestyle="none",
                        label=label,
                    )
        seen = [v for _, values, _ in works for v in values.values() if v is not None]
        ticks = [t for t in (0.5, 1, 2, 3, 5, 10, 20, 40) if min(seen) / 2 < t < max(seen) * 2]
        axes.set(xscale="log", xlabel="one step / one plain step", ylim=(-len(works) + 0.5, 0.7))
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        height = figure.get_figheight()
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.45 / height * 1.2),
            ncols=2,
            handletextpad=0.3,
            columnspacing=1,
        )
    return figure


def curves(arms: dict[str, list[list[tuple[float, float]]]], label: str, bins: int = 40) -> Figure:
    """arm -> one curve [(step, value)] per seed. Line: mean over seeds of the values in each of 40 bins of steps."""
    with style():
        figure = Figure(figsize=(WIDTH, 2.5 + 0.15 * math.ceil(len(arms) / 3)))
        axes = figure.add_subplot()
        last = max(
            (step for seeds in arms.values() for curve in seeds for step, _ in curve), default=0.0
        )
        width = max(last, 1.0) / bins
        for i, (arm, seeds) in enumerate(arms.items()):
            sums: dict[int, list[float]] = {}
            for curve in seeds:
                for step, value in curve:
                    sums.setdefault(min(int(step / width), bins - 1), []).append(value)
            xs = [(b + 0.5) * width for b in sorted(sums)]
            ys = [sum(sums[b]) / len(sums[b]) for b in sorted(sums)]
            few = "o" if len(xs) < 3 else None
            axes.plot(
                xs,
                ys,
                color=CYCLE[i % 8],
                linestyle=DASHES[i // 8 % 3],
                marker=few,
                markersize=3,
                label=arm,
            )
        axes.grid(axis="y")
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.45, -0.2),
            ncols=3,
            handlelength=1.8,
            columnspacing=1.0,
        )
    return figure
