"""From the recorded JSON to the tables and the figure of shared/README.md.

python -m benchmarks.hypergradients.tables            write them
python -m benchmarks.hypergradients.tables --check    fail if the README holds something else
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.blocks import outdated, update_readme
from benchmarks.words import table

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
README = ROOT / "shared" / "README.md"
FIGURE = ROOT / "shared" / "cost.svg"
# Passes of one bilevel step over those of a plain step (forward 1, backward 2): inner and outer gradient 6/3, and two probes
# of a forward each (hyperparameters outside), or of a forward and half a backward each (inside).
FLOOR = {"mlp": 8 / 3, "transformer": 8 / 3, "gated": 10 / 3}
TIME_TARGET, MEMORY_TARGET = 1.05, 1.15


def load(device: str) -> dict[str, Any] | None:
    path = RESULTS / f"{device}.json"
    return json.loads(path.read_text()) if path.exists() else None


def accuracy_table(result: dict[str, Any]) -> str:
    conditions = sorted({row["toy"] for row in result["accuracy"]})
    by = {(row["name"], row["toy"]): row for row in result["accuracy"]}
    kappa = {
        c: next(r["kappa"] for r in result["accuracy"] if r["toy"] == c and "kappa" in r)
        for c in conditions
    }
    head = [
        "estimator",
        "kind",
        *(
            f"kappa {kappa[c]:.0f}: {what}"
            for c in conditions
            for what in ("error", "rescaled", "cosine")
        ),
    ]
    names = sorted(
        {row["name"] for row in result["accuracy"]},
        key=lambda n: (by[n, conditions[0]].get("kind", "~"), n.lower()),
    )
    rows = []
    for name in names:
        cells = [name, by[name, conditions[0]].get("kind", "")]
        for c in conditions:
            row = by[name, c]
            cells += (
                ["FAILED: " + row["failed"], "", ""]
                if "failed" in row
                else [
                    f"{row['relative_error']:.1e}",
                    f"{row['rescaled']:.1e}",
                    f"{row['cosine']:.6f}",
                ]
            )
        rows.append(cells)
    return table(head, rows)


def precision_table(result: dict[str, Any]) -> str:
    radii = list(result["precision"][0]["errors"])
    rows = [
        [r["label"], *(f"{r['errors'][x]:.1e}" for x in radii), f"{r['default']:.1e}"]
        for r in result["precision"]
    ]
    return table(["precision", *(f"R = {x}" for x in radii), "default radius"], rows)


def cost_table(result: dict[str, Any]) -> str:
    models = list(dict.fromkeys(row["model"] for row in result["cost"]))
    by = {(row["name"], row["model"]): row for row in result["cost"]}
    kinds = {row["name"]: row["kind"] for row in result["cost"] if "kind" in row}
    names = sorted(
        dict.fromkeys(row["name"] for row in result["cost"]),
        key=lambda n: (kinds.get(n, "~") != "plain", kinds.get(n, "~"), n.lower()),
    )
    rows = []
    for name in names:
        cells = [name, kinds.get(name, "")]
        for model in models:
            row = by.get((name, model))
            if row is None:
                cells += ["", ""]
            elif "failed" in row:
                cells += ["FAILED: " + row["failed"], ""]
            elif name == "plain SGD":
                cells += ["1", f"1 ({row['megabytes']:.0f} MB)"]
            else:
                cells += [
                    f"{row['time']:.2f} [{row['ratios'][0]:.2f}, {row['ratios'][-1]:.2f}]",
                    f"{row['memory']:.2f}",
                ]
        rows.append(cells)
    return table(
        [
            "one bilevel step / one plain SGD step",
            "kind",
            *(f"{m}: {x}" for m in models for x in ("time", "memory")),
        ],
        rows,
    )


def targets_table(result: dict[str, Any]) -> str:
    """Each target of the design beside what was measured."""
    cost = {(row["name"], row["model"]): row for row in result["cost"] if "failed" not in row}
    accuracy = {(row["name"], row["toy"]): row for row in result["accuracy"] if "failed" not in row}
    rows = []

    def add(what: str, value: float, limit: float, shown: str = "{:.2f}") -> None:
        rows.append(
            [
                what,
                shown.format(value),
                shown.format(limit),
                "reached" if value <= limit else "MISSED",
            ]
        )

    ours = "ours: FiniteDifference"
    for model, floor in FLOOR.items():
        if (ours, model) in cost:
            add(
                f"finite difference, {model}: time over the floor of {floor:.2f}",
                cost[ours, model]["time"] / floor,
                TIME_TARGET,
            )
    if (ours, "transformer") in cost:
        add(
            "finite difference, transformer: memory over plain SGD",
            cost[ours, "transformer"]["memory"],
            MEMORY_TARGET,
        )
    for toy in sorted({t for _, t in accuracy}):
        add(
            f"conjugate gradients, d = 20 iterations, toy {toy}: relative error",
            accuracy["ours: ConjugateGradient(20)", toy]["relative_error"],
            1e-10,
            "{:.0e}",
        )
    for row in result.get("precision", []):
        if row["label"] == "float32":
            add(
                "finite difference against forward mode, float32: relative error",
                row["default"],
                1e-3,
                "{:.1e}",
            )
    rows.append(
        [
            "three-level chain against full autograd, float64",
            "tests/test_multilevel.py",
            "1e-08",
            "a test",
        ]
    )
    return table(["target", "measured", "limit", ""], rows)


def rivals_table(result: dict[str, Any]) -> str:
    """Our best row of each kind beside the best row of a peer, by time and by memory."""
    rows = []
    good = [row for row in result["cost"] if "failed" not in row]
    for model in dict.fromkeys(row["model"] for row in good):
        for kind in dict.fromkeys(row["kind"] for row in good):
            group = [row for row in good if row["model"] == model and row["kind"] == kind]
            ours = [r for r in group if r["name"].startswith("ours")]
            peers = [r for r in group if not r["name"].startswith(("ours", "by hand"))]
            if not ours or not peers:
                continue
            cells = [model, kind]
            for what in ("time", "memory"):
                a, b = min(ours, key=lambda r: r[what]), min(peers, key=lambda r: r[what])
                cells += [f"{a[what]:.2f}", f"{b[what]:.2f} ({b['name']})"]
            rows.append(cells)
    return table(
        ["model", "kind", "our time", "best peer's time", "our memory", "best peer's memory"], rows
    )


def about(result: dict[str, Any]) -> str:
    m = result["machine"]
    place = m.get("gpu") or f"{m['cpu']}, {m['cores']} cores, one thread"
    peers = ", ".join(f"{k} {m[k]}" for k in ("betty", "torchopt", "higher"))
    return f"Measured with `{result['command']}` on {place}; Python {m['python']}, torch {m['torch']}; {peers}."


def tables() -> dict[str, str]:
    cpu, cuda = load("cpu"), load("cuda")
    if cpu is None:
        raise FileNotFoundError(
            f"{RESULTS}/cpu.json: run python -m benchmarks.hypergradients.run --record first"
        )
    found = {
        "hypergradients-about": about(cpu),
        "hypergradients-targets": targets_table(cpu),
        "hypergradients-accuracy": accuracy_table(cpu),
        "hypergradients-precision": precision_table(cpu),
        "hypergradients-cost": cost_table(cpu),
        "hypergradients-rivals": rivals_table(cpu),
        "hypergradients-cuda": "NOT RUN: no CUDA device was in reach when this was recorded.",
    }
    if cuda is not None:
        found["hypergradients-cuda"] = about(cuda) + "\n\n" + cost_table(cuda)
    return found


def figure(result: dict[str, Any]) -> None:
    """Time against memory, one panel for each model, the floor as a line."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update(
        {"svg.hashsalt": "hypergradients", "svg.fonttype": "none", "font.size": 8}
    )
    good = [row for row in result["cost"] if "failed" not in row and row["name"] != "plain SGD"]
    models = list(dict.fromkeys(row["model"] for row in good))
    groups = {
        "ours": ("o", "tab:blue"),
        "by hand": ("x", "black"),
        "betty": ("s", "tab:orange"),
        "torchopt": ("^", "tab:green"),
        "higher": ("D", "tab:red"),
    }
    fig, axes = plt.subplots(1, len(models), figsize=(4.2 * len(models), 4), squeeze=False)
    for ax, model in zip(axes[0], models):
        for group, (marker, colour) in groups.items():
            rows = [r for r in good if r["model"] == model and r["name"].startswith(group)]
            ax.scatter(
                [r["time"] for r in rows],
                [r["memory"] for r in rows],
                marker=marker,
                c=colour,
                s=22,
                label=group,
            )
            if group == "ours":
                for i, r in enumerate(sorted(rows, key=lambda r: (r["memory"], r["time"]))):
                    label = r["name"].removeprefix("ours: ").replace("FiniteDifference", "FD")
                    ax.annotate(
                        label,
                        (r["time"], r["memory"]),
                        xytext=(5, -7 if i % 2 else 4),
                        textcoords="offset points",
                        fontsize=6,
                    )
        ax.axvline(FLOOR[model], ls="--", lw=0.8, c="grey")
        ax.axhline(1.0, ls="--", lw=0.8, c="grey")
        ax.set(
            title=model,
            xlabel="time / plain SGD step",
            ylabel="memory / plain SGD step",
            xscale="log",
            yscale="log",
        )
        ticks = [t for t in (1, 2, 3, 5, 10, 20, 40) if t < 1.3 * max(r["time"] for r in good)]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ticks = [t for t in (1, 2, 3, 5, 10, 20) if t < 1.3 * max(r["memory"] for r in good)]
        ax.set_yticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
    axes[0][0].legend(loc="upper left", fontsize=7)
    fig.tight_layout()
    fig.savefig(FIGURE, metadata={"Date": None})
    plt.close(fig)


def write() -> None:
    result = load("cpu")
    if result is not None:
        figure(result)
    print("changed" if update_readme(README, tables()) else "unchanged", README.relative_to(ROOT))


if __name__ == "__main__":
    if "--check" in sys.argv:
        wrong = outdated(README, tables())
        sys.exit(
            f"{README.relative_to(ROOT)}: not what the recorded results say: {wrong}"
            if wrong
            else 0
        )
    write()
