"""What weight mixup is compared with, each in a few lines, for any model that `method.linear_maps` understands.

Controls that need no code of their own are settings of `train.py`: `long` (equal number of updates),
`equal_passes` (equal number of gradient evaluations), `kavg` (gates frozen at one), `joint` (both levels on all
of D), `random_alpha` (gates drawn once and frozen), `convex` (Eq. 1 instead of Eq. 2).

Not offered: DPS mix, because its rule (what its random rows multiply, how the two weight states are mixed in even
blocks) cannot be stated from what could be read; top-k tuning and decay towards W0, because no row of theirs was.
"""

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .method import linear_maps

Logits = Callable[[], Tensor]  # one forward pass of a fixed batch


# ------------------------------------------------------------------------------------- Mixout


class Mixout(nn.Module):
    """W~ = (m W0 + (1 - m) W - p W0) / (1 - p), m ~ Bernoulli(p) anew at each pass; W itself in evaluation mode."""

    def __init__(self, weight: Tensor, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Mixout probability {p} is outside [0, 1)")
        self.p = p
        self.register_buffer("W0", weight.detach().clone())

    def forward(self, W: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return W
        m = torch.empty_like(W).bernoulli_(self.p)
        return (m * self.W0 + (1 - m) * W - self.p * self.W0) / (1 - self.p)


def add_mixout(model: nn.Module, p: float) -> None:
    """Mixout on the encoder's linear maps and the pooler, in place of dropout everywhere but before the head."""
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Dropout) and "." in name
        ):  # `dropout` at the top level belongs to the head
            module.p = 0.0
    for module in linear_maps(model).values():
        parametrize.register_parametrization(module, "weight", Mixout(module.weight, p))


# ------------------------------------------------------------------------------------- R3F and R-Drop


def _symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) + KL(b || a), mean over the batch; the squared distance for a regression (one output). a, b: (B, C)"""
    if a.shape[-1] == 1:
        return F.mse_loss(a, b)
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    forward = F.kl_div(log_b, log_a, reduction="batchmean", log_target=True)
    return forward + F.kl_div(log_a, log_b, reduction="batchmean", log_target=True)


def r3f_loss(
    model: nn.Module, logits: Logits, task_loss: Callable[[Tensor], Tensor], lam: float
) -> Tensor:
    """Task loss + lam * symmetric KL between the outputs on x and on x + z, z uniform in +-1e-5 on the input
    embeddings (at scale `cpu` on the cached activations that stand in for them). Two passes."""
    clean = logits()

    def noisy(_module, _inputs, output):
        return output + torch.empty_like(output).uniform_(-1e-5, 1e-5)

    hook = model.get_input_embeddings().register_forward_hook(noisy)
    try:
        perturbed = logits()
    finally:
        hook.remove()
    return task_loss(clean) + lam * _symmetric_kl(clean, perturbed)


def r_drop_loss(
    logits: Logits, task_loss: Callable[[Tensor], Tensor], coefficient: float
) -> Tensor:
    """Mean task loss of two dropout passes + coefficient / 2 * their symmetric KL."""
    first, second = logits(), logits()
    return (task_loss(first) + task_loss(second)) / 2 + coefficient / 2 * _symmetric_kl(
        first, second
    )


# ------------------------------------------------------------------------------------- CHILD-TUNING and DPS: gradient masks
# A mask on the gradient is the discrete ancestor of the gate: A in {0, 1}, and what is masked stays pretrained.


def child_f_(gradients: Iterable[Tensor], p: float) -> None:
    """CHILD-TUNING_F: multiply the gradients by Bernoulli(p) / p, in place."""
    for g in gradients:
        g.mul_(torch.empty_like(g).bernoulli_(p)).div_(p)


def child_d_masks(
    w: dict[str, Tensor], losses: Iterable[Callable[[], Tensor]], p: float
) -> dict[str, Tensor]:
    """CHILD-TUNING_D: 0/1 mask of the share p of weights with the largest squared gradient at the pretrained point.

    One pass over the training set; the gradient is the batch's, clipped per tensor to norm 1, so its square is a
    rough diagonal of the Fisher matrix. Only parameters inside a `layer` compete; all others stay free (no mask).
    """
    inside = {name: p_ for name, p_ in w.items() if "layer" in name.split(".")}
    fisher = {name: torch.zeros_like(p_) for name, p_ in inside.items()}
    for loss in losses:
        for name, g in zip(inside, torch.autograd.grad(loss(), list(inside.values())), strict=True):
            fisher[name] += (g * (1.0 / (g.norm() + 1e-6)).clamp(max=1.0)) ** 2
    everything = torch.cat([f.flatten() for f in fisher.values()])
    cut = everything.topk(max(1, int(p * everything.numel()))).values[-1]
    return {name: (f >= cut).to(f.dtype) for name, f in fisher.items()}


class DPS:
    """DPS dense: blocks of `block` steps. In blocks 0, 2, ... all weights move and squared gradients of the linear
    maps accumulate; in blocks 1, 3, ... only the top 1 - p of each map moves. Accumulators restart each cycle."""

    def __init__(
        self,
        w: dict[str, Tensor],
        maps: Iterable[str],
        steps: int,
        p: float = 0.3,
        update_ratio: float = 0.05,
    ):
        names = {f"{m}.weight" for m in maps}
        self.p, self.block = p, max(1, int(update_ratio * steps))
        self.sums = {name: torch.zeros_like(t) for name, t in w.items() if name in names}

    def mask_(self, w: dict[str, Tensor], step: int) -> None:
        """Accumulate or mask the `.grad` of w at this step."""
        accumulating = (step // self.block) % 2 == 0
        for name, total in self.sums.items():
            gradient = w[name].grad
            if accumulating:
                if step % (2 * self.block) == 0:
                    total.zero_()
                total.add_(gradient.square())
            else:
                cut = total.flatten().topk(max(1, int((1 - self.p) * total.numel()))).values[-1]
                gradient.mul_(total >= cut)

    def state(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.sums)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, total in self.sums.items():
            total.copy_(state[name])


# ------------------------------------------------------------------------------------- re-initialisation


@torch.no_grad()
def reinitialise(model: nn.Module, k: int, generator: torch.Generator) -> None:
    """Draw the pooler and the top k encoder blocks anew (N(0, initializer_range^2), biases 0, LayerNorm 1 and 0)."""
    blocks = model.base_model.encoder.layer
    if not 1 <= k <= len(blocks):
        raise ValueError(
            f"re-initialising {k} blocks of an encoder that has {len(blocks)}; choose 1..{len(blocks)}"
        )
    parts = list(blocks[-k:]) + [m for name, m in model.named_modules() if name.endswith("pooler")]
    for module in (m for part in parts for m in part.modules()):
        if isinstance(module, nn.Linear):
            std = model.config.initializer_range
            module.weight.copy_(std * torch.randn(module.weight.shape, generator=generator))
            module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
