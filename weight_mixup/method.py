"""Attention-guided weight mixup (Somayajula et al., NAACL 2024, arXiv 2403.12918): the maths.

Finetuning on few examples overfits: every pretrained weight W0 moves to W, though few need to. The paper
keeps both and learns, for each entry of each linear map, how much of the task weight to take:

    W~ = A * W + (1 - A) * W0            (* elementwise; A = 1 is plain finetuning, A = 0 the pretrained map)

A in {0, 1} would be the choice of a sub-network (CHILD-TUNING, DPS). Here A is continuous, of rank one
(A_ij = u_i v_j) and learned on *other* examples than W:

    min_alpha L(w*(alpha), alpha; D_val)   s.t.  w*(alpha) = argmin_w L(w, alpha; D_tr),   0 <= alpha <= 1

with alpha = all u, v and w = (W, theta): task weights and everything else that is trained. Phase 1 ("search")
alternates single steps of both levels on K random 80/20 splits and averages; phase 2 freezes alpha and trains
w on all of D. The "attention" is a gate on a weight; it has nothing to do with transformer attention.

Read top to bottom: the mixed weight, the gates of a model, one search step, averaging, export.
What the official code does by accident is in `official.py`; the schedule of a whole run is in `train.py`.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared.hypergrad import Hypergradient, hypergrad
from shared.processes import mean_gradients

# ------------------------------------------------------------------------------------- the mixed weight


def convex(u: Tensor, v: Tensor, W: Tensor, W0: Tensor) -> Tensor:
    """Eq. 1: W~ = A * W + (1 - A) * W0 with A = u v.

    u: (d_out, r), v: (r, d_in), entries in [0, 1]; W, W0: (d_out, d_in). For r > 1 the product is divided by
    r, so that A stays in [0, 1] and gates of one still mean plain finetuning (the paper uses r = 1).
    """
    return torch.lerp(W0, W, (u / u.shape[1]) @ v)


def factored(u: Tensor, v: Tensor, W: Tensor, W0: Tensor) -> Tensor:
    """Eq. 2: W~ = (u v) * W + ((1 - u)(1 - v)) * W0, the form of the official code. Shapes as in `convex`.

    This is *not* Eq. 1 with A = u v: the two coefficients add up to `coefficient_sum`, which is one only in the
    corners u = v = 0 and u = v = 1. Near u = v = 1 the gate is a rescaling of rows and columns of W.
    """
    r = u.shape[1]
    if r == 1:
        return _FactoredRankOne.apply(u, v, W, W0)
    return torch.addcmul((u / r) @ v * W, ((1 - u) / r) @ (1 - v), W0)


class _FactoredRankOne(torch.autograd.Function):
    """Eq. 2 for r = 1 with its gradient in closed form: the same numbers as plain autograd, which would write about seven
    matrices of the size of W in the backward pass where one will do.

        dL/du_i = sum_j G_ij (v_j W_ij - (1 - v_j) W0_ij),   dL/dv_j likewise,   dL/dW = u v * G      (G = dL/dW~)
    """

    @staticmethod
    def forward(ctx, u: Tensor, v: Tensor, W: Tensor, W0: Tensor) -> Tensor:
        ctx.save_for_backward(u, v, W, W0)
        return (W * v).mul_(u).addcmul_(W0 * (1 - v), 1 - u)

    @staticmethod
    def backward(ctx, G: Tensor):
        u, v, W, W0 = ctx.saved_tensors
        of_gates, of_W = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        if torch.is_grad_enabled():  # to be differentiated again: nothing in place
            P, Q = G * W, G * W0
            return P @ v.mT - Q @ (1 - v).mT, u.mT @ P - (1 - u).mT @ Q, G * (u * v), None
        du = dv = dW = None
        scratch = torch.empty_like(G)
        if of_gates:
            torch.mul(G, W, out=scratch)
            du, dv = scratch @ v.mT, u.mT @ scratch
            torch.mul(G, W0, out=scratch)
            du, dv = du.sub_(scratch @ (1 - v).mT), dv.sub_((1 - u).mT @ scratch)
        if of_W:
            dW = torch.mul(G, v, out=scratch).mul_(u)
        return du, dv, dW, None


def coefficient_sum(u: Tensor, v: Tensor) -> Tensor:
    """s = (u v + (1 - u)(1 - v)) / r = 1 - u - v + 2 u v for r = 1: how much the factored form shrinks. (d_out, d_in)"""
    return (u @ v + (1 - u) @ (1 - v)) / u.shape[1]


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "factored": factored,
    "convex": convex,
}


class Mixup(nn.Module):
    """Parametrisation of one weight: the module's `weight` reads as W~, folded once per forward pass.

    Gates u (d_out, r) and v (r, d_in) are parameters, W0 a buffer with storage of its own; W is the parameter
    that was there. Gates start at one; `draw_gates` gives them the paper's start.
    """

    def __init__(self, weight: Tensor, rank: int = 1, form: str = "factored"):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"unknown mix_form {form!r}; it is one of {', '.join(FORMS)}")
        d_out, d_in = weight.shape
        if not 1 <= rank <= min(d_out, d_in):
            raise ValueError(
                f"rank {rank} of a {d_out} x {d_in} gate is outside 1..{min(d_out, d_in)}"
            )
        self.form = form
        self.register_buffer("W0", weight.detach().clone())
        self.u = nn.Parameter(weight.new_ones(d_out, rank))
        self.v = nn.Parameter(weight.new_ones(rank, d_in))

    def forward(self, W: Tensor) -> Tensor:
        return FORMS[self.form](self.u, self.v, W, self.W0)


# ------------------------------------------------------------------------------------- the gates of a model


def is_mixed(name: str) -> bool:
    """The six linear maps of every encoder block (`...layer.3.attention.self.query`) and the pooler."""
    parts = name.split(".")
    return "layer" in parts[:-1] or "pooler" in parts


def linear_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps that the method mixes; embeddings, LayerNorm and the classification head are not among them."""
    return {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and is_mixed(name)
    }


