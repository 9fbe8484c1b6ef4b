"""The method's own pictures: frontiers, the paper's figures with ours over the reported points, the
null, the tokens."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ts_watermark.evaluate import WORD_CLASSES
from ts_watermark.method import mgda_weight
from ts_watermark.watermark import Watermark

LABELS = {
    "ts": "TS (MGDA)",
    "kgw": "KGW, gamma 0.25",
    "permuted": "permuted TS",
    "matched": "matched constant",
    "start": "TS before training",
    "weighted_sum": "TS, weighted sum",
    "moo_normalised": "TS (MGDA, norm 1)",
    "official": "TS, authors' networks",
    "sweet": "SWEET",
    "kgw_0.1": "KGW, gamma 0.1",
    "kgw_0.15": "KGW, gamma 0.15",
    "kgw_0.5": "KGW, gamma 0.5",
    "unigram": "Unigram",
    "synthid": "SynthID",
    "ts_smollm2": "TS (MGDA), one training",
    "matched_smollm2": "matched constant, one training",
    "kgw_smollm2": "KGW",
}
MARKERS = dict(zip(LABELS, "os^vDPX<>dph*8ovs"))
TRAINED = ("ts", "moo_normalised", "weighted_sum")
ATTACKS = ("copy_paste_1", "copy_paste_3", "delete_0.2", "substitute_0.2", "dipper")


class Figure(NamedTuple):
    """A figure of the paper: task, y metrics, and the arms with the prefix of their entries in
    reported.yaml (after that of the language model)."""

    task: str
    ys: tuple[str, str]
    arms: dict[str, str]
    model: str = "opt"
    x: str = "cosine"


PAPER = {
    "figure-2": Figure("c4", ("tpr0", "tpr1"), {"ts": "ts", "kgw": "kgw", "sweet": "sweet"}),
    "figure-3": Figure("llama", ("tpr0", "tpr1"), {"ts": "ts", "kgw": "kgw"}, "llama"),
    "figure-5": Figure(
        "c4",
        ("tpr0_dipper", "tpr1_dipper"),
        {"ts": "dipper_lex40_order100.ts", "kgw": "dipper_lex40_order100.kgw"},
        x="cosine_dipper",
    ),
    "figure-6-one-piece": Figure(
        "c4",
        ("tpr0_copy_paste_1", "tpr1_copy_paste_1"),
        {"ts": "copy_paste_1.ts", "kgw": "copy_paste_1.kgw"},
    ),
    "figure-6-three-pieces": Figure(
        "c4",
        ("tpr0_copy_paste_3", "tpr1_copy_paste_3"),
        {"ts": "copy_paste_3.ts", "kgw": "copy_paste_3.kgw"},
    ),
    "figure-7": Figure("c4", ("tpr0", "tpr1"), {"kgw_0.1": "kgw", "kgw": "kgw", "kgw_0.5": "kgw"}),
    "figure-10": Figure("c4", ("tpr0", "tpr1"), {"ts": "ts", "weighted_sum": "weighted_sum"}),
}
GAMMA = {"kgw": "0.25_", "kgw_0.1": "0.1_", "kgw_0.5": "0.5_"}

Curve = dict[str, dict[str, list[float]]]  # strength -> metric -> values over seeds
Points = dict[tuple[str, str], Curve]  # (task, arm)
Runs = dict[tuple[str, str, int], str | Path]  # (arm, task, seed) -> directory
Picture = tuple[str, str, str, Any]  # name, caption, alternative text, figure of matplotlib


def figures(results: dict[str, Any], run_dirs: Runs) -> list[Picture]:
    """All pictures that these results have the data for; `results` is a results file."""
    points = points_of(results)
    tasks = list(dict.fromkeys(task for task, _ in points))
    made = [frontier(points, task) for task in tasks]
    made += [paper_figure(name, points) for name in PAPER]
    made += [robustness(points, task) for task in tasks]
    made += [path(points, task) for task in tasks]
    made += [null_distribution(run_dirs), tokens(run_dirs), gradients(run_dirs), segment()]
    return [picture for picture in made if picture is not None]


def points_of(results: dict[str, Any]) -> Points:
    """(task, arm) -> strength -> metric -> values over seeds."""
    points: Points = {}
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


def curve(axis: Any, of_arm: Curve, x: str, y: str, arm: str, color: str | None = None) -> None:
    """One arm's points, joined in the order of x, with intervals over seeds on both axes."""
    measured = [m for m in of_arm.values() if x in m and y in m]
    rows = [(*mean_interval(m[x]), *mean_interval(m[y])) for m in measured]
    if rows:
        xs, xe, ys, ye = zip(*sorted(rows))
        looks = {"marker": MARKERS[arm], "markersize": 4, "elinewidth": 0.7, "color": color}
        axis.errorbar(xs, ys, xerr=xe, yerr=ye, label=LABELS[arm], **looks)


