"""The mixed weight and the gates of a model (docs/papers/weight_mixup.md, section 11: 1 to 6)."""

import copy

import pytest
import torch
from mixup_toys import bert, gated, linear, tokens
from torch import nn

from weight_mixup import folding, gates, method

FORMS = [method.factored, method.convex]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 2])
def test_corner_gates_are_the_task_weight_and_the_pretrained_weight(form, rank):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    _, module, plain, W0 = gated(form, rank, 1.0)
    assert (module(x) - plain(x)).abs().max() < 1e-6
    _, module, plain, W0 = gated(form, rank, 0.0)
    assert (module(x) - nn.functional.linear(x, W0, plain.bias)).abs().max() < 1e-6


def test_coefficients_of_the_factored_form():
    u, v = torch.rand(5, 1), torch.rand(1, 6)
    W, W0 = torch.randn(5, 6), torch.randn(5, 6)
    assert torch.allclose(method.coefficient_sum(u, v), 1 - u - v + 2 * u * v)
    half = torch.full((5, 1), 0.5), torch.full((1, 6), 0.5)
    assert torch.allclose(method.factored(*half, W, W), W / 2)
    assert torch.allclose(method.convex(u, v, W, W), W)
    mistaken = (u @ v) * W + (1 - u @ v) * W0  # 1 - u v where (1 - u)(1 - v) is meant
    assert torch.allclose(method.convex(u, v, W, W0), mistaken, atol=1e-6)
    assert not torch.allclose(method.factored(u, v, W, W0), mistaken, atol=1e-2)


def test_closed_form_gradient_of_the_factored_form():
    """Once and twice, against autograd of Eq. 2 as it is written."""
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 1), (1, 6), (5, 6), (5, 6), (5, 6)
    *inputs, G = (torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes)
    inputs = [x.requires_grad_(i < 3) for i, x in enumerate(inputs)]
    u, v, W, W0 = inputs
    written = (u @ v) * W + ((1 - u) @ (1 - v)) * W0
    assert torch.allclose(method.factored(*inputs), written)
    ours = torch.autograd.grad(method.factored(*inputs), inputs[:3], G)
    theirs = torch.autograd.grad(written, inputs[:3], G)
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))
    only_gates = torch.autograd.grad(method.factored(u, v, W.detach(), W0), [u, v], G)
    assert all(torch.equal(a, b) for a, b in zip(only_gates, ours, strict=False))
    assert torch.autograd.gradgradcheck(lambda u, v, W: method.factored(u, v, W, W0), (u, v, W))


@pytest.mark.parametrize("rank", [1, 3])
def test_shapes_and_number_of_gates(rank):
    holder, *_ = gated(rank=rank)
    gate = gates.gates_of(holder)["layer.0"]
    assert gate.u.shape == (5, rank) and gate.v.shape == (rank, 6)
    assert sum(a.numel() for a in gates.alpha_of(holder)) == rank * (5 + 6)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_outside_the_matrix_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank {rank}.*1\.\.5"):
        method.Mixup(linear().weight, rank)


def test_a_gated_transformer_computes_what_it_did():
    model = bert().eval()
    inputs, _ = tokens()
    before = model(**inputs).logits
    gates.attach(model)
    assert (model(**inputs).logits - before).abs().max() < 1e-5


def test_exactly_the_intended_maps_are_gated():
    model = bert(layers=2)
    gates.attach(model)
    names = list(gates.gates_of(model))
    assert len(names) == 6 * 2 + 1 and "bert.pooler.dense" in names
    assert not any("embeddings" in n or "LayerNorm" in n or "classifier" in n for n in names)
    with pytest.raises(ValueError, match="gated already"):
        gates.attach(model)
    with pytest.raises(ValueError, match="nothing to gate"):
        gates.attach(nn.Linear(3, 3))


def test_pretrained_weight_has_no_gradient_and_no_shared_storage():
    holder, module, *_ = gated(value=0.7)
    module(torch.randn(3, 6)).square().sum().backward()
    gate = gates.gates_of(holder)["layer.0"]
    assert gate.W0.grad is None and not gate.W0.requires_grad
    assert gate.W0.data_ptr() != module.parametrizations.weight.original.data_ptr()
    assert gate.u.grad.abs().sum() > 0


def test_merged_transformer_gives_the_same_logits(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = bert().eval()
    names = set(model.state_dict())
    gates.attach(model)
    generator = torch.Generator().manual_seed(1)
    method.draw_gates(gates.alpha_of(model), 0.3, generator)
    with torch.no_grad():
        for p in gates.w_of(model).values():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    inputs, _ = tokens()
    before = model(**inputs).logits
    gates.merge(model)
    assert set(model.state_dict()) == names
    assert (model(**inputs).logits - before).abs().max() < 1e-5
    model.save_pretrained(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    again = load(tmp_path, attn_implementation="eager").eval()
    assert (again(**inputs).logits - before).abs().max() < 1e-5


def test_gates_outside_the_unit_interval_are_refused():
    for bad in (1.2, float("nan")):
        with pytest.raises(ValueError, match="outside"):
            gates.check([torch.tensor([0.5, bad])])


def test_a_negative_spread_of_the_gates_is_refused():
    with pytest.raises(ValueError, match=r"-0\.1 is negative"):
        method.draw_gates([torch.ones(3)], -0.1, torch.Generator())


def test_memory_is_written_again_only_when_its_graph_is_gone():
    _, module, *_ = gated(value=0.7)
    first, second = module.weight, module.weight  # two graphs at once
    assert first.data_ptr() != second.data_ptr() and torch.equal(first, second)
    place, value = second.data_ptr(), second.detach().clone()
    (gradient,) = torch.autograd.grad(second.square().sum(), [module.parametrizations.weight[0].u])
    del first, second
    third = module.weight
    assert third.data_ptr() == place and torch.equal(third, value)
    (again,) = torch.autograd.grad(third.square().sum(), [module.parametrizations.weight[0].u])
    assert torch.equal(gradient, again)
    other = copy.deepcopy(module)  # a copy has memory of its own
    assert other.weight.data_ptr() != third.data_ptr() and torch.equal(other.weight, third)


def test_a_pass_for_the_weights_alone_leaves_the_gates_out(monkeypatch):
    calls = []
    backward = folding.GateGradient.backward
    monkeypatch.setattr(
        folding.GateGradient, "backward", lambda ctx, G: calls.append(1) or backward(ctx, G)
    )
    holder, module, *_ = gated(value=0.7)
    loss = lambda: module(torch.ones(2, 6)).square().sum()  # noqa: E731
    w, alpha = list(gates.w_of(holder).values()), gates.alpha_of(holder)
    torch.autograd.grad(loss(), w)
    assert not calls
    torch.autograd.grad(loss(), [*w, *alpha])
    assert len(calls) == 1
