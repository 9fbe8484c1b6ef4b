"""The method's own pictures: masks over training, score maps, masking by position, accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

ORDER = (
    "mae",
    "mlo",
    "frozen_T",
    "random+weights",
    "joint",
    "mae_compute",
    "u_mae",
    "mask_only",
    "no_head_path",
    "official",
)
Entry = tuple[str, str, str, Any]
Runs = dict[tuple[str, str, int], Path]


def figures(results: dict, run_dirs: Runs) -> list[Entry]:
    """[(name, caption, alt, figure)]. Masks and curves need the run directories."""
    import matplotlib

    matplotlib.use("Agg")
    made: list[Entry | None] = [mechanism(results)]
    for task in tasks_of(run_dirs):
        masks = first_masks(run_dirs, task)
        if masks is not None:
            made += [masks_over_training(*masks, task), by_position(run_dirs, task)]
        made += [curves(run_dirs, task, "step"), curves(run_dirs, task, "cpu_seconds")]
    return [entry for entry in made if entry is not None]


def tasks_of(run_dirs: Runs) -> list[str]:
    return list(dict.fromkeys(task for _, task, _ in sorted(run_dirs)))


def load(directory: Path, name: str = "masks.npz") -> dict[str, np.ndarray] | None:
    path = Path(directory) / name
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files}


def first_masks(run_dirs: Runs, task: str) -> tuple[dict[str, np.ndarray], int] | None:
    for (arm, of_task, seed), directory in sorted(run_dirs.items()):
        if arm == "mlo" and of_task == task and (masks := load(directory)) is not None:
            return masks, seed
    return None


def visible_image(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in normalised units -> (H, W) or (H, W, 3) in [0, 1]."""
    low, high = image.min(), image.max()
    scaled = (image - low) / max(high - low, 1e-6)
    return scaled[0] if len(scaled) == 1 else scaled.transpose(1, 2, 0)


