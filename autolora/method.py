"""AutoLoRA, the method: everything the paper adds to LoRA, and nothing else. Read this file first.

    Delta_l = B_l diag(alpha_l) A_l,  alpha_l = softmax(beta_l)          a weighted sum of k rank-1 matrices  (1)
    min over beta  L_val(w*(beta), beta)   with   w*(beta) = argmin_w L_tr(w, beta)                           (2)
    w' = w - eta grad_w L_tr(w, beta)                                    one step instead of the argmin       (3)
    h  = grad_beta L_val(w', beta) - eta [d2 L_tr / d beta d w](w, beta) grad_w' L_val(w', beta)              (4)
    r_l = #{ j : alpha_l^j >= lambda },  lambda = 1/k                    then forget everything but r_l       (5)

w is every A_l, B_l and the task head; beta holds the selection logits, one vector of k per adapted map. Equation
numbers are this file's; the paper is arXiv 2403.09113. Behaviours of the official code that differ are in
`official.py`, opponents and controls in `baselines.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.hypergrad import FiniteDifference, hypergrad

TIE = 1e-6  # relative slack below lambda: alpha = 1/k exactly must count whatever softmax rounds to

# --- (1) the parameterisation ----------------------------------------------------------------------------------


class SelectionLoRA(nn.Module):
    """A frozen linear map W plus s * B diag(softmax(beta)) A, with s = c / k.

    A: (k, d_in), uniform in +-1/sqrt(d_in);  B: (d_out, k), zero;  beta: (k,), constant, so alpha = 1/k."""

    def __init__(
        self, base: nn.Linear, k: int, c: float = 16.0, dropout: float = 0.0, beta_init: float = 0.0
    ):
        super().__init__()
        d_out, d_in = base.weight.shape
        if not 1 <= k <= min(d_out, d_in):
            raise ValueError(
                f"search rank k = {k} must lie in 1..{min(d_out, d_in)} ({d_out} x {d_in} map)"
            )
        self.base = base.requires_grad_(False)
        self.k, self.s = k, c / k
        new = base.weight.detach()
        self.A = nn.Parameter(new.new_empty(k, d_in).uniform_(-1, 1) / math.sqrt(d_in))
        self.B = nn.Parameter(new.new_zeros(d_out, k))
        self.beta = nn.Parameter(new.new_full((k,), float(beta_init)))
        self.dropout = nn.Dropout(dropout)

    @property
    def alpha(self) -> Tensor:
        """Selection weights, (k,), on the simplex of this map alone."""
        return torch.softmax(self.beta, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_in) -> (..., d_out). The d_out x d_in matrix Delta is never formed."""
        component = (
            F.linear(self.dropout(x), self.A) * self.alpha
        )  # (..., k): one number per rank-1 matrix
        return self.base(x) + F.linear(component, self.s * self.B)

    def delta(self) -> Tensor:
        """Delta = B diag(alpha) A, (d_out, d_in), without the scale s."""
        return (self.B * self.alpha) @ self.A

    @torch.no_grad()
    def merge(self, sign: int = 1) -> None:
        """W += sign * s * Delta, alpha included (the official layer forgets it); `merge(-1)` undoes it."""
        self.base.weight += sign * self.s * self.delta()


def adapted_maps(model: nn.Module, pattern: str = r"(query|value)$") -> dict[str, nn.Linear]:
    """Full module name -> linear map, for the maps to adapt; in depth order, query before value."""
    found = {
        n: m for n, m in model.named_modules() if re.search(pattern, n) and isinstance(m, nn.Linear)
    }
    if not found:
        raise ValueError(f"no linear map of {type(model).__name__} has a name matching {pattern!r}")
    return found


def attach(
    model: nn.Module,
    k: int,
    head: str,
    draw: Callable[[str], torch.Generator],
    c: float = 16.0,
    **layer: Any,
) -> dict[str, SelectionLoRA]:
    """Replace query and value maps by `SelectionLoRA`, freeze all but adapters and head; name -> layer.

    head: module name, "" for none. `draw(name)`: stream of a map's A, which starts alike whatever else is adapted."""
    model.requires_grad_(False)
    layers: dict[str, SelectionLoRA] = {}
    for name, base in adapted_maps(model).items():
        layers[name] = SelectionLoRA(base, k, c, **layer)
        start_A(layers[name].A, draw(name))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layers[name])
    if head:
        model.get_submodule(head).requires_grad_(True)
    return layers


@torch.no_grad()
def start_A(A: Tensor, generator: torch.Generator, rows: int = 64) -> None:
    """Uniform in +-1/sqrt(d_in). Rank 3 and rank 5 of a map share their first 3 rows."""
    d_in = A.shape[1]
    drawn = torch.empty(max(rows, A.shape[0]), d_in).uniform_(
        -1, 1, generator=generator
    ) / math.sqrt(d_in)
    A.copy_(drawn[: A.shape[0]])


