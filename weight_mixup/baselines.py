"""What weight mixup is compared with, each in a few lines, for any model of `gates.linear_maps`.

Controls without code of their own are settings: `long` (as many updates), `equal_passes` (as many
gradient evaluations), `kavg` (searches with gates at one), `random_*` (gates nobody learned),
`convex` (Eq. 1 instead of Eq. 2). How each opponent is built, and which are not offered and why:
docs/papers/weight_mixup.md, section 5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared import runs
from shared.processes import mean_gradients
from shared.runs import Batches, Parts, Run

from . import data
from .config import Config
from .data import Items, logits_of
from .gates import Network, linear_maps, matrix_of
from .method import Levels, Loss, alpha_step

Logits = Callable[[], Tensor]  # one forward pass of a fixed batch
TaskLoss = Callable[[Tensor], Tensor]  # of logits, against the batch's labels

# ---------------------------------------------------------------------------- joint training (C4)


def joint_step(levels: Levels, loss_of_all: Loss, clip: float) -> Tensor:
    """w and alpha along the gradient of one loss on all of D; no second level, no implicit term."""
    w, alpha = levels.w, levels.alpha
    loss = loss_of_all()
    gradients = torch.autograd.grad(loss, [*alpha, *w])
    for weight, gradient in zip(w, gradients[len(alpha) :], strict=True):
        weight.grad = gradient
    mean_gradients(w)
    nn.utils.clip_grad_norm_(w, clip)
    levels.opt_w.step()
    levels.opt_w.zero_grad()
    alpha_step(levels.opt_alpha, alpha, gradients[: len(alpha)])
    return loss.detach()


# ---------------------------------------------------------------------------------------- Mixout


class Mixout(nn.Module):
    """W~ = (m W0 + (1 - m) W - p W0) / (1 - p), m ~ Bernoulli(p) anew at each pass.

    In evaluation mode W itself."""

    W0: Tensor

    def __init__(self, weight: Tensor, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Mixout probability {p} is outside [0, 1); its paper has 0.1 to 0.9")
        self.p = p
        self.register_buffer("W0", weight.detach().clone())

    def forward(self, W: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return W
        m = torch.empty_like(W).bernoulli_(self.p)
        return (m * self.W0 + (1 - m) * W - self.p * self.W0) / (1 - self.p)


def add_mixout(model: nn.Module, p: float) -> None:
    """Mixout on the linear maps of encoder and pooler, in place of the encoder's dropout."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "." in name:  # at the top level it is the head's
            module.p = 0.0
    for module in linear_maps(model).values():
        parametrize.register_parametrization(module, "weight", Mixout(matrix_of(module), p))


# -------------------------------------------------------------------------------- R3F and R-Drop


def finetuning_loss(config: Config, model: nn.Module, batch: Items) -> Loss:
    """The loss of a batch in phase 2, with what the baseline adds to it."""
    logits = functools.partial(logits_of, model, batch)
    task_loss = functools.partial(data.task_loss, labels=batch.labels)
    if config.finetune == "r3f":
        return lambda: r3f_loss(model, logits, task_loss, config.strength)
    if config.finetune == "r_drop":
        return lambda: r_drop_loss(logits, task_loss, config.strength)
    return lambda: task_loss(logits())


def r3f_loss(model: nn.Module, logits: Logits, task_loss: TaskLoss, lam: float) -> Tensor:
    """Task loss + lam * symmetric KL between the outputs on x and on x + z.

    z is uniform in +-1e-5 on the input embeddings (with `top_blocks` on the cached activations that
    stand in for them). Two passes."""
    clean = logits()

    def noisy(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output + torch.empty_like(output).uniform_(-1e-5, 1e-5)

    hook = model.get_input_embeddings().register_forward_hook(noisy)  # type: ignore[operator]
    try:
        perturbed = logits()
    finally:
        hook.remove()
    return task_loss(clean) + lam * _symmetric_kl(clean, perturbed)


def r_drop_loss(logits: Logits, task_loss: TaskLoss, coefficient: float) -> Tensor:
    """Mean task loss of two dropout passes + coefficient / 2 * their symmetric KL."""
    first, second = logits(), logits()
    apart = _symmetric_kl(first, second)
    return (task_loss(first) + task_loss(second)) / 2 + coefficient / 2 * apart


def _symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) + KL(b || a), mean over the batch; for a regression the squared distance.

    a, b: logits (batch, classes)."""
    if a.shape[-1] == 1:
        return F.mse_loss(a, b)
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    forward = F.kl_div(log_b, log_a, reduction="batchmean", log_target=True)
    return forward + F.kl_div(log_a, log_b, reduction="batchmean", log_target=True)


# ------------------------------------------------------------- CHILD-TUNING and DPS: gradient masks
# A mask on the gradient is the discrete ancestor of the gate: A in {0, 1}, and what is masked stays
# pretrained.

Mask = Callable[[int], None]  # changes the gradients (`.grad`) of w before the update of step t


def gradient_mask(
    config: Config, w: dict[str, Tensor], sums: dict[str, Tensor], steps: int
) -> Mask | None:
    """What the baseline takes from the gradients of phase 2. sums: from `squares`."""
    if config.finetune == "child_f":
        return lambda t: child_f_(map(gradient_of, w.values()), config.strength)
    if config.finetune == "child_d":
        return child_d(w, sums, config.strength)
    if config.finetune == "dps":
        return DPS(w, sums, steps, config.strength)
    return None


def squares(config: Config, model: nn.Module, w: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for the squared gradients that the baseline's mask adds up, by name of the weight."""
    maps = {f"{name}.weight" for name in linear_maps(model)}
    names = {
        "child_d": [name for name in w if "layer" in name.split(".")],
        "dps": [name for name in w if name in maps],
    }
    return {name: torch.zeros_like(w[name]) for name in names.get(config.finetune, [])}


