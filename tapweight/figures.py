"""The method's own pictures: weights over time and on the simplex, the cosine matrix, molecules as the objectives see them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

Figure = tuple[str, str, str, Any]
RunDirs = dict[tuple[str, str, int], Path]
COLOURS = ("#2a6f97", "#d1495b", "#8a9a5b", "#8b8b8b", "#e0a030")


def figures(results: dict[str, Any], run_dirs: RunDirs) -> list[Figure]:
    """[(name, caption, alt, figure)]; what needs run directories is left out where they are gone."""
    tasks = _trajectories(run_dirs)
    made = [
        weights_over_time(tasks),
        simplex(tasks),
        cosine_matrix(tasks),
        final_weights(results),
        molecule_views(run_dirs),
    ]
    return [figure for figure in made if figure is not None]


def _trajectories(run_dirs: RunDirs) -> dict[str, dict[int, dict[str, Any]]]:
    """task -> seed -> {names, weights (steps, K), cosines: [(K + 1, K + 1)]} of the runs of arm tapweight."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for (arm, task, seed), directory in sorted(run_dirs.items()):
        log, names = Path(directory) / "metrics.jsonl", Path(directory) / "weights.json"
        if arm == "tapweight" and log.exists() and names.exists():
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            lines = [line for line in lines if line.get("phase") == "pretrain"]
            if lines:
                found[task][seed] = {
                    "names": json.loads(names.read_text())["names"],
                    "weights": np.array([line["weights"] for line in lines]),
                    "cosines": [np.array(line["cosines"]) for line in lines if "cosines" in line],
                }
    return found


def weights_over_time(tasks: dict[str, dict[int, dict[str, Any]]]) -> Figure | None:
    """One panel a task, one thin line a seed and objective, the mean thick."""
    import matplotlib.pyplot as plt

    if not tasks:
        return None
    columns = min(4, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.6 * rows), squeeze=False, sharey=True
    )
    for axis, (task, seeds) in zip(axes.flat, tasks.items()):
        names = next(iter(seeds.values()))["names"]
        steps = min(len(run["weights"]) for run in seeds.values())
        stack = np.stack([run["weights"][:steps] for run in seeds.values()])
        for k, name in enumerate(names):
            colour = COLOURS[k % len(COLOURS)]
            axis.plot(stack[:, :, k].T, color=colour, linewidth=0.6, alpha=0.5)
            axis.plot(stack[:, :, k].mean(0), color=colour, linewidth=2, label=name)
        axis.axhline(1 / len(names), color="black", linewidth=0.5, linestyle=":")
        axis.set_title(task)
        axis.set_xlabel("cycle")
        axis.legend(fontsize=7)
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    axes[0][0].set_ylabel("weight")
    figure.tight_layout()
    ends = "; ".join(
        f"{task}: " + ", ".join(f"{n} {w:.2f}" for n, w in zip(next(iter(s.values()))["names"],
                                                               np.mean([r["weights"][-1] for r in s.values()], 0)))
        for task, s in tasks.items()
    )  # fmt: skip
    caption = (
        "Weights of the pretraining objectives over the cycles; thin: one seed, thick: their mean, dotted: uniform. The flat "
        "start is the warm-up. A weight is not an importance: it multiplies a raw loss, and losses differ in scale."
    )
    return "weights", caption, f"Line plot. Mean final weights: {ends}.", figure


def simplex(tasks: dict[str, dict[int, dict[str, Any]]]) -> Figure | None:
    """Paths in the triangle of three weights, one colour a task: do tasks differ by more than seeds do?"""
    import matplotlib.pyplot as plt

    three = {t: s for t, s in tasks.items() if len(next(iter(s.values()))["names"]) == 3}
    if not three:
        return None
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    figure, axis = plt.subplots(figsize=(4.6, 4.2))
    axis.plot(*np.vstack([corners, corners[:1]]).T, color="black", linewidth=0.8)
    names = next(iter(next(iter(three.values())).values()))["names"]
    for corner, name, shift in zip(corners, names, ((-0.04, -0.06), (0.0, -0.06), (0.0, 0.03))):
        axis.text(*(corner + shift), name, ha="center")
    spread = []
    for i, (task, seeds) in enumerate(three.items()):
        for j, run in enumerate(seeds.values()):
            path = run["weights"] @ corners
            axis.plot(
                *path.T,
                color=COLOURS[i % len(COLOURS)],
                linewidth=0.8,
                label=task if j == 0 else None,
            )
            axis.plot(*path[-1], marker="o", markersize=4, color=COLOURS[i % len(COLOURS)])
        ends = np.array([run["weights"][-1] for run in seeds.values()])
        spread.append(f"{task} {np.sqrt(((ends - ends.mean(0)) ** 2).sum(1).mean()):.3f}")
    axis.axis("equal")
    axis.axis("off")
    axis.legend(fontsize=7)
    caption = "The same paths on the simplex; a dot is where a seed ended. Spread over seeds (root mean square distance): "
    return (
        "simplex",
        caption + ", ".join(spread) + ".",
        "Triangle of three weights with one path for each seed.",
        figure,
    )


