"""A finished run -> predictions -> metrics.

    python -m ppo_nlu.evaluate runs/ppo_nlu/cpu/movie/seed0/ppo

An answer that cannot be read is wrong, under both decoders. The official code draws a random label.
Arrays of `predictions.npz`, n test items, k sampled answers each; answers are label indices or
numbers, -1000 where unreadable:
    id, label, greedy (n), sampled (n, k)
    greedy_reward (n), sampled_reward (n, k)   what the rule gave
    group, value (n)    MultiRC, ReCoRD: the question, and the overlap with a right answer
    _metric             the benchmark's metric, by name
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shared import glue, scores

UNREADABLE = -1000.0


def score(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics under both decoders; `sampled` ones are means over the k answers of an item."""
    y, greedy, sampled = predictions["label"], predictions["greedy"], predictions["sampled"]
    metric = METRICS[str(np.asarray(predictions["_metric"]).ravel()[0])]
    group, value = predictions.get("group"), predictions.get("value")
    columns = [metric(y, sampled[:, j], group, value) for j in range(sampled.shape[1])]
    return {
        "score_greedy": metric(y, greedy, group, value),
        "score_sampled": float(np.mean(columns)),
        "accuracy_greedy": float((greedy == y).mean()),
        "accuracy_sampled": float((sampled == y[:, None]).mean()),
        "invalid_greedy": float((greedy == UNREADABLE).mean()),
        "invalid_sampled": float((sampled == UNREADABLE).mean()),
        "reward_greedy": float(predictions["greedy_reward"].mean()),
        "reward_sampled": float(predictions["sampled_reward"].mean()),
        "answer_entropy": answer_entropy(sampled),
        "constant_share": constant_share(greedy),
    } | as_printed(predictions)