def legend_below(figure: Any, axis: Any) -> None:
    """Outside of the axes, where it covers no point and no interval."""
    handles, labels = axis.get_legend_handles_labels()
    figure.tight_layout()
    columns, place = min(3, len(labels)), {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}
    figure.legend(handles, labels, ncols=columns, **place)


# --- frontiers ------------------------------------------------------------------------------------


def frontier(points: Points, task: str) -> Picture | None:
    import matplotlib.pyplot as plt

    arms = [a for a in LABELS if (task, a) in points]
    if not arms:
        return None
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    x = detectability(points, task)
    pairs = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for arm, color in zip(arms, pairs[::2] + pairs[1::2]):  # the usual ten, then their light ones
        curve(axis, points[task, arm], x, "cosine", arm, color)
    axis.set_title(f"Frontier, {task}")
    axis.set(xlabel=f"mean {x} of watermarked text", ylabel="cosine to the unwatermarked text")
    legend_below(figure, axis)
    caption = (
        "Meaning that stays against detectability, one point per strength; mean and 95 % interval "
        f"over seeds. Methods are compared at equal {x}, not at equal delta."
    )
    alt = f"Cosine similarity falls as mean {x} grows, for {len(arms)} methods on {task}."
    return f"frontier-{task}", caption, alt, figure


def detectability(points: Points, task: str) -> str:
    """`evidence`; `z` for results that were recorded before it was measured."""
    measured = {
        key for (t, _), curves in points.items() if t == task for c in curves.values() for key in c
    }
    return "evidence" if "evidence" in measured else "z"


def path(points: Points, task: str) -> Picture | None:
    """Where training leads: from the untrained networks to the trained ones, over the frontier."""
    import matplotlib.pyplot as plt

    start, x = points.get((task, "start")), detectability(points, task)
    trained = [arm for arm in TRAINED if (task, arm) in points]
    if not start or not trained:
        return None
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    for k, arm in enumerate(a for a in LABELS if a.startswith("kgw") and (task, a) in points):
        curve(axis, points[task, arm], x, "cosine", arm, f"{0.75 - 0.2 * k:.2f}")

    def place(of_arm: Curve, strength: str) -> tuple[float, float]:
        of_strength = of_arm[strength]
        return float(np.mean(of_strength[x])), float(np.mean(of_strength["cosine"]))

    for k, arm in enumerate(trained):
        for strength in start.keys() & points[task, arm].keys():
            begin, end = place(start, strength), place(points[task, arm], strength)
            arrow = {"arrowstyle": "->", "color": f"C{k}", "linewidth": 1.5}
            axis.annotate("", end, begin, arrowprops=arrow)
            axis.plot(*begin, "o", color="black", markersize=4)
            axis.plot(*end, MARKERS[arm], color=f"C{k}", markersize=5)
        axis.plot([], [], MARKERS[arm], color=f"C{k}", label=LABELS[arm])
    axis.plot([], [], "o", color="black", label=LABELS["start"])
    axis.set_title(f"What training does, {task}")
    axis.set(xlabel=f"mean {x} of watermarked text", ylabel="cosine to the unwatermarked text")
    legend_below(figure, axis)
    caption = (
        "From the untrained networks to the trained ones, means over seeds, over KGW's frontiers. "
        "An arrow along a frontier trades one objective for the other; only one that leaves it "
        "upwards gains."
    )
    alt = f"Arrows from the start to the trained networks on {task}, over KGW's frontiers."
    return f"path-{task}", caption, alt, figure


