"""From the recorded JSON to the tables and the figure of shared/README.md.

python -m benchmarks.hypergradients.tables     write them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.blocks import update_readme
from benchmarks.words import table

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
README = ROOT / "shared" / "README.md"
FIGURE = ROOT / "shared" / "cost.svg"
# Passes of one bilevel step over those of a plain step (forward 1, backward 2): inner and outer
# gradient 6/3, and two probes of a forward each (hyperparameters outside), or of a forward and half
# a backward each (inside).
FLOOR = {"mlp": 8 / 3, "transformer": 8 / 3, "gated": 10 / 3}
TIME_TARGET, MEMORY_TARGET = 1.05, 1.15
GROUPS = {  # of the figure: marker and colour
    "ours": ("o", "tab:blue"),
    "by hand": ("x", "black"),
    "betty": ("s", "tab:orange"),
    "torchopt": ("^", "tab:green"),
    "higher": ("D", "tab:red"),
}

Rows = list[dict[str, Any]]


def load(device: str) -> dict[str, Any] | None:
    path = RESULTS / f"{device}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def by_kind(rows: Rows) -> dict[str, str]:
    """Name of an estimator -> its kind, plain steps first, then kind by kind; '~' if all failed."""
    kinds = {row["name"]: "~" for row in rows}
    kinds |= {row["name"]: row["kind"] for row in rows if "kind" in row}
    order = sorted(kinds, key=lambda name: (kinds[name] != "plain", kinds[name], name.lower()))
    return {name: kinds[name] for name in order}


def accuracy_table(rows: Rows) -> str:
    toys = sorted({row["toy"] for row in rows})
    kappa = {row["toy"]: row["kappa"] for row in rows if "kappa" in row}
    by = {(row["name"], row["toy"]): row for row in rows}

    def cells(row: dict[str, Any]) -> list[str]:
        if "failed" in row:
            return ["FAILED: " + row["failed"], "", ""]
        errors = [f"{row[key]:.1e}" for key in ("relative_error", "rescaled")]
        return [*errors, f"{row['cosine']:.6f}"]

    measures = ("error", "rescaled", "cosine")
    head = [f"kappa {kappa[toy]:.0f}: {measure}" for toy in toys for measure in measures]
    lines = [
        [name, kind.strip("~"), *(cell for toy in toys for cell in cells(by[name, toy]))]
        for name, kind in by_kind(rows).items()
    ]
    return table(["estimator", "kind", *head], lines)


def precision_table(rows: Rows) -> str:
    radii = list(rows[0]["errors"])
    lines = [
        [row["label"], *(f"{e:.1e}" for e in (*row["errors"].values(), row["default"]))]
        for row in rows
    ]
    return table(["precision", *(f"R = {radius}" for radius in radii), "default radius"], lines)


def cost_table(rows: Rows) -> str:
    models = list(dict.fromkeys(row["model"] for row in rows))
    by = {(row["name"], row["model"]): row for row in rows}

    def cells(row: dict[str, Any]) -> list[str]:
        if not row:
            return ["", ""]
        if "failed" in row:
            return ["FAILED: " + row["failed"], ""]
        if row["kind"] == "plain":
            return ["1", f"1 ({row['megabytes']:.0f} MB)"]
        low, *_, high = row["ratios"]
        return [f"{row['time']:.2f} [{low:.2f}, {high:.2f}]", f"{row['memory']:.2f}"]

    head = [f"{model}: {measure}" for model in models for measure in ("time", "memory")]
    lines = [
        [name, kind.strip("~")]
        + [cell for model in models for cell in cells(by.get((name, model), {}))]
        for name, kind in by_kind(rows).items()
    ]
    return table(["one bilevel step / one plain SGD step", "kind", *head], lines)


def targets_table(result: dict[str, Any]) -> str:
    """Each target beside what was measured."""
    ours, lines = "ours: FiniteDifference", []

    def add(what: str, value: float, limit: float, form: str = ".2f") -> None:
        reached = "reached" if value <= limit else "MISSED"
        lines.append([what, f"{value:{form}}", f"{limit:{form}}", reached])

    costs = {row["model"]: row for row in result["cost"] if row["name"] == ours and "time" in row}
    for model, floor in FLOOR.items():
        if model in costs:
            what = f"finite difference, {model}: time over the floor of {floor:.2f}"
            add(what, costs[model]["time"] / floor, TIME_TARGET)
    if "transformer" in costs:
        what = "finite difference, transformer: memory over plain SGD"
        add(what, costs["transformer"]["memory"], MEMORY_TARGET)
    for row in sorted(result["accuracy"], key=lambda row: row["toy"]):
        if row["name"] == "ours: ConjugateGradient(20)" and "failed" not in row:
            what = f"conjugate gradients, d = 20 iterations, toy {row['toy']}: relative error"
            add(what, row["relative_error"], 1e-10, ".0e")
    for row in result.get("precision", []):
        if row["label"] == "float32":
            what = "finite difference against forward mode, float32: relative error"
            add(what, row["default"], 1e-3, ".1e")
    chain = "three-level chain against full autograd, float64"
    lines.append([chain, "tests/shared/test_multilevel.py", "1e-08", "a test"])
    return table(["target", "measured", "limit", ""], lines)


def rivals_table(rows: Rows) -> str:
    """Our best row of each kind beside the best row of a peer, by time and by memory."""
    good = [row for row in rows if "failed" not in row]
    lines = []
    for model in dict.fromkeys(row["model"] for row in good):
        for kind in dict.fromkeys(row["kind"] for row in good):
            group = [row for row in good if row["model"] == model and row["kind"] == kind]
            ours = [row for row in group if row["name"].startswith("ours")]
            peers = [row for row in group if not row["name"].startswith(("ours", "by hand"))]
            if ours and peers:
                lines.append([model, kind, *_best(ours, peers, "time")])
                lines[-1] += _best(ours, peers, "memory")
    head = ["our time", "best peer's time", "our memory", "best peer's memory"]
    return table(["model", "kind", *head], lines)


def _best(ours: Rows, peers: Rows, measure: str) -> list[str]:
    a, b = (min(group, key=lambda row: row[measure]) for group in (ours, peers))
    return [f"{a[measure]:.2f}", f"{b[measure]:.2f} ({b['name']})"]


def about(result: dict[str, Any]) -> str:
    m = result["machine"]
    place = m.get("gpu") or f"{m['cpu']}, {m['cores']} cores, one thread"
    peers = ", ".join(f"{name} {m[name]}" for name in ("betty", "torchopt", "higher"))
    versions = f"Python {m['python']}, torch {m['torch']}; {peers}"
    return f"Measured with `{result['command']}` on {place}; {versions}."


def tables() -> dict[str, str]:
    cpu, cuda = load("cpu"), load("cuda")
    if cpu is None:
        remedy = "run python -m benchmarks.hypergradients.run --record first"
        raise FileNotFoundError(f"{RESULTS}/cpu.json: {remedy}")
    not_run = "NOT RUN: no CUDA device was in reach when this was recorded."
    return {
        "hypergradients-about": about(cpu),
        "hypergradients-targets": targets_table(cpu),
        "hypergradients-accuracy": accuracy_table(cpu["accuracy"]),
        "hypergradients-precision": precision_table(cpu["precision"]),
        "hypergradients-cost": cost_table(cpu["cost"]),
        "hypergradients-rivals": rivals_table(cpu["cost"]),
        "hypergradients-cuda": f"{about(cuda)}\n\n{cost_table(cuda['cost'])}" if cuda else not_run,
    }


def figure(rows: Rows) -> None:
    """Time against memory, one panel for each model, the floor as a line."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style: Any = {"svg.hashsalt": "hypergradients", "svg.fonttype": "none", "font.size": 8}
    matplotlib.rcParams.update(style)
    good = [row for row in rows if "failed" not in row and row["kind"] != "plain"]
    models = list(dict.fromkeys(row["model"] for row in good))
    fig, axes = plt.subplots(1, len(models), figsize=(4.2 * len(models), 4), squeeze=False)
    for ax, model in zip(axes[0], models):
        _panel(ax, [row for row in good if row["model"] == model])
        ax.axvline(FLOOR[model], ls="--", lw=0.8, c="grey")
        ax.axhline(1.0, ls="--", lw=0.8, c="grey")
        ax.set(title=model, xlabel="time / plain SGD step", ylabel="memory / plain SGD step")
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(*_ticks([row["time"] for row in good], (1, 2, 3, 5, 10, 20, 40)))
        ax.set_yticks(*_ticks([row["memory"] for row in good], (1, 2, 3, 5, 10, 20)))
        ax.minorticks_off()
    axes[0][0].legend(loc="upper left", fontsize=7)
    fig.tight_layout()
    fig.savefig(FIGURE, metadata={"Date": None})
    plt.close(fig)


def _panel(ax: Any, rows: Rows) -> None:
    for group, (marker, colour) in GROUPS.items():
        of_group = [row for row in rows if row["name"].startswith(group)]
        points = [row["time"] for row in of_group], [row["memory"] for row in of_group]
        ax.scatter(*points, marker=marker, c=colour, s=22, label=group)
    ours = [row for row in rows if row["name"].startswith("ours")]
    for i, row in enumerate(sorted(ours, key=lambda row: (row["memory"], row["time"]))):
        label = row["name"].removeprefix("ours: ").replace("FiniteDifference", "FD")
        place = {"xytext": (5, -7 if i % 2 else 4), "textcoords": "offset points"}
        ax.annotate(label, (row["time"], row["memory"]), fontsize=6, **place)


def _ticks(values: Sequence[float], ticks: Sequence[int]) -> tuple[list[int], list[str]]:
    shown = [tick for tick in ticks if tick < 1.3 * max(values)]
    return shown, [str(tick) for tick in shown]


def write() -> None:
    result = load("cpu")
    if result is not None:
        figure(result["cost"])
    print("changed" if update_readme(README, tables()) else "unchanged", README.relative_to(ROOT))


if __name__ == "__main__":
    write()
