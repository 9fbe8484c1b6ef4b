"""The two phases of a run, step by step: what `train.py` loops over.

Phase 1: K searches of T steps (w on D_tr, alpha on D_val), each from the same start; their mean begins phase 2:
w on all of D, alpha frozen. Arms without a search have phase 2 alone. Everything random comes from a stream named
by seed and purpose, never by arm, so that arms of a seed see the same subset, head, batches and dropout masks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import runs, vectors
from shared.hypergrad import FiniteDifference, FirstOrder, OneStep, self_check
from shared.processes import mean_gradients, shard

from . import baselines, data, method, official

if TYPE_CHECKING:
    from .train import Config

# gradient evaluations of one search step: of the estimators look-ahead, outer loss, mixed product, real step
PASSES = {"none": 0, "frozen": 1, "joint": 1, "first_order": 2, "finite_difference": 5, "exact": 4}
ESTIMATORS = {
    "first_order": FirstOrder(),
    "finite_difference": FiniteDifference(radius=0.01),
    "exact": OneStep(),
}


@dataclass(frozen=True)
class Plan:
    """How many steps: K searches of T steps, then `finetune`."""

    K: int
    T: int
    finetune: int

    @property
    def total(self) -> int:
        return self.K * self.T + self.finetune


def plan(config: "Config", n: int) -> Plan:
    """Steps for n examples: T = E_search (floor(|D_tr| / B) + 1) as in the official code, ceil(n / B) per epoch after."""
    n_tr = int(config.train_share * n + 1e-9)
    T = config.search_epochs * (n_tr // config.batch + 1)
    own = config.epochs * math.ceil(n / config.batch)
    if config.search != "none":
        return Plan(config.K, T, own)
    extra = {
        "own": 0,
        "updates": config.K * T,
        "passes": PASSES["finite_difference"] * config.K * T,
    }[config.length]
    return Plan(0, 0, own + extra)


def linear(t: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at step t: linear warm-up from 0, linear decay to 0."""
    ramp = int(warmup * steps)
    return t / ramp if t < ramp else (steps - t) / max(1, steps - ramp)


