"""The method's own pictures: ranks per map, selection weights over time, the noise law, score against parameters."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from autolora.evaluate import ROWS, TRUTHS

Figure = tuple[str, str, str, Any]
GREY = "#8b8b8b"


def figures(results: dict[str, Any], run_dirs: dict[tuple[str, str, int], Path]) -> list[Figure]:
    """[(name, caption, alt, figure)]; what needs run directories is left out where they are gone."""
    made = [
        rank_heatmap(run_dirs),
        noise_law(run_dirs),
        weights_over_time(run_dirs),
        score_against_parameters(results),
        planted_table(results),
    ]
    return [figure for figure in made if figure is not None]


def _ranks(
    run_dirs: dict[tuple[str, str, int], Path], arm: str, task: str
) -> dict[int, np.ndarray]:
    """Rank vector of an arm by seed, as far as the run directories are there."""
    found = {}
    for (a, t, seed), directory in sorted(run_dirs.items()):
        path = Path(directory) / "predictions.npz"
        if (a, t) == (arm, task) and path.exists():
            with np.load(path, allow_pickle=False) as archive:
                if "_ranks" in archive.files:
                    found[seed] = archive["_ranks"]
    return found


def _first_task(run_dirs: dict[tuple[str, str, int], Path]) -> str | None:
    tasks = [task for arm, task, _ in sorted(run_dirs) if arm == "autolora"]
    return tasks[0] if tasks else None


def _map_names(run_dirs: dict[tuple[str, str, int], Path], task: str) -> list[str]:
    """Short names of the adapted maps (`4 q`, `4 v`, ...) from a search's ranks.json."""
    for (arm, t, _), directory in sorted(run_dirs.items()):
        path = Path(directory) / "ranks.json"
        if arm == "search" and t == task and path.exists():
            names = json.loads(path.read_text())["ranks"]
            return [
                f"{next(p for p in n.split('.') if p.isdigit())} {n.split('.')[-1][0]}"
                for n in names
            ]
    return []


def rank_heatmap(run_dirs: dict[tuple[str, str, int], Path]) -> Figure | None:
    """Rows: seeds; columns: adapted maps; a panel each for learned, permuted, and the noise law."""
    import matplotlib.pyplot as plt

    task = _first_task(run_dirs)
    panels = (
        {arm: _ranks(run_dirs, arm, task) for arm in ("autolora", "permuted", "random")}
        if task
        else {}
    )
    panels = {arm: rows for arm, rows in panels.items() if rows}
    if "autolora" not in panels:
        return None
    names = _map_names(run_dirs, task) or [
        str(i) for i in range(len(next(iter(panels["autolora"].values()))))
    ]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(4.4, 0.9 + 1.5 * len(panels)), squeeze=False, sharex=True
    )
    titles = {"autolora": "learned", "permuted": "permuted", "random": "noise law"}
    image = None
    for axis, (arm, rows) in zip(axes[:, 0], panels.items()):
        table = np.stack(list(rows.values()))
        image = axis.imshow(table, vmin=1, vmax=8, aspect="auto")
        axis.set_title(f"{titles[arm]}: mean {table.mean():.2f}, sd {table.std():.2f}", loc="left")
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylabel("seed")
        if table.shape[1] <= 12:
            for (i, j), value in np.ndenumerate(table):
                axis.text(
                    j,
                    i,
                    int(value),
                    ha="center",
                    va="center",
                    color="white" if value < 5 else "black",
                )
    axes[-1, 0].set_xticks(range(len(names)), names, rotation=90 if len(names) > 8 else 0)
    axes[-1, 0].set_xlabel("block and map (q query, v value)")
    figure.colorbar(image, ax=axes[:, 0].tolist(), label="rank", shrink=0.7)
    caption = (
        f"Ranks on task {task}: learned, the same ranks permuted over maps, and counts of random logits with the learned "
        "spread. If the first panel showed need rather than noise, its columns would be alike from seed to seed."
    )
    return (
        "ranks",
        caption,
        f"Heat maps of learned, permuted and random ranks per map and seed, task {task}",
        figure,
    )


def noise_law(run_dirs: dict[tuple[str, str, int], Path]) -> Figure | None:
    """How often each rank occurs: learned, README's example, and what (5) gives for random logits."""
    import matplotlib.pyplot as plt
    import torch

    from autolora.method import noise_counts

    task = _first_task(run_dirs)
    learned = _ranks(run_dirs, "autolora", task) if task else {}
    figure, axis = plt.subplots(figsize=(4.4, 2.6))
    ranks = np.arange(1, 9)
    for sigma, style in ((0.3, "-"), (1.0, "--"), (3.0, ":")):
        counts = noise_counts(sigma, 8, 20_000, torch.Generator().manual_seed(0)).numpy()
        axis.plot(
            ranks,
            [(counts == r).mean() for r in ranks],
            style,
            color=GREY,
            label=f"noise, logit sd {sigma}",
        )
    if learned:
        values = np.concatenate(list(learned.values()))
        axis.bar(
            ranks,
            [(values == r).mean() for r in ranks],
            width=0.5,
            alpha=0.7,
            label=f"learned ({len(values)} maps)",
        )
    axis.set_xlabel("rank by the paper's count (k = 8)")
    axis.set_ylabel("share of maps")
    axis.legend()
    figure.tight_layout()
    caption = "What the count alpha >= 1/k returns when nothing has been learned, beside what was learned."
    return (
        "noise-law",
        caption,
        "Histogram of learned ranks over the distribution for random logits",
        figure,
    )


