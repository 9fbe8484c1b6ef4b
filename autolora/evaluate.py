"""Predictions -> metrics. `score` is pure and quick: the judge calls it on resampled test sets.

    python -m autolora.evaluate runs/autolora/cpu/documentation/seed0/autolora

What a row of `prediction` and `label` holds depends on the task's kind (`_kind`):
    classification   a class and a class; `part` tells MNLI's matched (0) from mismatched (1) items
    regression       a number and a number
    tagging          (entities right, entities predicted) and entities in truth, of one sentence
    generation       sufficient statistics of BLEU and TER of one text: see `generation_row`
    planted          squared error of an output vector, and its squared distance from the mean
Names with an underscore describe the run, not its items: `_ranks` (M,) of the adapted maps,
`_true_ranks` (M,) where they are planted, `_cost` in gradient evaluations, `_parameters` of the
adapters, `_headline` the metric called `score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shared import glue, scores

Predictions = dict[str, np.ndarray]


def score(predictions: Predictions) -> dict[str, float]:
    """All metrics of one run; `score` repeats the task's headline metric. Rates lie in [0, 1]."""
    kind = str(predictions["_kind"])
    label, prediction = predictions["label"], predictions["prediction"]
    metrics = METRICS[kind](label, prediction)
    if "part" in predictions:
        for name, part in (("accuracy_matched", 0), ("accuracy_mismatched", 1)):
            rows = predictions["part"] == part
            metrics[name] = glue.accuracy(label[rows], prediction[rows])
    headline = str(predictions["_headline"])
    metrics["score"] = metrics[headline]
    if "best_epoch" in predictions:  # the official habit; never used for a claim
        epochs = np.moveaxis(predictions["best_epoch"], 1, 0)  # (epochs, n, ...)
        metrics["score_best_epoch"] = max(METRICS[kind](label, e)[headline] for e in epochs)
    if {"_ranks", "_true_ranks"} <= predictions.keys():
        truth, ranks = predictions["_true_ranks"], predictions["_ranks"]
        metrics["agreement"] = glue.pearson(truth.astype(float), ranks.astype(float))
    for name in ("cost", "parameters", "rank_total"):
        if f"_{name}" in predictions:
            metrics[name] = float(predictions[f"_{name}"])
    return metrics


def item_values(predictions: Predictions) -> dict[str, np.ndarray]:
    """Metrics that are means over items, item by item: R2, over the whole test set's variance."""
    if str(predictions["_kind"]) != "planted":
        return {}
    of_item = 1 - predictions["prediction"].astype(float) / predictions["label"].mean(dtype=float)
    return {"r2": of_item, "score": of_item}


# --- metrics by kind of task ---------------------------------------------------------------------


def classification(label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Accuracy; with two classes also F1 of class 1 and Matthews correlation.

    An undefined ratio counts as 0."""
    metrics = {"accuracy": glue.accuracy(label, prediction)}
    if label.max(initial=0) <= 1:
        metrics["f1"] = glue.f1(label, prediction)
        metrics["matthews"] = glue.matthews(label, prediction)
    return metrics


def regression(label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    mse = float(((label - prediction) ** 2).mean())
    return {
        "pearson": glue.pearson(label, prediction),
        "spearman": glue.spearman(label, prediction),
        "mse": mse,
    }


def tagging(label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Entity-level precision, recall, F1, micro-averaged, as seqeval counts. prediction: (n, 2)."""
    right, predicted = prediction.sum(0, dtype=float)
    actual = float(label.sum())
    f1 = ratio(2 * right, predicted + actual)
    return {"f1": f1, "precision": ratio(right, predicted), "recall": ratio(right, actual)}


def generation(label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Corpus BLEU and TER (multi-reference), from rows of `generation_row`.

    TER is divided by 100, and lower is better."""
    right, total = prediction[:, :4].sum(0, dtype=float), prediction[:, 4:8].sum(0, dtype=float)
    length, edits, averaged = (prediction[:, column].sum() for column in (8, 9, 10))
    reference = label.sum()
    if (right == 0).any() or length == 0:
        bleu = 0.0
    else:
        bleu = float(np.exp(np.log(right / total).mean() + min(0.0, 1 - reference / length)))
    return {"bleu": bleu, "ter": ratio(float(edits), float(averaged))}


def planted(label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """R2 over all outputs: one minus squared error over squared distance from the mean."""
    error, spread = prediction.sum(dtype=float), label.sum(dtype=float)
    return {"r2": 1 - ratio(float(error), float(spread))}


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "classification": classification,
    "regression": regression,
    "tagging": tagging,
    "generation": generation,
    "planted": planted,
}


def ratio(a: float, b: float) -> float:
    return float(a / b) if b else 0.0


# --- rows of predictions that are not one number -------------------------------------------------


def tagging_row(truth: Sequence[str], predicted: Sequence[str]) -> tuple[int, int, int]:
    """(entities right, entities predicted, entities in truth) of one sentence, spans by seqeval."""
    from seqeval.metrics.sequence_labeling import get_entities

    actual, guesses = set(get_entities(list(truth))), set(get_entities(list(predicted)))
    return len(actual & guesses), len(guesses), len(actual)


def generation_row(text: str, references: Sequence[str]) -> tuple[list[float], float]:
    """(row of `prediction`, row of `label`) of one text against its references, by sacrebleu.

    prediction: matching n-grams (4), n-grams (4), length, edits, mean reference length
    label: reference length"""
    from sacrebleu.metrics import BLEU, TER

    bleu = BLEU(effective_order=True).sentence_score(text, list(references))
    ter = TER().sentence_score(text, list(references))
    row = [*bleu.counts, *bleu.totals, bleu.sys_len, ter.num_edits, ter.ref_length]
    return [float(x) for x in row], float(bleu.ref_len)


# --- statistics over several arms of one seed (claims.yaml, kind: statistic) ---------------------


def rank_spread(arms: dict[str, Predictions]) -> float:
    """Claim 6: standard deviation of the first arm's ranks over the adapted maps."""
    return float(next(iter(arms.values()))["_ranks"].astype(float).std())


def rank_agreement(arms: dict[str, Predictions]) -> float:
    """Claim 9: Spearman correlation of two rank vectors; 0 on average if maps are permuted."""
    first, second = (p["_ranks"] for p in list(arms.values())[:2])
    return glue.spearman(first, second)


STATISTICS: dict[str, Callable[[dict[str, Predictions]], float]] = {
    "rank_spread": rank_spread,
    "rank_agreement": rank_agreement,
}


if __name__ == "__main__":
    scores.show("autolora", score)
