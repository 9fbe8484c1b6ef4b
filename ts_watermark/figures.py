"""The method's own pictures: frontiers, the paper's figures with ours over the reported points, the
null, the tokens."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import torch

from ts_watermark.evaluate import WORD_CLASSES, null_z
from ts_watermark.method import mgda_weight
from ts_watermark.watermark import Watermark

LABELS = {"ts": "TS (MGDA)", "kgw": "KGW, gamma 0.25", "permuted": "permuted TS", "matched": "matched constant",
          "start": "TS before training", "weighted_sum": "TS, weighted sum", "sweet": "SWEET",
          "kgw_0.1": "KGW, gamma 0.1", "kgw_0.5": "KGW, gamma 0.5"}  # fmt: skip
MARKERS = dict(zip(LABELS, "os^vDPXdp"))
ATTACKS = ("copy_paste_1", "copy_paste_3", "delete_0.2", "substitute_0.2", "dipper")

# figure -> (task, x metric, y metrics, arms and the prefix of their entries in reported.yaml)
PAPER = {
    "figure-2": ("c4", "cosine", ("tpr0", "tpr1"), {"ts": "opt.ts", "kgw": "opt.kgw", "sweet": "opt.sweet"}),
    "figure-3": ("llama", "cosine", ("tpr0", "tpr1"), {"ts": "llama.ts", "kgw": "llama.kgw"}),
    "figure-5": ("c4", "cosine_dipper", ("tpr0_dipper", "tpr1_dipper"),
                 {"ts": "opt.dipper_lex40_order100.ts", "kgw": "opt.dipper_lex40_order100.kgw"}),
    "figure-6-one-piece": ("c4", "cosine", ("tpr0_copy_paste_1", "tpr1_copy_paste_1"),
                           {"ts": "opt.copy_paste_1.ts", "kgw": "opt.copy_paste_1.kgw"}),
    "figure-6-three-pieces": ("c4", "cosine", ("tpr0_copy_paste_3", "tpr1_copy_paste_3"),
                              {"ts": "opt.copy_paste_3.ts", "kgw": "opt.copy_paste_3.kgw"}),
    "figure-7": ("c4", "cosine", ("tpr0", "tpr1"), {"kgw_0.1": "opt.kgw", "kgw": "opt.kgw", "kgw_0.5": "opt.kgw"}),
    "figure-9": ("c4", "cosine", ("tpr0", "tpr1"), {"ts": "opt.ts", "weighted_sum": "opt.weighted_sum"}),
}  # fmt: skip
GAMMA = {"kgw": "0.25_", "kgw_0.1": "0.1_", "kgw_0.5": "0.5_"}


def figures(results: dict, run_dirs: dict) -> list:
    """[(name, caption, alt, figure)]; `results` is a results file, `run_dirs` (arm, task, seed) ->
    directory."""
    points = points_of(results)
    tasks = list(dict.fromkeys(task for task, _ in points))
    made = [frontier(points, task) for task in tasks]
    made += [paper_figure(name, points) for name in PAPER]
    made += [robustness(points, task) for task in tasks]
    made += [null_distribution(run_dirs), tokens(run_dirs), segment()]
    return [figure for figure in made if figure is not None]


def points_of(results: dict) -> dict[tuple[str, str], dict[str, dict[str, list[float]]]]:
    """(task, arm) -> strength -> metric -> values over seeds."""
    points: dict = {}
    for run in results.get("runs", []):
        for key, value in (run.get("metrics") or {}).items():
            if "@" in key:
                metric, strength = key.split("@")
                of_arm = points.setdefault((run["task"], run["arm"]), {})
                of_arm.setdefault(strength, {}).setdefault(metric, []).append(value)
    return points


def mean_interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t interval over seeds (0 for one seed)."""
    from scipy import stats

    v = np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v)) if len(v) > 1 else 0.0
    return float(v.mean()), float(half)


def curve(axis, of_arm: dict, x: str, y: str, arm: str, **more) -> None:
    """One arm's points, joined in the order of x, with intervals over seeds on both axes."""
    rows = [
        (*mean_interval(m[x]), *mean_interval(m[y])) for m in of_arm.values() if x in m and y in m
    ]
    if rows:
        xs, xe, ys, ye = zip(*sorted(rows))
        axis.errorbar(xs, ys, xerr=xe, yerr=ye, marker=MARKERS[arm], markersize=4, elinewidth=0.7,
                      label=LABELS[arm], **more)  # fmt: skip


def legend_below(figure, axis) -> None:
    """Outside of the axes, where it covers no point and no interval."""
    handles, labels = axis.get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(3, len(labels))
    )


