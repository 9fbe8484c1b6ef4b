"""The method's own pictures: the order of cells by source of images, accuracies, cells before and
after, softmax and skips over time, generated images."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from shared.protocol import load_yaml

from . import nasbench

HERE = Path(__file__).resolve().parent

Figure = tuple[str, str, str, Any]
CORE = ("joint", "darts", "darts_few", "aug_val", "train_as_val", "static", "shuffled", "random")
OTHERS = ("mixed", "weighted", "adversarial", "full_data")
ORDER = (*CORE, *OTHERS, "darts_2", "joint_2", "adversarial_2")
COLOURS = {
    "none": "0.85",
    "skip_connect": "C1",
    "nor_conv_1x1": "C0",
    "nor_conv_3x3": "C2",
    "avg_pool_3x3": "C3",
}
SHORT = {
    "none": "none",
    "skip_connect": "skip",
    "nor_conv_1x1": "1x1",
    "nor_conv_3x3": "3x3",
    "avg_pool_3x3": "pool",
}


def figures(results: dict, run_dirs: dict) -> list[Figure]:
    """results: a results file. run_dirs: (arm, task, seed) -> directory, may be partial."""
    made = [
        correlations(results),
        collapse(results, run_dirs),
        accuracies(results),
        cells(run_dirs),
        softmax_over_time(run_dirs),
        skips_over_time(run_dirs),
        images(run_dirs),
    ]
    return [figure for figure in made if figure is not None]


def _arms(names: Any) -> list[str]:
    return sorted(names, key=lambda a: (ORDER.index(a) if a in ORDER else len(ORDER), a))


def _history(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that end an epoch."""
    path = Path(directory) / "metrics.jsonl"
    if not path.exists():
        return []
    return [
        line
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if "softmax" in line
    ]


# how many images DARTS holds out
HELD_OUT = {
    "cpu": {"darts_few": 25, "darts_50": 50, "darts_100": 100, "darts": 450},
    "gpu": {"darts_few": 250, "darts": 25000},
}
# the arms that hold none out, and what level 3 sees there
NONE_HELD_OUT = {
    "train_as_val": "training images",
    "joint": "generated images (joint)",
    "static": "generated, generator stands still",
    "aug_val": "augmented training images",
    "classes": "generated, classes exchanged",
    "shuffled": "generated, labels permuted",
}


def correlations(results: dict) -> Figure | None:
    """Rank correlation of A with the table by the number of held-out images, and without any."""
    import matplotlib.pyplot as plt
    from scipy import stats

    held_out = HELD_OUT.get(results.get("scale", ""), {})
    scores: dict[str, list[float]] = {}
    for run in results.get("runs", []):
        value = (run.get("metrics") or {}).get("correlation")
        if value is not None and (run["arm"] in held_out or run["arm"] in NONE_HELD_OUT):
            scores.setdefault(run["arm"], []).append(value)
    scores = {arm: values for arm, values in scores.items() if len(values) > 1}
    if not scores:
        return None

    def half_width(values: list[float]) -> float:
        return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))

    figure, axis = plt.subplots(figsize=(6.0, 3.2))
    places = {arm: k for k, arm in enumerate(sorted(held_out, key=lambda a: held_out[a]), start=1)}
    line = [arm for arm in places if arm in scores]
    style: dict[str, Any] = {"capsize": 2, "markersize": 4, "linewidth": 1}
    if line:
        means = [np.mean(scores[arm]) for arm in line]
        bars = [half_width(scores[arm]) for arm in line]
        at = [places[arm] for arm in line]
        label = "held-out images (DARTS)"
        axis.errorbar(at, means, bars, fmt="o-", color="C0", label=label, **style)
    shown = [arm for arm in NONE_HELD_OUT if arm in scores]
    for k, arm in enumerate(shown):
        x, mean = 0.09 * (k - (len(shown) - 1) / 2), float(np.mean(scores[arm]))
        colour = f"C{k + 1}"
        label = NONE_HELD_OUT[arm]
        bar = half_width(scores[arm])
        axis.errorbar([x], [mean], [bar], fmt="s", color=colour, label=label, **style)
        if arm == "joint":
            axis.plot([x, len(places) + 0.2], [mean, mean], ":", color=colour, linewidth=1)
    axis.axhline(0, color="0.5", linewidth=0.6)
    labels = ["none", *(f"{held_out[arm]:,}" for arm in places)]
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_xlabel("images that are held out for the architecture", fontsize=8)
    axis.set_ylabel("rank correlation with the table", fontsize=8)
    axis.set_title(_seeds(results), fontsize=8)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Spearman's correlation of A with the table of all cells: mean and 95 % interval over"
        " seeds. The dotted line carries generated images over to every number of held-out ones."
    )
    means_in_words = ", ".join(f"{arm} {np.mean(v):.2f}" for arm, v in scores.items())
    return "correlations", caption, f"Rank correlation by arm: {means_in_words}", figure


