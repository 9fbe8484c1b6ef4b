"""From measured costs of the methods to what slowed down, the table of docs/speed.md, its figure.

    python -m benchmarks.methods.tables     table and figure from the committed result, unmeasured

A result is {machine, versions, papers: {paper: {rows: {name: {ratio, lowest, highest, memory,
...}}, peak_megabytes, ...}}}; the bounds beside it stand in each paper's paper.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import PAPERS, plots
from benchmarks.blocks import update_readme
from benchmarks.papers import Bound, paper
from benchmarks.words import cell, table

ROOT = Path(__file__).parents[2]
RESULT = Path("benchmarks/methods/results/cpu.json")
FIGURE = RESULT.with_name("speed.svg")
NOISE = 0.10  # two recordings of one step differ by less, on a machine that others use too
OF_BOUNDS = 0.05  # how far the bounds themselves can be trusted
NOTHING = "Nothing is recorded yet: `make bench` measures."


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"papers": {}}


def normalised(document: Any, source: str) -> dict[str, dict[str, Any]]:
    """Rows of a script's JSON: name -> a dict with `ratio`; a bare number is a ratio."""
    rows = document.get("rows", document) if isinstance(document, dict) else None
    if not isinstance(rows, dict) or not rows:
        raise ValueError(
            f"{source} holds no rows; a script writes {{'rows': {{name: {{'ratio': ...}}}}}}"
        )
    rows = {name: row if isinstance(row, dict) else {"ratio": row} for name, row in rows.items()}
    for name, row in rows.items():
        ratio = row.get("ratio")
        if not isinstance(ratio, int | float) or not ratio > 0:
            raise ValueError(f"{source}: row {name!r} has ratio {ratio!r}; it must be above 0")
    return rows


