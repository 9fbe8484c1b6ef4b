"""Pictures of the PPO paper; the report places them. Works with whatever runs are at hand."""

import json
from pathlib import Path

NAMES = {
    "zero_shot": "zero-shot",
    "few_shot": "few-shot",
    "sft": "SFT",
    "sft_4": "SFT, 4 steps",
    "sft_multi": "SFT, multi-task",
    "ppo": "PPO",
    "ppo_shuffled": "PPO, shuffled labels",
    "sft_ppo": "SFT then PPO",
    "reinforce": "REINFORCE",
    "ppo_4_answers": "PPO, 4 answers",
    "text_zero_shot": "zero-shot",
    "text_sft": "SFT",
    "text_ppo": "PPO",
}
CURVES = [
    ("probe_reward_sampled", "reward of a sampled answer"),
    ("probe_kl", "KL to the reference (nats an answer)"),
    ("probe_entropy", "entropy (nats an answer)"),
    ("probe_invalid_sampled", "unreadable sampled answers"),
    ("probe_accuracy_greedy", "greedy accuracy (validation items)"),
    ("probe_accuracy_sampled", "sampled accuracy"),
]
RATES = {
    "sft_lr_9e6": 9e-6,
    "sft_lr_1e4": 1e-4,
    "sft_lr_3e4": 3e-4,
    "sft_lr_3e3": 3e-3,
    "sft": 1e-3,
}


def figures(results: dict, run_dirs: dict) -> list:
    """[(name, caption, alt text, matplotlib figure)]."""
    finished = [
        r for r in results.get("runs", []) if r.get("status") == "finished" and r.get("metrics")
    ]
    made = [both_decoders(finished), over_time(run_dirs), rate_curve(finished), confusion(run_dirs)]
    return [figure for figure in made if figure]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def both_decoders(finished: list[dict]):
    """Accuracy of each arm under both decoders: what the decoder does to the comparison."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(r["task"] for r in finished))
    if not tasks:
        return None
    fig, axes = plt.subplots(
        1, len(tasks), figsize=(4.2 * len(tasks), 3.4), squeeze=False, sharey=True
    )
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


def over_time(run_dirs: dict):
    """Reward, KL, entropy, unreadable answers and accuracy while training; means over seeds."""
    import matplotlib.pyplot as plt

    series: dict = {}
    first = next((task for _, task, _ in run_dirs), None)
    for (arm, task, _), folder in run_dirs.items():
        path = Path(folder) / "metrics.jsonl"
        if task != first or arm not in NAMES or not path.exists():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for key, _ in CURVES:
                if key in row:
                    series.setdefault((arm, key), {}).setdefault(row["step"], []).append(row[key])
    if not series:
        return None
    fig, axes = plt.subplots(2, 3, figsize=(11, 6))
    for ax, (key, title) in zip(axes.flat, CURVES):
        for number, arm in enumerate(NAMES):
            if points := series.get((arm, key)):
                ax.plot(
                    sorted(points),
                    [mean(points[s]) for s in sorted(points)],
                    color=f"C{number}",
                    label=NAMES[arm],
                )
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("batch")
    axes[0][0].legend(fontsize=7)
    fig.tight_layout()
    judged = "judged on validation items, the same for every arm"
    caption = f"Training on {first}, {judged}; means over seeds."
    return (
        "training",
        caption,
        "Six curves over training batches by arm: " + ", ".join(t for _, t in CURVES),
        fig,
    )


def rate_curve(finished: list[dict]):
    """Accuracy of supervised fine-tuning against its learning rate, with the official 9e-6."""
    import matplotlib.pyplot as plt

    of_rate: dict[float, list[float]] = {}
    for r in finished:
        if r["arm"] in RATES and r["task"] == "digits":
            of_rate.setdefault(RATES[r["arm"]], []).append(100 * r["metrics"]["score_greedy"])
    points = sorted((rate, mean(values)) for rate, values in of_rate.items())
    if len(points) < 3:
        return None
    fig, ax = plt.subplots(figsize=(5, 3.4))
    ax.semilogx(*zip(*points), "o-")
    ax.axvline(9e-6, color="C3", linestyle=":", label="official value, 9e-6")
    ax.set_xlabel("learning rate of SFT")
    ax.set_ylabel("greedy accuracy, %")
    ax.legend()
    fig.tight_layout()
    what = "Supervised fine-tuning on digits against its learning rate"
    text = f"{what}: the official value stands for an untuned baseline."
    return ("sft_rates", text, text, fig)


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