def gradients(run_dirs: Runs) -> Picture | None:
    """Norms of both gradients, their cosine and the weight of L_D over training."""
    import matplotlib.pyplot as plt

    files = [
        Path(folder) / "metrics.jsonl"
        for (arm, _, _), folder in run_dirs.items()
        if arm == "generators"
    ]
    rows = [
        json.loads(line) for f in files if f.exists() for line in f.read_text("utf-8").splitlines()
    ]
    rows = [row for row in rows if "norm_D" in row]
    if not rows:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.6))
    panels = (("norm_D", "norm_S"), ("cosine_DS",), ("lam",))
    steps = sorted({row["step"] for row in rows})
    for axis, names, title in zip(axes, panels, ("norms", "cosine", "weight of L_D")):
        for name in names:
            means = [np.mean([row[name] for row in rows if row["step"] == s]) for s in steps]
            axis.plot(steps, means, label=name)
        axis.set(xlabel="step", title=title)
    axes[0].set_yscale("log")
    axes[0].legend()
    figure.tight_layout()
    caption = (
        "The two gradients during training, means over seeds and initialisations. MGDA weighs them "
        "so that both losses fall by the same amount; z and a cosine have other units."
    )
    return "gradients", caption, "Norms, cosine and weight of the two gradients by step.", figure


def paper_figure(name: str, points: Points) -> Picture | None:
    """A figure of the paper: our points joined, the reported ones pale (hollow where derived)."""
    import matplotlib.pyplot as plt

    task, ys, arms, model, x = PAPER[name]
    if not any((task, arm) in points for arm in arms):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.2), sharey=True)
    for axis, y, rate in zip(axes, ys, ("0 %", "1 %")):
        axis.set(xlabel="similarity", title=f"TPR at {rate} FPR")
        for k, (arm, prefix) in enumerate(arms.items()):
            color = f"C{k}"
            curve(axis, points.get((task, arm), {}), x, y, arm, color)
            for px, py, derived in reported_points(f"{model}.{prefix}.", arm, y.split("_")[0]):
                face = "none" if derived else color
                looks = {"color": color, "alpha": 0.55, "markersize": 5, "markerfacecolor": face}
                axis.plot(px, py, MARKERS[arm], **looks)
    axes[0].set_ylabel("true positive rate")
    legend_below(figure, axes[0])
    caption = (
        f"{name.replace('-', ' ').capitalize()} of the paper: our points joined, with intervals "
        "over seeds; reported points single and pale, hollow where derived from stored scores."
    )
    alt = f"True positive rate against similarity on {task}, ours and reported."
    return name, caption, alt, figure


def reported_points(prefix: str, arm: str, metric: str) -> list[tuple[float, float, bool]]:
    """(similarity, metric, derived) of the published points of one method."""
    points, entries = [], reported()
    for name, entry in entries.items():
        if not name.startswith(prefix + GAMMA.get(arm, "")) or not name.endswith(f".{metric}"):
            continue
        if ".setting_" in name and ".setting_2." not in name:
            continue
        stem = name.removesuffix(metric)
        similarity = entries.get(f"{stem}simcse")
        if similarity is None and "copy_paste" in prefix:  # that of the text before the attack
            plain = stem.replace("copy_paste_1.", "").replace("copy_paste_3.", "")
            similarity = entries.get(f"{plain}setting_2.simcse")
        if similarity is not None and entry["value"] is not None:
            derived = entry.get("confidence") == "derived"
            points.append((similarity["value"], entry["value"], derived))
    return sorted(points)


@functools.cache
def reported() -> dict[str, dict[str, Any]]:
    """Entries of reported.yaml by id (a large file, read once)."""
    import yaml

    path = Path(__file__).with_name("reported.yaml")
    text = path.read_text(encoding="utf-8") if path.exists() else "entries: []"
    entries = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["entries"]
    return {entry["id"]: entry for entry in entries}


# --- attacks, null, tokens, MGDA ------------------------------------------------------------------


def robustness(points: Points, task: str) -> Picture | None:
    """z after each attack that TS or KGW went through."""
    import matplotlib.pyplot as plt

    curves = {arm: points.get((task, arm), {}) for arm in ("ts", "kgw")}
    measured = {key for of_arm in curves.values() for metrics in of_arm.values() for key in metrics}
    attacks = [attack for attack in ATTACKS if f"z_{attack}" in measured]
    if not attacks:
        return None
    size = (2.5 * len(attacks) + 0.6, 2.8)
    figure, axes = plt.subplots(1, len(attacks), figsize=size, squeeze=False)
    for axis, attack in zip(axes[0], attacks):
        for arm, of_arm in curves.items():
            curve(axis, of_arm, "z", f"z_{attack}", arm)
        axis.set(xlabel="mean z before", title=attack.replace("_", " "))
    axes[0][0].set_ylabel("mean z after")
    legend_below(figure, axes[0][0])
    caption = (
        "z after an attack against z before it. Deletion and substitution stand in for "
        "paraphrasing where Dipper cannot run."
    )
    alt = f"z after {', '.join(attacks)} on {task}, TS and KGW."
    return f"robustness-{task}", caption, alt, figure