def frontier(points: dict, task: str) -> tuple | None:
    import matplotlib.pyplot as plt

    arms = [a for a in LABELS if (task, a) in points]
    if not arms:
        return None
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    for arm in arms:
        curve(axis, points[task, arm], "z", "cosine", arm)
    axis.set(
        xlabel="mean z of watermarked text",
        ylabel="cosine to the unwatermarked text",
        title=f"Frontier, {task}",
    )
    legend_below(figure, axis)
    return (f"frontier-{task}", "Meaning kept against detectability, one point per strength; mean and 95 % interval over "
            "seeds. Methods are compared at equal z, not at equal delta.",
            f"Cosine similarity falls as mean z grows, for {len(arms)} methods on {task}.", figure)  # fmt: skip


@functools.cache
def reported() -> dict[str, dict]:
    """Entries of reported.yaml by id (a large file, read once)."""
    import yaml

    path = Path(__file__).with_name("reported.yaml")
    text = path.read_text() if path.exists() else "entries: []"
    return {
        e["id"]: e
        for e in yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["entries"]
    }


def reported_points(prefix: str, arm: str, x: str, y: str) -> list[tuple[float, float, bool]]:
    """(x, y, derived) of the published points of one method."""
    short = {"cosine": "simcse", "cosine_dipper": "simcse"}
    last = {"x": short[x], "y": y.split("_")[0]}
    found, entries = [], reported()
    for name, entry in entries.items():
        if not name.startswith(f"{prefix}.") or not name.endswith(f".{last['y']}"):
            continue
        strength = name.removeprefix(f"{prefix}.")
        if (arm in GAMMA and not strength.startswith(GAMMA[arm])) or (
            ".setting_" in name and ".setting_2." not in name
        ):
            continue
        stem = name.removesuffix(last["y"])
        place = entries.get(stem + last["x"])
        if (
            place is None and "copy_paste" in prefix
        ):  # its similarity axis is that of the unattacked text
            plain = stem.replace("copy_paste_1.", "").replace("copy_paste_3.", "")
            place = entries.get(f"{plain}setting_2.simcse")
        if place is not None and entry["value"] is not None:
            found.append((place["value"], entry["value"], entry.get("confidence") == "derived"))
    return sorted(found)


def paper_figure(name: str, points: dict) -> tuple | None:
    """A figure of the paper: our points filled and joined, the reported ones grey (hollow where
    derived)."""
    import matplotlib.pyplot as plt

    task, x, ys, arms = PAPER[name]
    if not any((task, arm) in points for arm in arms):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.2), sharey=True)
    for axis, y in zip(axes, ys):
        for k, (arm, prefix) in enumerate(arms.items()):
            colour = f"C{k}"
            curve(axis, points.get((task, arm), {}), x, y, arm, color=colour)
            for px, py, derived in reported_points(prefix, arm, x, y):
                axis.plot(px, py, MARKERS[arm], color=colour, alpha=0.55, markersize=5,
                          markerfacecolor="none" if derived else colour)  # fmt: skip
        axis.set(
            xlabel="similarity",
            title="TPR at 0 % FPR" if y.startswith("tpr0") else "TPR at 1 % FPR",
        )
    axes[0].set_ylabel("true positive rate")
    legend_below(figure, axes[0])
    return (name, f"{name.replace('-', ' ').capitalize()} of the paper: our points joined, with intervals over seeds; reported "
            "points single and pale, hollow where derived from stored scores.",
            f"True positive rate against similarity on {task}, ours and reported.", figure)  # fmt: skip


def robustness(points: dict, task: str) -> tuple | None:
    import matplotlib.pyplot as plt

    attacks = [
        a
        for a in ATTACKS
        if any(f"z_{a}" in m for arm in ("ts", "kgw") for m in points.get((task, arm), {}).values())
    ]
    if not attacks:
        return None
    figure, axes = plt.subplots(
        1, len(attacks), figsize=(2.5 * len(attacks) + 0.6, 2.8), squeeze=False
    )
    for axis, attack in zip(axes[0], attacks):
        for arm in ("ts", "kgw"):
            curve(axis, points.get((task, arm), {}), "z", f"z_{attack}", arm)
        axis.set(xlabel="mean z before", title=attack.replace("_", " "))
    axes[0][0].set_ylabel("mean z after")
    legend_below(figure, axes[0][0])
    return (f"robustness-{task}", "z after an attack against z before it. Deletion and substitution stand in for paraphrasing "
            "where Dipper cannot run.", f"z after {', '.join(attacks)} on {task}, TS and KGW.", figure)  # fmt: skip


