"""Level 2: generators, their step, and the fidelity gate."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from dasgm_small import CPU, config, make, problem, record, search

from dasgm import data, generators, method
from shared import vectors


def test_the_gate_stops_an_untrained_generator(tmp_path):
    changes = {"n": 0, "gan_steps": 0, "reference_steps": 60, "batch": 64}
    with pytest.raises(generators.GeneratorFailed, match="3 times chance"):
        make(tmp_path, "g", job="generator", fidelity_gate=True, **changes)


def test_a_generator_that_replays_training_images_passes():
    c = config(n=0, batch=64)
    p = problem(c)
    gan, views = generators.GAN(c, p.classes, p.shape, CPU), data.Views(c, p)
    optimizer = torch.optim.Adam(gan.reference.parameters(), 2e-3)
    for step in range(60):
        x, y = views.real(p.train, "reference batches", step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(gan.reference(x), y).backward()
        optimizer.step()
    gan.sample = lambda n, *name: (p.signed(p.train.pixels[:450]), p.train.labels[:450])
    fidelity = gan.labels_read(p, "x", 0) / 450
    assert fidelity > 0.6 and generators.fidelity_gate(fidelity, 10) == ""
    assert "below" in generators.fidelity_gate(0.4, 10)


@pytest.mark.parametrize("kind", ["residual", "dcgan"])
def test_generators_for_photographs(kind):
    c = config(data="cifar10", gan=kind, gan_width=4, gan_batch=4)
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    images = data.Images(torch.arange(4), pixels, torch.tensor([0, 1, 2, 0]))
    gan = generators.GAN(c, 3, (3, 32, 32), CPU)
    before = vectors.clone(list(gan.H.parameters()))
    views = data.Views(c, data.Problem("cifar10", 3, images, images, images))
    losses = method.generator_step(gan, views)
    assert np.isfinite(list(losses.values())).all()
    assert not all(torch.equal(a, b) for a, b in zip(before, gan.H.parameters()))
    fakes, y = gan.sample(5, "x")
    assert fakes.shape == (5, 3, 32, 32) and float(fakes.abs().max()) <= 1 and y.shape == (5,)


def test_a_continued_generator_goes_on_as_before():
    s, other = search(), search()
    s.step(0)
    other.gan.load_state_dict(copy.deepcopy(s.gan.state_dict()))
    again = method.generator_step(other.gan, other.views)
    assert again == method.generator_step(s.gan, s.views)


def test_the_stage_leaves_samples_and_says_what_it_saw(tmp_path):
    directory = make(tmp_path, "g", job="generator")
    with np.load(directory / "samples.npz") as archive:
        assert archive["pixels"].shape == (80, 1, 8, 8) and archive["pixels"].dtype == np.uint8
        assert archive["label"].tolist() == sorted(archive["label"].tolist())
    gates = {g["id"]: g for g in record(directory)["gates"]}
    assert set(gates) == {"label-fidelity", "generator-data"}
    assert gates["generator-data"]["passed"]
    assert gates["generator-data"]["detail"] == "64 images of D_tr"
    assert record(directory)["gradient_evaluations"] == 8