def child_f_(gradients: Iterable[Tensor], p: float) -> None:
    """CHILD-TUNING_F: multiply the gradients by Bernoulli(p) / p, in place."""
    for g in gradients:
        g.mul_(torch.empty_like(g).bernoulli_(p)).div_(p)


def add_fisher_(sums: dict[str, Tensor], w: dict[str, Tensor], loss: Tensor) -> None:
    """CHILD-TUNING_D: add a batch's squared gradients at the pretrained point.

    The gradient is clipped per tensor to norm 1, so the sum over the training set is a rough
    diagonal of the Fisher matrix. Only parameters in a `layer` compete, all others stay free."""
    for name, g in zip(sums, torch.autograd.grad(loss, [w[name] for name in sums]), strict=True):
        sums[name] += (g * (1.0 / (g.norm() + 1e-6)).clamp(max=1.0)) ** 2


def fisher_pass(
    config: Config, run: Run, network: Network, train: Items, sums: dict[str, Tensor]
) -> None:
    """CHILD-TUNING_D: one pass over D at the pretrained weights."""
    every = torch.arange(len(train))
    batches = Batches(every, config.batch, config.seed, "fisher", keep_last=True)
    runs.seed_global(config.seed, "dropout", "fisher")
    noise, counts = dropout_noise(train.labels.device), network.counts
    work = Parts(sums=list(sums.values()), noise=noise, counts=counts)
    for i in run.phase("fisher", batches.per_epoch, work):
        batch = train.take(batches(i))
        loss = data.task_loss(logits_of(network.model, batch), batch.labels)
        add_fisher_(sums, network.w, loss)
        counts["evaluations"] += 1


def dropout_noise(device: torch.device) -> torch.Generator:
    """The generator that dropout draws from on this device: one state for the whole pass."""
    on_cpu = device.type == "cpu"
    return torch.default_generator if on_cpu else torch.cuda.default_generators[device.index or 0]


def child_d(w: dict[str, Tensor], fisher: dict[str, Tensor], p: float) -> Mask:
    """CHILD-TUNING_D: only the share p of weights with the largest sums moves."""
    everything = torch.cat([f.flatten() for f in fisher.values()])
    cut = everything.topk(max(1, int(p * everything.numel()))).values[-1]
    masks = {name: (f >= cut).to(f.dtype) for name, f in fisher.items()}

    def mask(t: int) -> None:
        for name, m in masks.items():
            gradient_of(w[name]).mul_(m)

    return mask


class DPS:
    """DPS dense: blocks of `update_ratio * steps` steps.

    In blocks 0, 2, ... all weights move and squared gradients of the linear maps add up; in blocks
    1, 3, ... only the top 1 - p of each map moves. The sums restart with each cycle."""

    def __init__(
        self,
        w: dict[str, Tensor],
        sums: dict[str, Tensor],
        steps: int,
        p: float = 0.3,
        update_ratio: float = 0.05,
    ):
        self.w, self.sums = w, sums
        self.p, self.block = p, max(1, int(update_ratio * steps))

    def __call__(self, t: int) -> None:
        adding_up = (t // self.block) % 2 == 0
        for name, total in self.sums.items():
            gradient = gradient_of(self.w[name])
            if adding_up:
                if t % (2 * self.block) == 0:
                    total.zero_()
                total.add_(gradient.square())
            else:
                cut = total.flatten().topk(max(1, int((1 - self.p) * total.numel()))).values[-1]
                gradient.mul_(total >= cut)


def gradient_of(p: Tensor) -> Tensor:
    assert p.grad is not None, "masks come after the gradients"
    return p.grad


# ------------------------------------------------------------------------------ re-initialisation


@torch.no_grad()
def reinitialise(model: nn.Module, k: int, generator: torch.Generator) -> None:
    """Draw the pooler and the top k encoder blocks anew.

    Weights N(0, initializer_range^2), biases 0, LayerNorm 1 and 0."""
    stock: Any = model  # a transformers model of any class
    blocks, std = stock.base_model.encoder.layer, stock.config.initializer_range
    if not 1 <= k <= len(blocks):
        limit = f"the encoder has {len(blocks)}; choose 1..{len(blocks)}"
        raise ValueError(f"re-initialising {k} blocks: {limit}")
    pooler = [m for name, m in model.named_modules() if name.endswith("pooler")]
    for module in (m for part in [*blocks[-k:], *pooler] for m in part.modules()):
        if isinstance(module, nn.Linear):
            module.weight.copy_(std * torch.randn(module.weight.shape, generator=generator))
            module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
