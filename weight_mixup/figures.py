"""The method's own pictures: differences from each control, score by size, gates per layer and
over time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = tuple[str, str, str, "Figure"]  # name, caption, alternative text, figure
RunDirectories = Mapping[tuple[str, str, int], Path]  # by arm, task, seed
Scores = dict[str, dict[str, dict[int, float]]]  # task -> arm -> seed -> score in points

NAMES = {
    "plain": "plain",
    "long": "long (equal updates)",
    "equal_passes": "long (equal passes)",
    "ema": "long, moving average",
    "kavg": "K-avg, no gates",
    "joint": "joint",
    "random_005": "random gates, sd 0.005",
    "random_45": "random gates, sd 0.45",
    "convex": "convex gates",
    "fast_gates": "gates five times as fast",
    "extra_gates": "gates with labels of their own",
    "more_labels": "plain, more labels",
    "mixup": "weight mixup",
}


def figures(results: dict[str, Any], run_dirs: RunDirectories) -> list[Picture]:
    """Those for which there are data. results: a results file; run_dirs may be empty."""
    scores: Scores = {}
    for run in results.get("runs", []):
        if "score" in (run.get("metrics") or {}):
            of_arm = scores.setdefault(run["task"], {}).setdefault(run["arm"], {})
            of_arm[run["seed"]] = 100 * run["metrics"]["score"]
    made = (
        differences(scores),
        by_size(scores),
        gates_per_layer(run_dirs),
        gates_over_time(run_dirs),
    )
    return [picture for picture in made if picture is not None]


def grid(panels: int, width: float, height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` axes, four in a row; width, height: of one, in inches."""
    import matplotlib.pyplot as plt

    columns = min(4, panels)
    rows = -(-panels // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **shared)
    for axis in axes.flat[panels:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:panels])


def differences(scores: Scores) -> Picture | None:
    """Per task: weight mixup minus each other arm; one dot per seed, mean and 95 % t interval."""
    from scipy import stats

    tasks = [task for task, arms in scores.items() if "mixup" in arms and len(arms) > 1]
    if not tasks:
        return None
    figure, axes = grid(len(tasks), 3.4, 2.9, sharey=True)
    shown = [a for a in NAMES if a not in ("mixup", "more_labels")]  # the last is ten points off
    controls = [a for a in shown if any(a in scores[task] for task in tasks)]
    for axis, task in zip(axes, tasks):
        mixup = scores[task]["mixup"]
        for row, arm in enumerate(controls):
            other = scores[task].get(arm, {})
            d = np.array([mixup[seed] - other[seed] for seed in sorted(mixup) if seed in other])
            if not len(d):
                continue
            spread = row + 0.25 * np.linspace(-1, 1, len(d))  # one line of dots hides a hundred
            axis.plot(d, spread, ".", color="0.8", markersize=3)
            half = 0.0
            if len(d) > 1:
                half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
            axis.errorbar(d.mean(), row, xerr=half, fmt="o", color="C0", capsize=3)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_title(task, fontsize=9)
        axis.set_yticks(range(len(controls)), [NAMES[arm] for arm in controls], fontsize=8)
        axis.set_xlabel("points", fontsize=8)
    figure.tight_layout()
    caption = (
        "Weight mixup minus each control, paired by seed (grey), with mean and 95 % t interval. "
        "Right of zero: mixup better."
    )
    against = f"against {len(controls)} arms on {len(tasks)} tasks"
    return "differences", caption, f"Paired score differences of weight mixup {against}", figure


def size_of(task: str) -> tuple[str, int] | None:
    """'rte_300' -> ('rte', 300), 'digits30' -> ('digits', 30); None without a size."""
    name = task.rstrip("0123456789")
    return (name.rstrip("_"), int(task[len(name) :])) if name != task else None


