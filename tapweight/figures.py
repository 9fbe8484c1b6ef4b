"""The method's own pictures: weights over time and on the simplex, the cosine matrix, molecules as
the objectives see them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = tuple[str, str, str, "Figure"]  # name, caption, alt text, figure
RunDirs = dict[tuple[str, str, int], Path]
INK = "#7b7b7d"  # benchmarks/plots.py turns it into the page's own, on light and dark pages
COLOURS = ("#2a6f97", "#d1495b", "#8a9a5b", "#8b8b8b", "#e0a030")


@dataclass(frozen=True)
class Trajectory:
    """One run. names: K objectives; weights: (steps, K); cosines: (K + 1, K + 1) where watched."""

    names: list[str]
    weights: np.ndarray
    cosines: list[np.ndarray]


Trajectories = dict[str, list[Trajectory]]  # task -> a run for each seed


def figures(results: dict[str, Any], run_dirs: RunDirs) -> list[Picture]:
    """What needs run directories is left out where they are gone."""
    tasks = _trajectories(run_dirs)
    made = [
        weights_over_time(tasks),
        simplex(tasks),
        cosine_matrix(tasks),
        final_weights(results),
        weight_and_score(results),
        molecule_views(run_dirs),
    ]
    return [picture for picture in made if picture is not None]


def _trajectories(run_dirs: RunDirs) -> Trajectories:
    """Of the runs of arm tapweight that are still there."""
    tasks: Trajectories = defaultdict(list)
    for (arm, task, _), directory in sorted(run_dirs.items()):
        log, names = Path(directory) / "metrics.jsonl", Path(directory) / "weights.json"
        if arm == "tapweight" and log.exists() and names.exists():
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            lines = [line for line in lines if line.get("phase") == "pretrain"]
            if lines:
                weights = np.array([line["weights"] for line in lines])
                cosines = [np.array(line["cosines"]) for line in lines if "cosines" in line]
                objectives = json.loads(names.read_text(encoding="utf-8"))["names"]
                tasks[task].append(Trajectory(objectives, weights, cosines))
    return tasks


def _listed(names: list[str], values: np.ndarray) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in zip(names, values))


def weights_over_time(tasks: Trajectories) -> Picture | None:
    """One panel a task, one thin line a seed and objective, the mean thick."""
    import matplotlib.pyplot as plt

    if not tasks:
        return None
    columns = min(4, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = 3.4 * columns, 2.6 * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    ends = []
    for axis, (task, seeds) in zip(axes.flat, tasks.items()):
        names = seeds[0].names
        steps = min(len(run.weights) for run in seeds)
        stack = np.stack([run.weights[:steps] for run in seeds])
        for k, name in enumerate(names):
            colour = COLOURS[k % len(COLOURS)]
            axis.plot(stack[:, :, k].T, color=colour, linewidth=0.6, alpha=0.5)
            axis.plot(stack[:, :, k].mean(0), color=colour, linewidth=2, label=name)
        axis.axhline(1 / len(names), color=INK, linewidth=0.5, linestyle=":")
        axis.set_title(task)
        axis.set_xlabel("cycle")
        axis.legend(fontsize=7)
        last = np.mean([run.weights[-1] for run in seeds], 0)
        ends.append(f"{task}: {_listed(names, last)}")
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    axes[0][0].set_ylabel("weight")
    figure.tight_layout()
    caption = (
        "Weights of the pretraining objectives over the cycles; thin: one seed, thick: their mean, "
        "dotted: uniform. The flat start is the warm-up. A weight is not an importance: it "
        "multiplies a raw loss, and losses differ in scale."
    )
    return "weights", caption, f"Line plot. Mean final weights: {'; '.join(ends)}.", figure


def simplex(tasks: Trajectories) -> Picture | None:
    """Paths in the triangle of three weights, a colour a task: do tasks differ more than seeds?"""
    import matplotlib.pyplot as plt

    three = {task: seeds for task, seeds in tasks.items() if len(seeds[0].names) == 3}
    if not three:
        return None
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    figure, axis = plt.subplots(figsize=(4.6, 4.2))
    axis.plot(*np.vstack([corners, corners[:1]]).T, color=INK, linewidth=0.8)
    names = next(iter(three.values()))[0].names
    for corner, name, shift in zip(corners, names, ((-0.04, -0.06), (0.0, -0.06), (0.0, 0.03))):
        axis.text(corner[0] + shift[0], corner[1] + shift[1], name, ha="center")
    spread = []
    for i, (task, seeds) in enumerate(three.items()):
        colour = COLOURS[i % len(COLOURS)]
        for j, run in enumerate(seeds):
            path, label = run.weights @ corners, task if j == 0 else None
            axis.plot(*path.T, color=colour, linewidth=0.8, label=label)
            axis.plot(*path[-1], marker="o", markersize=4, color=colour)
        ends = np.array([run.weights[-1] for run in seeds])
        spread.append(f"{task} {np.sqrt(((ends - ends.mean(0)) ** 2).sum(1).mean()):.3f}")
    axis.axis("equal")
    axis.axis("off")
    axis.legend(fontsize=7)
    caption = (
        "The same paths on the simplex; a dot is where a seed ended. Spread over seeds (root mean "
        f"square distance): {', '.join(spread)}."
    )
    return "simplex", caption, "Triangle of three weights with one path for each seed.", figure


def cosine_matrix(tasks: Trajectories) -> Picture | None:
    """Cosines of the objectives' encoder gradients and of what Level II hands down, means."""
    import matplotlib.pyplot as plt

    matrices = {t: [c for run in seeds for c in run.cosines] for t, seeds in tasks.items()}
    watched = {task: np.mean(cosines, 0) for task, cosines in matrices.items() if cosines}
    if not watched:
        return None
    size = 3.6 * len(watched), 3.4
    figure, axes = plt.subplots(1, len(watched), figsize=size, squeeze=False)
    texts = []
    for axis, (task, mean) in zip(axes[0], watched.items()):
        names = [*tasks[task][0].names, "validation"]
        axis.imshow(mean, vmin=-1, vmax=1, cmap="RdBu_r")
        for (i, j), value in np.ndenumerate(mean):
            ink = "white" if abs(value) > 0.7 else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_title(task)
        last = ", ".join(f"{name} {mean[-1, k]:.3f}" for k, name in enumerate(names[:-1]))
        texts.append(f"{task}: {last}")
    figure.tight_layout()
    caption = (
        "Cosines of the encoder gradients with each other, and (last row) with the validation "
        "gradient of the finetuned model: equation (*) turns that row into the next move of the "
        "weights. Mean over seeds and watched cycles."
    )
    alt = f"Heat map. Cosine with the validation gradient: {'; '.join(texts)}."
    return "alignment", caption, alt, figure


