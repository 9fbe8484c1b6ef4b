"""Which images each level sees, and how images become batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_levels import CPU, TINY, stream

from mlo_mae import data, folders, rehearsal
from mlo_mae.networks import patchify
from shared import runs


def test_roles_of_the_data():
    one, again, other = (data.load(replace(TINY, seed=s), CPU) for s in (0, 0, 1))
    test = set(one.test.ids.tolist())
    inner, outer = (set(one.train.ids[r].tolist()) for r in (one.inner, one.outer))
    assert not (inner & outer or inner & test or outer & test) and len(inner | outer | test) == 1797
    assert np.array_equal(one.inner, again.inner) and not np.array_equal(one.inner, other.inner)
    assert np.array_equal(one.test.ids, other.test.ids) and len(test) == 400
    labels = one.train.labels.numpy()
    for c in range(10):
        share = (labels == c).sum() * len(one.outer) / len(labels)
        assert abs((labels[one.outer] == c).sum() - share) <= 1
    assert np.array_equal(one.pretrain, one.inner)
    everything = data.load(replace(TINY, pretrain_on="all"), CPU).pretrain
    assert set(everything.tolist()) == set(one.inner.tolist()) | set(one.outer.tolist())
    by_index = data.load(replace(TINY, official=("index_split",)), CPU)
    assert by_index.inner.max() < by_index.outer.min()


def test_batches_of_a_level_come_from_its_part():
    problem = data.load(TINY, CPU)
    parts = {"first": problem.pretrain, "second": problem.inner, "third": problem.outer}
    for level, loader in problem.levels(32, 0).items():
        x, y, ids = loader(3)
        assert set(ids.tolist()) <= set(problem.train.ids[parts[level]].tolist())
        assert x.shape == (32, 1, 8, 8) and y.shape == (32,) == ids.shape


def test_planted_digits_lie_where_they_are_said_to():
    _, test, quadrant = data.digits(planted=True)
    _, plain_test, _ = data.digits(planted=False)
    assert np.array_equal(test.ids, plain_test.ids) and len(np.unique(quadrant)) == 4
    inside = data.digit_patches(quadrant, 4)
    assert (inside.sum(1) == 4).all()
    for k in range(20):
        quarters = test.pixels[k, 0].reshape(2, 8, 2, 8).permute(0, 2, 1, 3).reshape(4, 8, 8)
        assert torch.equal(quarters[quadrant[k]], plain_test.pixels[k, 0])
        map_of_patches = np.kron(inside[k].reshape(4, 4), np.ones((4, 4)))
        at = patchify(torch.from_numpy(map_of_patches)[None, None], 4)
        place = divmod(int(quadrant[k]), 2)
        assert at.reshape(4, 4, 16)[2 * place[0], 2 * place[1]].all()


def test_image_folders(tmp_path, monkeypatch):
    rehearsal.write_sample(tmp_path, "cub", 8)
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    problem = data.load(replace(TINY, data="cub", image_size=16), CPU)
    assert problem.classes == 4 and len(problem.test) == 8
    assert not set(problem.train.ids) & set(problem.test.ids)
    x, again = (problem.train.batch([0, 1], generator=stream()) for _ in range(2))
    assert x.shape == (2, 3, 16, 16) and torch.equal(x, again)
    whole = problem.train.batch([0, 1])
    assert not torch.equal(x, whole)
    erased = problem.train.batch([0, 1], folders.Recipe(erasing=1.0))
    assert torch.equal(erased, whole)  # nothing is erased outside training
    assert folders.erase(x, 1.0, stream()).ne(x).any()
    assert torch.equal(folders.erase(x, 0.0, stream()), x)
    val = tmp_path / "cub" / "val"
    (val / "n0099").mkdir()
    (val / "n0000" / "0.JPEG").rename(val / "n0099" / "0.JPEG")
    with pytest.raises(runs.BadInput, match="n0099"):
        data.load(replace(TINY, data="cub", image_size=16), CPU)


def test_folders_without_images_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    for part in ("train", "val"):
        (tmp_path / "cars" / part / "audi").mkdir(parents=True)
    with pytest.raises(runs.BadInput, match="no images"):
        data.load(replace(TINY, data="cars"), CPU)
