"""The method's own pictures: ranks, share of the possible gain, weights over time, noise, size."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from autolora.ranks import noise_counts

Figure = tuple[str, str, str, plt.Figure]  # name, caption, text for who cannot see it, picture
RunDirectories = dict[tuple[str, str, int], Path]  # by arm, task and seed
GREY = "#8b8b8b"
PANELS = {"oracle": "true", "autolora": "learned", "permuted": "permuted", "random": "noise law"}
RULES = {"count": "alpha (the paper's count)", "norm": "alpha x norms", "spectrum": "spectrum"}
TRAVELS = (1.1, 3.8, 12.0)
SHOWN = 6  # seeds of the heat maps


def figures(results: dict[str, Any], run_dirs: RunDirectories) -> list[Figure]:
    """All pictures; what needs run directories is left out where they are gone."""
    made = [
        rank_heatmap(run_dirs),
        noise_law(run_dirs),
        weights_over_time(run_dirs),
        score_against_parameters(results),
        share_by_travel(results),
    ]
    return [figure for figure in made if figure is not None]


def _files(run_dirs: RunDirectories, arm: str, name: str) -> Iterator[tuple[str, int, Path]]:
    """Task, seed and path of a file of every run of an arm that has it."""
    for (run_arm, task, seed), directory in sorted(run_dirs.items()):
        if run_arm == arm and (Path(directory) / name).exists():
            yield task, seed, Path(directory) / name


def _ranks(run_dirs: RunDirectories, arm: str, task: str) -> dict[int, np.ndarray]:
    """Rank vector of an arm by seed, as far as the run directories are there."""
    ranks = {}
    for run_task, seed, path in _files(run_dirs, arm, "predictions.npz"):
        if run_task == task:
            with np.load(path, allow_pickle=False) as archive:
                if "_ranks" in archive.files:
                    ranks[seed] = archive["_ranks"]
    return ranks


def _first_task(run_dirs: RunDirectories) -> str:
    """The planted task if the method was run on it, else the first it was; "" for none."""
    tasks = [task for arm, task, _ in sorted(run_dirs) if arm == "autolora"]
    return next((task for task in tasks if task == "planted"), next(iter(tasks), ""))


def _map_names(run_dirs: RunDirectories, task: str) -> list[str]:
    """Short names of the adapted maps (`4 q`, `4 v`, ...) from a search's ranks.json."""
    for run_task, _, path in _files(run_dirs, "search", "ranks.json"):
        if run_task == task:
            names = [
                name.split(".") for name in json.loads(path.read_text(encoding="utf-8"))["ranks"]
            ]
            place = [next((p for p in parts if p.isdigit()), "") for parts in names]
            letter = ["" if parts[-1].isdigit() else f" {parts[-1][0]}" for parts in names]
            return [number + of for number, of in zip(place, letter)]
    return []


def rank_heatmap(run_dirs: RunDirectories) -> Figure | None:
    """Rows: seeds; columns: adapted maps; a panel each for learned, permuted, and the noise law."""
    task = _first_task(run_dirs)
    panels = {arm: _ranks(run_dirs, arm, task) for arm in PANELS}
    panels = {arm: dict(list(rows.items())[:SHOWN]) for arm, rows in panels.items() if rows}
    if "autolora" not in panels:
        return None
    maps = len(next(iter(panels["autolora"].values())))
    names = _map_names(run_dirs, task) or [str(i) for i in range(maps)]
    height = 0.9 + 1.5 * len(panels)
    figure, grid = plt.subplots(len(panels), 1, figsize=(4.4, height), squeeze=False, sharex=True)
    axes = grid[:, 0]
    for axis, (arm, rows) in zip(axes, panels.items()):
        table = np.stack(list(rows.values()))
        image = axis.imshow(table, vmin=1, vmax=8, aspect="auto")
        axis.set_title(f"{PANELS[arm]}: mean {table.mean():.2f}, sd {table.std():.2f}", loc="left")
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylabel("seed")
        if maps <= 12:
            _write_cells(axis, table, "{:.0f}", dark_below=5)
    axes[-1].set_xticks(range(maps), names, rotation=90 if maps > 8 else 0)
    axes[-1].set_xlabel("block and map (q query, v value)")
    figure.colorbar(image, ax=axes.tolist(), label="rank", shrink=0.7)
    caption = (
        f"Ranks on task {task}, the first {SHOWN} seeds at most: learned, the same ranks permuted "
        "over maps, and counts of random logits with the learned spread; where they are planted, "
        "the true ones. Learned from need rather than noise, they would resemble the true ones, "
        "or be alike from seed to seed."
    )
    text = f"Heat maps of learned, permuted and random ranks per map and seed, task {task}"
    return "ranks", caption, text, figure


