"""The method's own pictures: cosines with the true gradient, what moves of T do, masks over
training, score maps, masking by position, accuracy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from .evaluate import COLUMNS, PATHS

HERE = Path(__file__).resolve().parent
ORDER = (
    "mae",
    "mlo",
    "mlo_official",
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
    of_task = trials_of(results, run_dirs)
    made += [cosines(task, rows) for task, rows in of_task.items()]
    for task in tasks_of(run_dirs):
        masks = first_masks(run_dirs, task)
        if masks is not None:
            made += [masks_over_training(*masks, task), by_position(run_dirs, task)]
        made += [curves(run_dirs, task, "step"), curves(run_dirs, task, "cpu_seconds")]
    return [entry for entry in made if entry is not None]


def tasks_of(run_dirs: Runs) -> list[str]:
    return list(dict.fromkeys(task for _, task, _ in sorted(run_dirs)))


def trials_of(results: dict, run_dirs: Runs) -> dict[str, list[np.ndarray]]:
    """task -> per seed of `mlo` its trials (trials, columns): from the runs' records, and for a
    recorded run whose folder is elsewhere from the file beside the result."""
    records: dict[str, dict] = {}
    path = HERE / "results" / f"{results.get('scale')}.records.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = {r["state_sha256"]: r for r in map(json.loads, file) if "state_sha256" in r}
    found: dict[str, list[np.ndarray]] = {}
    for run in results.get("runs", []):
        where = run_dirs.get((run["arm"], run["task"], run["seed"]))
        record = records.get(run.get("state_sha256") or "", {})
        if where and (Path(where) / "record.json").exists():
            record = json.loads((Path(where) / "record.json").read_text(encoding="utf-8"))
        if run["arm"] == "mlo" and (rows := record.get("details", {}).get("directions")):
            found.setdefault(run["task"], []).append(np.array(rows))
    return found


def cosines(task: str, trials: list[np.ndarray]) -> Entry:
    """trials: per seed an array (trials, `COLUMNS`)."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.4, 2.6))
    axis.axhline(0, linewidth=0.7, color="0.5")
    words = {"unrolled": "derived: head's rate", "identity": "official: 1", "none": "no head path"}
    means = {}
    styles = dict(zip(PATHS, (("o", "-"), ("s", "-"), ("x", ":"))))
    for path in PATHS:
        place, (marker, line) = COLUMNS.index(f"cosine_{path}"), styles[path]
        values = np.array([rows[:, place] for rows in trials])  # (seeds, trials)
        steps = trials[0][:, COLUMNS.index("step")]
        (drawn,) = axis.plot(steps, values.mean(0), line, label=words[path])
        for row in values:
            axis.plot(steps, row, marker, color=drawn.get_color(), markersize=2.5, alpha=0.5)
        means[path] = f"{path} {values.mean():+.2f}"
    axis.set_ylim(-1, 1)
    axis.set_xlabel("level-1 steps")
    axis.set_ylabel("cosine with the true gradient")
    axis.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout(pad=0.4)
    caption = (
        f"{task}: cosine of three estimates of g_T with the gradient of the validation loss "
        f"through the real inner steps, in float64, in {len(trials)} pretraining(s) of mlo; above "
        "0 a small step descends. Marks: trials; lines: means over seeds. They differ in "
        "what stands for the inverse Hessian of the head: its learning rate, 1 (official), or 0."
    )
    return f"cosines-{task}", caption, f"Mean cosines: {', '.join(means.values())}.", figure


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
        f"{task}: accuracy of least squares on the frozen features during pretraining, "
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
        "derived-over-official": "derived -\nofficial",
        "derived-descends": "derived,\nmasks held",
        "official-ascends": "official,\nmasks held",
        "derived-masks-free": "derived,\nmasks free",
        "planted-masking": "masked: code\n- other",
        "planted-alignment": "a_j: code\n- other",
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
        "The mechanism, a dot per seed. First: share of trials in which a step of T along -g_T "
        "lowers the validation loss more than the same with shuffled a_j (official: less), "
        "minus 1/2. Planted: patches of the label's quadrant minus the others."
    )
    return (
        "mechanism",
        caption,
        "Dots per seed for the statistics of the mechanism, against zero.",
        figure,
    )