def variables(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(w, beta): inner variables (every A, B and the head), outer variables (selection logits). Disjoint."""
    free = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [p for n, p in free if not n.endswith(".beta")], [
        p for n, p in free if n.endswith(".beta")
    ]


# --- (2) to (4) one step of the search -------------------------------------------------------------------------

Loss = Callable[[], Tensor]


@dataclass
class SearchStep:
    loss: Tensor  # L_tr(w, beta) with the new beta, before the real step
    hypergradient: Any  # what the estimator returned: grads, direct, implicit, gradient_evaluations
    gradient_evaluations: int  # forward-backward passes on one batch: 5, or 2 in first-order mode


def estimate(
    outer: Loss, inner: Loss, w: list[Tensor], beta: list[Tensor], eta: float, method: Any = None
):
    """(3), (4): h by central differences with radius 0.01 / |v| around w; same batch, same dropout masks."""
    return hypergrad(outer, inner, w, beta, eta, method=method or FiniteDifference())


def search_step(
    train_loss: Loss,
    validation_loss: Loss,
    w: list[Tensor],
    beta: list[Tensor],
    inner: torch.optim.Optimizer,
    outer: torch.optim.Optimizer,
    eta: float,
    estimator: Callable[..., Any] = estimate,
) -> SearchStep:
    """One alternation: beta moves along h, then w takes its real step with the *new* beta.

    The losses take nothing and return a scalar; their batches are fixed inside. Nothing of the validation batch
    reaches w: the estimator leaves parameters, random state and `.grad` as they were."""
    h = estimator(validation_loss, train_loss, w, beta, eta)
    _apply(outer, beta, h.grads)
    loss = inner_step(train_loss, w, inner)
    return SearchStep(loss, h, h.gradient_evaluations + 1)


def inner_step(train_loss: Loss, w: list[Tensor], inner: torch.optim.Optimizer) -> Tensor:
    """One step of w down L_tr; returns the loss before it. One gradient evaluation."""
    loss = train_loss()
    _apply(inner, w, torch.autograd.grad(loss, w))
    return loss.detach()


def _apply(
    optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], grads: Iterable[Tensor]
) -> None:
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g
    optimiser.step()
    for p in parameters:
        p.grad = None


# --- (5) from selection weights to ranks -----------------------------------------------------------------------


def count(alpha: Tensor, lam: float | None = None) -> int:
    """(5): the number of selection weights at or above lambda (default 1/k, which makes it 1..k). alpha: (k,).

    Before the first step all weights are equal and the count is k: `undecided` tells that apart."""
    lam = 1 / alpha.numel() if lam is None else lam
    if not 0 < lam <= 1:
        raise ValueError(f"threshold lambda = {lam} must lie in (0, 1]; the paper uses 1/k")
    return int((alpha.double() >= lam * (1 - TIE)).sum())


def norm_weighted_count(layer: SelectionLoRA) -> int:
    """Components with alpha_j |b_j| |a_j| at or above their mean: unlike alpha, free of the split between a and b."""
    size = (layer.alpha * layer.B.norm(dim=0) * layer.A.norm(dim=1)).double()
    return int((size >= size.mean() * (1 - TIE)).sum())


def spectral_rank(left: Tensor, right: Tensor, share: float = 0.1) -> int:
    """Singular values of left @ right above `share` of the largest. left: (d_out, k), right: (k, d_in)."""
    small = (
        torch.linalg.qr(left.double()).R @ torch.linalg.qr(right.double().T).R.T
    )  # (k, k), the same spectrum
    values = torch.linalg.svdvals(small)
    return max(1, int((values > share * values[0]).sum()))


RANK_RULES: dict[str, Callable[[SelectionLoRA], int]] = {
    "count": lambda layer: count(layer.alpha.detach()),
    "norm_weighted": norm_weighted_count,
    "spectral": lambda layer: spectral_rank((layer.B * layer.alpha).detach(), layer.A.detach()),
}


def undecided(layers: Mapping[str, SelectionLoRA]) -> list[str]:
    """Maps whose logits are all equal: nothing was learned there, and the count k means nothing."""
    return [name for name, layer in layers.items() if bool((layer.beta == layer.beta[0]).all())]


def noise_counts(sigma: float, k: int, draws: int, generator: torch.Generator) -> Tensor:
    """What (5) gives when nothing was learned: counts for i.i.d. logits of standard deviation sigma, (draws,)."""
    alpha = torch.softmax(
        sigma * torch.randn(draws, k, generator=generator, dtype=torch.float64), dim=1
    )
    return (alpha >= (1 - TIE) / k).sum(1)


# --- retraining: plain LoRA with these ranks -------------------------------------------------------------------


def check_ranks(ranks: Mapping[str, int], maps: Mapping[str, nn.Linear]) -> None:
    """ValueError naming the map for a wrong key, length, type, or a rank outside 1..min(d_in, d_out)."""
    for name in ranks:
        if name not in maps:
            raise ValueError(
                f"rank given for '{name}', which is not an adapted map; they are {', '.join(maps)}"
            )
    for name, base in maps.items():
        if name not in ranks:
            raise ValueError(
                f"no rank given for map '{name}': {len(ranks)} ranks for {len(maps)} maps"
            )
        rank, most = ranks[name], min(base.weight.shape)
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise ValueError(f"rank of map '{name}' must be an integer, got {rank!r}")
        if not 1 <= rank <= most:
            raise ValueError(
                f"rank {rank} of map '{name}' must lie in 1..{most}; to leave a map out, do not adapt it"
            )


def patterns(
    ranks: Mapping[str, int], k: int, c: float = 16.0, scale: str = "per_rank"
) -> dict[str, Any]:
    """Arguments of peft's `LoraConfig`. Scale c / r_l (the executed behaviour), or the search's constant c / k.

    Both patterns carry the same keys: peft before 0.14 resolved one joint key for the two."""
    if scale not in ("per_rank", "constant"):
        raise ValueError(f"scale rule '{scale}' must be per_rank (c / r_l) or constant (c / k)")
    alpha = {name: c if scale == "per_rank" else c / k * r for name, r in ranks.items()}
    return {
        "target_modules": list(ranks),
        "rank_pattern": dict(ranks),
        "alpha_pattern": alpha,
        "r": k,
        "lora_alpha": c,
    }


def adapter_parameters(ranks: Mapping[str, int], maps: Mapping[str, nn.Linear]) -> int:
    """Sum over maps of r_l (d_in + d_out): the budget that arms are matched on. The head is not counted."""
    return sum(ranks[name] * sum(base.weight.shape) for name, base in maps.items())