def cosine(t: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at step t: linear warm-up from 0, half a cosine to 0."""
    ramp = int(warmup * steps)
    return (
        t / ramp if t < ramp else 0.5 * (1 + math.cos(math.pi * (t - ramp) / max(1, steps - ramp)))
    )


def batch(positions: Tensor, size: int, t: int, *names) -> Tensor:
    """Step t's batch of an endless pass over `positions`, shuffled anew each epoch from the stream `names`."""
    epoch, i = divmod(t, math.ceil(len(positions) / size))
    order = torch.randperm(len(positions), generator=runs.stream(*names, epoch))
    return positions[order[i * size : (i + 1) * size]]


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or the mean squared error where there is one output."""
    return (
        F.mse_loss(logits[:, 0], labels)
        if logits.shape[1] == 1
        else F.cross_entropy(logits, labels)
    )


def logits_of(model: torch.nn.Module, items: data.Items) -> Tensor:
    out = model(**items.inputs)
    return out if isinstance(out, Tensor) else out.logits


def adamw(w: list[Tensor], weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on biases and LayerNorm (everything that is no matrix); the rate is set at each step."""
    groups = [
        {"params": [p for p in w if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in w if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Training:
    """The state of a run between two steps; `search_step` and `finetune_step` are the two phases."""

    def __init__(
        self,
        config: "Config",
        run: runs.Run,
        problem: data.Problem,
        steps: Plan,
        device: torch.device,
    ):
        self.config, self.run, self.problem, self.plan = config, run, problem, steps
        self.train = problem.train.to(device)
        self.everything = torch.arange(len(self.train), device=device)
        self.model = problem.model.to(device)
        if config.finetune == "mixout":
            baselines.add_mixout(self.model, config.strength)
        elif config.finetune == "reinit":
            baselines.reinitialise(
                self.model, int(config.strength), runs.stream(config.seed, "reinit")
            )
        if config.gates != "none":
            method.add_gates(self.model, config.rank, config.mix_form)
        self.w = method.w_of(self.model)
        self.alpha = method.alpha_of(self.model)
        if config.gates == "random":
            method.draw_gates(self.alpha, config.sigma, runs.stream(config.seed, "gates"))
            self.freeze_gates()
        self.start = vectors.clone(self.w.values())  # W0, pretrained theta, this seed's head
        self.mean: list[Tensor] | None = None  # running mean of w and alpha over the searches
        self.evaluations = 0
        self.facts: dict = {"alpha_lowest": 1.0, "alpha_highest": 1.0}
        self.masks: dict[str, Tensor] = {}
        self.dps: baselines.DPS | None = None
        self.model.train()

    def freeze_gates(self) -> None:
        for factor in self.alpha:
            factor.requires_grad_(False)

    # -- phase 1

    def begin_search(self, k: int) -> None:
        """From the pretrained weights, the same head and new gates, on a new split."""
        config = self.config
        vectors.copy_(list(self.w.values()), self.start)
        if self.alpha:
            method.draw_gates(self.alpha, config.sigma, runs.stream(config.seed, "gates", k))
        self.prepare_search(k)

    def prepare_search(self, k: int) -> None:
        """Split and optimisers of search k (also when a run is continued in it)."""
        config = self.config
        d_tr, d_val = method.split(
            len(self.train), config.train_share, runs.stream(config.seed, "split", k)
        )
        self.d_tr, self.d_val = self.everything[d_tr], self.everything[d_val]
        self.opt_w = adamw(list(self.w.values()), config.weight_decay)
        self.opt_a = None
        if config.gates == "learned":
            self.opt_a = torch.optim.AdamW(
                self.alpha, lr=0.0, weight_decay=config.alpha_weight_decay, fused=True
            )

    def search_step(self, k: int, t: int) -> dict[str, float]:
        """One iteration of phase 1: alpha along the hypergradient, then w along its gradient."""
        config, w, alpha = self.config, list(self.w.values()), self.alpha
        xi = config.lr * linear(t, self.plan.T, config.warmup)
        set_rate(self.opt_w, xi)
        lower_items = self.everything if config.search == "joint" else self.d_tr
        b_tr = shard(batch(lower_items, config.batch, t, config.seed, "lower", k))
        lower = self.loss_of(b_tr)
        self.new_masks("search", k, t)
        facts = {}

        if self.opt_a is not None:
            set_rate(self.opt_a, config.alpha_lr * cosine(t, self.plan.T, config.warmup))
            if config.search == "joint":
                return self.joint_step(lower, xi, b_tr, k, t)
            b_val = shard(batch(self.d_val, config.batch, t, config.seed, "upper", k))
            g, direct, implicit = self.hypergradient(self.loss_of(b_val), lower, xi, k, t)
            size = vectors.norm(g)
            self.run.finite(
                size, level="upper", step=t, batch=self.problem.train.ids[b_val.cpu().numpy()]
            )
            facts = {"direct": vectors.norm(direct), "implicit": vectors.norm(implicit)}
            facts["cosine"] = vectors.cosine(direct, implicit)
            method.alpha_step(self.opt_a, alpha, g)
            self.note_gates()

        loss = method.w_step(self.opt_w, w, lower, config.search_clip)
        self.evaluations += 1
        self.run.finite(
            loss, level="lower", step=t, batch=self.problem.train.ids[b_tr.cpu().numpy()]
        )
        return {"loss": float(loss), "xi": xi, **facts}

    def hypergradient(self, upper: method.Loss, lower: method.Loss, xi: float, k: int, t: int):
        """Gradient for alpha and its two parts, with the estimator or the accidents asked for."""
        config, w, alpha = self.config, list(self.w.values()), self.alpha
        if config.official:
            masks = partial(self.new_masks, "search", k, t)  # masks(i): the i-th state of this step
            g, direct, implicit, n = official.hypergradient(
                upper, lower, w, alpha, xi, self.opt_w, config.search_clip, config.official, masks
            )
            self.evaluations += n
            masks(0)
            return g, direct, implicit
        first = xi > 0 and "self_check" not in self.facts  # the rate warms up from 0
        before = vectors.clone(w) if first else None
        try:
            found = method.hypergradient(upper, lower, w, alpha, xi, ESTIMATORS[config.search])
        except FloatingPointError as error:
            raise runs.Diverged("upper", t) from error
        if before is not None:
            self.facts["restored"] = all(torch.equal(a, b) for a, b in zip(before, w))
            self.facts["self_check"] = self_check(
                upper, lower, w, alpha, xi, ESTIMATORS[config.search], tolerance=math.inf
            )
        self.evaluations += found.gradient_evaluations
        return found.grads, found.direct, found.implicit

    def joint_step(
        self, lower: method.Loss, xi: float, b: Tensor, k: int, t: int
    ) -> dict[str, float]:
        """C4's opponent: w and alpha along the gradient of one loss on all of D, no implicit term."""
        w = list(self.w.values())
        loss = lower()
        self.run.finite(loss, level="lower", step=t, batch=self.problem.train.ids[b.cpu().numpy()])
        gradients = torch.autograd.grad(loss, [*self.alpha, *w])
        for weight, gradient in zip(w, gradients[len(self.alpha) :], strict=True):
            weight.grad = gradient
        mean_gradients(w)
        torch.nn.utils.clip_grad_norm_(w, self.config.search_clip)
        self.opt_w.step()
        self.opt_w.zero_grad()
        method.alpha_step(self.opt_a, self.alpha, gradients[: len(self.alpha)])
        self.note_gates()
        self.evaluations += 1
        return {"loss": float(loss.detach()), "xi": xi}

    def end_search(self) -> None:
        self.mean = method.add_to_mean(self.mean, [*self.w.values(), *self.alpha], self.plan.K)

    def note_gates(self) -> None:
        """Keep the lowest and highest gate ever seen, for the check that all stay in [0, 1]."""
        low, high = torch.cat([a.detach().flatten() for a in self.alpha]).aminmax()
        self.facts["alpha_lowest"] = min(self.facts["alpha_lowest"], float(low))
        self.facts["alpha_highest"] = max(self.facts["alpha_highest"], float(high))

    # -- phase 2

    def begin_finetune(self) -> None:
        """alpha: the mean, frozen. w: the mean (`average_all`) or pretrained again."""
        if self.mean is not None:
            w = list(self.w.values())
            vectors.copy_(
                [*w, *self.alpha], [m.to(p.dtype) for m, p in zip(self.mean, [*w, *self.alpha])]
            )
            if not self.config.average_all:
                vectors.copy_(w, self.start)
        if self.alpha:
            self.facts["alpha_sha256"] = self.alpha_sha256()
        config = self.config
        if config.finetune == "child_d":
            order = batch(self.everything, len(self.everything), 0, config.seed, "fisher")
            losses = [self.loss_of(b) for b in order.split(config.batch)]
            self.evaluations += len(losses)
            self.new_masks("fisher")
            self.masks = baselines.child_d_masks(self.w, losses, config.strength)
        self.prepare_finetune()

    def prepare_finetune(self) -> None:
        self.freeze_gates()
        self.opt_w, self.opt_a = adamw(list(self.w.values()), self.config.weight_decay), None
        if self.config.finetune == "dps":
            self.dps = baselines.DPS(
                self.w, method.linear_maps(self.model), self.plan.finetune, self.config.strength
            )

    def finetune_step(self, t: int) -> dict[str, float]:
        """One update on all of D, with what the baseline adds to the loss or takes from the gradient."""
        config, w = self.config, list(self.w.values())
        rate = config.lr * linear(t, self.plan.finetune, config.warmup)
        set_rate(self.opt_w, rate)
        b = shard(batch(self.everything, config.batch, t, config.seed, "finetune"))
        items = self.train.take(b)
        self.new_masks("finetune", t)

        logits = partial(logits_of, self.model, items)
        against_labels = partial(task_loss, labels=items.labels)
        if config.finetune == "r3f":
            loss = baselines.r3f_loss(self.model, logits, against_labels, config.strength)
        elif config.finetune == "r_drop":
            loss = baselines.r_drop_loss(logits, against_labels, config.strength)
        else:
            loss = against_labels(logits())
        self.evaluations += 2 if config.finetune in ("r3f", "r_drop") else 1
        self.run.finite(loss, level="finetuning", step=t, batch=items.ids)

        for weight, gradient in zip(w, torch.autograd.grad(loss, w), strict=True):
            weight.grad = gradient
        mean_gradients(w)
        torch.nn.utils.clip_grad_norm_(w, config.clip)
        if config.finetune == "child_f":
            baselines.child_f_([weight.grad for weight in w], config.strength)
        for name, mask in self.masks.items():
            self.w[name].grad.mul_(mask)
        if self.dps is not None:
            self.dps.mask_(self.w, t)
        self.opt_w.step()
        self.opt_w.zero_grad()
        return {"loss": float(loss.detach()), "xi": rate}

    # -- both

    def start_of(self, gated_map: str) -> Tensor:
        """The pretrained weight of a gated map, as it was before any step."""
        return dict(zip(self.w, self.start))[f"{gated_map}.weight"]

    def alpha_sha256(self) -> str:
        return runs.state_sha256(self.alpha)

    def loss_of(self, positions: Tensor) -> Callable[[], Tensor]:
        items = self.train.take(positions)
        return lambda: task_loss(logits_of(self.model, items), items.labels)

    def new_masks(self, *names) -> None:
        """Dropout masks of a step: the same for every arm of a seed."""
        runs.seed_global(self.config.seed, "dropout", *names)

    def state(self) -> dict:
        """Everything a continued run needs (`step` is added by the run)."""
        return {
            "w": vectors.clone(self.w.values()),
            "alpha": vectors.clone(self.alpha),
            "mean": self.mean,
            "opt_w": self.opt_w.state_dict(),
            "opt_a": self.opt_a.state_dict() if self.opt_a else None,
            "masks": self.masks,
            "dps": self.dps.state() if self.dps else None,
            "evaluations": self.evaluations,
            "facts": self.facts,
        }

    def load(self, saved: dict, phase: str, k: int) -> None:
        """Put a checkpoint back, `phase` and k being those of the last finished step."""
        method.check_gates(saved["alpha"])
        with torch.no_grad():
            vectors.copy_([*self.w.values(), *self.alpha], [*saved["w"], *saved["alpha"]])
        device = self.everything.device
        self.mean = saved["mean"] and [m.to(device) for m in saved["mean"]]
        self.masks = {name: mask.to(device) for name, mask in saved["masks"].items()}
        self.evaluations, self.facts = saved["evaluations"], saved["facts"]
        if phase == "search":
            self.prepare_search(k)
        else:
            self.prepare_finetune()
        self.opt_w.load_state_dict(saved["opt_w"])
        if self.opt_a:
            self.opt_a.load_state_dict(saved["opt_a"])
        if self.dps:
            self.dps.load(saved["dps"])