def regressions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What takes more of a plain step than in the committed result, and what is not measured."""
    lines = []
    for name, now in new["papers"].items():
        for work, before in old["papers"].get(name, {}).get("rows", {}).items():
            what, after = f"{name}: {work}", now["rows"].get(work)
            if after is None:
                lines.append(f"{what}: recorded ({before['ratio']:.2f}) but not measured any more")
                continue
            for key, word in (("ratio", "slower"), ("memory", "more memory")):
                if before.get(key) and after.get(key) and after[key] / before[key] - 1 > NOISE:
                    lines.append(
                        f"{what}: {word} by {after[key] / before[key] - 1:.0%} "
                        f"({after[key]:.2f} plain steps, recorded {before[key]:.2f})"
                    )
    return lines


def missing(result: Mapping[str, Any]) -> list[str]:
    """Rows that the bounds name and the measured papers lack."""
    lines = []
    for name, measured in result["papers"].items():
        bounds = paper(name).bounds if name in PAPERS else []
        named = (row for b in bounds for row in (b.row, b.same_work, b.over) if row)
        rows = measured["rows"]
        lines += [
            f"{name}/paper.yaml: bounds: {row!r} is not measured; measured: {', '.join(rows)}"
            for row in dict.fromkeys(named)
            if row not in rows
        ]
    return lines


def verdict(ratio: float, bound: Bound) -> str:
    """Where a ratio stands between floor, what a minimal loop reached, and the official step."""
    if ratio < bound.floor * (1 - OF_BOUNDS):
        return "below the floor"
    if ratio <= bound.limit:
        return "reached"
    if ratio <= bound.limit * (1 + OF_BOUNDS):
        return "reached, within 5 %"
    if bound.official and ratio > bound.official * (1 + OF_BOUNDS):
        return "DEFECT: slower than official"
    return f"missed by {ratio / bound.limit - 1:.0%}"


def works(result: Mapping[str, Any]) -> Iterator[tuple[str, Bound, dict[str, Any], dict[str, Any]]]:
    """(paper, bound, our row, row of the official way); {} for a row that was not measured.

    A bound with `over` was measured over another plain step: ours is divided by that row's ratio.
    """
    for name in PAPERS:
        rows = result["papers"].get(name, {}).get("rows", {})
        for bound in paper(name).bounds:
            ours = rows.get(bound.row, {})
            if ours and (other := rows.get(bound.over)):
                scaled = (k for k in ("ratio", "lowest", "highest") if k in ours)
                ours = ours | {k: ours[k] / other["ratio"] for k in scaled}
            yield name, bound, ours, rows.get(bound.same_work, {})


def lacks(result: Mapping[str, Any]) -> list[str]:
    """What the official code does on top of the official way in our code, paper by paper."""
    return [f"{name}: {bound.lacks}" for name, bound, _, _ in works(result) if bound.lacks]


def commits(result: Mapping[str, Any]) -> list[str]:
    return sorted({str(measured["commit"])[:10] for measured in result["papers"].values()})


def speed_table(root: Path = ROOT) -> str:
    """Block `speed` of docs/speed.md."""
    result = load(root / RESULT)
    if not result["papers"]:
        return NOTHING
    rows = [_line(*work) for work in works(result)]
    head = ["step / plain step", "ours", "official way, our code", "official, measured by us"]
    head += ["reached", "floor", "bound", "memory: ours", "memory: official way"]
    peaks = ", ".join(f"{p} {x['peak_megabytes']:,.0f}" for p, x in result["papers"].items())
    machine, versions = result["machine"], result["versions"]
    about = (
        f"Measured with `{result['command']}` on {machine['cpu']}, {machine['cores']} cores, "
        f"one thread, Python {versions['python']}, torch {versions['torch']}, commit "
        f"{', '.join(f'`{c}`' for c in commits(result))}. *memory*: peak of torch's "
        "allocator during a step over that of a plain step. Peak of the whole process, MB: "
        f"{peaks}. What the official code does on top of *official way*: "
        f"{'; '.join(lacks(result))}."
    )
    picture = (
        "![Cost of one step of each method in plain steps, ours beside the official algorithm, "
        f"with the bound reached by a minimal loop and the counted floor](../{FIGURE})"
    )
    return "\n\n".join([table(head, rows, right=(1, 2, 3, 4, 5, 7, 8)), about, picture])


def _line(name: str, bound: Bound, ours: Mapping[str, Any], same: Mapping[str, Any]) -> list[str]:
    def shown(value: float | None, form: str = ".2f") -> str:
        return f"{value:{form}}" if value else ""

    spread = f" [{ours['lowest']:.2f}, {ours['highest']:.2f}]" if "lowest" in ours else ""
    return [
        f"[{cell(name)}](../{name}/README.md): {cell(bound.work)}",
        shown(ours.get("ratio")) + spread or "NOT RUN",
        shown(same.get("ratio")),
        *(shown(value, "g") for value in (bound.official, bound.reached, bound.floor)),
        verdict(ours["ratio"], bound) if ours else "",
        shown(ours.get("memory")),
        shown(same.get("memory")),
    ]


SpeedLine = tuple[str, dict[str, float | None], list[float | None]]


def speed_lines(result: Mapping[str, Any]) -> list[SpeedLine]:
    """What `plots.speed` draws, for each work that was measured: its name, mark -> plain steps, and
    the range of ours over rounds."""
    marks = [name for name, *_ in plots.SPEED_MARKS]
    lines: list[SpeedLine] = []
    for name, bound, ours, same in works(result):
        if ours:
            bounds = (bound.official, bound.reached, bound.floor)
            values = dict(zip(marks, (ours["ratio"], same.get("ratio"), *bounds), strict=True))
            ends = [ours.get("lowest"), ours.get("highest")]
            lines.append((f"{name}: {bound.work}", values, ends))
    return lines


def figure(result: Mapping[str, Any], path: Path) -> None:
    """The report's figure as a file by itself; the same bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "speed", "svg.fonttype": "none"}):
        drawing = plots.speed(speed_lines(result))
        drawing.savefig(path, bbox_inches="tight", metadata={"Date": None})


def write() -> None:
    """docs/speed.md (its block `speed`) and the figure, from the committed result."""
    result = load(ROOT / RESULT)
    if result["papers"]:
        figure(result, ROOT / FIGURE)
    changed = update_readme(ROOT / "docs" / "speed.md", {"speed": speed_table()})
    print("docs/speed.md:", "changed" if changed else "as it was")


if __name__ == "__main__":
    write()
