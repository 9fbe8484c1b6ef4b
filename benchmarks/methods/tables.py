"""From measured costs of the methods to what slowed down, the table of README.md and its figure.

    python -m benchmarks.methods.tables     write table and figure from the committed result, without measuring

A result is {machine, versions, papers: {paper: {rows: {name: {ratio, lowest, highest, memory, ...}}, peak_megabytes, ...}}}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.blocks import update_readme
from benchmarks.words import cell, table

ROOT = Path(__file__).parents[2]
RESULT = Path("benchmarks/methods/results/cpu.json")
FIGURE = RESULT.with_name("speed.svg")
NOISE = 0.10  # two recordings of one step differ by less, on a machine that others use too
OF_BOUNDS = 0.05  # how far the bounds themselves can be trusted
NOTHING = "Nothing is recorded yet: `make bench` measures."


def bounds() -> dict[str, list[dict[str, Any]]]:
    bounds = yaml.safe_load(Path(__file__).with_name("bounds.yaml").read_text(encoding="utf-8"))
    return dict(bounds)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"papers": {}}


def normalised(found: Any, source: str) -> dict[str, dict[str, Any]]:
    """Rows of a script's JSON: name -> a dict with `ratio`; a bare number is a ratio."""
    rows = found.get("rows", found) if isinstance(found, dict) else None
    if not isinstance(rows, dict) or not rows:
        raise ValueError(
            f"{source} holds no rows; a script writes {{'rows': {{name: {{'ratio': ...}}}}}}"
        )
    rows = {name: row if isinstance(row, dict) else {"ratio": row} for name, row in rows.items()}
    for name, row in rows.items():
        if not isinstance(row.get("ratio"), int | float) or not row["ratio"] > 0:
            raise ValueError(
                f"{source}: row {name!r} has ratio {row.get('ratio')!r}; it must be above 0"
            )
    return rows


def regressions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What takes more of a plain step than in the committed result, beyond noise; and what is not measured any more."""
    lines = []
    for paper, now in new["papers"].items():
        before = old["papers"].get(paper, {}).get("rows", {})
        for name, row in before.items():
            own = now["rows"].get(name)
            if own is None:
                lines.append(
                    f"{paper}: {name}: recorded ({row['ratio']:.2f}) but not measured any more"
                )
                continue
            for what, word in (("ratio", "slower"), ("memory", "more memory")):
                if row.get(what) and own.get(what) and own[what] / row[what] - 1 > NOISE:
                    lines.append(
                        f"{paper}: {name}: {word} by {own[what] / row[what] - 1:.0%} "
                        f"({own[what]:.2f} plain steps, recorded {row[what]:.2f})"
                    )
    return lines


def missing(result: Mapping[str, Any]) -> list[str]:
    """Rows that bounds.yaml names and the measured papers lack."""
    return [
        f"bounds.yaml: {paper} has no row {name!r}; it has {', '.join(result['papers'][paper]['rows'])}"
        for paper, works in bounds().items()
        if paper in result["papers"]
        for name in dict.fromkeys(
            w[key] for w in works for key in ("row", "same_work", "over") if key in w
        )
        if name not in result["papers"][paper]["rows"]
    ]


def verdict(ratio: float, bound: Mapping[str, Any]) -> str:
    """`reached`: what our minimal loop reached, or the floor where none was measured."""
    limit = bound.get("reached", bound["floor"])
    if ratio < bound["floor"] * (1 - OF_BOUNDS):
        return "below the floor"
    if ratio <= limit:
        return "reached"
    if ratio <= limit * (1 + OF_BOUNDS):
        return "reached, within 5 %"
    if ratio > bound.get("official", float("inf")) * (1 + OF_BOUNDS):
        return "DEFECT: slower than official"
    return f"missed by {ratio / limit - 1:.0%}"


def works(
    result: Mapping[str, Any],
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(paper, bound, our row, row of the official way on the same work), {} for a row that was not measured.

    A bound with `over` was measured over another plain step: our ratios are divided by that row's."""
    for paper, listed in bounds().items():
        rows = result["papers"].get(paper, {}).get("rows", {})
        for bound in listed:
            ours = rows.get(bound["row"], {})
            if ours and (other := rows.get(bound.get("over"))):
                scaled = (k for k in ("ratio", "lowest", "highest") if k in ours)
                ours = ours | {k: ours[k] / other["ratio"] for k in scaled}
            yield paper, bound, ours, rows.get(bound.get("same_work"), {})