def objective_names(task: str, count: int) -> list[str]:
    """What the numbered weights of a results file belong to."""
    from tapweight import language, molecules, planted

    if task in molecules.SETS:  # granularities of the clusters, then jigsaw and hole
        return [*(f"MG3C {k + 1}" for k in range(count - 2)), "JPP", "MCL"]
    for names in (language.NAMES, planted.NAMES):
        if len(names) == count:
            return list(names)
    return [str(k + 1) for k in range(count)]


def final_weights(results: dict[str, Any]) -> Picture | None:
    """Final weights of every seed, from the results alone: also in a clone without runs."""
    import matplotlib.pyplot as plt

    rows: dict[str, list[list[float]]] = defaultdict(list)
    for run in results.get("runs") or []:
        metrics = run.get("metrics") or {}
        if run.get("arm") == "tapweight" and "weight_1" in metrics:
            keys = [key for key in sorted(metrics) if key.removeprefix("weight_").isdigit()]
            rows[run["task"]].append([metrics[key] for key in keys])
    if not rows:
        return None
    size = 2.8 * len(rows), 2.6
    figure, axes = plt.subplots(1, len(rows), figsize=size, squeeze=False, sharey=True)
    means = []
    for axis, (task, of_seeds) in zip(axes[0], rows.items()):
        values = np.array(of_seeds)
        names = objective_names(task, values.shape[1])
        for k in range(len(names)):
            places = k + 1 + np.linspace(-0.15, 0.15, len(values))
            axis.plot(places, values[:, k], "o", markersize=3, color=COLOURS[k % len(COLOURS)])
        axis.axhline(1 / len(names), color=INK, linewidth=0.5, linestyle=":")
        ticks = range(1, len(names) + 1)
        axis.set_xticks(ticks, names, rotation=30, ha="right", rotation_mode="anchor")
        axis.set_xlabel("objective")
        axis.set_title(task)
        means.append(f"{task}: {_listed(names, values.mean(0))}")
    axes[0][0].set_ylabel("final weight")
    figure.tight_layout()
    caption = "Final weight of each objective, one dot for a seed; dotted: uniform."
    return "final-weights", caption, f"Dot plot. Means: {'; '.join(means)}.", figure