def add_gates(model: nn.Module, rank: int = 1, form: str = "factored") -> None:
    """Put a gate on every linear map of `linear_maps`, in place; weights and outputs are unchanged (gates are one)."""
    chosen = linear_maps(model)
    if not chosen:
        raise ValueError(
            "no linear map inside a `layer` or a `pooler` of this model: nothing to gate"
        )
    for name, module in chosen.items():
        if parametrize.is_parametrized(module, "weight"):
            raise ValueError(f"{name} is gated already; a model can be gated once")
        parametrize.register_parametrization(module, "weight", Mixup(module.weight, rank, form))


def gates_of(model: nn.Module) -> dict[str, Mixup]:
    """Name of the gated map -> its gate, in the model's order; empty for a model without gates."""
    suffix = ".parametrizations.weight.0"
    return {n.removesuffix(suffix): m for n, m in model.named_modules() if isinstance(m, Mixup)}


def alpha_of(model: nn.Module) -> list[Tensor]:
    """alpha: u and v of every gate, as a list of tensors."""
    return [factor for gate in gates_of(model).values() for factor in (gate.u, gate.v)]


def w_of(model: nn.Module) -> dict[str, Tensor]:
    """w = (W, theta): every trained parameter that is not a gate, under its name in the stock model, in order of name
    (so that sums over w, e.g. gradient norms, have the same bits with and without gates)."""
    gates = {id(factor) for factor in alpha_of(model)}
    stock = {
        n.replace(".parametrizations.weight.original", ".weight"): p
        for n, p in model.named_parameters()
    }
    return {n: p for n, p in sorted(stock.items()) if p.requires_grad and id(p) not in gates}


@torch.no_grad()
def draw_gates(alpha: Iterable[Tensor], sigma: float, generator: torch.Generator) -> None:
    """alpha ~ N(1, sigma^2), clamped: about half of the gates start at exactly one. The generator lives on the CPU."""
    if not sigma >= 0:
        raise ValueError(
            f"sigma {sigma} of the gates' start is negative; it is a standard deviation"
        )
    for factor in alpha:
        factor.copy_(1 + sigma * torch.randn(factor.shape, generator=generator))
        factor.clamp_(0, 1)


