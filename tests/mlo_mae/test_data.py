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


def test_few_labels_leave_the_others_to_level_1():
    problem = data.load(replace(TINY, labels=60, val_share=0.5), CPU)
    inner, outer, first = (set(r) for r in (problem.inner, problem.outer, problem.pretrain))
    assert len(inner) == len(outer) == 30 and not inner & outer and not first & outer
    assert inner <= first and len(first) == 1397 - 30
    assert set(problem.everything) == inner | outer
    counts = np.bincount(problem.train.labels.numpy()[problem.everything], minlength=10)
    assert counts.min() >= 5 and counts.max() <= 7
    with pytest.raises(runs.BadInput, match="1397"):
        data.load(replace(TINY, labels=5000), CPU)


def test_mnist_is_cut_to_its_digit_and_has_images_for_choices():
    problem = data.load(replace(TINY, data="mnist", patch=5), CPU)
    assert problem.train.pixels.shape == (3500, 1, 20, 20) and len(problem.test) == 1000
    images, rows = problem.judged
    assert len(rows) == 500 and images is problem.validation
    parts = [set(p.ids) for p in (problem.train, problem.test, problem.validation)]
    assert len(set.union(*parts)) == 5000
    assert abs(problem.train.pixels.mean()) < 1e-3 and abs(problem.train.pixels.std() - 1) < 1e-3


def test_only_one_quadrant_tells_the_label_of_a_code():
    train, test, _ = data.codes()
    assert len(train) == data.CODE_ITEMS and len(test) == data.CODE_TEST
    inside = data.coded_patches(4)
    assert inside.sum() == 4 and inside.reshape(4, 4)[:2, :2].all()
    patches = patchify(train.pixels, 4)
    for where, share in ((inside, 0.95), (~inside, 0.0)):
        x = patches[:, where].flatten(1)
        means = torch.stack([x[train.labels == k].mean(0) for k in range(10)])
        nearest = torch.cdist(patchify(test.pixels, 4)[:, where].flatten(1), means).argmin(1)
        right = (nearest == test.labels).float().mean()
        assert right > share if share else right < 0.2
    # the quadrants look alike: same mean and spread
    spread = patches.std(0).mean(1)
    assert (spread.max() / spread.min()) < 1.2


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
