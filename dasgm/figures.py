"""The method's own pictures: accuracies, cells, softmax and skips over time, generated images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from . import nasbench

Figure = tuple[str, str, str, Any]
CORE = ("joint", "darts", "aug_val", "shuffled", "random", "train_as_val")
OTHERS = ("static", "mixed", "weighted", "adversarial", "full_data")
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
