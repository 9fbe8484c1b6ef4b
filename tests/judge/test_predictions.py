"""Predictions as they are committed: the same bytes always, every value, no text."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.predictions import MOST_BYTES, pack_predictions, smallest, unpack_predictions
from shared.protocol import BadInput


def test_packing_is_deterministic_and_keeps_every_value(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "id": np.array(["a-1", "b-2", "c-3"]),
        "small": np.array([-1, 0, 300]),
        "bit": np.array([True, False, True]),
        "wide": rng.normal(size=3),
        "single": rng.normal(size=3).astype(np.float32),
        "_whole": rng.normal(size=(2, 5)),
        "half": np.array([0.5, np.nan, np.inf]),
        "none": np.array([], dtype=np.int64),
    }
    arrays_of = {("m", "t", 101): arrays, ("m", "t", 100): {**arrays, "small": np.array([5, 5, 5])}}
    first = pack_predictions(tmp_path / "a.npz", arrays_of)
    assert first == pack_predictions(tmp_path / "b.npz", dict(reversed(arrays_of.items())))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = unpack_predictions(tmp_path / "a.npz")
    assert back.keys() == arrays_of.keys()
    for key in arrays_of:
        for name, array in arrays_of[key].items():
            assert back[key][name].dtype == array.dtype
            np.testing.assert_array_equal(back[key][name], array)
    with np.load(tmp_path / "a.npz") as archive:
        assert len(archive.files) == len(arrays) + 1 + 1  # what both runs share is stored once
    assert smallest(np.array([-1, 300])).dtype == np.int16
    assert smallest(np.array([0.5, 0.25])).dtype == np.float16


def test_packing_rounds_only_what_moves_no_score(tmp_path):
    rng = np.random.default_rng(0)
    arrays_of = {
        ("m", "t", seed): {
            "id": np.arange(50_000),
            "label": rng.integers(0, 2, 50_000),
            "p": rng.random(50_000),
        }
        for seed in range(10)
    }

    def accuracy(predictions):
        return {"accuracy": float(np.mean((predictions["p"] > 0.5) == predictions["label"]))}

    pack_predictions(tmp_path / "a.npz", arrays_of, accuracy)
    assert (tmp_path / "a.npz").stat().st_size <= MOST_BYTES
    for key, arrays in unpack_predictions(tmp_path / "a.npz").items():
        assert accuracy(arrays) == accuracy(arrays_of[key])
    with pytest.raises(BadInput, match="largest array is 'p'"):
        pack_predictions(tmp_path / "b.npz", arrays_of)
    with pytest.raises(BadInput, match="text stays out"):
        pack_predictions(tmp_path / "c.npz", {("m", "t", 0): {"text": np.array(["a sentence"])}})