def blow_up(values: np.ndarray, size: int) -> np.ndarray:
    """(N,) per patch -> (size, size) per pixel."""
    side = round(len(values) ** 0.5)
    return np.kron(values.reshape(side, side), np.ones((size // side, size // side)))


def masks_over_training(masks: dict[str, np.ndarray], seed: int, task: str) -> Entry:
    import matplotlib.pyplot as plt

    images, steps = masks["images"], masks["steps"]
    rows = min(4, len(images))
    figure, axes = plt.subplots(
        rows, len(steps) + 2, figsize=(4.4, 0.62 * rows + 0.3), squeeze=False
    )
    for axis in axes.flat:
        axis.set_xticks([]), axis.set_yticks([])
    for r in range(rows):
        size = images.shape[-1]
        axes[r, 0].imshow(visible_image(images[r]), cmap="gray")
        for c, step in enumerate(steps):
            hidden = blow_up(masks["masks"][c, r].astype(float), size)
            axis = axes[r, c + 1]
            axis.imshow(visible_image(images[r]), cmap="gray")
            axis.imshow(
                np.ma.masked_where(hidden == 0, hidden),
                cmap="cividis",
                vmin=0,
                vmax=1.3,
                alpha=0.85,
            )
            if r == 0:
                axis.set_title(f"{step}", fontsize=7)
        axes[r, -1].imshow(blow_up(masks["scores"][-1, r], size), cmap="cividis")
    axes[0, 0].set_title("image", fontsize=7)
    axes[0, -1].set_title("scores", fontsize=7)
    figure.tight_layout(pad=0.3)
    caption = (
        f"{task}, seed {seed}: patches that MLO-MAE masks (covered) after so many level-1 steps, "
        "and the masking network's scores at the end (bright: high, masked)."
    )
    return (
        f"masks-{task}",
        caption,
        f"Learned masks of {rows} test images of {task} over {len(steps)} moments.",
        figure,
    )


def by_position(run_dirs: Runs, task: str) -> Entry | None:
    """Masking frequency of each position, mean over seeds, for the arms that have scores."""
    import matplotlib.pyplot as plt

    of_arm: dict[str, list[np.ndarray]] = {}
    for (arm, of_task, _), directory in sorted(run_dirs.items()):
        if (
            of_task == task
            and arm in ("mlo", "frozen_T", "mask_only", "official")
            and (m := load(directory)) is not None
        ):
            of_arm.setdefault(arm, []).append(m["frequency"])
    if not of_arm:
        return None
    width = max(len(of_arm), 2)
    figure, axes = plt.subplots(1, width, figsize=(4.4, 4.4 / width + 0.3), squeeze=False)
    for axis in axes[0]:
        axis.set_axis_off()
    for axis, (arm, values) in zip(axes[0], of_arm.items()):
        mean = np.mean(values, 0)
        side = round(len(mean) ** 0.5)
        shown = axis.imshow(mean.reshape(side, side), vmin=0, vmax=1, cmap="cividis")
        spread = np.mean([np.std(v) for v in values])
        axis.set_title(f"{arm}: sd {spread:.2f}", fontsize=8)
    figure.colorbar(shown, ax=list(axes[0]), shrink=0.7, label="masked")
    caption = (
        f"{task}: how often each position is masked, over test images, mean over seeds; 0.75 "
        "everywhere would be random. sd: spread between positions within a seed. Values near 0 and "
        "1 mean one mask for all images."
    )
    return (
        f"positions-{task}",
        caption,
        f"Heat maps of masking frequency by position on {task}.",
        figure,
    )


def curves(run_dirs: Runs, task: str, x: str) -> Entry | None:
    """Accuracy on validation items of least squares on the features, during pretraining."""
    import matplotlib.pyplot as plt

    of_arm: dict[str, list[list[tuple[float, float]]]] = {}
    for (arm, of_task, _), directory in sorted(run_dirs.items()):
        path = Path(directory) / "metrics.jsonl"
        if of_task != task or not path.exists():
            continue
        lines = [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if '"curve"' in line
        ]
        points = [(float(p[x]), 100 * float(p["curve"])) for p in lines]
        if points:
            of_arm.setdefault(arm, []).append(points)
    if not of_arm:
        return None
    figure, axis = plt.subplots(figsize=(4.4, 2.8))
    for arm in sorted(of_arm, key=lambda a: ORDER.index(a) if a in ORDER else len(ORDER)):
        length = min(len(points) for points in of_arm[arm])
        mean = np.mean([points[:length] for points in of_arm[arm]], 0)
        axis.plot(mean[:, 0], mean[:, 1], marker="o", markersize=3, label=arm)
    axis.set_xlabel(
        "level-1 steps"
        if x == "step"
        else "CPU seconds of this run's process (they vary with the machine)"
    )
    axis.set_ylabel("accuracy on D_val, %")
    axis.legend(ncols=2)
    figure.tight_layout()
    caption = (
        f"{task}: accuracy of least squares on the frozen CLS feature during pretraining, "
        f"validation items, mean over seeds, against {'level-1 steps' if x == 'step' else 'time'}. "
        "Arms with labels in pretraining: mlo, random+weights, joint."
    )
    return (
        f"curve-{task}-{x.replace('_', '-')}",
        caption,
        f"Validation accuracy against {x} for {len(of_arm)} arms on {task}.",
        figure,
    )


def mechanism(results: dict) -> Entry | None:
    """Per seed: the statistics of the mechanism claims, from the results file alone."""
    import matplotlib.pyplot as plt

    names = {
        "descent": "descent",
        "descent-masks-held": "descent,\nmasks held",
        "planted-alignment": "a_j: digit\n- other",
        "planted-masking": "masked: digit\n- other",
        "planted-score": "score: digit\n- other",
    }
    claims = {c["id"]: c for c in results.get("claims", []) if c["id"] in names and c.get("d")}
    if not claims:
        return None
    figure, axes = plt.subplots(1, len(claims), figsize=(4.4, 2.3), squeeze=False)
    for axis, (name, claim) in zip(axes[0], claims.items()):
        d = [v for v in claim["d"] if v is not None]
        axis.axhline(0, linewidth=0.7, linestyle="--")
        axis.plot(np.linspace(-0.2, 0.2, len(d)), d, "o", markersize=3)
        axis.set_xlim(-0.6, 0.6)
        axis.set_xticks([])
        axis.set_title(names[name], fontsize=7)
        axis.tick_params(labelsize=7)
    axes[0][0].set_ylabel("statistic of one seed; 0: no effect", fontsize=7)
    figure.tight_layout(pad=0.4)
    caption = (
        "The mechanism, a dot per seed. Descent: share of trials in which a step of T along -g_T "
        "lowers the validation loss more than a random step, minus 1/2. The others: digit patches "
        "minus distractor patches on the planted task."
    )
    return (
        "mechanism",
        caption,
        "Dots per seed for the statistics of the mechanism, against zero.",
        figure,
    )