def as_printed(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """`printed`: what the paper's tables hold of sampled answers (F1 of MRPC, Spearman of STS-B; of
    two numbers their mean), and the parts of it where there are several."""
    name = str(np.asarray(predictions["_metric"]).ravel()[0])
    y, group, value = predictions["label"], predictions["group"], predictions["value"]
    parts = PARTS.get(name, {})
    if name == "accuracy" and set(np.unique(group)) == {0, 1}:  # MNLI has two development sets
        parts = {"matched": _matched, "mismatched": _mismatched}
    columns = predictions["sampled"].T
    means = {
        part: float(np.mean([metric(y, a, group, value) for a in columns]))
        for part, metric in (parts or {"printed": METRICS[name]}).items()
    }
    return means | {"printed": float(np.mean(list(means.values())))}


def greedy_score(predictions: dict[str, np.ndarray]) -> float:
    """The benchmark's metric of the greedy answers."""
    metric = METRICS[str(predictions["_metric"][0])]
    y, group, value = predictions["label"], predictions["group"], predictions["value"]
    return metric(y, predictions["greedy"], group, value)


def item_values(predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics that are means over test items, item by item."""
    y, greedy, sampled = predictions["label"], predictions["greedy"], predictions["sampled"]
    values = {
        "accuracy_greedy": (greedy == y).astype(float),
        "accuracy_sampled": (sampled == y[:, None]).mean(axis=1),
        "invalid_greedy": (greedy == UNREADABLE).astype(float),
        "invalid_sampled": (sampled == UNREADABLE).mean(axis=1),
    }
    if str(np.asarray(predictions["_metric"]).ravel()[0]) == accuracy.__name__:
        values |= {f"score_{by}": values[f"accuracy_{by}"] for by in ("greedy", "sampled")}
    return values


def answer_entropy(sampled: np.ndarray) -> float:
    """Mean entropy (nats) of an item's own sampled answers: 0 where they are all equal."""
    pairs = sampled[:, :, None] == sampled[:, None, :]
    equal = pairs.sum(2) / sampled.shape[1]  # share of the answer that column j gave
    return float(-np.log(equal).mean())


def constant_share(answers: np.ndarray) -> float:
    """Share of the most frequent answer: near 1, the policy has locked into a constant."""
    _, counts = np.unique(answers, return_counts=True)
    return float(counts.max() / len(answers))


# --- the benchmarks' metrics, each (labels, answers, group, value) -> [0, 1] or [-1, 1] -----------
# An unreadable answer is a class of its own, which no label has.


def accuracy(y, a, group, value) -> float:
    return float((y == a).mean())


def matthews(y, a, group, value) -> float:
    return glue.matthews(y, a)


def accuracy_f1(y, a, group, value) -> float:
    return (accuracy(y, a, group, value) + glue.f1(y, a)) / 2


def accuracy_macro_f1(y, a, group, value) -> float:
    return (accuracy(y, a, group, value) + macro_f1(y, a, group, value)) / 2


def correlation(y, a, group, value) -> float:
    """Mean of Pearson and Spearman."""
    a = _number(y, a)
    return (glue.pearson(y.astype(float), a.astype(float)) + glue.spearman(y, a)) / 2


def f1(y, a, group, value) -> float:
    return glue.f1(y, a)


def macro_f1(y, a, group, value) -> float:
    return float(np.mean([glue.f1(y, a, c) for c in np.unique(y)]))


def rank_correlation(y, a, group, value) -> float:
    return glue.spearman(y, _number(y, a))


def exact_match(y, a, group, value) -> float:
    return glue.exact_match(y, a, group)


def _number(y, a) -> np.ndarray:
    """Answers clipped to [0, 5]; an unreadable one is the end farther from the label."""
    return np.where(a == UNREADABLE, np.where(y < 2.5, 5.0, 0.0), np.clip(a, 0, 5))


def multirc(y, a, group, value) -> float:
    """Mean of F1 over all answers and exact match over questions."""
    return (glue.f1(y, a) + glue.exact_match(y, a, group)) / 2


def record(y, a, group, value) -> float:
    """Mean of F1 and exact match over queries; the answer is the first candidate with a "Yes"."""
    return (_overlap(y, a, group, value) + _entity(y, a, group, value)) / 2


def _overlap(y, a, group, value) -> float:
    best = glue.best_candidate(group, (a == 1).astype(float))
    return float(np.mean(value[best] * (a[best] == 1)))


def _entity(y, a, group, value) -> float:
    best = glue.best_candidate(group, (a == 1).astype(float))
    return float(np.mean(y[best] * (a[best] == 1)))


METRICS: dict[str, Callable[..., float]] = {
    m.__name__: m
    for m in (accuracy, accuracy_f1, accuracy_macro_f1, matthews, correlation, multirc, record)
}


def _matched(y, a, group, value) -> float:
    return float((y == a)[group == 0].mean())


def _mismatched(y, a, group, value) -> float:
    return float((y == a)[group == 1].mean())


PARTS: dict[str, dict[str, Callable[..., float]]] = {
    "accuracy_f1": {"f1": f1},  # the paper prints F1 alone
    "accuracy_macro_f1": {"f1": macro_f1, "accuracy": accuracy},
    "correlation": {"spearman": rank_correlation},
    "multirc": {"f1": f1, "exact_match": exact_match},
    "record": {"f1": _overlap, "exact_match": _entity},
}


# --- named statistics of claims.yaml --------------------------------------------------------------


def decoder_confound(arms: dict[str, dict[str, np.ndarray]]) -> float:
    """(A - B) sampled minus (A - B) greedy in accuracy, A and B the two arms in the order given.

    Above 0: judging by sampled answers, as the official code does, favours A over B more than
    greedy decoding."""
    gain = {}
    for by in ("sampled", "greedy"):
        a, b = ((p["label"] == p[by].T).mean() for p in list(arms.values())[:2])
        gain[by] = a - b
    return float(gain["sampled"] - gain["greedy"])


STATISTICS: dict[str, Callable[[dict[str, dict[str, np.ndarray]]], float]] = {
    "decoder_confound": decoder_confound
}


if __name__ == "__main__":
    scores.show("ppo_nlu", score)