def _seeds(results: dict) -> str:
    seeds = sorted({run["seed"] for run in results.get("runs", [])})
    return f"seeds {seeds[0]} to {seeds[-1]}" if seeds else ""


def found_cells(results: dict, run_dirs: dict) -> dict[str, list[list[str]]]:
    """arm -> the operations of each seed's cell on the first task: from the runs' folders, and for
    a recorded run whose folder is elsewhere from the record beside the result."""
    runs = [r for r in results.get("runs", []) if r["task"] == results["runs"][0]["task"]]
    recorded: dict[str, str] = {}
    records = HERE / "results" / f"{results.get('scale')}.records.jsonl.gz"
    if records.exists():
        with gzip.open(records, "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        recorded = {
            x["state_sha256"]: x["details"]["cell"] for x in lines if "cell" in x["details"]
        }
    found: dict[str, list[list[str]]] = {}
    for run in runs:
        place = run_dirs.get((run["arm"], run["task"], run["seed"]))
        path = Path(place or "nowhere") / "cells.json"
        cell = recorded.get(run.get("state_sha256") or "")
        if path.exists():
            cell = json.loads(path.read_text(encoding="utf-8"))["final"]
        if cell and cell.startswith("|") and run["arm"] != "random":
            found.setdefault(run["arm"], []).append(nasbench.from_string(cell))
    return found


def collapse(results: dict, run_dirs: dict) -> Figure | None:
    """Operations of the cells found, edge by edge: with the older rates, and now."""
    import matplotlib.pyplot as plt

    found = found_cells(results, run_dirs)
    before = load_yaml(HERE / "before.yaml", "before.yaml")
    arms = [arm for arm in _arms(found) if len(found[arm][0]) == 3]
    if not arms:
        return None
    older = {arm: list(edges.values()) for arm, edges in before.items() if arm in arms}
    now = {
        arm: [{op: ops.count(op) for op in set(ops)} for ops in zip(*found[arm])] for arm in arms
    }
    size = 1.35 * len(arms) + 0.6, 2.7
    figure, axes = plt.subplots(2, len(arms), figsize=size, squeeze=False, sharex=True, sharey=True)
    for row, (when, counted) in zip(axes, (("before", older), ("now", now))):
        for axis, arm in zip(row, arms):
            if arm not in counted:
                axis.axis("off")
                continue
            for edge, counts in enumerate(counted[arm]):
                left, whole = 0.0, sum(counts.values())
                for op in nasbench.OPERATIONS[1:]:
                    share = counts.get(op, 0) / whole
                    axis.barh(edge, share, 0.7, left, color=COLOURS[op], label=SHORT[op])
                    left += share
            axis.set_title(f"{arm}, {when}", fontsize=8)
            axis.set_xticks([])
    axes[0, 0].set_yticks(range(3), [f"{i} to {j}" for i, j in nasbench.edges(3)], fontsize=8)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("seeds 200 to 223", fontsize=8)
    axes[1, 0].set_ylabel(_seeds(results), fontsize=8)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    named = dict(zip(labels, handles))
    figure.tight_layout()
    place = (0.5, 0.02)
    figure.legend(
        named.values(), named.keys(), loc="upper center", bbox_to_anchor=place, fontsize=7, ncols=4
    )
    caption = (
        "Operations of the cells found, edge by edge, as shares of the seeds. Before: 24 seeds with"
        f" the older rates, which collapsed to pooling. Now: {_seeds(results)}. The best cells of"
        " the table have a 3x3 convolution on the first and the last edge."
    )

    def share_of(op: str, counted: dict[str, list[dict[str, int]]], arm: str) -> str:
        edges = counted[arm]
        whole = sum(sum(counts.values()) for counts in edges)
        return f"{100 * sum(counts.get(op, 0) for counts in edges) / whole:.0f} %"

    parts = [
        f"{arm} {when}: {share_of('avg_pool_3x3', counted, arm)} pooling, "
        f"{share_of('nor_conv_3x3', counted, arm)} 3x3 convolution"
        for when, counted in (("before", older), ("now", now))
        for arm in arms
        if arm in counted
    ]
    return "collapse", caption, "Operations of found cells. " + "; ".join(parts), figure