def _write_cells(axis: plt.Axes, table: np.ndarray, style: str, dark_below: float = 0) -> None:
    """Each cell's number; white where the cell is dark."""
    for (i, j), value in np.ndenumerate(table):
        color = "white" if value < dark_below else "black"
        axis.text(j, i, style.format(value), ha="center", va="center", color=color)


def noise_law(run_dirs: RunDirectories) -> Figure | None:
    """How often each rank occurs: learned, and what the count gives for random logits."""
    learned = _ranks(run_dirs, "autolora", _first_task(run_dirs))
    figure, axis = plt.subplots(figsize=(4.4, 2.6))
    ranks = np.arange(1, 9)
    for sigma, style in ((0.3, "-"), (1.0, "--"), (3.0, ":")):
        counts = noise_counts(sigma, 8, 20_000, torch.Generator().manual_seed(0)).numpy()
        shares = [(counts == r).mean() for r in ranks]
        axis.plot(ranks, shares, style, color=GREY, label=f"noise, logit sd {sigma}")
    if learned:
        values = np.concatenate(list(learned.values()))
        shares = [(values == r).mean() for r in ranks]
        axis.bar(ranks, shares, width=0.5, alpha=0.7, label=f"learned ({len(values)} maps)")
    axis.set_xlabel("rank by the paper's count (k = 8)")
    axis.set_ylabel("share of maps")
    axis.legend()
    figure.tight_layout()
    caption = (
        "What the count alpha >= 1/k returns when nothing has been learned, beside what was "
        "learned."
    )
    text = "Histogram of learned ranks over the distribution for random logits"
    return "noise-law", caption, text, figure


def weights_over_time(run_dirs: RunDirectories) -> Figure | None:
    """The eight selection weights of the first maps, over the search of one seed."""
    task, seed, path = next(_files(run_dirs, "search", "metrics.jsonl"), ("", 0, None))
    lines = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path else []
    )
    lines = [line for line in lines if "alpha" in line]
    if not lines:
        return None
    steps = [line["step"] for line in lines]
    alpha = np.array([line["alpha"] for line in lines])  # (time, M, k)
    names = _map_names(run_dirs, task)
    shown = min(4, alpha.shape[1])
    figure, grid = plt.subplots(1, shown, figsize=(1.6 * shown, 2.3), squeeze=False, sharey=True)
    for m, axis in enumerate(grid[0]):
        axis.plot(steps, alpha[:, m], linewidth=1)
        axis.axhline(1 / alpha.shape[2], color=GREY, linewidth=0.8, linestyle="--")
        axis.set_title(f"{names[m] if m < len(names) else m}: {lines[-1]['ranks'][m]}")
        axis.set_xlabel("step")
    grid[0, 0].set_ylabel("selection weight")
    figure.tight_layout()
    caption = (
        f"Selection weights of the first {shown} maps (block, map: final rank), task {task}, "
        f"seed {seed}; dashed: threshold 1/k."
    )
    text = f"Curves of the selection weights of {shown} maps over the search"
    return "weights", caption, text, figure


