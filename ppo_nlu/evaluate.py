"""A finished run -> predictions -> metrics.

    python -m ppo_nlu.evaluate runs/ppo_nlu/cpu/digits/seed0/ppo

An answer that cannot be read is wrong, under both decoders.  The official code draws a random label instead.
Arrays of `predictions.npz`, n test items, k sampled answers each:
    id (n), label (n), greedy (n), sampled (n, k)   answers as label indices or numbers; -1000 where unreadable
    greedy_reward (n), sampled_reward (n, k)        what the rule gave
    kl, entropy (n)                                 of the first sampled answer: log pi / pi_ref, and nats of its tokens
    group, value (n)                                MultiRC, ReCoRD: the question, and the overlap with a right answer
    _metric                                         the benchmark's metric, by name
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

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
        "kl": float(predictions["kl"].mean()),
        "entropy": float(predictions["entropy"].mean()),
        "constant_share": constant_share(greedy),
    }


def answer_entropy(sampled: np.ndarray) -> float:
    """Mean entropy (nats) of an item's own sampled answers: 0 when sampling and greedy decoding agree."""
    k = sampled.shape[1]
    equal = (sampled[:, :, None] == sampled[:, None, :]).sum(2) / k  # share of the answer that column j gave
    return float(-np.log(equal).mean())


def constant_share(answers: np.ndarray) -> float:
    """Share of the most frequent answer: near 1 on a balanced task, the policy has locked into a constant."""
    _, counts = np.unique(answers, return_counts=True)
    return float(counts.max() / len(answers))


# --- the benchmarks' metrics, each (labels, answers, group, value) -> [0, 1] or [-1, 1] --------------------------------


def accuracy(y, a, group=None, value=None) -> float:
    return float((a == y).mean())


def f1(y, a, group=None, value=None) -> float:
    """F1 of label 1; unreadable answers are misses where the label is 1."""
    hit = float(((a == 1) & (y == 1)).sum())
    return 2 * hit / max(float((a == 1).sum() + (y == 1).sum()), 1.0)


def accuracy_f1(y, a, group=None, value=None) -> float:
    return (accuracy(y, a) + f1(y, a)) / 2


def accuracy_macro_f1(y, a, group=None, value=None) -> float:
    per_class = [f1((y == c).astype(int), (a == c).astype(int)) for c in np.unique(y)]
    return (accuracy(y, a) + float(np.mean(per_class))) / 2


def matthews(y, a, group=None, value=None) -> float:
    """Multi-class Matthews correlation; an unreadable answer is a class of its own, so it is never right."""
    classes = np.union1d(y, a)
    C = np.array([[((y == i) & (a == j)).sum() for j in classes] for i in classes], dtype=float)
    t, p, n = C.sum(1), C.sum(0), C.sum()
    below = np.sqrt((n**2 - (p**2).sum()) * (n**2 - (t**2).sum()))
    return float((np.trace(C) * n - t @ p) / below) if below > 0 else 0.0


def correlation(y, a, group=None, value=None) -> float:
    """Mean of Pearson and Spearman.  Numbers are clipped to [0, 5]; an unreadable one becomes the end farther from y."""
    a = np.where(a == UNREADABLE, np.where(y < 2.5, 5.0, 0.0), np.clip(a, 0, 5))

    def pearson(u, v):
        u, v = u - u.mean(), v - v.mean()
        below = np.sqrt((u @ u) * (v @ v))
        return float(u @ v / below) if below > 0 else 0.0

    return (pearson(y.astype(float), a.astype(float)) + pearson(_ranks(y), _ranks(a))) / 2


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def multirc(y, a, group, value=None) -> float:
    """Mean of F1 over all answers and exact match over questions."""
    _, question = np.unique(group, return_inverse=True)
    wrong = np.bincount(question, weights=a != y)
    return (f1(y, a) + float((wrong == 0).mean())) / 2


def record(y, a, group, value) -> float:
    """Mean of F1 and exact match over queries; the first candidate answered "Yes" is the model's answer, else none."""
    _, query = np.unique(group, return_inverse=True)
    n = query.max() + 1
    first = np.full(n, -1)
    for row in np.flatnonzero(a == 1)[::-1]:
        first[query[row]] = row
    given = first[first >= 0]
    return float((value[given].sum() + y[given].sum()) / (2 * n))


METRICS: dict[str, Callable[..., float]] = {
    m.__name__: m for m in (accuracy, accuracy_f1, accuracy_macro_f1, matthews, correlation, multirc, record)
}


# --- named statistics of claims.yaml ----------------------------------------------------------------------------------


def decoder_confound(arms: dict[str, dict[str, np.ndarray]]) -> float:
    """(A - B) sampled minus (A - B) greedy in accuracy, A and B the two arms in the order given.

    Above 0: judging by sampled answers, as the official code does, favours A over B more than greedy decoding."""
    (a, b) = (score(p) for p in list(arms.values())[:2])
    return (a["accuracy_sampled"] - b["accuracy_sampled"]) - (a["accuracy_greedy"] - b["accuracy_greedy"])


STATISTICS: dict[str, Callable[[dict[str, dict[str, np.ndarray]]], float]] = {"decoder_confound": decoder_confound}


def main() -> None:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "predictions.npz").exists():
        sys.exit("usage: python -m ppo_nlu.evaluate DIR   (DIR: a finished run with predictions.npz)")
    with np.load(Path(sys.argv[1]) / "predictions.npz", allow_pickle=False) as archive:
        for name, value in score({k: archive[k] for k in archive.files}).items():
            print(f"{name:20s} {value:.4f}")


if __name__ == "__main__":
    main()
