"""AutoLoRA, the method: everything the paper adds to LoRA, and nothing else. Read this file first.

    y = W_l x + s Delta_l x,  Delta_l = B_l diag(alpha_l) A_l,  alpha_l = softmax(beta_l)    (1)
    min over beta  L_val(w*(beta), beta)   with   w*(beta) = argmin_w L_tr(w, beta)          (2)
    w' = w - eta grad_w L_tr(w, beta)                                                        (3)
    h  = grad_beta L_val(w', beta) - eta [d2 L_tr / d beta d w](w, beta) v,                  (4)
         v = grad_w' L_val(w', beta)
    r_l = #{ j : alpha_l^j >= lambda },  lambda = 1/k                                        (5)

(1) is a weighted sum of k rank-1 matrices beside every adapted map W_l, which is frozen; s = c / k
is LoRA's scale. (2) has two levels: w is every A_l, B_l and the task head, beta holds the selection
logits, k per map; L_tr and L_val are the task's loss on two disjoint parts of the training set. (3)
takes one step in place of the argmin, (4) is the gradient through that step. The whole method:

    put (1) into the pretrained model, freeze all but A, B, head and beta           `attach`
    repeat                                                                          `search_step`
        h    <- (3) and (4), on a batch of each part                                `hypergradient`
        beta <- Adam step along h                        outer level
        w    <- AdamW step down L_tr, same batch, NEW beta    inner level           `inner_step`
    r_l <- (5); all but these integers is thrown away                               `count`
    train plain LoRA of rank r_l in map l, from the pretrained weights, on all data `lora`

Equations and their sources: docs/papers/autolora.md, section 3. Where the official code differs:
`official.py`. Opponents and controls: `ranks.py` and `adapters.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora import maps
from autolora.maps import adapted_maps as adapted_maps
from shared.hypergrad import FiniteDifference, Hypergradient, Method, hypergrad

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel

TIE = 1e-6  # relative slack below lambda: 1/k exactly must count, whatever softmax rounds to

Draw = Callable[[str], torch.Generator]  # name of a map -> the stream that its A is drawn from
Weigh = Callable[[Tensor], Tensor]  # selection logits of a map, (k,) -> its weights alpha


# --- (1) the parameterisation --------------------------------------------------------------------


def simplex(beta: Tensor) -> Tensor:
    """alpha of (1), (k,): not negative, and 1 in sum."""
    return torch.softmax(beta, dim=0)


class SelectionLoRA(nn.Module):
    """Equation (1): a frozen linear map W plus s * B diag(softmax(beta)) A, with s = c / k.

    A: (k, d_in), uniform in +-1/sqrt(d_in);  B: (d_out, k), zero;  beta: (k,), constant, so that
    alpha = 1/k. base: nn.Linear, or GPT-2's Conv1D. weigh: another in the paper's ablations.
    Raises ValueError where k is no rank of the map."""

    def __init__(
        self,
        base: nn.Module,
        k: int,
        c: float = 16.0,
        dropout: float = 0.0,
        beta_init: float = 0.0,
        weigh: Weigh = simplex,
    ):
        super().__init__()
        d_out, d_in = maps.size(base)
        if not 1 <= k <= min(d_out, d_in):
            limit = f"must lie in 1..{min(d_out, d_in)} ({d_out} x {d_in} map)"
            raise ValueError(f"search rank k = {k} {limit}")
        self.base = base.requires_grad_(False)
        self.k, self.s, self.weigh = k, c / k, weigh
        weight: Tensor = base.weight.detach()  # type: ignore[union-attr,operator,assignment]
        self.A = nn.Parameter(weight.new_empty(k, d_in).uniform_(-1, 1) / math.sqrt(d_in))
        self.B = nn.Parameter(weight.new_zeros(d_out, k))
        self.beta = nn.Parameter(weight.new_full((k,), beta_init))
        self.dropout = nn.Dropout(dropout)

    @property
    def alpha(self) -> Tensor:
        """Selection weights, (k,), on the simplex of this map alone."""
        return self.weigh(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_in) -> (..., d_out). The d_out x d_in matrix Delta is never formed."""
        component = F.linear(self.dropout(x), self.A) * self.alpha  # (..., k), one per rank-1 part
        return self.base(x) + F.linear(component, self.s * self.B)


def attach(
    model: nn.Module,
    k: int,
    head: str = "",
    draw: Draw | None = None,
    c: float = 16.0,
    dropout: float = 0.0,
    beta_init: float = 0.0,
    pattern: str = "",
    weigh: Weigh = simplex,
) -> dict[str, SelectionLoRA]:
    """Make query and value maps `SelectionLoRA`, freeze all but adapters and head; name -> layer.

    head: module name, "" for none. pattern: other maps, by a regular expression over module names.
    draw: None draws from torch's global generator. Raises ValueError as `adapted_maps` does."""
    found = adapted_maps(model, pattern)
    model.requires_grad_(False)
    layers: dict[str, SelectionLoRA] = {}
    for name, base in found.items():
        layers[name] = SelectionLoRA(base, k, c, dropout, beta_init, weigh)
        if draw:
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
    drawn = torch.empty(max(rows, len(A)), d_in).uniform_(-1, 1, generator=generator)
    A.copy_(drawn[: len(A)] / math.sqrt(d_in))


