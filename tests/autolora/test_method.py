"""The equations of method.py; numbers in the names: docs/papers/autolora.md, section 11."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autolora import maps, method
from shared import runs
from shared.hypergrad import FiniteDifference, FirstOrder, OneStep


def test_1_constant_logits_are_plain_lora_with_scale_s_over_k(layer):
    made = layer(dtype=torch.float32)
    x = torch.randn(7, 6)
    with torch.no_grad():
        made.beta.fill_(0.3)
        plain = made.base(x) + made.s / made.k * F.linear(F.linear(x, made.A), made.B)
        assert (made(x) - plain).abs().max() < 1e-6
        made.B.zero_()
        assert torch.equal(made(x), made.base(x))


def test_1_peft_layer_with_alpha_folded_into_b_is_the_same_layer(layer):
    from peft import LoraConfig, get_peft_model

    made = layer(dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["0"])
    wrapped = get_peft_model(nn.Sequential(made.base), config)
    (peft_layer,) = maps.lora_layers(wrapped).values()
    with torch.no_grad():
        peft_layer.lora_A["default"].weight.copy_(made.A)
        peft_layer.lora_B["default"].weight.copy_(made.B * made.alpha)
    x = torch.randn(7, 6)
    assert torch.allclose(wrapped(x), made(x), atol=1e-5)


def test_2_layer_equals_the_dense_map(layer):
    made = layer()
    x = torch.randn(7, 6, dtype=torch.float64)
    dense = made.base.weight + made.s * made.B @ torch.diag(torch.softmax(made.beta, 0)) @ made.A
    assert (made(x) - F.linear(x, dense, made.base.bias)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "beta",
    [torch.zeros(8), torch.tensor([50.0, -50] * 4), torch.randn(8, generator=runs.stream(0, "b"))],
)
def test_3_alpha_lies_on_the_simplex_of_its_own_map(beta, layer):
    made = layer(k=8, d_in=9, d_out=9, dtype=torch.float32)
    made.beta.data.copy_(beta)
    alpha = made.alpha
    assert (alpha >= 0).all() and abs(alpha.sum().item() - 1) < 1e-6
    made.beta.data.add_(7.0)
    assert torch.allclose(made.alpha, alpha, atol=1e-6)


def through_the_step(made, inner, outer, eta):
    """L_val(w'(beta), beta) as a differentiable function of beta, written out by hand."""

    def loss(batch, beta, a, b):
        features, target = batch
        component = F.linear(features, a) * torch.softmax(beta, 0)
        return F.mse_loss(made.base(features) + made.s * F.linear(component, b), target)

    def value(beta):
        w = [p.detach().clone().requires_grad_() for p in (made.A, made.B)]
        g = torch.autograd.grad(loss(inner, beta, *w), w, create_graph=True)
        return loss(outer, beta, *(p - eta * d for p, d in zip(w, g)))

    return value


@pytest.mark.parametrize("eta", [0.1, 1e-3])
def test_4_hypergradient_agrees_with_autograd_and_with_differences(eta, layer):
    made = layer()
    batches = [
        (torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64))
        for _ in range(2)
    ]
    inner, outer = (lambda b=b: F.mse_loss(made(b[0]), b[1]) for b in batches)
    value = through_the_step(made, *batches, eta)
    beta = made.beta.detach().clone().requires_grad_()
    (exact,) = torch.autograd.grad(value(beta), beta)
    for chosen, tolerance in ((OneStep(), 1e-10), (FiniteDifference(), 1e-5)):
        h = method.hypergradient(outer, inner, [made.A, made.B], [made.beta], eta, chosen)
        assert (h.grads[0] - exact).norm() / exact.norm() < tolerance
    step = 1e-5
    numeric = torch.stack(
        [
            (value(beta + step * e) - value(beta - step * e)).detach() / (2 * step)
            for e in torch.eye(4, dtype=torch.float64)
        ]
    )
    assert (numeric - exact).norm() / exact.norm() < 1e-6