def by_size(scores: Scores) -> Picture | None:
    """Mean and spread over seeds against the number of examples, where there are several sizes."""
    import matplotlib.pyplot as plt

    families: dict[str, list[tuple[int, str]]] = {}
    for task in scores:
        if sized := size_of(task):
            families.setdefault(sized[0], []).append((sized[1], task))
    families = {name: sorted(sizes) for name, sizes in families.items() if len(sizes) > 1}
    if not families:
        return None
    figure, axes = plt.subplots(1, len(families), figsize=(3.6 * len(families), 3), squeeze=False)
    for axis, (name, sizes) in zip(axes.flat, families.items()):
        for i, arm in enumerate(("plain", "long", "equal_passes", "kavg", "mixup")):
            present = [(n, scores[task][arm]) for n, task in sizes if arm in scores[task]]
            values = [list(of_seed.values()) for _, of_seed in present]
            if values:
                x = np.array([n for n, _ in present]) * (1 + 0.03 * (i - 2))  # side by side
                mean, sd = [np.mean(v) for v in values], [np.std(v) for v in values]
                axis.errorbar(x, mean, yerr=sd, fmt="o-", capsize=3, label=NAMES[arm])
        axis.set_xscale("log")
        axis.set_xticks([n for n, _ in sizes], [str(n) for n, _ in sizes])
        axis.minorticks_off()
        axis.set_xlabel("training examples")
        axis.set_title(name, fontsize=9)
    axes[0, 0].set_ylabel("score")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    caption = (
        "Score against the number of training examples: mean over seeds, bars are one standard "
        "deviation over seeds."
    )
    alt = f"Score against number of examples for {', '.join(families)}"
    return "score_by_size", caption, alt, figure


def gates_per_layer(run_dirs: RunDirectories) -> Picture | None:
    """Histogram of the entries of u and v after the search, per gated map, all seeds together."""
    by_task: dict[str, dict[str, list[np.ndarray]]] = {}
    for (arm, task, _seed), directory in run_dirs.items():
        path = Path(directory) / "gates.npz"
        if arm == "mixup" and path.exists():
            maps = by_task.setdefault(task, {})
            with np.load(path) as archive:
                for name in archive.files:
                    maps.setdefault(name.rsplit(".", 1)[0], []).append(archive[name].ravel())
    if not by_task:
        return None
    task = sorted(by_task)[0]
    maps = by_task[task]
    figure, axes = grid(len(maps), 2.6, 1.8, sharex=True)
    low = min(float(entry.min()) for entries in maps.values() for entry in entries)
    for axis, (name, entries) in zip(axes, maps.items()):
        axis.hist(np.concatenate(entries), bins=np.linspace(low, 1, 30).tolist(), color="C0")
        axis.set_title(".".join(name.split(".")[-3:]), fontsize=7)
        axis.set_yticks([])
    figure.tight_layout()
    what = f"Entries of the learned gates u, v per gated map on {task}, all seeds"
    alt = f"Histograms of learned gates of {len(maps)} maps, from {low:.2f} to 1"
    return "gates_per_layer", f"{what}; 1 is plain finetuning.", alt, figure


def gates_over_time(run_dirs: RunDirectories) -> Picture | None:
    """Quantiles of all gates along the first search, mean over seeds, one panel per task."""
    import matplotlib.pyplot as plt

    curves: dict[str, list[list[tuple[int, list[float]]]]] = {}
    for (arm, task, _seed), directory in run_dirs.items():
        path = Path(directory) / "metrics.jsonl"
        if arm == "mixup" and path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            first = [x for x in lines if x.get("search") == 0 and "gates" in x]
            if first:
                curves.setdefault(task, []).append([(x["step"], x["gates"]) for x in first])
    if not curves:
        return None
    tasks = sorted(curves)[:4]
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.2 * len(tasks), 2.8), squeeze=False)
    for axis, task in zip(axes.flat, tasks):
        steps = [step for step, _ in curves[task][0]]
        mean = np.mean([[q for _, q in curve] for curve in curves[task]], axis=0)
        axis.fill_between(steps, mean[:, 0], mean[:, 4], color="C0", alpha=0.2, label="all")
        axis.fill_between(steps, mean[:, 1], mean[:, 3], color="C0", alpha=0.4, label="10 to 90 %")
        axis.plot(steps, mean[:, 2], color="C0", label="median")
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("step of the first search")
    axes[0, 0].set_ylabel("gate")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    caption = "Quantiles of all gates during the first search, mean over seeds."
    alt = f"Gate quantiles over search steps on {', '.join(tasks)}"
    return "gates_over_time", caption, alt, figure
