"""What the official code does differently, each by its row in the table of differences (README.md).

Nothing here is the default. A student may skip this file; a reviewer who wants the official numbers will not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from autolora.method import TIE, count
from shared import vectors

# --- rows 1 and 2: the GLUE script thresholds the raw logits -----------------------------------------------------


def raw_count(beta: Tensor, lam: float | None = None) -> int:
    """#{ j : beta_j / sum(beta) >= lambda }, although the forward pass weighs by softmax(beta). beta: (k,).

    Never below the softmax count when the sum is positive. With a negative sum the rule inverts, with zero it is
    NaN; both are refused."""
    lam = 1 / beta.numel() if lam is None else lam
    if not 0 < lam <= 1:
        raise ValueError(f"threshold lambda = {lam} must lie in (0, 1]; the paper uses 1/k")
    total = float(beta.double().sum())
    if total <= 0:
        raise ValueError(
            f"raw threshold rule: the logits sum to {total:.4g}, not above 0; start them at 1 (beta_init)"
        )
    return int((beta.double() / total >= lam * (1 - TIE)).sum())


def threshold(rule: str, beta: Tensor, lam: float | None = None) -> int:
    """Rank of one map from its logits by the paper's rule (`softmax`) or the GLUE script's (`raw`)."""
    rules: dict[str, Callable[..., int]] = {
        "softmax": lambda b, t: count(torch.softmax(b, 0), t),
        "raw": raw_count,
    }
    if rule not in rules:
        raise ValueError(f"threshold rule '{rule}' must be softmax or raw")
    return rules[rule](beta.detach(), lam)


# --- rows 3 to 6: the bilevel library's hypergradient ------------------------------------------------------------


def estimator(
    coefficient: str = "eta",
    around: str = "theta",
    look_ahead: str = "sgd",
    masks: str = "same",
    optimiser: torch.optim.Optimizer | None = None,
    radius: float = 1e-2,
) -> Callable[..., Any]:
    """A hypergradient estimator with the library's habits; the official code is ("1", "stepped", "adam", "independent").

    coefficient: factor of the implicit term, `eta` (the chain rule) or `1` (row 3).
    around: the perturbed evaluations at w (`theta`) or at w' (`stepped`) (row 4).
    look_ahead: a plain gradient step (`sgd`) or one step of `optimiser`, rolled back afterwards (`adam`, row 5).
    masks: the two perturbed evaluations see the `same` dropout masks or `independent` ones (row 6).
    With the first word of each it equals `method.estimate`.
    """
    for name, value, valid in [
        ("coefficient", coefficient, ("eta", "1")),
        ("around", around, ("theta", "stepped")),
        ("look_ahead", look_ahead, ("sgd", "adam")),
        ("masks", masks, ("same", "independent")),
    ]:
        if value not in valid:
            raise ValueError(f"{name} = {value!r} must be one of {', '.join(valid)}")
    if look_ahead == "adam" and optimiser is None:
        raise ValueError("look_ahead = 'adam' needs the inner optimiser")

    def estimate(
        outer: Callable, inner: Callable, w: list[Tensor], beta: list[Tensor], eta: float
    ) -> Any:
        with vectors.Snapshot(w, beta) as snapshot:
            _look_ahead(
                w, torch.autograd.grad(inner(), w), eta, optimiser if look_ahead == "adam" else None
            )
            snapshot.rewind()
            grads = torch.autograd.grad(outer(), [*beta, *w])
            direct, v = list(grads[: len(beta)]), grads[len(beta) :]
            base = vectors.clone(w) if around == "stepped" else snapshot.values
            eps = vectors.probe_step(v, radius)
            if eps == 0.0:
                return SimpleNamespace(
                    grads=direct,
                    direct=direct,
                    implicit=vectors.zeros_like(beta),
                    gradient_evaluations=2,
                )
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
            return SimpleNamespace(
                grads=total, direct=direct, implicit=implicit, gradient_evaluations=4
            )

    return estimate


def _look_ahead(
    w: list[Tensor], grads: Sequence[Tensor], eta: float, optimiser: torch.optim.Optimizer | None
) -> None:
    """w <- w', in place; an optimiser takes the step with its own state, which is then put back."""
    if optimiser is None:
        vectors.add_(w, grads, -eta)
        return
    before = copy.deepcopy(optimiser.state_dict())
    for p, g in zip(w, grads, strict=True):
        p.grad = g
    optimiser.step()
    for p in w:
        p.grad = None
    optimiser.load_state_dict(before)


# --- row 7: the BioNLP search fine-tunes the whole encoder -------------------------------------------------------


def free_encoder(model: nn.Module) -> None:
    """Everything but the adapted query and value weights (and their biases) is trained during the search."""
    from autolora.method import SelectionLoRA

    frozen = {
        id(p) for m in model.modules() if isinstance(m, SelectionLoRA) for p in m.base.parameters()
    }
    for p in model.parameters():
        p.requires_grad_(id(p) not in frozen)


# --- row 10: the evaluation loader drops the last incomplete batch -----------------------------------------------


def scored_items(n: int, batch: int, drop_last: bool) -> int:
    """How many of n items are scored: all, or a multiple of the batch size (16 in the official code)."""
    return n - n % batch if drop_last else n


# --- row 12: ranks typed by hand, in the order q0, v0, q1, v1, ... ------------------------------------------------


def ranks_from_list(values: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """The official list, consumed in depth order, as a dict keyed by full module name."""
    if len(values) != len(names):
        raise ValueError(
            f"{len(values)} ranks for {len(names)} maps, in the order {', '.join(names[:4])}, ..."
        )
    return dict(zip(names, values, strict=True))
