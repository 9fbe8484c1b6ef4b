"""The drawing of a method: its levels, what flows between them, what each sees of the data.

    python -m benchmarks.drawings                  writes <dir>/pictures/method.svg of every paper
    python -m benchmarks.drawings autolora         of this one

What is drawn stands in `<dir>/drawing.yaml` (`Drawing`); nothing else knows a paper. The file has
colours for light pages and dark, the report takes the same SVG in its own colours.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
import textwrap
from pathlib import Path

from pydantic import Field

from benchmarks import PAPERS, ROOT
from benchmarks.plots import Picture
from benchmarks.recorded import write_text
from benchmarks.verdict_pictures import alone
from shared.protocol import BadInput, Document, load_yaml, read_as, unknown

WIDTH, MARGIN, DATA, GAP = 760, 8, 190, 34  # CSS pixels; DATA: width of the boxes on the left
LINE, SMALL = 18, 15  # heights of lines
LETTER, NARROW = 7.0, 6.3  # mean widths of a letter at the two sizes
LONG = 96  # room on the right for what passes straight from the first level to the last


class Level(Document):
    """A box. `_x` or `_{xy}` is set as an index."""

    name: str
    does: str
    sees: str = ""  # of the data; empty: nothing
    down: str = ""  # what it hands to the next box
    up: str = ""  # what it gets from there


class Drawing(Document):
    """drawing.yaml."""

    alt: str = Field(min_length=40)  # the drawing in words, for those who do not see it
    levels: list[Level] = Field(min_length=1)
    straight: str = ""  # what goes from the first level to the last
    returns: str = ""  # and from the last to the first
    end: Level | None = None  # what is left when the levels have done
    note: str = ""  # below


def read(directory: Path) -> Drawing | None:
    """`directory`/drawing.yaml; None where the paper has no drawing."""
    path = directory / "drawing.yaml"
    name = f"{directory.name}/drawing.yaml"
    return read_as(Drawing, load_yaml(path, name), name) if path.exists() else None


# --- the parts of the picture ---------------------------------------------------------------------


def written(text: str) -> str:
    """Text with its indices lowered."""
    parts = re.split(r"_(?:\{([^}]+)\}|(\w+))", text)
    made = html.escape(parts[0])
    for long, short, rest in zip(parts[1::3], parts[2::3], parts[3::3]):
        index = html.escape(long or short)
        made += f'<tspan dy="4" font-size="72%">{index}</tspan><tspan dy="-4">&#8203;'
        made += f"{html.escape(rest)}</tspan>"
    return made


def lines_of(text: str, width: float, letter: float) -> list[str]:
    return textwrap.wrap(text, max(8, int(width / letter)))


def words(
    x: float, y: float, lines: list[str], css: str = "", anchor: str = "start", step: int = LINE
) -> str:
    """Lines of text, the first on the baseline y."""
    look = f' style="{css}"' if css else ""
    return "".join(
        f'<text x="{x:g}" y="{y + i * step:g}" text-anchor="{anchor}"{look}>{written(line)}</text>'
        for i, line in enumerate(lines)
    )


def box(x: float, y: float, width: float, height: float, css: str, round_by: int = 7) -> str:
    size = f'width="{width:g}" height="{height:g}" rx="{round_by}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} style="{css}"/>'


def arrow(points: list[tuple[float, float]], css: str) -> str:
    """A line through the points with a head at the last one."""
    (x0, y0), (x, y) = points[-2:]
    along = max(abs(x - x0), abs(y - y0))
    ux, uy = (x - x0) / along, (y - y0) / along
    head = [
        (x, y),
        (x - 8 * ux - 4 * uy, y - 8 * uy + 4 * ux),
        (x - 8 * ux + 4 * uy, y - 8 * uy - 4 * ux),
    ]
    path = " L".join(f"{a:g} {b:g}" for a, b in [*points[:-1], (x - 6 * ux, y - 6 * uy)])
    triangle = " ".join(f"{a:g},{b:g}" for a, b in head)
    line = f'<path d="M{path}" style="fill:none;stroke:{css};stroke-width:1.6"/>'
    return f'{line}<polygon points="{triangle}" style="fill:{css}"/>'


def draw(drawing: Drawing) -> str:
    """SVG whose colours are those of the page around it."""
    right = WIDTH - MARGIN - (LONG if drawing.straight or drawing.returns else 0)
    left = MARGIN + DATA + GAP
    wide = right - left
    middle = left + wide / 2
    parts: list[str] = []
    edges: list[tuple[float, float]] = []  # top and bottom of the boxes
    y: float = MARGIN
    boxes = [*drawing.levels, *([drawing.end] if drawing.end else [])]
    for place, level in enumerate(boxes):
        last = level is drawing.end
        does = lines_of(level.does, wide - 28, NARROW)
        sees = lines_of(level.sees, DATA - 24, NARROW)
        height = max(24 + LINE + SMALL * len(does), 22 + SMALL * len(sees) if sees else 0)
        tone = "var(--neutral)" if last else "var(--for)"
        dashes = ";stroke-dasharray:5 4" if last else ""
        parts += [
            box(left, y, wide, height, f"fill:none;stroke:{tone};stroke-width:1.8{dashes}"),
            words(left + 14, y + 23, [level.name], "font-size:14.5px;font-weight:600"),
            words(left + 14, y + 43, does, "font-size:12.5px", step=SMALL),
        ]
        if sees:
            high = 18 + SMALL * len(sees)
            top = y + (height - high) / 2
            parts += [
                box(MARGIN, top, DATA, high, "fill:none;stroke:var(--neutral)", 14),
                words(MARGIN + DATA / 2, top + 20, sees, "font-size:12.5px", "middle", SMALL),
                arrow([(MARGIN + DATA, y + height / 2), (left, y + height / 2)], "var(--neutral)"),
            ]
        edges.append((y, y + height))
        y += height
        if place + 1 < len(boxes):
            down = lines_of(level.down, wide / 2 - 44, NARROW)
            up = lines_of(level.up, wide / 2 - 44, NARROW)
            room = max(38, 18 + SMALL * max(len(down), len(up)))
            ink, first = "font-size:12.5px;fill:var(--neutral)", y + room / 2 + 4
            if down or boxes[place + 1] is drawing.end:
                parts.append(arrow([(left + 22, y), (left + 22, y + room)], "var(--for)"))
                at = first - SMALL * (len(down) - 1) / 2
                parts.append(words(left + 34, at, down, ink, step=SMALL))
            if up:
                parts.append(arrow([(middle + 22, y + room), (middle + 22, y)], "var(--against)"))
                at = first - SMALL * (len(up) - 1) / 2
                parts.append(words(middle + 34, at, up, ink, step=SMALL))
            y += room
    (top, under), (over, bottom) = edges[0], edges[len(drawing.levels) - 1]
    begin, end = (top + under) / 2, (over + bottom) / 2
    long = [(drawing.straight, "var(--for)", begin, end)] if drawing.straight else []
    long += [(drawing.returns, "var(--against)", end + 10, begin + 10)] if drawing.returns else []
    for i, (said, tone, start, stop) in enumerate(long):
        x = right + 16 + 16 * i
        parts.append(arrow([(right, start), (x, start), (x, stop), (right, stop)], tone))
        lines = lines_of(said, right + LONG - x - 14, NARROW)
        at = (begin + end) / 2 + (i - (len(long) - 1) / 2) * 2 * LINE
        at -= SMALL * (len(lines) - 1) / 2
        ink, beside = "font-size:12.5px;fill:var(--neutral)", right + 8 + 16 * len(long) + 8
        parts.append(words(beside, at, lines, ink, step=SMALL))
    if note := lines_of(drawing.note, WIDTH - 2 * MARGIN, NARROW):
        parts.append(
            words(MARGIN, y + 24, note, "font-size:12.5px;fill:var(--neutral)", step=SMALL)
        )
        y += 12 + SMALL * len(note)
    alt = html.escape(drawing.alt, quote=True)
    head = f'<svg viewBox="0 0 {WIDTH} {y + MARGIN:g}" role="img" aria-label="{alt}">'
    return f'{head}<g style="fill:currentColor">{"".join(parts)}</g></svg>'


def picture(directory: Path) -> Picture | None:
    """As the report's page of the paper places it."""
    drawing = read(directory)
    if drawing is None:
        return None
    caption = "Blue: handed down. Orange: handed back. On the left, what each sees of the data."
    return Picture("method", draw(drawing), caption, drawing.alt, WIDTH)


def write(directory: Path) -> list[Path]:
    """`directory`/pictures/method.svg out of its drawing.yaml; nothing where it has none."""
    drawing = read(directory)
    if drawing is None:
        return []
    path = directory / "pictures" / "method.svg"
    path.parent.mkdir(exist_ok=True)
    write_text(path, alone(draw(drawing), WIDTH))
    return [path]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drawings", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("papers", nargs="*", metavar="paper")
    try:
        for name in parser.parse_args().papers or PAPERS:
            if name not in PAPERS:
                raise unknown(name, PAPERS, "papers")
            for path in write(ROOT / name):
                print(path.relative_to(ROOT))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
