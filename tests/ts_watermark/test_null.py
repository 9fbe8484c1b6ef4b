"""The test on human text, over keys."""

import numpy as np
import pytest

from ts_watermark import evaluate, null
from ts_watermark.detect import Detector

V, KEYS = 300, 4


def predictions(rows):
    """As `null.evaluate_keys` writes them."""
    columns = {}
    for k in range(KEYS):
        detector = Detector(null.unequal_coins(V, seed=0, key=15485863 + 2 * k))
        for name, value in null.of_key(detector, rows).items():
            columns[name] = columns.get(name, 0) + value.numpy()
    return {"id": np.arange(len(rows)), "_keys": np.array(KEYS), **columns}


def test_the_exact_test_keeps_its_level_and_counting_repeats_does_not():
    rng = np.random.default_rng(0)
    fresh = rng.integers(0, V, (400, 60)).tolist()
    repeating = [row[:12] * 5 for row in fresh]
    metrics = {n: evaluate.score(predictions(r)) for n, r in (("no", fresh), ("yes", repeating))}
    for scored in metrics.values():
        assert abs(scored["distinct_mean"]) < 0.15 and scored["distinct_sd"] == pytest.approx(
            1, abs=0.1
        )
        assert scored["false_alarms_exact_1pct"] <= 0.015  # 1,600 texts: three standard errors
        assert scored["false_alarms_exact_0.1pct"] <= 0.004
    assert metrics["yes"]["all_sd"] > 2 and metrics["yes"]["false_alarms_all_1pct"] > 0.1


def test_statistics_are_in_units_of_the_level():
    columns = {"_keys": np.array(2), "exact_1pct": np.array([0, 1.0] + [0] * 48)}
    statistic = evaluate.STATISTICS["exact_1pct"]
    assert statistic({"human_text": columns}) == pytest.approx(0)  # one of 100: as the level says
    columns["exact_1pct"] = np.zeros(50)
    assert statistic({"human_text": columns}) == 1


def test_each_seed_has_other_gammas_of_the_same_kind():
    a, b = (null.unequal_coins(V, seed, key=3).gamma for seed in (0, 1))
    assert not np.array_equal(a, b)
    assert 0.2 < float(a.median()) < 0.3 and float(a.std()) > 0.05
