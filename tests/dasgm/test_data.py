"""Which images each level sees, and how a network sees them."""

from __future__ import annotations

import pytest
import torch
from dasgm_small import config, problem, search

from dasgm import data, imagenet, rehearsal
from shared import cifar, runs
from shared.sources import MissingInput


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    cifar.write_sample(tmp_path, "cifar10", 40, runs.stream(0))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))


def test_T_maps_black_and_white_like_real_pixels(photographs):
    for p in (problem(config()), data.load("cifar10", 0)):
        shape = (4, *p.shape)
        for level, pixel in ((-1.0, 0), (1.0, 255)):
            stream = [runs.stream(0, "t"), runs.stream(0, "t")]
            real = p.view(torch.full(shape, pixel, dtype=torch.uint8), stream[0])
            made = p.T(torch.full(shape, level), stream[1])
            assert torch.allclose(real, made, atol=1e-6)
        x = torch.zeros(shape, requires_grad=True)
        assert torch.autograd.grad(p.T(x, runs.stream(0)).sum(), x)[0].abs().sum() > 0
        ends = torch.tensor([0, 255], dtype=torch.uint8)
        assert torch.allclose(p.signed(ends), torch.tensor([-1.0, 1.0]))
        assert torch.allclose(p.pixels(p.signed(ends)), torch.tensor([0.0, 255.0]))


def test_data_of_the_levels_are_apart():
    p = data.load("digits", 5)
    parts = [set(ids.tolist()) for ids in p.ids.values()]
    assert [len(x) for x in parts] == [450, 450, 897] and len(set.union(*parts)) == 1797
    assert parts[2] == set(data.load("digits", 6).test.ids.tolist())
    assert parts[0] != set(data.load("digits", 6).train.ids.tolist())


def test_few_held_out_images_are_stratified_and_nested():
    """W and the generator learn from the same images whatever their number."""
    ids = {}
    for n in (10, 25, 100, 0):
        s = search(job="darts", n=0, held_out=n)
        chosen = s.views.of_architecture
        assert len(chosen) == (n or 450)
        counts = torch.bincount(chosen.labels, minlength=10)
        assert not n or int(counts.max() - counts.min()) <= 1
        ids[n] = set(chosen.ids.tolist())
        assert ids[n] <= set(s.problem.validation.ids.tolist())
        assert s.views.of_weights is s.problem.train and len(s.problem.train) == 450
        assert len(s.views.held_out(0)[0]) == min(32, n or 32)
    assert ids[10] < ids[25] < ids[100] < ids[0]
    assert search(job="darts", seed=4, held_out=25).views.of_architecture.ids.tolist() != ids[25]
    with pytest.raises(runs.BadInput, match="held_out 451"):
        search(job="darts", n=0, held_out=451)


@pytest.mark.parametrize("full", [False, True])
def test_the_generator_learns_d_tr_alone(full):
    """Also where W learns more: `full_data_weights` is no extra information for level 2."""
    s = search(full_data_weights=full)
    assert len(s.views.of_weights) == (128 if full else 64)
    batches = [s.views.photographs(step).ids.tolist() for step in range(4)]
    assert {i for ids in batches for i in ids} == set(s.problem.train.ids.tolist())


def test_split_of_darts_is_first_and_second_half(photographs):
    p = data.load("cifar10", 3, "darts")
    assert p.train.ids.tolist() == list(range(len(p.train)))
    assert p.validation.ids.tolist() == list(range(len(p.train), 2 * len(p.train)))
    assert data.load("cifar10", 3).train.ids.tolist() != p.train.ids.tolist()


def test_level_three_sees_what_its_job_says():
    held_out = search(job="darts").views.held_out(0)
    own = search(job="train_as_val").views
    strong = search(job="aug_val").views.held_out(0)
    assert torch.equal(own.held_out(0)[0], own.training(0)[0])
    assert not torch.equal(held_out[0], own.held_out(0)[0])
    assert strong[0].shape == held_out[0].shape and not torch.equal(strong[0], held_out[0])
    labels, permuted = search(), search(labels="permuted")
    x, y = labels.views.generated(labels.gan, 0)
    same, other = permuted.views.generated(permuted.gan, 0)
    assert torch.equal(x, same) and not torch.equal(y, other)
    assert y.sort().values.tolist() == other.sort().values.tolist()


def test_every_class_has_the_images_of_another_one():
    own, exchanged = search(), search(labels="classes")
    pairs = set()
    for t in range(4):
        x, y = own.views.generated(own.gan, t)
        same, other = exchanged.views.generated(exchanged.gan, t)
        assert torch.equal(x, same)
        pairs |= set(zip(y.tolist(), other.tolist()))
    # one label for each class throughout, never its own, none twice
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 10
    assert all(a != b for a, b in pairs)


def test_imagenet_folder(tmp_path):
    folder = rehearsal.write_imagenet(tmp_path / "imagenet", runs.stream(0))
    images = imagenet.ImageNet(folder, size=32)
    x, y = images.training(torch.tensor([0, 5]), runs.stream(0, "a"))
    again, _ = images.training(torch.tensor([0, 5]), runs.stream(0, "a"))
    assert x.shape == (2, 3, 32, 32) and y.tolist() == [0, 2]
    assert torch.equal(x, again) and images.classes == 3
    assert images.testing(torch.tensor([1]))[0].shape == (1, 3, 32, 32)
    with pytest.raises(MissingInput, match="train/ and val/"):
        imagenet.ImageNet(tmp_path)