SHOWN = {"tapweight": "o", "loose": "v", "cp-uniform": "s", "permuted": "x", "oracle": "^"}


def weight_and_score(results: dict[str, Any]) -> Picture | None:
    """Planted digits: score against the weight of the useful objective, a dot for a seed."""
    import matplotlib.pyplot as plt

    dots: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in results.get("runs") or []:
        metrics = run.get("metrics") or {}
        if run.get("arm") in SHOWN and run.get("task") == "planted" and "score" in metrics:
            dots[run["arm"]].append((metrics["weight_of_aligned"], 100 * metrics["score"]))
    if not {"tapweight", "cp-uniform", "oracle"} <= set(dots):
        return None
    figure, axis = plt.subplots(figsize=(4.4, 3.2))
    means = []
    for (arm, marker), colour in zip(SHOWN.items(), COLOURS):
        if arm not in dots:
            continue
        weight, score = np.array(dots[arm]).T
        jitter = np.linspace(-0.015, 0.015, len(weight)) if np.ptp(weight) == 0 else 0.0
        style: dict[str, Any] = {"color": colour, "markersize": 4, "alpha": 0.8, "label": arm}
        axis.plot(weight + jitter, score, marker, **style)
        axis.axhline(score.mean(), color=colour, linewidth=0.8, linestyle=":")
        means.append(f"{arm} {score.mean():.1f} at weight {weight.mean():.2f}")
    below = [
        f"{sum(weight < 0.25 for weight, _ in dots[arm])} of {len(dots[arm])} seeds of {arm}"
        for arm in ("tapweight", "loose")
        if arm in dots
    ]
    axis.set_xlabel("final weight of the useful objective")
    axis.set_ylabel("accuracy after finetuning, %")
    axis.legend(fontsize=7)
    figure.tight_layout()
    caption = (
        "Planted digits, one mark for a seed, dotted lines: means of the arms. Uniform weights "
        "stand at 0.25, the oracle at 1. Below the uniform share on the useful objective end "
        f"{' and '.join(below)}."
    )
    alt = f"Scatter plot of accuracy against weight. Means: {'; '.join(means)}."
    return "weight-and-score", caption, alt, figure


def molecule_views(run_dirs: RunDirs) -> Picture | None:
    """What the objectives show the encoder: a drawing, its jigsaw, its hole.

    Needs RDKit and a molecule run."""
    import matplotlib.pyplot as plt
    import torch

    from shared import runs, sources
    from tapweight import molecules, objectives, rehearsal

    if not any(task in molecules.SETS for _, task, _ in run_dirs):
        return None
    try:
        chemistry = molecules.rdkit()
    except sources.MissingInput:
        return None
    pictures = np.stack([chemistry.drawing(s, 222) for s in rehearsal.TEXTBOOK[3:7]])
    x = torch.as_tensor(pictures).permute(0, 3, 1, 2).float()
    jigsaw = objectives.shuffle_tiles(x, objectives.permutations(4)[1:5])
    hole = objectives.erase(x, 40, runs.stream(0, "figure"))
    rows = {"drawing (MG3C)": x, "jigsaw (JPP)": jigsaw, "hole (MCL)": hole}
    figure, axes = plt.subplots(3, 4, figsize=(7, 5.4))
    for of_row, (name, row) in zip(axes, rows.items()):
        for axis, picture in zip(of_row, row):
            axis.imshow(picture.permute(1, 2, 0).numpy().astype(np.uint8))
            axis.set_xticks([])
            axis.set_yticks([])
        of_row[0].set_ylabel(name, fontsize=8)
    figure.tight_layout()
    caption = (
        "Four textbook molecules as the objectives see them: whole, as a jigsaw of nine tiles, "
        "with a (larger) hole."
    )
    alt = "Three rows of four drawings of molecules: whole, shuffled tiles, with a hole."
    return "molecules", caption, alt, figure