def speed_table(root: Path = ROOT) -> str:
    """Block `speed` of README.md."""
    result = load(root / RESULT)
    if not result["papers"]:
        return NOTHING
    shown = lambda row, key="ratio": f"{row[key]:.2f}" if row.get(key) else ""  # noqa: E731
    rows = []
    for paper, bound, ours, same in works(result):
        spread = f" [{ours['lowest']:.2f}, {ours['highest']:.2f}]" if "lowest" in ours else ""
        known = [
            f"{bound[key]:g}" if key in bound else "" for key in ("official", "reached", "floor")
        ]
        what = f"[{cell(paper)}]({paper}/README.md): {cell(bound['work'])}"
        said = verdict(ours["ratio"], bound) if ours else ""
        memory = [shown(ours, "memory"), shown(same, "memory")]
        rows.append([what, shown(ours) + spread or "NOT RUN", shown(same), *known, said, *memory])
    head = ["step / plain step", "ours", "official way, our code", "official, measured by us", "reached", "floor", "bound",
            "memory: ours", "memory: official way"]  # fmt: skip
    lacks = [
        f"{paper}: {bound['lacks']}" for paper, bound, _, _ in works(result) if "lacks" in bound
    ]
    peaks = ", ".join(f"{p} {x['peak_megabytes']:,.0f}" for p, x in result["papers"].items())
    commits = sorted({str(x["commit"])[:10] for x in result["papers"].values()})
    m, v = result["machine"], result["versions"]
    about = (
        f"Measured with `{result['command']}` on {m['cpu']}, {m['cores']} cores, one thread, Python {v['python']}, torch "
        f"{v['torch']}, commit {', '.join(f'`{c}`' for c in commits)}. *memory*: peak of torch's "
        f"allocator during a step over that of a plain step. Peak of the whole process, MB: {peaks}. What the official "
        f"code does on top of *official way*: {'; '.join(lacks)}."
    )
    picture = (
        f"![Cost of one step of each method in plain steps, ours beside the official algorithm, with the "
        f"bound reached by a minimal loop and the counted floor]({FIGURE})"
    )
    return "\n\n".join([table(head, rows, right=(1, 2, 3, 4, 5, 7, 8)), about, picture])


def figure(result: Mapping[str, Any], path: Path) -> None:
    """A line per work, logarithmic: ours with its range over rounds, official, reached, floor."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "speed", "svg.fonttype": "none", "font.size": 8})
    lines = [line for line in works(result) if line[2]]
    fig, ax = plt.subplots(figsize=(8, 0.9 + 0.33 * len(lines)))
    for y, (_, bound, ours, same) in enumerate(lines):
        ax.plot(
            [ours.get("lowest", ours["ratio"]), ours.get("highest", ours["ratio"])],
            [y, y],
            c="tab:blue",
            lw=1,
        )
        points = [
            ("ours", ours["ratio"], "o", "tab:blue"),
            ("official way, our code", same.get("ratio"), "D", "tab:orange"),
            ("official algorithm, our own measurement", bound.get("official"), "s", "tab:red"),
            ("reached by a minimal loop (bound)", bound.get("reached"), "|", "black"),
            ("floor, counted", bound["floor"], "|", "tab:green"),
        ]  # fmt: skip
        for label, x, marker, colour in points:
            if x is not None:
                size = 90 if marker == "|" else 20
                ax.scatter([x], [y], marker=marker, c=colour, s=size, label=label, zorder=3)
    ax.set_yticks(range(len(lines)), [f"{paper}: {bound['work']}" for paper, bound, _, _ in lines])
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="one step / one plain step (one CPU thread)")
    ticks = [1, 2, 3, 5, 10, 20, 40]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.grid(axis="x", lw=0.3)
    named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        named.values(), named, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.3, 1.0)
    )
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def write() -> None:
    """README.md (its block `speed`) and the figure, from the committed result."""
    result = load(ROOT / RESULT)
    if result["papers"]:
        figure(result, ROOT / FIGURE)
    print(
        "README.md:",
        "changed" if update_readme(ROOT / "README.md", {"speed": speed_table()}) else "as it was",
    )


if __name__ == "__main__":
    write()
