"""What the official code does differently, each by its row in docs/papers/autolora.md, section 4;
and the other selection weights that the paper prints as ablations.

Nothing here is the default. A student may skip this file; a reviewer who wants the official numbers
will not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from autolora.method import TIE, Estimator, Loss, SelectionLoRA, Weigh, count, simplex
from shared import vectors
from shared.hypergrad import Hypergradient

# --- rows 1 and 2: the GLUE script thresholds the raw logits -------------------------------------


def raw_count(beta: Tensor, lam: float | None = None) -> int:
    """#{ j : beta_j / sum(beta) >= lambda }, although the forward pass weighs by softmax(beta).

    beta: (k,). Never below the softmax count when the sum is positive. With a negative sum the rule
    inverts, with zero it is NaN; both are a ValueError."""
    lam = 1 / beta.numel() if lam is None else lam
    total = float(beta.double().sum())
    if total <= 0:
        limit = f"the logits sum to {total:.4g}, not above 0; start them at 1 (beta_init)"
        raise ValueError(f"raw threshold rule: {limit}")
    return int((beta.double() / total >= lam * (1 - TIE)).sum())


# --- the paper's ablations of the simplex --------------------------------------------------------

WEIGHTS: dict[str, Weigh] = {
    "softmax": simplex,
    "free": lambda beta: beta,  # no sum-to-one constraint
    "sigmoid": torch.sigmoid,
}


def start(weights: str, k: int, beta_init: float) -> float:
    """Start of every logit; free weights start at the 1/k that softmax starts at."""
    return 1 / k if weights == "free" else beta_init


def count_of(weights: str, alpha: Tensor, lam: float | None = None) -> int:
    """Rank of a map by the threshold that goes with its weights: lambda (softmax), the mean of
    alpha (free), or 0.5 (sigmoid); at least 1, where the paper does not say what 0 would mean.

    alpha: (k,)."""
    if weights == "softmax":
        return count(alpha, lam)
    alpha = alpha.double()
    limit = alpha.mean() - TIE * alpha.mean().abs() if weights == "free" else 0.5 * (1 - TIE)
    return max(1, int((alpha >= limit).sum()))


# --- rows 3 to 6: the bilevel library's hypergradient --------------------------------------------


def estimator(
    coefficient: Literal["eta", "1"] = "eta",
    around: Literal["theta", "stepped"] = "theta",
    masks: Literal["same", "independent"] = "same",
    optimizer: torch.optim.Optimizer | None = None,
    radius: float = 1e-2,
) -> Estimator:
    """The library's hypergradient; official: ("1", "stepped", "independent", the inner optimiser).

    coefficient: factor of the implicit term, `eta` (the chain rule) or `1` (row 3).
    around: the perturbed evaluations at w (`theta`) or at w' (`stepped`) (row 4).
    optimizer: whose step is the look-ahead, rolled back afterwards (row 5); None: a gradient step.
    masks: the two perturbed evaluations see the `same` dropout masks or `independent` ones (row 6).
    Without an argument it is `method.hypergradient`."""

    def estimate(
        outer: Loss, inner: Loss, w: list[Tensor], beta: list[Tensor], eta: float
    ) -> Hypergradient:
        with vectors.Snapshot(w, beta) as snapshot:
            _look_ahead(w, torch.autograd.grad(inner(), w), eta, optimizer)
            snapshot.rewind()
            loss = outer()
            grads, value = torch.autograd.grad(loss, [*beta, *w]), float(loss.detach())
            direct, v = list(grads[: len(beta)]), grads[len(beta) :]
            base = vectors.clone(w) if around == "stepped" else snapshot.values
            eps = vectors.probe_step(v, radius)
            if eps == 0.0:
                return Hypergradient(direct, direct, vectors.zeros_like(beta), 2, value)
            probes = []
            for sign in (1.0, -1.0):
                if masks == "same":
                    snapshot.rewind()
                vectors.copy_(w, base)
                vectors.add_(w, v, sign * eps)
                probes.append(torch.autograd.grad(inner(), beta))
            factor = (eta if coefficient == "eta" else 1.0) / (2 * eps)
            implicit = [factor * (minus - plus) for plus, minus in zip(*probes, strict=True)]
            total = [d + i for d, i in zip(direct, implicit, strict=True)]
            return Hypergradient(total, direct, implicit, 4, value)

    return estimate


def _look_ahead(
    w: list[Tensor], grads: Sequence[Tensor], eta: float, optimizer: torch.optim.Optimizer | None
) -> None:
    """w <- w', in place; an optimiser takes the step with its own state, which is then put back."""
    if optimizer is None:
        vectors.add_(w, grads, -eta)
        return
    before = copy.deepcopy(optimizer.state_dict())
    for p, g in zip(w, grads, strict=True):
        p.grad = g
    optimizer.step()
    for p in w:
        p.grad = None
    optimizer.load_state_dict(before)


# --- row 7: the BioNLP search fine-tunes the whole encoder ---------------------------------------


def free_encoder(model: nn.Module) -> None:
    """All but the adapted query and value weights (and their biases) is trained in the search."""
    adapted = [m.base for m in model.modules() if isinstance(m, SelectionLoRA)]
    model.requires_grad_(True)
    for base in adapted:
        base.requires_grad_(False)