def test_6_with_b_zero_the_direct_gradient_vanishes_at_w_and_not_at_the_look_ahead(regression):
    at, train_loss, validation_loss, made = regression()
    made.B.data.zero_()
    inputs = (validation_loss, train_loss, at.w, at.beta, at.eta)
    assert not method.hypergradient(*inputs, FirstOrder()).grads[0].any()
    assert method.hypergradient(*inputs).direct[0].norm() > 0


def test_8_a_hypergradient_leaves_everything_as_it_was(regression):
    at, train_loss, validation_loss, made = regression(dropout=0.1)
    optimizer = torch.optim.AdamW(at.w, lr=at.eta)
    method.inner_step(train_loss, at.w, optimizer)
    everything = [*at.w, *at.beta, made.base.weight]
    everything += [s for p in at.w for s in optimizer.state[p].values()]
    before, random_state = runs.state_sha256(everything), torch.get_rng_state()
    method.hypergradient(validation_loss, train_loss, at.w, at.beta, at.eta)
    assert before == runs.state_sha256(everything)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(p.grad is None for p in [*at.w, *at.beta, made.base.weight])


def test_8_the_real_step_sees_the_new_beta_and_no_validation_gradient(regression):
    at, train_loss, validation_loss, _ = regression()
    by_hand, train_by_hand, validation_by_hand, _ = regression()
    method.search_step(at, train_loss, validation_loss)
    w, beta = by_hand.w, by_hand.beta
    h = method.hypergradient(validation_by_hand, train_by_hand, w, beta, by_hand.eta)
    beta[0].grad = h.grads[0]
    by_hand.outer.step()
    for p, g in zip(w, torch.autograd.grad(train_by_hand(), w)):
        p.data -= by_hand.eta * g
    assert all(torch.allclose(a, b) for a, b in zip(at.w + at.beta, w + beta))


def test_15_a_zero_outer_gradient_skips_the_implicit_term(regression):
    at, train_loss, _, made = regression()
    nothing = lambda: 0.0 * made(torch.ones(1, 6).double()).sum()  # noqa: E731
    h = method.hypergradient(nothing, train_loss, at.w, at.beta, at.eta)
    assert not h.implicit[0].any() and torch.isfinite(h.grads[0]).all()


def test_9_inner_and_outer_variables_are_exactly_adapters_head_and_logits(tiny_bert):
    layers = method.attach(tiny_bert, 2, "classifier", lambda name: runs.stream(0, "A", name))
    w, beta = method.variables(tiny_bert)
    adapters = {id(p) for made in layers.values() for p in (made.A, made.B)}
    assert {id(p) for p in w} == adapters | {id(p) for p in tiny_bert.classifier.parameters()}
    assert {id(p) for p in beta} == {id(made.beta) for made in layers.values()}
    first = [f"bert.encoder.layer.0.attention.self.{m}" for m in ("query", "value")]
    assert len(layers) == 24 and list(layers)[:2] == first


def test_9_a_language_model_has_no_head_and_trains_adapters_alone(tiny_gpt2):
    maps.split_fused(tiny_gpt2)
    layers = method.attach(tiny_gpt2, 2, "", lambda name: runs.stream(0, "A", name))
    w, beta = method.variables(tiny_gpt2)
    assert {id(p) for p in w} == {id(p) for made in layers.values() for p in (made.A, made.B)}
    assert len(beta) == 4


def test_gpt2_projection_splits_into_query_key_value_and_computes_the_same(tiny_gpt2):
    model = tiny_gpt2.eval()
    ids = torch.randint(30, (2, 7))
    before = model(ids).logits
    maps.split_fused(model)
    assert torch.allclose(model(ids).logits, before, atol=1e-6)
    names = [f"transformer.h.{i}.attn.c_attn.{m}" for i in (0, 1) for m in ("query", "value")]
    assert list(method.adapted_maps(model)) == names
