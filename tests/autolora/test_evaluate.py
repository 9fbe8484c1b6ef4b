"""Metrics against the libraries, statistics of claims, and what is on file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from autolora import evaluate

ROOT = Path(__file__).resolve().parents[2]


def test_metrics_agree_with_the_libraries():
    from sacrebleu.metrics import BLEU, TER
    from seqeval.metrics import f1_score
    from sklearn.metrics import matthews_corrcoef

    rng = np.random.default_rng(0)
    label, guess = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    assert evaluate.classification(label, guess)["matthews"] == pytest.approx(
        matthews_corrcoef(label, guess)
    )
    tags = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    truth = [[tags[i] for i in rng.integers(0, 5, 12)] for _ in range(30)]
    guesses = [[tags[i] for i in rng.integers(0, 5, 12)] for _ in range(30)]
    rows = np.array([evaluate.tagging_row(t, f) for t, f in zip(truth, guesses)])
    assert evaluate.tagging(rows[:, 2], rows[:, :2])["f1"] == pytest.approx(
        f1_score(truth, guesses)
    )
    texts = [
        "Aromi is a place in the city centre .",
        "a coffee shop near the river",
        "Zizzi is cheap",
    ]
    references = [
        ["Aromi is a nice place in the centre of the city .", "Aromi is in the city centre ."],
        ["There is a coffee shop near the river ."],
        ["Zizzi is a cheap place to eat by the river", "Zizzi"],
    ]
    stats = [evaluate.generation_row(t, r) for t, r in zip(texts, references)]
    ours = evaluate.generation(np.array([r for _, r in stats]), np.array([p for p, _ in stats]))
    columns = [[r[i] if i < len(r) else None for r in references] for i in range(2)]
    bleu = BLEU(smooth_method="none").corpus_score(texts, columns).score
    assert 100 * ours["bleu"] == pytest.approx(bleu)
    assert 100 * ours["ter"] == pytest.approx(TER().corpus_score(texts, columns).score)


def test_statistics_are_what_they_say():
    uniform, spread = {"_ranks": np.array([3, 3, 3, 3])}, {"_ranks": np.array([1, 2, 3, 4])}
    assert evaluate.rank_spread({"a": uniform}) == 0 and evaluate.rank_spread({"a": spread}) > 1
    double = {"_ranks": np.array([2, 4, 6, 8])}
    assert evaluate.rank_agreement({"a": spread, "b": double}) == pytest.approx(1)
    assert evaluate.rank_agreement({"a": spread, "b": uniform}) == 0


def test_16_of_the_paper_an_average_and_counts_are_on_file_but_no_score_of_a_task():
    """Its tables are images in the copy that was read; what its text says of them is on file."""
    reported = yaml.safe_load((ROOT / "autolora" / "reported.yaml").read_text())
    ours = [e for e in reported["entries"] if e["method"].startswith("AutoLoRA")]
    sizes = {"learned_rank", "sum_of_ranks", "mean_rank", "adapter_parameters"}
    printed = {e["metric"] for e in reported["entries"] if e["origin"] == "paper"}
    assert ours and {e["metric"] for e in ours} <= sizes | printed
    assert not printed & {"accuracy", "mcc", "f1", "BLEU"}
    assert any("GLUE" in text for text in reported["not_found"])


def test_r2_of_planted_items_is_the_mean_of_its_items():
    rng = np.random.default_rng(0)
    truth, guess = rng.normal(size=(2, 40, 3))
    spread = ((truth - truth.mean(0)) ** 2).sum(1)
    rows = {"label": spread, "prediction": ((truth - guess) ** 2).sum(1)}
    rows |= {"_kind": np.array("planted"), "_headline": np.array("r2")}
    rows |= {"_ranks": np.array([1, 2, 3]), "_true_ranks": np.array([2, 4, 6])}
    scores = evaluate.score(rows)
    from sklearn.metrics import r2_score

    whole = r2_score(truth, guess, multioutput="variance_weighted")
    assert scores["score"] == scores["r2"] == pytest.approx(whole)
    assert scores["agreement"] == pytest.approx(1)
    assert evaluate.item_values(rows)["score"].mean() == pytest.approx(whole)
