"""Predictions as they are committed: the same bytes always, every value, no text."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import predictions as packing
from benchmarks.predictions import (
    MOST_BYTES,
    pack_predictions,
    prediction_files,
    predictions_sha256,
    require_small,
    smallest,
    unpack_predictions,
)
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
    with pytest.raises(BadInput, match="text stays out"):
        pack_predictions(tmp_path / "c.npz", {("m", "t", 0): {"text": np.array(["a sentence"])}})


def noise(runs, items):
    rng = np.random.default_rng(0)
    return {("m", "t", seed): {"id": np.arange(items), "p": rng.random(items)} for seed in runs}


def test_what_is_too_large_stands_in_several_files(tmp_path, monkeypatch):
    """No limit costs a finished run its verdict; what one run alone exceeds is not committed."""
    monkeypatch.setattr(packing, "MOST_BYTES", 20_000)
    arrays_of, path = noise(range(7), 1000), tmp_path / "cpu.predictions.npz"
    sha256 = pack_predictions(path, arrays_of)
    names = [file.name for file in prediction_files(path)]
    assert names[:2] == ["cpu.predictions.npz", "cpu.predictions.1.npz"] and len(names) == 4
    assert all(file.stat().st_size <= 20_000 for file in prediction_files(path))
    assert pack_predictions(tmp_path / "b.npz", dict(reversed(arrays_of.items()))) == sha256
    back = unpack_predictions(path)
    assert back.keys() == arrays_of.keys()
    assert all(np.array_equal(back[key]["p"], arrays_of[key]["p"]) for key in back)
    assert predictions_sha256(path) == sha256
    require_small(path)
    (tmp_path / "cpu.predictions.2.npz").unlink()
    assert predictions_sha256(path) != sha256
    pack_predictions(path, noise(range(1), 1000))
    assert [p.name for p in tmp_path.glob("cpu*")] == names[:1]
    pack_predictions(path, noise(range(2), 5000))
    with pytest.raises(BadInput, match=r"m on t, seed 0, at most 20,000 .* largest array is 'p'"):
        require_small(path)


def test_a_file_that_unpacks_to_anything_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    pack_predictions(path, {("m", "t", seed): {"zero": np.zeros(1000)} for seed in range(50)})
    monkeypatch.setattr(packing, "MOST_UNPACKED", 100_000)  # 50 runs share one array of 8,000
    with pytest.raises(BadInput, match="its runs unpack to more than 100,000 bytes"):
        unpack_predictions(path)
    monkeypatch.setattr(packing, "MOST_UNPACKED", 500)
    with pytest.raises(BadInput, match="it unpacks to more than 500 bytes"):
        unpack_predictions(path)