def null_distribution(run_dirs: dict) -> tuple | None:
    """z of human text against the normal quantiles, per method."""
    import matplotlib.pyplot as plt
    from scipy import stats

    found: dict[str, list[np.ndarray]] = {}
    for (arm, _, _), folder in run_dirs.items():
        file = Path(folder) / "predictions.npz"
        if arm in ("ts", "kgw") and file.exists():
            with np.load(file) as stored:
                found.setdefault(arm, []).append(null_z(dict(stored)))
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    share = np.concatenate([[0.001, 0.005], np.linspace(0.01, 0.99, 50), [0.995, 0.999]])
    lines = []
    for arm, parts in found.items():
        z = np.concatenate(parts)
        axis.plot(
            stats.norm.ppf(share),
            np.quantile(z, share),
            MARKERS[arm],
            markersize=3,
            label=LABELS[arm],
        )
        lines.append(
            f"{LABELS[arm]}: n = {len(z)}, mean {z.mean():+.3f}, sd {z.std(ddof=1):.3f}, above 2.326: {(z > 2.326).mean():.2%}"
        )
    ends = np.array([-3.2, 3.2])
    axis.plot(ends, ends, color="0.6", linewidth=0.8)
    axis.set(
        xlabel="standard normal quantile",
        ylabel="quantile of z, human text",
        title="Null distribution",
    )
    axis.legend()
    return ("null", "z of human text against the normal distribution that its p-values assume. " + "; ".join(lines) + ".",
            "Quantiles of z on human text against normal quantiles.", figure)  # fmt: skip


def tokens(run_dirs: dict) -> tuple | None:
    """gamma and delta of tokens by frequency in human text, determiners and punctuation marked."""
    import matplotlib.pyplot as plt

    from ts_watermark.data import load_codec

    stages = [
        (key, Path(d))
        for key, d in run_dirs.items()
        if key[0] == "generators" and (Path(d) / "export").is_dir()
    ]
    bases = [
        Path(d)
        for (arm, task, _), d in run_dirs.items()
        if arm == "base" and stages and task == stages[0][0][1]
    ]
    if not stages or not bases:
        return None
    folder = sorted((stages[0][1] / "export").iterdir())[-1]
    watermark, codec = Watermark.load(folder), load_codec(folder / "tokenizer")
    human = json.loads((bases[0] / "passages.json").read_text())["test"]["human"]
    counts = np.bincount(np.concatenate(human), minlength=len(watermark.gamma))
    words = np.array([w.strip().lower() for w in codec.pieces(range(len(codec)))])
    used = np.flatnonzero(counts[: len(words)])
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.0))
    for axis, values, name in zip(
        axes, (watermark.gamma.numpy(), watermark.delta.numpy()), ("gamma", "delta")
    ):
        axis.scatter(
            counts[used], values[used], s=3, color="0.6", rasterized=True, label="other tokens"
        )
        for k, (kind, members) in enumerate(WORD_CLASSES.items()):
            own = used[np.isin(words[used], sorted(members))]
            axis.scatter(counts[own], values[own], s=16, color=f"C{k}", label=kind)
        axis.set(xscale="log", xlabel="frequency in human text", ylabel=f"{name} after the token")
    axes[0].legend()
    return ("tokens", f"gamma and delta by token (init {folder.name.replace('_', ', ')}). The paper finds small delta after determiners "
            "and large delta after punctuation.", "gamma and delta of tokens against their frequency.", figure)  # fmt: skip


def segment() -> tuple:
    """MGDA for two tasks: the point of the segment between the gradients that lies closest to the
    origin."""
    import matplotlib.pyplot as plt

    cases = [  # d, s, and where the names of d, s and g stand beside their tips
        ((2.0, 0.4), (0.3, 1.0), [(3, 3), (3, 3), (-9, 1)]),
        ((0.6, 0.5), (1.8, 1.2), [(4, -8), (3, 3), (-9, 1)]),
        ((-1.0, 1.2), (1.6, 0.3), [(3, 3), (3, 3), (3, -10)]),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.6), sharex=True, sharey=True)
    for axis, (d, s, shifts) in zip(axes, cases):
        lam = mgda_weight(torch.tensor(d), torch.tensor(s))
        g = lam * np.array(d) + (1 - lam) * np.array(s)
        axis.plot(*zip(d, s), color="0.6")
        for k, (vector, name, shift) in enumerate(zip((d, s, g), ("g_D", "g_S", "g"), shifts)):
            axis.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "->", "color": f"C{k}"})
            axis.annotate(name, vector, textcoords="offset points", xytext=shift, color=f"C{k}")
        axis.set(title=f"lambda = {lam:.2f}", xlim=(-1.4, 2.7), ylim=(-0.3, 1.6), aspect="equal")
    return ("mgda", "The weight of L_D: the closest point g of the segment between the two gradients. Its product with both is "
            "at least |g|^2, so both losses fall.", "Three pairs of gradients with their minimum-norm point.", figure)  # fmt: skip