def variables(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(w, beta): inner variables (every A, B, the head), outer ones (logits). Disjoint."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    w: list[Tensor] = [p for name, p in trained if not name.endswith(".beta")]
    beta: list[Tensor] = [p for name, p in trained if name.endswith(".beta")]
    return w, beta


# --- (2) to (4) the two levels -------------------------------------------------------------------

CENTRAL_DIFFERENCE = FiniteDifference()

Loss = Callable[[], Tensor]  # its batch is fixed inside; returns a scalar
Estimator = Callable[[Loss, Loss, list[Tensor], list[Tensor], float], Hypergradient]


def hypergradient(
    validation_loss: Loss,
    train_loss: Loss,
    w: list[Tensor],
    beta: list[Tensor],
    eta: float,
    method: Method = CENTRAL_DIFFERENCE,
) -> Hypergradient:
    """h of (4), with the look-ahead w' of (3). Parameters and `.grad` stay as they were.

    Returns h as `.grads`, its two terms as `.direct` and `.implicit`, each a list like beta. By
    default the mixed derivative is a central difference of grad_beta L_tr at w +- eps v, eps =
    0.01 / |v|, on the same batch under the same dropout masks."""
    return hypergrad(validation_loss, train_loss, w, beta, eta, method=method)


@dataclass
class Levels:
    """The variables of the two levels, and what moves them."""

    w: list[Tensor]  # inner: every A_l, B_l and the head
    beta: list[Tensor]  # outer: the selection logits
    inner: torch.optim.Optimizer
    outer: torch.optim.Optimizer
    eta: float  # rate of the look-ahead (3)
    estimator: Estimator = hypergradient


@dataclass
class SearchStep:
    """What one alternation returns."""

    loss: Tensor  # L_tr(w, beta) with the new beta, before w moved
    hypergradient: Hypergradient
    gradient_evaluations: int  # forward-backward passes on one batch: 5, or 2 in first-order mode


def search_step(levels: Levels, train_loss: Loss, validation_loss: Loss) -> SearchStep:
    """One alternation of (2): beta moves along h, then w takes its real step with the *new* beta.

    Nothing of the validation batch reaches w."""
    w, beta = levels.w, levels.beta
    h = levels.estimator(validation_loss, train_loss, w, beta, levels.eta)
    _apply(levels.outer, beta, h.grads)
    loss = inner_step(train_loss, w, levels.inner)
    return SearchStep(loss, h, h.gradient_evaluations + 1)


def inner_step(train_loss: Loss, w: list[Tensor], inner: torch.optim.Optimizer) -> Tensor:
    """One step of w down L_tr; returns the loss before it. One gradient evaluation."""
    loss = train_loss()
    _apply(inner, w, torch.autograd.grad(loss, w))
    return loss.detach()


def _apply(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], grads: Iterable[Tensor]
) -> None:
    """One step of `optimizer` along `grads`; `.grad` is empty afterwards."""
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g
    optimizer.step()
    for p in parameters:
        p.grad = None


# --- (5) from selection weights to ranks ---------------------------------------------------------


def count(alpha: Tensor, lam: float | None = None) -> int:
    """(5): the number of selection weights at or above lambda (default 1/k, which makes it 1..k).

    alpha: (k,). Before the first step all weights are equal and the count is k, which says nothing:
    `ranks.undecided` tells that apart."""
    lam = 1 / alpha.numel() if lam is None else lam
    if not 0 < lam <= 1:
        raise ValueError(f"threshold lambda = {lam} must lie in (0, 1]; the paper uses 1/k")
    return int((alpha.double() >= lam * (1 - TIE)).sum())


# --- retraining: plain LoRA with these ranks -----------------------------------------------------

Scale = Literal["per_rank", "constant"]


def lora(
    model: nn.Module,
    ranks: Mapping[str, int],
    k: int,
    head: str,
    draw: Draw,
    c: float = 16.0,
    scale: Scale = "per_rank",
    dropout: float = 0.1,
    bias: Literal["none", "all"] = "none",
) -> PeftModel:
    """The pretrained model with plain LoRA of rank r_l in map l: fresh A, B = 0, head trainable."""
    how: dict[str, Any] = {"lora_dropout": dropout, "bias": bias}
    wrapped = with_peft(model, lora_config(ranks, k, head, c, scale, **how))
    for name, layer in maps.lora_layers(wrapped).items():
        start_A(layer.lora_A["default"].weight, draw(name))
    return wrapped


def lora_config(
    ranks: Mapping[str, int],
    k: int = 8,
    head: str = "",
    c: float = 16.0,
    scale: Scale = "per_rank",
    **more: Any,
) -> LoraConfig:
    """peft's `LoraConfig` with rank r_l in map l; head: module trained whole; more: its fields."""
    from peft import LoraConfig

    head_modules = [head] if head else None
    return LoraConfig(**patterns(ranks, k, c, scale), modules_to_save=head_modules, **more)


def patterns(
    ranks: Mapping[str, int], k: int, c: float = 16.0, scale: Scale = "per_rank"
) -> dict[str, Any]:
    """Arguments of peft's `LoraConfig`. Scale c / r_l as executed officially, or c / k (constant).

    Both patterns carry the same keys: peft before 0.14 resolved one joint key for the two."""
    alpha = {name: c if scale == "per_rank" else c / k * r for name, r in ranks.items()}
    rank, names = dict(ranks), list(ranks)
    shared = {"target_modules": names, "r": k, "lora_alpha": c}
    return {**shared, "rank_pattern": rank, "alpha_pattern": alpha}


def with_peft(model: nn.Module, config: PeftConfig) -> PeftModel:
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft asks transformers for a property that is being renamed
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # of Conv1D
        return get_peft_model(model, config)