def score_against_parameters(results: dict[str, Any]) -> Figure | None:
    """Mean score against mean adapter parameters, one point per arm with a rank pattern."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in results.get("runs", []):
        metrics = run.get("metrics") or {}
        if run.get("status") == "finished" and {"score", "parameters"} <= metrics.keys():
            points[run["task"]][run["arm"]].append((metrics["parameters"], 100 * metrics["score"]))
    if not points:
        return None
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    size = (max(4.4, 2.9 * columns), 3.0 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    shown = list(dict.fromkeys(arm for arms in points.values() for arm in arms))
    style = {a: {"color": f"C{i % 8}", "marker": "osv^P"[i // 8]} for i, a in enumerate(shown)}
    style["autolora"] = {"color": "C1", "marker": "D"}
    look = {"linestyle": "none", "markersize": 6, "alpha": 0.85}
    for axis, (task, arms) in zip(axes.flat, points.items()):
        for arm, scores in arms.items():
            x, y = np.array(scores).mean(0)
            axis.plot(x, y, label=arm, **look, **style[arm])
        axis.set_title(task)
        axis.set_xlabel("adapter parameters (head not counted)")
        axis.set_ylabel("score, points")
    for axis in axes.flat[len(points) :]:
        axis.set_visible(False)
    legends = [axis.get_legend_handles_labels() for axis in axes.flat]
    handles = {text: line for lines, texts in legends for line, text in zip(lines, texts)}
    figure.tight_layout()
    names = handles.keys()
    figure.legend(handles.values(), names, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    caption = (
        "Mean test score of each arm against the mean number of its adapter parameters. "
        "Diamond: AutoLoRA."
    )
    text = f"Scatter of score against adapter parameters on {len(points)} tasks"
    return "budget", caption, text, figure


def share_by_travel(results: dict[str, Any]) -> Figure | None:
    """Share of the oracle's gain over uniform ranks, by outer travel; a line per rank rule."""
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for run in results.get("runs", []):
        if (
            run.get("task") == "planted_rules"
            and run.get("status") == "finished"
            and run.get("metrics")
        ):
            scores[run["arm"]][run["seed"]] = 100 * run["metrics"].get("score", 0.0)
    arms = [arm for rule in RULES for arm in (f"{rule}_short", rule, f"{rule}_long")]
    needed = [scores.get(arm, {}) for arm in ("oracle", "uniform_20", *arms)]
    seeds = sorted(set.intersection(*map(set, needed)))
    if len(seeds) < 2:
        return None
    uniform = np.array([scores["uniform_20"][s] for s in seeds])
    room = np.array([scores["oracle"][s] for s in seeds]) - uniform
    figure, axis = plt.subplots(figsize=(4.4, 2.8))
    for i, (rule, text) in enumerate(RULES.items()):
        of_rule = (f"{rule}_short", rule, f"{rule}_long")
        gains = np.array([[scores[arm][s] for s in seeds] for arm in of_rule]) - uniform
        share = gains.mean(1) / room.mean()
        # 95 %: of the mean of gain - share * room, which is 0 here, over the mean room
        spread = (gains - share[:, None] * room).std(1, ddof=1) / len(seeds) ** 0.5 / room.mean()
        axis.errorbar(
            TRAVELS, share, 1.96 * spread, label=text, fmt=("o-", "s--", "D:")[i], capsize=3
        )
    for height, text in ((0.0, "uniform ranks"), (1.0, "true ranks")):
        axis.axhline(height, color=GREY, linewidth=0.8)
        box = axis.get_yaxis_transform()
        axis.text(0.99, height, text, color=GREY, ha="right", va="bottom", transform=box)
    axis.set_ylim(top=1.15)
    axis.set_xscale("log")
    axis.set_xticks(TRAVELS, ["1.1\nscript", "3.8\nprinted", "12"])
    axis.minorticks_off()
    axis.set_xlabel("outer travel")
    axis.set_ylabel("share of the possible gain")
    figure.tight_layout()
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    caption = (
        f"Planted ranks, {len(seeds)} seeds: how much of the {room.mean():.1f} points of R2 "
        "between uniform and true ranks each rank rule recovers, by outer travel, all at the same "
        "total. Bars: 95 % intervals."
    )
    text = "Curves of the share of the possible gain by outer travel for three rank rules"
    return "share", caption, text, figure