def weights_over_time(run_dirs: dict[tuple[str, str, int], Path]) -> Figure | None:
    """The eight selection weights of the first maps, over the search of one seed."""
    import matplotlib.pyplot as plt

    searches = [
        (key, Path(d) / "metrics.jsonl")
        for key, d in sorted(run_dirs.items())
        if key[0] == "search"
    ]
    searches = [(key, path) for key, path in searches if path.exists()]
    if not searches:
        return None
    (_, task, seed), path = searches[0]
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if "alpha" in line]
    if not lines:
        return None
    steps, alpha = (
        [line["step"] for line in lines],
        np.array([line["alpha"] for line in lines]),
    )  # (time, M, k)
    names = _map_names(run_dirs, task)
    shown = min(4, alpha.shape[1])
    figure, axes = plt.subplots(1, shown, figsize=(1.6 * shown, 2.3), squeeze=False, sharey=True)
    for m, axis in enumerate(axes[0]):
        axis.plot(steps, alpha[:, m], linewidth=1)
        axis.axhline(1 / alpha.shape[2], color=GREY, linewidth=0.8, linestyle="--")
        axis.set_title(f"{names[m] if m < len(names) else m}: {lines[-1]['ranks'][m]}")
        axis.set_xlabel("step")
    axes[0, 0].set_ylabel("selection weight")
    figure.tight_layout()
    caption = f"Selection weights of the first {shown} maps (block, map: final rank), task {task}, seed {seed}; dashed: threshold 1/k."
    return (
        "weights",
        caption,
        f"Curves of the selection weights of {shown} maps over the search",
        figure,
    )


def score_against_parameters(results: dict[str, Any]) -> Figure | None:
    """Mean score against mean adapter parameters, one point per arm with a rank pattern."""
    import matplotlib.pyplot as plt

    points: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in results.get("runs", []):
        metrics = run.get("metrics") or {}
        if run.get("status") == "finished" and {"score", "parameters"} <= metrics.keys():
            points[run["task"]][run["arm"]].append((metrics["parameters"], 100 * metrics["score"]))
    if not points:
        return None
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(4.4, 2.9 * columns), 3.0 * rows), squeeze=False
    )
    arms_shown = list(dict.fromkeys(arm for arms in points.values() for arm in arms))
    style = {
        arm: {"color": f"C{i % 8}", "marker": "osv^P"[i // 8]} for i, arm in enumerate(arms_shown)
    }
    style |= {arm: {"color": "C1", "marker": "D"} for arm in arms_shown if arm == "autolora"}
    for axis, (task, arms) in zip(axes.flat, points.items()):
        for arm, found in arms.items():
            x, y = np.array(found).mean(0)
            axis.plot(x, y, linestyle="none", markersize=6, label=arm, alpha=0.85, **style[arm])
        axis.set_title(task)
        axis.set_xlabel("adapter parameters (head not counted)")
        axis.set_ylabel("score, points")
    for axis in axes.flat[len(points) :]:
        axis.set_visible(False)
    handles = {
        text: line for axis in axes.flat for line, text in zip(*axis.get_legend_handles_labels())
    }
    figure.tight_layout()
    figure.legend(
        handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3
    )
    caption = "Mean test score of each arm against the mean number of its adapter parameters. Diamond: AutoLoRA."
    return (
        "budget",
        caption,
        f"Scatter of score against adapter parameters on {len(points)} tasks",
        figure,
    )


def planted_table(results: dict[str, Any]) -> Figure | None:
    """Mean reported rank for planted ranks 1, 2, 4, 6: rules and outer travel."""
    import matplotlib.pyplot as plt

    runs = [
        r["metrics"] for r in results.get("runs", []) if r["arm"] == "planted" and r.get("metrics")
    ]
    if not runs:
        return None
    table = np.array(
        [[np.mean([m[f"{row}_true_{t}"] for m in runs]) for t in TRUTHS] for row in ROWS]
    )
    figure, axis = plt.subplots(figsize=(4.4, 2.4))
    axis.imshow(
        np.abs(table - np.array(TRUTHS)), cmap="Greys", vmin=0, vmax=6, aspect="auto", alpha=0.4
    )
    for (i, j), value in np.ndenumerate(table):
        axis.text(j, i, f"{value:.2f}", ha="center", va="center")
    axis.set_xticks(range(len(TRUTHS)), [f"r* = {t}" for t in TRUTHS])
    axis.set_yticks(
        range(len(ROWS)),
        [
            f"{row.rsplit('_', 1)[0].replace('_', ' ')}, travel {row.rsplit('_', 1)[1]}"
            for row in ROWS
        ],
    )
    figure.tight_layout()
    caption = f"Planted-rank table, mean of {len(runs)} seeds: the rank each rule reports when the target has rank r*. Darker: further off."
    return (
        "planted",
        caption,
        "Table of reported against planted ranks for three rules and three amounts of outer travel",
        figure,
    )