def cosine_matrix(tasks: dict[str, dict[int, dict[str, Any]]]) -> Figure | None:
    """Cosines between the encoder gradients of the objectives and what Level II hands down, mean over watched cycles."""
    import matplotlib.pyplot as plt

    watched = {t: [c for run in s.values() for c in run["cosines"]] for t, s in tasks.items()}
    watched = {t: c for t, c in watched.items() if c}
    if not watched:
        return None
    figure, axes = plt.subplots(1, len(watched), figsize=(3.6 * len(watched), 3.4), squeeze=False)
    texts = []
    for axis, (task, matrices) in zip(axes[0], watched.items()):
        names = [*next(iter(tasks[task].values()))["names"], "validation"]
        mean = np.mean(matrices, 0)
        axis.imshow(mean, vmin=-1, vmax=1, cmap="RdBu_r")
        for i in range(len(names)):
            for j in range(len(names)):
                ink = "white" if abs(mean[i, j]) > 0.7 else "black"
                axis.text(
                    j, i, f"{mean[i, j]:.2f}", ha="center", va="center", fontsize=7, color=ink
                )
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_title(task)
        texts.append(
            f"{task}: " + ", ".join(f"{n} {mean[-1, k]:.3f}" for k, n in enumerate(names[:-1]))
        )
    figure.tight_layout()
    caption = (
        "Cosines of the encoder gradients with each other, and (last row) with the validation gradient of the finetuned "
        "model: equation (*) turns that row into the next move of the weights. Mean over seeds and watched cycles."
    )
    return (
        "alignment",
        caption,
        "Heat map. Cosine with the validation gradient: " + "; ".join(texts) + ".",
        figure,
    )


def objective_names(task: str, count: int) -> list[str]:
    """What the numbered weights of a results file belong to."""
    from tapweight import language, molecules, planted

    if task in molecules.SETS:  # granularities of the clusters, then jigsaw and hole
        return [*(f"MG3C {k + 1}" for k in range(count - 2)), "JPP", "MCL"]
    for names in (language.NAMES, planted.NAMES):
        if len(names) == count:
            return list(names)
    return [str(k + 1) for k in range(count)]


def final_weights(results: dict[str, Any]) -> Figure | None:
    """Final weights of every seed from the results alone, so that a clone without runs has a picture too."""
    import matplotlib.pyplot as plt

    found: dict[str, list[list[float]]] = defaultdict(list)
    for run in results.get("runs") or []:
        metrics = run.get("metrics") or {}
        if run.get("arm") == "tapweight" and "weight_1" in metrics:
            found[run["task"]].append(
                [metrics[k] for k in sorted(metrics) if k.removeprefix("weight_").isdigit()]
            )
    if not found:
        return None
    figure, axes = plt.subplots(
        1, len(found), figsize=(2.8 * len(found), 2.6), squeeze=False, sharey=True
    )
    for axis, (task, rows) in zip(axes[0], found.items()):
        values = np.array(rows)
        for k in range(values.shape[1]):
            shift = np.linspace(-0.15, 0.15, len(values))
            axis.plot(
                k + 1 + shift, values[:, k], "o", markersize=3, color=COLOURS[k % len(COLOURS)]
            )
        axis.axhline(1 / values.shape[1], color="black", linewidth=0.5, linestyle=":")
        names = objective_names(task, values.shape[1])
        axis.set_xticks(
            range(1, len(names) + 1), names, rotation=30, ha="right", rotation_mode="anchor"
        )
        axis.set_xlabel("objective")
        axis.set_title(task)
    axes[0][0].set_ylabel("final weight")
    figure.tight_layout()
    alt = (
        "Dot plot. Means: "
        + "; ".join(
            f"{t}: "
            + ", ".join(
                f"{n} {w:.2f}" for n, w in zip(objective_names(t, len(v[0])), np.mean(v, 0))
            )
            for t, v in found.items()
        )
        + "."
    )
    return (
        "final-weights",
        "Final weight of each objective, one dot for a seed; dotted: uniform.",
        alt,
        figure,
    )


def molecule_views(run_dirs: RunDirs) -> Figure | None:
    """What the objectives show the encoder: a drawing, its jigsaw, its hole. Needs RDKit and a molecule run."""
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
    order = objectives.permutations(4)[1:5]
    rows = [
        x,
        objectives.shuffle_tiles(x, order),
        objectives.erase(x, 40, runs.stream(0, "figure")),
    ]
    figure, axes = plt.subplots(3, 4, figsize=(7, 5.4))
    for i, (row, name) in enumerate(zip(rows, ("drawing (MG3C)", "jigsaw (JPP)", "hole (MCL)"))):
        for axis, picture in zip(axes[i], row):
            axis.imshow(picture.permute(1, 2, 0).numpy().astype(np.uint8))
            axis.set_xticks([])
            axis.set_yticks([])
        axes[i][0].set_ylabel(name, fontsize=8)
    figure.tight_layout()
    caption = "Four textbook molecules as the objectives see them: whole, as a jigsaw of nine tiles, with a (here larger) hole."
    return (
        "molecules",
        caption,
        "Three rows of four drawings of molecules: whole, shuffled tiles, with a hole.",
        figure,
    )
