"""Pictures of the PPO paper; the report places them. Works with whatever runs are at hand."""

import json
import textwrap
from pathlib import Path

NAMES = {
    "zero_shot": "zero-shot",
    "few_shot": "few-shot",
    "sft": "SFT",
    "sft_4": "SFT, 4 steps",
    "sft_multi": "SFT, multi-task",
    "ppo": "PPO",
    "ppo_official_reward": "PPO, official reward",
    "ppo_shuffled": "PPO, shuffled labels",
    "ppo_multi": "PPO, multi-task",
    "sft_ppo": "SFT then PPO",
    "reinforce": "REINFORCE",
}
CURVES = [
    ("probe_reward_sampled", "reward of a sampled answer"),
    ("probe_accuracy_greedy", "greedy accuracy"),
    ("probe_kl", "KL to the reference (nats an answer)"),
    ("probe_invalid_sampled", "unreadable sampled answers"),
]
CURRENCIES = [("examples", "labelled examples"), ("gradient_steps", "gradient steps")]
SHOWN = 5  # answers before and after


def figures(results: dict, run_dirs: dict) -> list:
    """[(name, caption, alt text, matplotlib figure)]."""
    finished = [
        r for r in results.get("runs", []) if r.get("status") == "finished" and r.get("metrics")
    ]
    made = [
        both_decoders(finished),
        over_time(run_dirs),
        before_and_after(run_dirs),
        confusion(run_dirs),
    ]
    return [figure for figure in made if figure]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def both_decoders(finished: list[dict]):
    """Score of each arm under both decoders: what the decoder does to the comparison."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(r["task"] for r in finished))
    if not tasks:
        return None
    fig, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False)
    for ax, task in zip(axes[0], tasks):
        arms = [a for a in NAMES if any(r["arm"] == a and r["task"] == task for r in finished)]
        for shift, (metric, colour) in enumerate([("score_greedy", "C0"), ("score_sampled", "C1")]):
            for x, arm in enumerate(arms):
                values = [
                    100 * r["metrics"][metric]
                    for r in finished
                    if r["arm"] == arm and r["task"] == task
                ]
                at = x + 0.16 * (2 * shift - 1)
                ax.plot([at] * len(values), values, ".", color=colour, alpha=0.5)
                ax.plot(
                    [at - 0.1, at + 0.1],
                    [mean(values)] * 2,
                    color=colour,
                    label=metric[6:] if x == 0 else None,
                )
        ax.set_xticks(range(len(arms)), [NAMES[a] for a in arms], rotation=40, ha="right")
        ax.set_title(task)
    axes[0][0].set_ylabel("score on test items")
    axes[0][0].legend()
    fig.tight_layout()
    text = "Score of each arm under greedy and sampled decoding; a dot is a seed, a bar the mean."
    return ("decoders", text, text, fig)


def looks(run_dirs: dict, task: str) -> dict:
    """(arm, curve) -> {(labelled examples, gradient steps): values of the seeds}."""
    found: dict = {}
    for (arm, of, _), folder in run_dirs.items():
        path = Path(folder) / "metrics.jsonl"
        if of != task or arm not in NAMES or not path.exists():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("attempt", 1) > 1:
                continue
            at = (row.get("examples"), row.get("gradient_steps"))
            for key, _ in CURVES:
                if key in row and None not in at:
                    found.setdefault((arm, key), {}).setdefault(at, []).append(row[key])
    return found


def over_time(run_dirs: dict):
    """Four curves by labelled examples (above) and by gradient steps (below): the two currencies in
    which PPO and fine-tuning can be called equal."""
    import matplotlib.pyplot as plt

    first = next((task for _, task, _ in run_dirs), None)
    series = looks(run_dirs, first) if first else {}
    if not series:
        return None
    fig, axes = plt.subplots(2, len(CURVES), figsize=(3.4 * len(CURVES), 6), sharey="col")
    for row, (_, currency) in enumerate(CURRENCIES):
        for ax, (key, title) in zip(axes[row], CURVES):
            for number, arm in enumerate(NAMES):
                if points := series.get((arm, key)):
                    at = sorted(points)
                    ax.plot(
                        [x[row] for x in at],
                        [mean(points[x]) for x in at],
                        ".-",
                        color=f"C{number}",
                        label=NAMES[arm],
                    )
            ax.set_title(title if row == 0 else "", fontsize=9)
            ax.set_xlabel(currency)
    axes[0][0].legend(fontsize=7)
    fig.tight_layout()
    caption = (
        f"Training on {first}, looked at on validation items: by labelled examples (above) and by"
        " gradient steps (below). Means over seeds, first attempts."
    )
    alt = "Curves by arm and currency: " + ", ".join(title for _, title in CURVES)
    return ("training", caption, alt, fig)


def before_and_after(run_dirs: dict):
    """Greedy answers to the same test items before training and after PPO; one seed."""
    import matplotlib.pyplot as plt

    pairs = [
        (Path(run_dirs["zero_shot", task, seed]), Path(folder), task)
        for (arm, task, seed), folder in sorted(run_dirs.items(), key=str)
        if arm == "ppo" and ("zero_shot", task, seed) in run_dirs
    ]
    pairs = [pair for pair in pairs if all((p / "answers.jsonl").exists() for p in pair[:2])]
    if not pairs:
        return None
    *folders, task = pairs[0]
    before, after = (
        [json.loads(line) for line in (p / "answers.jsonl").read_text("utf-8").splitlines()]
        for p in folders
    )
    answered = {row["id"]: row["greedy"] for row in before}
    cells = [
        [
            textwrap.fill(textwrap.shorten(row["question"], 150), 60),
            str(row["label"]),
            textwrap.shorten(answered.get(row["id"], ""), 30),
            textwrap.shorten(row["greedy"], 30),
        ]
        for row in after[:SHOWN]
    ]
    fig, ax = plt.subplots(figsize=(9, 0.5 + 0.6 * len(cells)))
    ax.axis("off")
    columns = ["question", "label", "before", "after PPO"]
    table = ax.table(
        cells, colLabels=columns, colWidths=[0.58, 0.08, 0.17, 0.17], cellLoc="left", loc="center"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 2.6)
    caption = f"The first {len(cells)} test items of {task}: greedy answers before and after PPO."
    alt = caption + " " + "; ".join(f"{a[2]!r} became {a[3]!r} (label {a[1]})" for a in cells)
    return ("answers", caption, alt, fig)


def confusion(run_dirs: dict):
    """Greedy answers by label, unreadable ones in a column of their own; first seed of an arm."""
    import matplotlib.pyplot as plt
    import numpy as np

    first = next((task for _, task, _ in run_dirs), None)
    tables = {}
    for (arm, task, _), folder in sorted(run_dirs.items(), key=str):
        path = Path(folder) / "predictions.npz"
        if task == first and arm in NAMES and arm not in tables and path.exists():
            with np.load(path, allow_pickle=False) as saved:
                label, answer = saved["label"], saved["greedy"]
            classes = np.unique(label)
            if len(classes) <= 10:
                columns = [*classes, -1000.0]
                tables[arm] = np.array(
                    [[np.mean(answer[label == y] == a) for a in columns] for y in classes]
                )
    if not tables:
        return None
    fig, axes = plt.subplots(1, len(tables), figsize=(2.4 * len(tables), 2.6), squeeze=False)
    for ax, arm in zip(axes[0], [a for a in NAMES if a in tables]):
        ax.imshow(tables[arm], vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (i, j), share in np.ndenumerate(tables[arm]):
            if len(tables[arm]) <= 3:
                ax.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=8)
        n = tables[arm].shape[0]
        ax.set_xticks(range(n + 1), [*map(str, range(n)), "?"])
        ax.set_yticks(range(n))
        ax.set_title(NAMES[arm], fontsize=9)
    axes[0][0].set_ylabel("label")
    fig.tight_layout()
    caption = f"Share of greedy answers by label on {first}, one seed; '?' is an unreadable answer."
    return ("confusion", caption, caption, fig)
