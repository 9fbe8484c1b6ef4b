"""Predictions of a run -> metrics, pure and in numpy alone.

python -m tapweight.evaluate runs/tapweight/cpu/planted/seed100/tapweight
"""

from __future__ import annotations

import numpy as np

from shared import glue, scores

KINDS = ("accuracy", "matthews", "pearson", "auc", "rmse")  # the number in `_kind`
ALIGNED = 1  # the planted objective of the digits task


def score(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Headline metric under its own name and as `score` (rmse: lower is better), final weights.

    accuracy, matthews: classes, (n,). pearson, rmse: values, (n,). auc: label and prediction
    (n, tasks), NaN or -1 where a label is missing. `_weights`: (K,); `_planted`: there if objective
    2 was planted to be the useful one."""
    label, prediction = predictions["label"], predictions["prediction"]
    kind = KINDS[int(predictions["_kind"])]
    metrics = {kind: METRICS[kind](label, prediction)}
    metrics["score"] = metrics[kind]
    if kind == "pearson":
        metrics["spearman"] = glue.spearman(label, prediction)
    if kind in ("accuracy", "matthews") and len(np.unique(label)) <= 2:
        metrics["f1"] = glue.f1(label, prediction)
    if kind == "matthews":
        metrics["accuracy"] = glue.accuracy(label, prediction)
    if "_weights" in predictions:
        weights = predictions["_weights"].astype(np.float64)
        metrics |= {f"weight_{k + 1}": float(w) for k, w in enumerate(weights)}
        if "_planted" in predictions:
            metrics["weight_of_aligned"] = float(weights[ALIGNED])
            largest = np.flatnonzero(np.isclose(weights, weights.max(), rtol=0, atol=1e-6))
            metrics["aligned_is_largest"] = float(ALIGNED in largest) / len(largest)  # ties share
    return metrics


def item_values(predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics that are means over items, item by item."""
    kind = KINDS[int(predictions["_kind"])]
    if kind not in ("accuracy", "matthews"):
        return {}
    right = (predictions["label"] == predictions["prediction"]).astype(np.float64)
    return {"accuracy": right, "score": right} if kind == "accuracy" else {"accuracy": right}


def auc(label: np.ndarray, prediction: np.ndarray) -> float:
    """ROC-AUC, mean over tasks whose labels that are there have both classes; NaN if none has.

    label, prediction: (n,) or (n, tasks)."""
    label, prediction = label.reshape(len(label), -1), prediction.reshape(len(label), -1)
    values = []
    for y, s in zip(label.T, prediction.T):
        there = ~np.isnan(y) & (y >= 0)
        y, s = y[there], s[there]
        positive = int((y == 1).sum())
        if 0 < positive < len(y):
            above = _ranks(s)[y == 1].sum() - positive * (positive + 1) / 2
            values.append(above / (positive * (len(y) - positive)))
    return float(np.mean(values)) if values else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def rmse(label: np.ndarray, prediction: np.ndarray) -> float:
    return float(np.sqrt(np.mean((label - prediction) ** 2)))


METRICS = {
    "accuracy": glue.accuracy,
    "matthews": glue.matthews,
    "pearson": glue.pearson,
    "auc": auc,
    "rmse": rmse,
}

STATISTICS: dict[str, object] = {}  # no claim needs more than the scores


if __name__ == "__main__":
    scores.show("tapweight", score)