def check_gates(alpha: Iterable[Tensor]) -> None:
    """Refuse gates outside [0, 1], e.g. from a damaged checkpoint."""
    for factor in alpha:
        low, high = float(factor.min()), float(factor.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"gates from {low:.4g} to {high:.4g} lie outside [0, 1]: not a checkpoint of this method"
            )


# ------------------------------------------------------------------------------------- phase 1: one search step

Loss = Callable[[], Tensor]


def hypergradient(
    upper: Loss, lower: Loss, w: list[Tensor], alpha: list[Tensor], xi: float, method
) -> Hypergradient:
    """Eq. 5: dL(w'(alpha), alpha; B_val) / dalpha through one look-ahead step w' = w - xi dL(w, alpha; B_tr)/dw (Eq. 4).

        g = dL(w', alpha; B_val)/dalpha - xi [dL(w+, alpha; B_tr)/dalpha - dL(w-, alpha; B_tr)/dalpha] / (2 eps)
        q = dL(w', alpha; B_val)/dw',   w+- = w +- eps q,   eps = 0.01 / |q|

    with `FiniteDifference(radius=0.01)`; other methods give the first term alone or the exact second one.
    The look-ahead is plain SGD at the current lower rate xi (the real step is AdamW: Eq. 5 is its surrogate).
    w is bit-identical afterwards, and all passes see the same dropout masks.
    """
    return hypergrad(upper, lower, w, alpha, xi, method=method)


def alpha_step(optimizer: torch.optim.Optimizer, alpha: list[Tensor], g: Sequence[Tensor]) -> None:
    """One step of the upper level along g, then the projection onto 0 <= alpha <= 1."""
    for factor, gradient in zip(alpha, g, strict=True):
        factor.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        torch._foreach_clamp_min_(alpha, 0.0)
        torch._foreach_clamp_max_(alpha, 1.0)


def w_step(optimizer: torch.optim.Optimizer, w: list[Tensor], lower: Loss, clip: float) -> Tensor:
    """One step of the lower level (real, with its optimiser) on lower(); gates get no gradient. Returns the loss."""
    loss = lower()
    for weight, gradient in zip(w, torch.autograd.grad(loss, w), strict=True):
        weight.grad = gradient
    mean_gradients(w)  # over processes, before the norm is taken
    nn.utils.clip_grad_norm_(w, clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def split(n: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random positions of D_tr (floor(share n)) and D_val (the rest) among n examples; an independent draw, not a fold."""
    n_tr = int(share * n + 1e-9)
    if n_tr < 1 or n_tr == n or n < 5:
        raise ValueError(
            f"{n} examples leave nothing for one of the two levels at {share:.0%}; give at least 5"
        )
    order = torch.randperm(n, generator=generator)
    return order[:n_tr], order[n_tr:]


@torch.no_grad()
def add_to_mean(mean: list[Tensor] | None, tensors: Iterable[Tensor], K: int) -> list[Tensor]:
    """Running mean over K searches: mean + tensors / K, in float64 so that K equal searches average to themselves."""
    new = [t.detach().double() / K for t in tensors]
    return new if mean is None else [m + t for m, t in zip(mean, new, strict=True)]


# ------------------------------------------------------------------------------------- reading and exporting


@torch.no_grad()
def gate_statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    """Per gated map: mean and least A = u v, share of u, v at one, mean and least coefficient sum s."""
    statistics = {}
    for name, gate in gates_of(model).items():
        A, s = gate.u @ gate.v / gate.u.shape[1], coefficient_sum(gate.u, gate.v)
        at_one = torch.cat([gate.u.flatten(), gate.v.flatten()]) == 1
        values = {
            "mean": A.mean(),
            "min": A.min(),
            "at_one": at_one.float().mean(),
            "s_mean": s.mean(),
            "s_min": s.min(),
        }
        statistics[name] = {key: float(value) for key, value in values.items()}
    return statistics


def merge(model: nn.Module) -> nn.Module:
    """Fold W~ into plain weights, in place: no gate, no W0 remains, and the state dict is that of the stock model."""
    for name in gates_of(model):
        parametrize.remove_parametrizations(
            model.get_submodule(name), "weight", leave_parametrized=True
        )
    return model