def null_distribution(run_dirs: Runs) -> Picture | None:
    """z of human text against the normal quantiles, per method."""
    import matplotlib.pyplot as plt
    from scipy import stats

    of_arm: dict[str, list[np.ndarray]] = {}
    for (arm, _, _), folder in run_dirs.items():
        file = Path(folder) / "predictions.npz"
        if arm in ("ts", "kgw") and file.exists():
            with np.load(file) as stored:
                of_arm.setdefault(arm, []).append(stored["z_human"].ravel())
    if not of_arm:
        return None
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    share = np.concatenate([[0.001, 0.005], np.linspace(0.01, 0.99, 50), [0.995, 0.999]])
    normal, moments = stats.norm.ppf(share), []
    for arm, parts in of_arm.items():
        z = np.concatenate(parts)
        label = LABELS[arm]
        axis.plot(normal, np.quantile(z, share), MARKERS[arm], markersize=3, label=label)
        spread = f"n = {len(z)}, mean {z.mean():+.3f}, sd {z.std(ddof=1):.3f}"
        moments.append(f"{label}: {spread}, above 2.326: {(z > 2.326).mean():.2%}")
    ends = np.array([-3.2, 3.2])
    axis.plot(ends, ends, color="0.6", linewidth=0.8)
    axis.set(xlabel="standard normal quantile", ylabel="quantile of z, human text")
    axis.set_title("Null distribution")
    axis.legend()
    what = "z of human text against the normal distribution that its p-values assume"
    alt = "Quantiles of z on human text against normal quantiles."
    return "null", f"{what}. {'; '.join(moments)}.", alt, figure


def tokens(run_dirs: Runs) -> Picture | None:
    """gamma and delta of tokens by frequency in human text, determiners and punctuation marked."""
    import matplotlib.pyplot as plt

    from ts_watermark.data import load_codec

    stages = [
        (task, Path(folder) / "export")
        for (arm, task, _), folder in run_dirs.items()
        if arm == "generators" and (Path(folder) / "export").is_dir()
    ]
    bases = {task: Path(folder) for (arm, task, _), folder in run_dirs.items() if arm == "base"}
    if not stages or stages[0][0] not in bases:
        return None
    task, exports = stages[0]
    folder = sorted(exports.iterdir())[-1]
    watermark, codec = Watermark.load(folder), load_codec(folder / "tokenizer")
    human = json.loads((bases[task] / "passages.json").read_text(encoding="utf-8"))["test"]["human"]
    counts = np.bincount(np.concatenate(human), minlength=len(watermark.gamma))
    words = np.array([w.strip().lower() for w in codec.pieces(range(len(codec)))])
    used = np.flatnonzero(counts[: len(words)])
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.0))
    for axis, name in zip(axes, ("gamma", "delta")):
        values = getattr(watermark, name).numpy()
        grey = {"s": 3, "color": "0.6", "rasterized": True, "label": "other tokens"}
        axis.scatter(counts[used], values[used], **grey)
        for k, (label, members) in enumerate(WORD_CLASSES.items()):
            chosen = used[np.isin(words[used], sorted(members))]
            axis.scatter(counts[chosen], values[chosen], s=16, color=f"C{k}", label=label)
        axis.set(xscale="log", xlabel="frequency in human text", ylabel=f"{name} after the token")
    axes[0].legend()
    caption = (
        f"gamma and delta by token (init {folder.name.replace('_', ', ')}). The paper finds small "
        "delta after determiners and large delta after punctuation."
    )
    return "tokens", caption, "gamma and delta of tokens against their frequency.", figure


def segment() -> Picture:
    """MGDA: the point of the segment between two gradients that lies closest to the origin."""
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
    caption = (
        "The weight of L_D: the closest point g of the segment between the two gradients. Its "
        "product with both is at least |g|^2, so both losses fall."
    )
    return "mgda", caption, "Three pairs of gradients with their minimum-norm point.", figure
