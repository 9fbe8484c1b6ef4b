"""The method's own pictures: gates per layer, gates over time, score against n, mixup minus each control."""

import json
from pathlib import Path

import numpy as np

CONTROLS = ("plain", "long", "equal_passes", "kavg", "joint", "random_005", "random_45", "convex")
NAMES = {
    "plain": "plain", "long": "long (equal updates)", "equal_passes": "long (equal passes)", "kavg": "K-avg, no gates",
    "joint": "joint", "random_005": "random gates, sd 0.005", "random_45": "random gates, sd 0.45", "convex": "convex gates",
    "mixup": "weight mixup",
}  # fmt: skip


def figures(results: dict, run_dirs: dict) -> list:
    """[(name, caption, alt, figure)]; `results` is a results file, `run_dirs` (arm, task, seed) -> directory, may be empty."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for run in results.get("runs", []):
        if "score" in (run.get("metrics") or {}):
            by_task = scores.setdefault(run["task"], {})
            by_task.setdefault(run["arm"], {})[run["seed"]] = 100 * run["metrics"]["score"]
    made = [
        differences(scores),
        by_size(scores),
        gates_per_layer(run_dirs),
        gates_over_time(run_dirs),
    ]
    return [figure for figure in made if figure is not None]


def differences(scores: dict) -> tuple | None:
    """Per task: weight mixup minus each other arm, one dot per seed, mean and 95 % t interval."""
    import matplotlib.pyplot as plt
    from scipy import stats

    tasks = [task for task, arms in scores.items() if "mixup" in arms and len(arms) > 1]
    if not tasks:
        return None
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.9 * rows), squeeze=False, sharey=True
    )
    shown = [arm for arm in CONTROLS if any(arm in scores[task] for task in tasks)]
    for axis, task in zip(axes.flat, tasks):
        mixup = scores[task]["mixup"]
        for row, arm in enumerate(shown):
            other = scores[task].get(arm, {})
            d = np.array([mixup[seed] - other[seed] for seed in sorted(mixup) if seed in other])
            if not len(d):
                continue
            axis.plot(d, np.full(len(d), row), "o", color="0.7", markersize=3)
            half = (
                stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
                if len(d) > 1
                else 0.0
            )
            axis.errorbar(d.mean(), row, xerr=half, fmt="o", color="C0", capsize=3)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_title(task, fontsize=9)
        axis.set_yticks(range(len(shown)), [NAMES[arm] for arm in shown], fontsize=8)
        axis.set_xlabel("points", fontsize=8)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    figure.tight_layout()
    caption = "Weight mixup minus each control, paired by seed (grey), with mean and 95 % t interval. Right of zero: mixup better."
    alt = (
        f"Paired score differences of weight mixup against {len(shown)} arms on {len(tasks)} tasks"
    )
    return "differences", caption, alt, figure


def size_of(task: str) -> tuple[str, int] | None:
    """'rte_300' -> ('rte', 300); 'digits30' -> ('digits', 30); None where the name holds no size."""
    name = task.rstrip("0123456789")
    return (name.rstrip("_"), int(task[len(name) :])) if name != task else None


def by_size(scores: dict) -> tuple | None:
    """Score (mean and spread over seeds) against the number of examples, for families with more than one size."""
    import matplotlib.pyplot as plt

    families: dict[str, list[tuple[int, str]]] = {}
    for task in scores:
        if sized := size_of(task):
            families.setdefault(sized[0], []).append((sized[1], task))
        elif task == "documentation":
            families.setdefault("documentation", []).append((100, task))
    families = {name: sorted(sizes) for name, sizes in families.items() if len(sizes) > 1}
    if not families:
        return None
    figure, axes = plt.subplots(1, len(families), figsize=(3.6 * len(families), 3), squeeze=False)
    for axis, (name, sizes) in zip(axes.flat, families.items()):
        for i, arm in enumerate(("plain", "long", "equal_passes", "kavg", "mixup")):
            points = [
                (n, list(scores[task][arm].values())) for n, task in sizes if arm in scores[task]
            ]
            if points:
                x = np.array([n for n, _ in points]) * (1 + 0.03 * (i - 2))  # side by side
                y = [np.mean(values) for _, values in points]
                axis.errorbar(
                    x, y, yerr=[np.std(v) for _, v in points], fmt="o-", capsize=3, label=NAMES[arm]
                )
        axis.set_xscale("log")
        axis.set_xticks([n for n, _ in sizes], [str(n) for n, _ in sizes])
        axis.minorticks_off()
        axis.set_xlabel("training examples")
        axis.set_title(name, fontsize=9)
    axes[0, 0].set_ylabel("score")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    caption = "Score against the number of training examples: mean over seeds, bars are one standard deviation over seeds."
    return (
        "score_by_size",
        caption,
        f"Score against number of examples for {', '.join(families)}",
        figure,
    )


def gates_per_layer(run_dirs: dict) -> tuple | None:
    """Histogram of the entries of u and v after the search, per gated map, all seeds of one task together."""
    import matplotlib.pyplot as plt

    by_task: dict[str, dict[str, list]] = {}
    for (arm, task, _seed), directory in run_dirs.items():
        path = Path(directory) / "gates.npz"
        if arm == "mixup" and path.exists():
            with np.load(path) as archive:
                for name in archive.files:
                    by_task.setdefault(task, {}).setdefault(name.rsplit(".", 1)[0], []).append(
                        archive[name].ravel()
                    )
    if not by_task:
        return None
    task = "documentation" if "documentation" in by_task else sorted(by_task)[0]
    maps = by_task[task]
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 1.8 * rows), squeeze=False, sharex=True
    )
    low = min(float(entry.min()) for entries in maps.values() for entry in entries)
    for axis, (name, entries) in zip(axes.flat, maps.items()):
        axis.hist(np.concatenate(entries), bins=np.linspace(low, 1, 30), color="C0")
        axis.set_title(".".join(name.split(".")[-3:]), fontsize=7)
        axis.set_yticks([])
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    figure.tight_layout()
    caption = f"Entries of the learned gates u, v per gated map on {task}, all seeds; 1 is plain finetuning."
    return (
        "gates_per_layer",
        caption,
        f"Histograms of learned gates of {len(maps)} maps, from {low:.2f} to 1",
        figure,
    )


def gates_over_time(run_dirs: dict) -> tuple | None:
    """Quantiles of all gates along the first search, mean over seeds, one panel per task."""
    import matplotlib.pyplot as plt

    curves: dict[str, list[list[tuple[int, list[float]]]]] = {}
    for (arm, task, _seed), directory in run_dirs.items():
        path = Path(directory) / "metrics.jsonl"
        if arm == "mixup" and path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            curve = [
                (x["step"], x["gates"]) for x in lines if x.get("search") == 0 and "gates" in x
            ]
            if curve:
                curves.setdefault(task, []).append(curve)
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
    return (
        "gates_over_time",
        caption,
        f"Gate quantiles over search steps on {', '.join(tasks)}",
        figure,
    )