def accuracies(results: dict) -> Figure | None:
    """One dot per seed: accuracy of the cell found, by arm; the floor of random cells as a line."""
    import matplotlib.pyplot as plt

    scores: dict[str, dict[str, list[float]]] = {}
    for run in results.get("runs", []):
        if "accuracy" in (run.get("metrics") or {}):
            scores.setdefault(run["task"], {}).setdefault(run["arm"], []).append(
                100 * run["metrics"]["accuracy"]
            )
    if not scores:
        return None
    # a row is as high as the tallest stack of seeds with equal accuracy
    most = max(
        values.count(v) for arms in scores.values() for values in arms.values() for v in values
    )
    rows = max(len([a for a in arms if a != "random"]) for arms in scores.values())
    height = 0.9 + rows * max(0.3, 0.035 * most)
    figure, axes = plt.subplots(1, len(scores), figsize=(4.6 * len(scores), height), squeeze=False)
    for axis, (task, arms) in zip(axes[0], scores.items()):
        shown = _arms(a for a in arms if a != "random")
        for row, arm in enumerate(shown):
            values = np.sort(arms[arm])
            # seeds with the same cell would hide behind one dot: a stack within 0.8 of the row
            below = [(values[:k] == v).sum() for k, v in enumerate(values)]
            size = [(values == v).sum() for v in values]
            place = 0.8 / max(most, 5) * (np.array(below) - (np.array(size) - 1) / 2)
            colour = "C0" if arm == "joint" else "0.55"
            axis.plot(values, row + place, "o", markersize=3, color=colour)
            axis.plot(np.median(values), row, "|", color="k", markersize=14)
        if "random" in arms:
            style = {"color": "C3", "linestyle": "--", "linewidth": 1}
            axis.axvline(np.mean(arms["random"]), label="mean of random cells", **style)
            axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1 + 0.25 / height))
        axis.set_yticks(range(len(shown)), shown, fontsize=8)
        axis.set_ylim(rows - 0.45, -0.55)
        axis.set_xlabel("test accuracy of the cell found, %", fontsize=8)
        axis.set_title(task, fontsize=9)
    figure.tight_layout()
    caption = (
        "Accuracy of the cell that each search found: one dot per seed, stacked where seeds found"
        " cells of equal accuracy; bar: median. No number of the DASGM paper could be read, so none"
        " is shown."
    )
    return "accuracies", caption, f"Accuracy of found cells by arm on {', '.join(scores)}", figure


def cells(run_dirs: dict) -> Figure | None:
    """The derived cells of the first seed, as graphs."""
    import matplotlib.pyplot as plt

    of_arm: dict[str, str] = {}
    for (arm, _, _), directory in sorted(run_dirs.items(), key=lambda item: item[0][2]):
        path = Path(directory) / "cells.json"
        if path.exists():
            cell = json.loads(path.read_text(encoding="utf-8"))["final"]
            if cell.startswith("|"):
                of_arm.setdefault(arm, cell)
    if not of_arm:
        return None
    shown = _arms(of_arm)[:6]
    figure, axes = plt.subplots(1, len(shown), figsize=(2.3 * len(shown), 2.4), squeeze=False)
    for axis, arm in zip(axes[0], shown):
        draw_cell(axis, of_arm[arm])
        axis.set_title(arm, fontsize=9)
    figure.tight_layout()
    caption = "Cells found with the first seed; node 0 is the input, the last node the output."
    return "cells", caption, f"Graphs of the cells of {', '.join(shown)}", figure


def draw_cell(axis: Any, cell: str) -> None:
    """Nodes on a line, edges as arcs named by their operation."""
    nodes = cell.count("+") + 2
    for (i, j), op in zip(nasbench.edges(nodes), nasbench.from_string(cell)):
        bend = 0.0 if j == i + 1 else -0.55 * (j - i - 1)
        style = {"arrowstyle": "->", "color": COLOURS[op], "shrinkA": 8, "shrinkB": 8}
        style["connectionstyle"] = f"arc3,rad={bend}"
        axis.annotate("", xy=(j, 0), xytext=(i, 0), arrowprops=style)
        place = (i + j) / 2, 0.12 - bend * (j - i) / 2
        axis.text(*place, SHORT[op], ha="center", fontsize=7, color="k")
    axis.plot(range(nodes), [0] * nodes, "o", color="w", markeredgecolor="k", markersize=13)
    for node in range(nodes):
        axis.text(node, 0, str(node), ha="center", va="center", fontsize=8)
    axis.set_xlim(-0.5, nodes - 0.5)
    axis.set_ylim(-0.5, 0.6 * nodes - 0.3)
    axis.axis("off")


