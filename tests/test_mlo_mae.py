"""Acceptance checks of MLO-MAE: model, masks, levels, hypergradient, data roles, export, one run that is killed and resumed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_processes import launch
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlo_mae import analysis, baselines, data, evaluate, figures, official
from mlo_mae.export import expected_shapes, write_export
from mlo_mae.mae import Decoder, Encoder, Head, initialise, patch_errors, patchify
from mlo_mae.masking import PatchMaskNet, gumbel, mask_network, rank, statistics, visible
from mlo_mae.method import (
    ESTIMATORS,
    Networks,
    Point,
    alignment,
    alignment_jvp,
    head_reaction,
    mask_gradient,
    validation_direction,
    weighted_loss,
    weights,
)
from mlo_mae.train import Config, run
from shared import hypergrad, multilevel, protocol, runs, vectors

ROOT = protocol.Path(__file__).resolve().parent.parent


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def networks(dropout=0.0, dtype=torch.float64, norm_pix=False, seed=0, normalise=False) -> Networks:
    """A toy of two blocks; E has taken no step, so D and C are perturbed from symmetric starts by their initialisation."""
    torch.manual_seed(seed)
    E = Encoder(size=8, channels=1, p=2, width=16, depth=2, heads=2)
    D = Decoder(E.N, 16, 8, 1, 2, 4)
    initialise(E, stream(1))
    initialise(D, stream(2))
    T, C = mask_network("mlp", E.N, 16, 12), Head(16, 3, dropout)
    nets = Networks(E, D, T, C, norm_pix, normalise_scores=normalise)
    for part in (E, D, T, C):
        part.to(dtype)
    C.eval()
    return nets


def point(nets: Networks, B=6, seed=0) -> Point:
    g = stream(seed)
    dtype = nets.E.cls_token.dtype
    x, x2, xv = (torch.randn(B, 1, 8, 8, generator=g).to(dtype) for _ in range(3))
    y2, yv = (torch.randint(3, (B,), generator=g) for _ in range(2))
    with torch.no_grad():
        e = nets.E.embed(x)
        mask = rank(nets.T(e), 4)
    return Point(x, e, mask, x2, y2, xv, yv)


# ------------------------------------------------------------------------------------------------------ model and masks
def unpatchify(patches: Tensor, p: int, channels: int) -> Tensor:
    """(B, N, C p p) -> (B, C, H, W), for square images."""
    B, N, _ = patches.shape
    side = math.isqrt(N)
    x = patches.reshape(B, side, side, channels, p, p).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(B, channels, side * p, side * p)


def test_shapes_and_masks():  # acceptance 1
    nets = networks()
    at = point(nets)
    assert nets.E.embed(at.x).shape == (6, 16, 16) and nets.E(at.x, at.mask.keep).shape == (
        6,
        1 + 4,
        16,
    )
    assert (at.mask.m.sum(1) == 12).all()
    assert (at.mask.restore.sort(1).values == torch.arange(16)).all()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(unpatchify(patchify(x, 4), 4, 3), x)
    # the embedding of a patch is the convolution that timm applies
    convolved = nets.E.patch_embed.proj(at.x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(nets.E.patch_embed(at.x), convolved)


@pytest.mark.parametrize("ratio", [0.0, 0.95, 1.0])
def test_a_ratio_that_leaves_nothing_on_one_side_is_refused(ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        visible(16, ratio)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divide"):
        patchify(torch.zeros(1, 1, 9, 9), 2)
    with pytest.raises(ValueError, match="divide"):
        Encoder(9, 1, 2, 16, 1, 2)


def test_the_highest_scores_are_masked():  # 2
    s = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.1, 0.2, 0.3, 0.4]])
    assert rank(s, 2).m.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    same = [rank(torch.full((3, 8), 0.5), 3) for _ in range(2)]
    assert torch.equal(same[0].m, same[1].m) and same[0].m[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_weight_one_is_the_plain_loss_bit_for_bit():  # 3
    nets = networks(dtype=torch.float32)
    at = point(nets)
    errors = nets.errors(at.x, at.mask)
    plain = (errors * at.mask.m).sum() / at.mask.m.sum()
    assert torch.equal(weighted_loss(errors, at.mask.m, torch.ones_like(errors)), plain)
    assert torch.equal(weighted_loss(errors, at.mask.m), plain)


def test_masked_pixels_reach_the_loss_but_not_the_encoder():  # 4
    nets = networks()
    at = point(nets)
    patches = patchify(at.x, 2) + 3.0 * at.mask.m[..., None]
    changed = unpatchify(patches, 2, 1)
    assert torch.equal(nets.E(at.x, at.mask.keep), nets.E(changed, at.mask.keep))
    before, after = nets.errors(at.x, at.mask), nets.errors(changed, at.mask)
    assert (before != after)[at.mask.m.bool()].all()
    assert torch.equal(before[~at.mask.m.bool()], after[~at.mask.m.bool()])


def test_cls_does_not_depend_on_the_order_of_tokens():  # 5
    nets = networks(dtype=torch.float32)
    at = point(nets)
    order = torch.rand(6, 16, generator=stream(3)).argsort(1)
    torch.testing.assert_close(nets.E(at.x)[:, 0], nets.E(at.x, order)[:, 0], atol=1e-5, rtol=1e-5)


def test_normalised_targets():
    nets = networks(norm_pix=True)
    at = point(nets)
    bright = patch_errors(nets.E, nets.D, at.x, at.mask.keep, at.mask.restore, True, 2)
    values = patchify(at.x, 2)
    target = (values - values.mean(-1, keepdim=True)) / (
        values.var(-1, unbiased=True, keepdim=True) + 1e-6
    ).sqrt()
    predicted = nets.D(nets.E(at.x, at.mask.keep), at.mask.restore)
    torch.testing.assert_close(bright, (predicted - target).square().mean(-1))


# -------------------------------------------------------------------------------------------------------------- levels
def test_level_1_leaves_T_alone_and_takes_scores_as_constants():  # 6
    nets = networks()
    at = point(nets)
    E, T = list(nets.E.parameters()), list(nets.T.parameters())
    s = nets.T(nets.E.embed(at.x).detach())
    errors = nets.errors(at.x, at.mask)
    detached = grad(
        weighted_loss(errors, at.mask.m, s.detach()), E + T, retain_graph=True, allow_unused=True
    )
    assert all(g is None for g in detached[len(E) :])
    through_T = grad(weighted_loss(errors, at.mask.m, s), E, retain_graph=True)
    for a, b in zip(detached, through_T):  # T's input is detached: s carries no gradient to E
        assert torch.equal(a, b)
    attached = nets.T(nets.E.embed(at.x))  # row 1 of the differences
    leaked = grad(weighted_loss(errors, at.mask.m, attached), E)
    assert vectors.relative_error(leaked, list(through_T)) > 1e-3


# ------------------------------------------------------------------------------------------------------- hypergradient
def estimate(name, nets, at, head_path="identity", lr_head=0.3):
    radius = 1e-4 if nets.E.cls_token.dtype == torch.float64 else 1e-2
    return ESTIMATORS[name](nets, at, head_path, lr_head, radius)


@pytest.mark.parametrize("head_path", ["identity", "unrolled", "none"])
@pytest.mark.parametrize("name", ["fd_forward", "fd_darts", "jvp"])
def test_estimators_match_double_backward(name, head_path):  # 7
    nets = networks(normalise=name == "fd_forward")
    at = point(nets)
    ours, true = estimate(name, nets, at, head_path), estimate("exact", nets, at, head_path)
    assert vectors.cosine(ours, true) > 0.9999
    assert 0.999 < vectors.norm(ours) / vectors.norm(true) < 1.001


def test_float32_is_enough_for_the_closed_form():
    nets = networks(dtype=torch.float32)
    at = point(nets)
    assert vectors.cosine(estimate("fd_forward", nets, at), estimate("exact", nets, at)) > 0.9999


def test_the_closed_form_is_the_generic_chain_of_three_levels():
    """shared/multilevel.py walks the same graph without knowing the closed form."""
    nets = networks()
    at = point(nets)
    E, C, T = (list(n.parameters()) for n in (nets.E, nets.C, nets.T))

    def level1():
        return weighted_loss(nets.errors(at.x, at.mask), at.mask.m, nets.T(at.e))

    def level2():
        return nets.head_loss(nets.E.features(at.x2), at.y2)

    def outer():
        return nets.head_loss(nets.E.features(at.xv), at.yv)

    with sdpa_kernel(SDPBackend.MATH):
        levels = [
            multilevel.Level(level1, E, 1.0, hypergrad.OneStep()),
            multilevel.Level(level2, C, 1.0, hypergrad.OneStep()),
        ]
        g = multilevel.chain(outer, levels, T, look_ahead=False, lr_factor=False).grads
    assert vectors.relative_error(estimate("fd_forward", nets, at), g) < 1e-4


def test_no_weight_no_gradient():  # 7, end
    nets = networks()
    at = point(nets)
    v = validation_direction(nets, at)
    a = alignment(nets, at.x, at.mask, v, 1e-4)
    ones = torch.ones_like(a) * (0 * nets.T(at.e) + 1)
    g = grad(-weighted_loss(a, at.mask.m, ones), list(nets.T.parameters()))
    assert all(torch.count_nonzero(x) == 0 for x in g)


def test_alignments_are_directional_derivatives():
    nets = networks()
    at = point(nets)
    v = validation_direction(nets, at)
    a = alignment(nets, at.x, at.mask, v, 1e-4)
    torch.testing.assert_close(a, alignment_jvp(nets, at.x, at.mask, v), rtol=1e-3, atol=1e-6)
    i, j = 2, int(at.mask.m[2].argmax())
    by_hand = grad(nets.errors(at.x, at.mask)[i, j], list(nets.E.parameters()), allow_unused=True)
    assert a[i, j].item() == pytest.approx(
        sum((g * d).sum().item() for g, d in zip(by_hand, v) if g is not None), rel=1e-4
    )


def test_the_heads_mixed_product_needs_no_probe_of_the_encoder():
    nets = networks()
    at = point(nets)
    z = nets.E.features(at.x2)
    E, C = list(nets.E.parameters()), list(nets.C.parameters())
    v_C = [torch.randn(p.shape, dtype=p.dtype, generator=stream(4)) for p in C]
    ours = grad(z, E, head_reaction(nets, z, at.y2, v_C))
    eps = 1e-4
    slopes = []
    for sign in (1, -1):
        with vectors.perturbed(C, v_C, sign * eps):
            slopes.append(grad(nets.head_loss(nets.E.features(at.x2), at.y2), E))
    difference = [(a - b) / (2 * eps) for a, b in zip(*slopes)]
    assert vectors.relative_error(list(ours), difference) < 1e-6


def test_three_quadratics_in_closed_form():  # 8
    """L1 = |E - A T|^2 / 2, L2 = |C - B E|^2 / 2 + |C|^2 / 2, L3 = |E - p|^2 / 2 + |C - q|^2 / 2."""
    g = stream(5)
    A, B, p, q = (
        torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 3), (2, 4), (4,), (2,))
    )
    E, C, T = (
        torch.randn(n, generator=g, dtype=torch.float64, requires_grad=True) for n in (4, 2, 3)
    )

    def L1():
        return 0.5 * (E - A @ T).square().sum()

    def L2():
        return 0.5 * (C - B @ E).square().sum() + 0.5 * C.square().sum()

    def L3(e, c):
        return 0.5 * (e - p).square().sum() + 0.5 * (c - q).square().sum()

    def ours(lr_C):
        v_E, v_C = grad(L3(E, C), [E, C])
        how = hypergrad.OneStep()
        v = [v_E + hypergrad.through_level(L2, [C], [E], [v_C], lr_C, how)[0]]
        return hypergrad.through_level(L1, [E], [T], v, 1.0, how)[0]

    v = (E - p) + B.T @ (C - q)  # -d2L2/dEdC = B^T
    torch.testing.assert_close(ours(1.0), (A.T @ v).detach())  # -d2L1/dTdE = A^T
    lr_E, lr_C = 0.1, 0.07
    (slope,) = grad(L1(), E, create_graph=True)
    stepped_E = E - lr_E * slope
    stepped_C = C - lr_C * ((C - B @ stepped_E) + C)
    full = grad(L3(stepped_E, stepped_C), T)[0]
    # one step of each level, differentiated where the steps ended: the derivative of L2 and L3 is taken there
    v_E, v_C = stepped_E - p, stepped_C - q
    torch.testing.assert_close(lr_E * A.T @ (v_E + lr_C * B.T @ v_C).detach(), full)


def test_a_helpful_patch_rises_and_a_harmful_one_falls():  # 9
    nets = networks()
    at = point(nets, B=1)
    up, down, *rest = at.mask.m[0].nonzero().flatten().tolist()
    a = torch.zeros_like(at.mask.m)
    a[0, up], a[0, down] = 1.0, -1.0
    with torch.no_grad():
        nets.T.net[
            3
        ].weight.zero_()  # no score reacts to another's gradient through the shared hidden layer
    before = nets.T(at.e)[0].detach()
    vectors.add_(list(nets.T.parameters()), mask_gradient(nets, at.e, at.mask.m, a), -0.5)
    after = nets.T(at.e)[0].detach()
    assert (
        after[up] > before[up]
        and after[down] < before[down]
        and torch.equal(after[rest], before[rest])
    )


def test_official_draws_other_dropout_and_the_default_does_not():  # 10
    nets = networks(dropout=0.1)
    at = point(nets)
    nets.C.eval()
    torch.manual_seed(0)
    theirs = [official.hypergradient(nets, at, "identity", 1.0, 1e-4) for _ in range(2)]
    assert vectors.relative_error(*theirs) > 1e-3
    ours = [estimate("fd_forward", nets, at) for _ in range(2)]
    assert all(torch.equal(p, q) for p, q in zip(*ours))


def test_official_without_accidents_is_the_default():
    """No dropout, and a T that does not react to the perturbed embedding: only rows 7 and 8 separate the two."""
    nets = networks(dropout=0.0)
    at = point(nets)
    e, network = at.e, nets.T
    nets.T = type(
        "Cached",
        (torch.nn.Module,),
        {"forward": lambda self, _: network(e), "parameters": lambda self: network.parameters()},
    )()
    theirs = official.hypergradient(nets, at, "identity", 1.0, 1e-4)
    nets.T = network
    assert vectors.relative_error(theirs, estimate("exact", nets, at)) < 1e-4


@pytest.mark.parametrize("name", [*ESTIMATORS, "official"])
def test_everything_is_put_back(name):  # 11
    nets = networks(dropout=0.1, dtype=torch.float32)
    at = point(nets)
    parts = [nets.E, nets.D, nets.T, nets.C]
    nets.E.train()
    before = [[p.detach().clone() for p in part.parameters()] for part in parts]
    flags = [part.training for part in parts]
    if name == "official":
        official.hypergradient(nets, at, "identity", 1.0, 1e-2)
    else:
        estimate(name, nets, at)
    for part, old in zip(parts, before):
        assert all(
            torch.equal(p, q) and p.grad is None and p.requires_grad
            for p, q in zip(part.parameters(), old)
        )
    assert [part.training for part in parts] == flags


def test_a_failing_probe_puts_the_encoder_back():
    nets = networks()
    at = point(nets)
    v = validation_direction(nets, at)
    before = vectors.clone(list(nets.E.parameters()))
    nets.D.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("stop"))
    with pytest.raises(RuntimeError, match="stop"):
        alignment(nets, at.x, at.mask, v)
    assert all(torch.equal(p, q) for p, q in zip(nets.E.parameters(), before))


# -------------------------------------------------------------------------------------------------- masking, baselines
def test_scores_options():
    nets = networks()
    at = point(nets)
    s = nets.T(at.e)
    w = weights(s, at.mask.m, normalise=True)
    assert ((w * at.mask.m).sum() / at.mask.m.sum()).item() == pytest.approx(1.0)
    assert not torch.equal(rank(gumbel(s, stream(1)), 4).m, rank(gumbel(s, stream(2)), 4).m)
    small = PatchMaskNet(16, 8).double()(at.e)
    assert small.shape == (6, 16) and ((small > 0) & (small < 1)).all()
    facts = statistics(s, at.mask.m)
    one = statistics(s[:1].expand(6, -1), at.mask.m[:1].expand(6, -1))
    assert (
        one["mask_overlap"] == pytest.approx(1.0)
        and one["mask_entropy"] < 1e-6 <= facts["mask_entropy"] + 1e-6
    )


def test_uniformity_is_zero_for_orthogonal_and_one_for_equal_features():
    assert baselines.uniformity(torch.eye(4)).item() == 0.0
    assert baselines.uniformity(torch.ones(4, 3)).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="compares images"):
        baselines.uniformity(torch.ones(1, 3))


# ----------------------------------------------------------------------------------------------------------- data roles
TINY = Config(scale="tiny", arm="mlo", task="digits", device="cpu", data="digits", patch=2, width=16, depth=1, heads=2, decoder_width=8,
              decoder_depth=1, decoder_heads=2, T_hidden=16, norm_pix=False, radius=1e-3, steps=12, batch=32, lr=1e-3, mask="learned", weight="scores",
              hypergrad="fd_forward", finetune_labels=(100,), finetune_epochs=2, finetune_batch=50, finetune_lr=1e-3)  # fmt: skip


def test_roles_of_the_data():  # 12
    cpu = torch.device("cpu")
    one, again, other = (data.load(replace(TINY, seed=s), cpu) for s in (0, 0, 1))
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
    everything = data.load(replace(TINY, pretrain_on="all"), cpu).pretrain
    assert set(everything.tolist()) == set(one.inner.tolist()) | set(one.outer.tolist())
    by_index = data.load(replace(TINY, official=("index_split",)), cpu)
    assert by_index.inner.max() < by_index.outer.min()


def test_planted_digits_lie_where_they_are_said_to():
    _, test, quadrant = data.digits(planted=True)
    _, plain_test, _ = data.digits(planted=False)
    assert np.array_equal(test.ids, plain_test.ids) and len(np.unique(quadrant)) == 4
    inside = data.digit_patches(quadrant, 4)
    assert (inside.sum(1) == 4).all()
    for k in range(20):
        quarters = test.pixels[k, 0].reshape(2, 8, 2, 8).permute(0, 2, 1, 3).reshape(4, 8, 8)
        assert torch.equal(quarters[quadrant[k]], plain_test.pixels[k, 0])
        at = patchify(
            torch.from_numpy(np.kron(inside[k].reshape(4, 4), np.ones((4, 4))))[None, None], 4
        )
        place = divmod(int(quadrant[k]), 2)
        assert at.reshape(4, 4, 16)[2 * place[0], 2 * place[1]].all()


def test_image_folders(tmp_path, monkeypatch):
    data.write_sample(tmp_path, "cub", 8)
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    problem = data.load(replace(TINY, data="cub", image_size=16), torch.device("cpu"))
    assert problem.classes == 4 and len(problem.test) == 8
    x = problem.train.batch([0, 1], data.Recipe(), stream())
    again = problem.train.batch([0, 1], data.Recipe(), stream())
    assert x.shape == (2, 3, 16, 16) and torch.equal(x, again)
    assert not torch.equal(x, problem.train.batch([0, 1], data.SHOWN))
    assert data.erase(x, 1.0, stream()).ne(x).any() and torch.equal(data.erase(x, 0.0, stream()), x)
    (tmp_path / "cub" / "val" / "n0099").mkdir()
    (tmp_path / "cub" / "val" / "n0000" / "0.JPEG").rename(
        tmp_path / "cub" / "val" / "n0099" / "0.JPEG"
    )
    with pytest.raises(runs.BadInput, match="n0099"):
        data.load(replace(TINY, data="cub", image_size=16), torch.device("cpu"))


@pytest.mark.parametrize("wrong", [{"mask": "learnt"}, {"hypergrad": "betty"}, {"steps": 11}, {"official": ("dropout",)},
                                   {"val_share": 1.0}, {"mask": "random", "weight": "one"}, {"finetune_labels": ()},
                                   {"data": "mnist"}, {"mask_ratio": 0.99}, {"joint_weight": 1.0}, {"finetune_labels": (5000,)}])  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError):
        run(replace(TINY, out=str(tmp_path / "run"), **wrong))


# ----------------------------------------------------------------------------------------------------------------- runs
def losses(directory):
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "cpu_seconds"} for x in lines]


def test_a_run_its_schedule_and_its_repetition(tmp_path):  # 13, 14
    config = replace(TINY, curve_points=2, descent_trials=2, export=True)
    one, again = (run(replace(config, out=str(tmp_path / n))) for n in ("a", "b"))
    record = json.loads((one / "record.json").read_text())
    assert losses(one) == losses(again)
    assert record["state_sha256"] == json.loads((again / "record.json").read_text())["state_sha256"]
    counts = record["details"]["counts"]
    assert {k: counts[k] for k in ("level1", "level2", "level3")} == {
        "level1": 12,
        "level2": 6,
        "level3": 6,
    }
    gates = {g["id"]: g["passed"] for g in record["gates"]}
    assert gates == dict.fromkeys(
        ("roles", "timm-layout", "cycle", "restored", "hypergradient"), True
    )
    arrays = runs.load_arrays(one / "predictions.npz")
    assert (
        arrays["_descent"].shape == (2, 5)
        and -0.5 <= evaluate.STATISTICS["descent"]({"mlo": arrays}) <= 0.5
    )
    shown = runs.load_arrays(one / "masks.npz")
    assert (shown["masks"].sum(-1) == 12).all() and shown["frequency"].sum() == pytest.approx(12)
    made = figures.figures(
        {}, {("mlo", "digits", 0): one, ("mae", "digits", 0): tmp_path / "absent"}
    )
    names = {name for name, *_ in made}
    assert names == {
        "masks-digits",
        "positions-digits",
        "curve-digits-step",
        "curve-digits-cpu-seconds",
    }
    # looking does not change what is trained: without trials, curves and checks the encoder is the same
    quiet = run(replace(TINY, out=str(tmp_path / "c"), self_checks=False))
    assert json.loads((quiet / "record.json").read_text())["state_sha256"] == record["state_sha256"]


def test_arms_share_starts_and_batches(tmp_path):  # 14
    seen = {}
    for arm, settings in {
        "mlo": {},
        "mae": {"mask": "random", "weight": "one", "hypergrad": "none"},
    }.items():
        from mlo_mae.pretrain import Pretraining

        config = replace(TINY, **settings)
        problem = data.load(config, torch.device("cpu"))
        work = Pretraining(config, FakeRun(), problem, torch.device("cpu"))
        seen[arm] = [
            vectors.clone(work.theta),
            work.batch("level1", 7)[0],
            work.batch("level1", 40)[0],
        ]
    assert all(torch.equal(p, q) for p, q in zip(seen["mlo"][0], seen["mae"][0]))
    assert all(torch.equal(p, q) for p, q in zip(seen["mlo"][1:], seen["mae"][1:]))


class FakeRun:
    def finite(self, *_args, **_more):
        pass


def test_levels_2_and_3_do_not_train_the_encoder():
    from mlo_mae.pretrain import Pretraining

    problem = data.load(TINY, torch.device("cpu"))
    work = Pretraining(TINY, FakeRun(), problem, torch.device("cpu"))
    work.level1(0), work.level1(1)
    before = vectors.clone(work.theta)
    T = vectors.clone(work.parameters("T"))
    work.level2(0), work.level3(0)
    assert all(torch.equal(p, q) for p, q in zip(work.theta, before))
    assert any(not torch.equal(p, q) for p, q in zip(work.parameters("T"), T))


@pytest.mark.parametrize("settings", [
    {"mask": "random"}, {"weight": "one"}, {"hypergrad": "none"}, {"mask": "random", "weight": "one", "hypergrad": "none", "joint_weight": 1.0},
    {"hypergrad": "official", "official": ("attached_scores", "best_epoch")}, {"mask": "random", "weight": "one", "hypergrad": "none", "uniformity": 0.01},
    {"T_arch": "patchwise", "score_noise": "gumbel", "mix_random": 0.5, "normalise_scores": True, "head_path": "none", "pool": "mean"},
    {"data": "planted", "patch": 4}, {"mask": "random", "weight": "one", "hypergrad": "none", "steps": 0, "pixels": True},
])  # fmt: skip
def test_every_kind_of_arm_runs(settings, tmp_path):
    config = {"steps": 4, "finetune_epochs": 1, "arm": "other", **settings}
    directory = run(replace(TINY, out=str(tmp_path / "run"), **config))
    record = json.loads((directory / "record.json").read_text())
    assert record["status"] == "finished" and all(g["passed"] for g in record["gates"])
    assert 0 <= record["metrics"]["accuracy"] <= 1


def test_stopped_in_either_phase_and_resumed_it_is_the_same_run(tmp_path, monkeypatch):
    config = replace(TINY, descent_trials=6, curve_points=2, finetune_labels=(100, 50))
    whole = run(replace(config, out=str(tmp_path / "whole")))
    part, done = replace(config, out=str(tmp_path / "part")), [0]

    def stop_at(step):
        def asked():
            done[0] += 1
            return done[0] == step

        monkeypatch.setattr(runs, "_stop_asked", asked)

    for step in (
        3,
        13,
        17,
    ):  # within a cycle that is replayed, within the first and within the second finetuning
        stop_at(step)
        with pytest.raises(runs.Stopped):
            run(part)
    stop_at(-1)
    run(part)
    records = [json.loads((d / "record.json").read_text()) for d in (whole, tmp_path / "part")]
    assert records[0]["state_sha256"] == records[1]["state_sha256"]
    assert records[0]["predictions_sha256"] == records[1]["predictions_sha256"]
    assert losses(whole) == losses(tmp_path / "part")


def test_nothing_masked_at_evaluation_time():
    nets = networks(dtype=torch.float32)
    problem = data.load(TINY, torch.device("cpu"))
    rows = np.arange(5)
    z = analysis.features(nets.E, problem.test, rows, "cls")
    torch.testing.assert_close(z, nets.E(problem.test.pixels[:5])[:, 0].detach())


# ---------------------------------------------------------------------------------------------------------------- export
def test_export_has_timms_names_and_shapes(tmp_path):
    from safetensors.torch import load_file

    E = Encoder(16, 3, 4, 16, 2, 2)
    write_export(tmp_path, E, replace(TINY, heads=2))
    state = load_file(tmp_path / "encoder.safetensors")
    assert {k: tuple(v.shape) for k, v in state.items()} == expected_shapes(E)
    assert set(state) >= {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.1.attn.qkv.weight",
        "blocks.0.mlp.fc2.bias",
        "norm.weight",
    }
    text = (tmp_path / "README.md").read_text()
    assert "img_size=16, patch_size=4, in_chans=3, embed_dim=16, depth=2, num_heads=2" in text


def test_timm_loads_the_export_and_computes_the_same():
    try:
        import timm
    except (
        ImportError,
        RuntimeError,
    ) as error:  # absent, or a torchvision that does not fit this torch
        pytest.skip(f"timm cannot be imported: {type(error).__name__}")
    E = Encoder(16, 3, 4, 16, 2, 2)
    initialise(E, stream())
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    theirs.load_state_dict(E.state_dict())
    x = torch.randn(2, 3, 16, 16, generator=stream())
    torch.testing.assert_close(theirs.eval()(x), E.features(x), atol=1e-5, rtol=1e-5)


def test_imports_without_timm_and_torchvision():  # 16
    code = ("import sys; sys.modules['timm'] = sys.modules['torchvision'] = None; import mlo_mae.train, mlo_mae.evaluate, mlo_mae.figures; "
            "print('transformers' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "False", done.stderr[-2000:]


# ----------------------------------------------------------------------------------------------------------- evaluation
def test_score_is_the_share_of_right_answers():
    arrays = {"id": np.arange(4), "label": np.array([0, 1, 2, 3]), "prediction": np.array([0, 1, 2, 0]),
              "probe": np.array([0, 0, 0, 0]), "prediction_50": np.array([0, 1, 0, 0])}  # fmt: skip
    assert evaluate.score(arrays) == {"accuracy": 0.75, "probe": 0.25, "accuracy_50": 0.5}
    for name, values in evaluate.item_values(arrays).items():
        assert values.mean() == evaluate.score(arrays)[name]


def test_figures_without_runs():
    claims = [{"id": "descent", "d": [0.1, None, 0.2]}, {"id": "planted-score", "d": []}]
    assert figures.figures({}, {}) == []
    assert [name for name, *_ in figures.figures({"claims": claims}, {})] == ["mechanism"]


def test_statistics():
    trials = np.array(
        [
            [1, 0.5, 0.9, 0.8, 0.7],
            [1, 0.5, 0.9, 0.8, 0.7],
            [1, 0.9, 0.9, 0.6, 0.7],
            [1, 1.1, 0.9, 0.6, 0.7],
        ]
    )
    assert evaluate.descent({"mlo": {"_descent": trials}}) == pytest.approx((2 - 1) / 4 / 2)
    assert evaluate.descent_masks_held({"mlo": {"_descent": trials}}) == 0.0
    rows = {"masked_digit": np.array([1.0, 0.5]), "masked_other": np.array([0.5, 0.5]), "score_digit": np.zeros(2),
            "score_other": np.ones(2), "a_digit": np.array([2.0, 4.0]), "a_other": np.array([1.0, 1.0])}  # fmt: skip
    assert (
        evaluate.planted_masking({"mlo": rows}) == 0.25
        and evaluate.planted_score({"mlo": rows}) == -1.0
    )
    assert evaluate.planted_alignment({"mlo": rows}) == pytest.approx(2 / np.std([2, 4, 1, 1]))


def test_softmax_regression_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    problem = data.load(TINY, torch.device("cpu"))
    x, y = problem.train.pixels.flatten(1)[:300], problem.train.labels[:300]
    ours = analysis.softmax_regression(x, y, [problem.test.pixels.flatten(1)], 10)[0].numpy()
    a, b = (z.numpy() for z in analysis.standardised(x, problem.test.pixels.flatten(1)))
    theirs = LogisticRegression(C=1 / (300 * 1e-3), max_iter=500).fit(a, y.numpy()).predict(b)
    assert (ours == theirs).mean() > 0.98


def test_published_numbers_are_answered_or_said_to_have_no_counterpart():  # 15
    import yaml

    from benchmarks.claims import check_names, load_claims
    from benchmarks.reported import check_targets

    folder = ROOT / "mlo_mae"
    claims, reported = (
        load_claims(folder / "claims.yaml"),
        yaml.safe_load((folder / "reported.yaml").read_text()),
    )
    check_targets(claims["targets"], reported, "claims.yaml")
    paper = protocol.Protocol(folder)
    check_names(
        claims, paper.arms, {t for s in protocol.SCALES for t in paper.tasks(s)}, "claims.yaml"
    )
    for target in claims["targets"]:
        assert set(target.get("scales", ["paper"])) == {"paper"}, (
            "a scaled run is no match for a full-size number"
        )


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Global batch and averaged gradients: the same encoder up to rounding, whatever the number of processes."""
    words = [
        "-m",
        "mlo_mae.train",
        "--tiny",
        "--device",
        "cpu",
        "--dropout",
        "0.0",
        "--steps",
        "8",
        "--descent_trials",
        "0",
        "--export",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = subprocess.run(
        [sys.executable, *words, "--out", str(tmp_path / "one")],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr[-2000:]
    two = launch(*words, "--out", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr[-3000:]
    record = json.loads((tmp_path / "two" / "record.json").read_text())
    assert record["details"]["processes"] == {"number": 2, "equal": True}
    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / n / "export" / "encoder.safetensors") for n in ("one", "two"))
    assert vectors.relative_error([*a.values()], [*b.values()]) < 1e-4
    assert a.keys() == b.keys()
