"""evaluate's users get our metrics: names, batches, combinations, and scikit-learn's values."""

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from shared import glue, metrics
from shared.protocol import BadInput


def drawn(task: str, n: int = 60) -> dict[str, np.ndarray]:
    rng, classes = np.random.default_rng(1), len(glue.spec(task).labels)
    if task == "stsb":
        y = np.round(rng.random(n) * 5, 1)
        return {"references": y, "predictions": np.round(y + rng.normal(size=n), 1)}
    y = rng.integers(0, classes, n)
    p = np.where(rng.random(n) < 0.4, y, rng.integers(0, classes, n))
    more = {"groups": np.arange(n) // 3} if task in ("multirc", "record") else {}
    if task == "record":
        more |= {"values": rng.random(n)}
        p = rng.random(n)
    return {"references": y, "predictions": p, **more}


def expected(task: str, references, predictions, **_) -> dict[str, float]:
    """By scikit-learn and scipy, under the names of evaluate's scripts."""
    y, p = references, predictions
    if task == "stsb":
        both = stats.pearsonr(y, p).statistic, stats.spearmanr(y, p).statistic
        return dict(zip(("pearson", "spearmanr"), both))
    if task == "cola":
        return {"matthews_correlation": sklearn.matthews_corrcoef(y, p)}
    values = {"accuracy": sklearn.accuracy_score(y, p)}
    if task == "cb":
        values["f1"] = sklearn.f1_score(y, p, average="macro")
    if task in ("mrpc", "qqp"):
        values["f1"] = sklearn.f1_score(y, p)
    return values


@pytest.mark.parametrize("task", glue.SPECS)
def test_a_metric_of_evaluate_agrees_with_the_scorer_and_with_scikit_learn(task, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arrays = drawn(task)
    computed = metrics.load(task).compute(**arrays)
    ours = {"label": arrays["references"], "prediction": arrays["predictions"]}
    ours |= {name: arrays[name] for name in ("groups", "values") if name in arrays}
    assert list(computed.values()) == list(glue.score(task, **ours).values())
    if task not in ("multirc", "record"):
        assert computed == pytest.approx(expected(task, **arrays), abs=1e-9)


def test_batches_and_combinations_work_as_evaluates_own_do():
    arrays = drawn("mrpc")
    metric = metrics.load("mrpc")
    for rows in np.split(np.arange(60), 4):
        metric.add_batch(**{name: array[rows] for name, array in arrays.items()})
    whole = metrics.load("mrpc").compute(**arrays)
    assert metric.compute() == whole
    both = evaluate.combine([metrics.load("cola"), metrics.load("mrpc")])
    assert both.compute(**arrays) == {**metrics.load("cola").compute(**arrays), **whole}


def test_an_unknown_task_is_refused_with_the_list():
    with pytest.raises(BadInput, match="unknown task 'colla'; tasks: cola, sst2"):
        metrics.load("colla")