def softmax_over_time(run_dirs: dict) -> Figure | None:
    """Per edge: softmax(alpha) over epochs, DASGM above DARTS, first seed that has both."""
    import matplotlib.pyplot as plt

    by_arm: dict[str, list[dict[str, Any]]] = {}
    for (arm, _, _), directory in sorted(run_dirs.items(), key=lambda item: item[0][2]):
        if arm in ("joint", "darts") and arm not in by_arm and (lines := _history(directory)):
            by_arm[arm] = lines
    rows = [a for a in ("joint", "darts") if a in by_arm and len(by_arm[a][0]["softmax"]) == 1]
    if not rows:
        return None
    edge_count = len(by_arm[rows[0]][0]["softmax"][0])
    nodes = int((1 + (1 + 8 * edge_count) ** 0.5) / 2)
    size = 1.9 * edge_count, 1.9 * len(rows)
    figure, axes = plt.subplots(len(rows), edge_count, figsize=size, squeeze=False, sharey=True)
    for axis_row, arm in zip(axes, rows):
        # (epochs, edges, operations)
        weights = np.array([line["softmax"][0] for line in by_arm[arm]])
        epochs = range(1, len(weights) + 1)
        for edge, (axis, (i, j)) in enumerate(zip(axis_row, nasbench.edges(nodes))):
            for o, name in enumerate(nasbench.OPERATIONS):
                axis.plot(epochs, weights[:, edge, o], color=COLOURS[name], label=SHORT[name])
            axis.set_title(f"{arm}: {i} to {j}", fontsize=8)
    axes[-1, 0].set_xlabel("epoch", fontsize=8)
    figure.tight_layout()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    place = (0.5, 0.0)
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=place, fontsize=7, ncols=5)
    caption = (
        "Weights of the operations on each edge while searching, first seed. A lead of `skip` on"
        " all edges is the collapse of DARTS."
    )
    alt = "Softmax of the architecture per edge over epochs for joint and darts"
    return "softmax", caption, alt, figure


def skips_over_time(run_dirs: dict) -> Figure | None:
    """Mean number of skips in the derived cell, and entropy, by arm and epoch."""
    import matplotlib.pyplot as plt

    lines: dict[str, list[list[dict[str, Any]]]] = {}
    for (arm, _, _), directory in run_dirs.items():
        if history := _history(directory):
            lines.setdefault(arm, []).append(history)
    if not lines:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.6))
    for arm in _arms(lines):
        length = min(map(len, lines[arm]))
        for axis, key in zip(axes, ("skips", "entropy")):
            mean = np.mean([[line[key] for line in run[:length]] for run in lines[arm]], axis=0)
            axis.plot(range(1, length + 1), mean, label=arm)
    names = ("skips in the derived cell", "entropy of softmax(A), 1 = undecided")
    for axis, name in zip(axes, names):
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_title(name, fontsize=9)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    caption = "Skip connections in the derived cell and entropy of the relaxation, mean over seeds."
    return "skips", caption, "Skip count and entropy over epochs by arm", figure


def images(run_dirs: dict) -> Figure | None:
    """Generated images, one row per class, and the label fidelity of every seed's generator."""
    import matplotlib.pyplot as plt

    fidelities, first = {}, None
    for (arm, task, seed), directory in sorted(run_dirs.items(), key=lambda item: item[0][2]):
        place = Path(directory)
        files = ("record.json", "samples.npz")
        if arm == "generator" and all((place / name).exists() for name in files):
            record = json.loads((place / "record.json").read_text(encoding="utf-8"))
            fidelities[seed] = record["validation"].get("fidelity", float("nan"))
            first = first or (task, seed, place)
    if first is None:
        return None
    with np.load(first[2] / "samples.npz", allow_pickle=False) as archive:
        pixels, label = archive["pixels"], archive["label"]
    classes = sorted(set(label.tolist()))
    each = int((label == classes[0]).sum())
    size = 0.42 * each, 0.42 * len(classes)
    figure, axes = plt.subplots(len(classes), each, figsize=size, squeeze=False)
    for axis, image in zip(axes.flat, pixels):
        shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        axis.imshow(shown, cmap="gray", vmin=0, vmax=255)
        axis.axis("off")
    scores = ", ".join(f"{100 * v:.0f}" for v in fidelities.values())
    caption = (
        f"Generated images on {first[0]}, seed {first[1]}, a row per class, before the search."
        f" Label fidelity of the generators, seed by seed: {scores} % (share of 2,000 images that a"
        " classifier trained on real images gives their label)."
    )
    return "generated", caption, f"Grid of generated images, {len(classes)} classes", figure
