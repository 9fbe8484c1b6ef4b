"""The digits network for a block of seeds at once: many small matrices are one batched product.

The same two phases as in `train.py` and the same draws, seed by seed, with an axis for the network
in front of every tensor: `searches` trains seeds x K of them side by side, `finetune` one for each
seed. What is a number over all weights there (a clip, the length of a probe) is one for each
network here. A row agrees with the run alone up to rounding (tests/weight_mixup/test_stacked.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import runs, vectors

from . import data, method
from .config import SEARCHES, Config, Examples, Gates, Optimisation, Search
from .data import Items
from .schedule import PASSES, Plan, batches_of_search, examples, own, plan_of, rate

RADIUS = 0.01  # |eps q| of a finite difference, as in `method.ESTIMATORS`
LAYERS = ("layer.0", "layer.2")  # the gated ones
Weights = dict[str, Tensor]  # by name, each (networks, ...)


def block(config: Config) -> range:
    """The seeds that are trained together with this one."""
    first = config.seed // config.stack * config.stack
    return range(first, first + config.stack)


def trained(config: Config) -> dict[str, Any]:
    """What is left of this seed after both phases: `w` by name, `alpha`; the lowest and highest
    gate of any step, gradient evaluations, (step, quantiles of the gates) of the first search.

    The block is trained by whoever asks first, and stored."""
    sections = Examples, Gates, Search, Optimisation
    names = [f.name for section in sections for f in dataclasses.fields(section)]
    settings = {name: getattr(config, name) for name in ("job", "length", *names)}
    seeds = block(config)
    key = ("weight_mixup stack", sorted(settings.items()), list(seeds))
    rows = runs.cached(key, lambda: both_phases(config, seeds))
    at = config.seed - seeds.start
    low, high = float(rows["low"][at]), float(rows["high"][at])
    return {
        "w": {name: p[at] for name, p in rows["w"].items()},
        "alpha": [factor[at] for factor in rows["alpha"]],
        "alpha_lowest": low,
        "alpha_highest": high,
        "evaluations": rows["evaluations"],
        "history": [(t, values[at].tolist()) for t, values in rows["history"]],
    }


def both_phases(config: Config, seeds: Sequence[int]) -> dict[str, Any]:
    """`trained` for all seeds: every tensor has an axis for them in front."""
    images = data.digit_images()
    problems = [data.digits(config.n, seed, config.extra, images) for seed in seeds]
    items = [examples(config, problem) for problem in problems]
    plan = plan_of(config, own(config, items[0]))
    start = {
        name: torch.stack([p.model.state_dict()[name] for p in problems])
        for name in sorted(problems[0].model.state_dict())
    }
    stack = Stack(config, list(seeds), items, start)
    alpha: list[Tensor] = []
    if config.job == "random_gates":
        alpha = stack.gates([runs.stream(seed, "gates") for seed in seeds])
    w = start
    if config.job in SEARCHES:
        w, alpha = stack.searches(plan)
    frozen = [factor.detach() for factor in alpha]
    w = stack.finetune(plan, w, frozen)
    passes = PASSES if config.job == "bilevel" else 1
    return {
        "w": w,
        "alpha": frozen,
        "low": stack.low,
        "high": stack.high,
        "evaluations": passes * plan.K * plan.T + plan.finetune,
        "history": stack.history,
    }


@dataclasses.dataclass
class Stack:
    """Items and starting weights of each seed, and what is noted of the gates."""

    config: Config
    seeds: list[int]
    items: list[Items]
    start: Weights

    def __post_init__(self) -> None:
        self.x = torch.stack([items.inputs["x"] for items in self.items])
        self.y = torch.stack([items.labels for items in self.items])
        self.low, self.high = torch.ones(len(self.seeds)), torch.ones(len(self.seeds))
        self.history: list[tuple[int, Tensor]] = []  # step, (seeds, 5)

    def losses(self, w: Weights, alpha: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """(networks,) mean cross-entropy of x (networks, batch, 64) and y (networks, batch)."""
        form = method.FORMS[self.config.mix_form]
        per_seed = len(x) // len(self.seeds)
        for i, layer in enumerate(LAYERS):
            W = w[f"{layer}.weight"]
            if alpha:
                W0 = self.start[f"{layer}.weight"].repeat_interleave(per_seed, 0)
                W = form(alpha[2 * i], alpha[2 * i + 1], W, W0)
            x = torch.baddbmm(w[f"{layer}.bias"].unsqueeze(1), x, W.mT).relu()
        logits = torch.baddbmm(w["classifier.bias"].unsqueeze(1), x, w["classifier.weight"].mT)
        # flat: over two dimensions CUDA has no ordered kernel (DETERMINISTIC=1)
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        return losses.view_as(y).mean(1)

    def batch(self, positions: list[Tensor], of: Tensor) -> tuple[Tensor, Tensor]:
        """positions: of each network's batch; of: (networks,) whose items they are in."""
        rows = torch.stack(positions)
        return self.x[of.unsqueeze(1), rows], self.y[of.unsqueeze(1), rows]

    def gates(self, streams: list[torch.Generator]) -> list[Tensor]:
        """u and v of each layer, drawn from each network's own stream."""
        drawn = []
        for stream in streams:
            shapes = [s for layer in LAYERS for s in self._gate_shapes(layer)]
            factors = [torch.empty(shape) for shape in shapes]
            method.draw_gates(factors, self.config.sigma, stream)
            drawn.append(factors)
        return [torch.stack(factors) for factors in zip(*drawn)]

    def _gate_shapes(self, layer: str) -> tuple[tuple[int, int], tuple[int, int]]:
        _, d_out, d_in = self.start[f"{layer}.weight"].shape
        return (d_out, 1), (1, d_in)

    def _note(self, alpha: list[Tensor]) -> None:
        flat = torch.cat([a.detach().flatten(1) for a in alpha], 1)
        low, high = (e.view(len(self.seeds), -1) for e in (flat.amin(1), flat.amax(1)))
        self.low, self.high = self.low.minimum(low.amin(1)), self.high.maximum(high.amax(1))

    # ------------------------------------------------------------------------ phase 1: K searches

    def searches(self, plan: Plan) -> tuple[Weights, list[Tensor]]:
        """Means over the K searches of w and alpha, (seeds, ...)."""
        config, K, S = self.config, plan.K, len(self.seeds)
        alone = [(s, k) for s in range(S) for k in range(K)]
        of = torch.tensor([s for s, _ in alone])
        w = {n: p.repeat_interleave(K, 0).requires_grad_() for n, p in self.start.items()}
        alpha: list[Tensor] = []
        if config.job != "averaging":
            alpha = self.gates([runs.stream(self.seeds[s], "gates", k) for s, k in alone])
            alpha = [factor.requires_grad_() for factor in alpha]
        opt_w, opt_alpha = adamw(w, config.weight_decay), None
        if alpha:
            group = {"params": alpha, "weight_decay": config.alpha_weight_decay}
            opt_alpha = torch.optim.AdamW([group], lr=0.0, fused=True)
        batches = [
            batches_of_search(dataclasses.replace(config, seed=self.seeds[s]), self.items[s], k)
            for s, k in alone
        ]
        for t in range(plan.T):
            xi = config.lr * rate("linear", t, plan.T, config.warmup)
            method.set_rate(opt_w, xi)
            lower = self.batch([rows(t) for rows, _ in batches], of)
            if opt_alpha:
                alpha_rate = rate("cosine", t, plan.T, config.warmup)
                method.set_rate(opt_alpha, config.alpha_lr * alpha_rate)
            if config.job == "bilevel" and opt_alpha:
                upper = self.batch([rows(t) for _, rows in batches], of)
                method.alpha_step(opt_alpha, alpha, self.hypergradient(w, alpha, xi, upper, lower))
            both = torch.autograd.grad(
                self.losses(w, alpha, *lower).sum(),
                [*w.values(), *(alpha if config.job == "joint" else [])],
            )
            step(opt_w, w, both[: len(w)], config.search_clip)
            if config.job == "joint" and opt_alpha:
                method.alpha_step(opt_alpha, alpha, both[len(w) :])
            if alpha:
                self._note(alpha)
                if t % max(1, plan.T // 4) == 0 or t == plan.T - 1:
                    self.history.append((t, self._quantiles(alpha, K)))

        def mean(p: Tensor) -> Tensor:
            return p.detach().view(S, K, *p.shape[1:]).double().mean(1).to(p.dtype)

        return {name: mean(p) for name, p in w.items()}, [mean(factor) for factor in alpha]

    def _quantiles(self, alpha: list[Tensor], K: int) -> Tensor:
        """(seeds, 5) of the first search."""
        flat = torch.cat([a.detach().flatten(1) for a in alpha], 1)[::K]
        return torch.quantile(flat, torch.tensor([0, 0.1, 0.5, 0.9, 1.0]), dim=1).T

    def hypergradient(
        self,
        w: Weights,
        alpha: list[Tensor],
        xi: float,
        upper: tuple[Tensor, Tensor],
        lower: tuple[Tensor, Tensor],
    ) -> list[Tensor]:
        """Eqs. 4 and 5 by finite differences, each network with its own eps."""
        g = torch.autograd.grad(self.losses(w, alpha, *lower).sum(), [*w.values()])
        ahead = {n: (p.detach() - xi * d).requires_grad_() for (n, p), d in zip(w.items(), g)}
        loss = self.losses(ahead, alpha, *upper).sum()
        both = torch.autograd.grad(loss, [*alpha, *ahead.values()])
        direct, q = both[: len(alpha)], both[len(alpha) :]
        size = norms(q)
        eps = torch.where(size > 1e-30, RADIUS / size, 0.0)
        sides = []
        for sign in (1, -1):
            moved = {n: p.detach() + sign * like(eps, d) * d for (n, p), d in zip(w.items(), q)}
            sides.append(torch.autograd.grad(self.losses(moved, alpha, *lower).sum(), alpha))
        factor = torch.where(eps > 0, -xi / (2 * eps), 0.0)
        return [d + like(factor, a) * (a - b) for d, a, b in zip(direct, *sides)]

    # -------------------------------------------------------------------------------- phase 2

    def finetune(self, plan: Plan, w: Weights, alpha: list[Tensor]) -> Weights:
        """w on all of D, alpha frozen; (seeds, ...)."""
        config = self.config
        w = {name: p.detach().clone().requires_grad_() for name, p in w.items()}
        optimizer = adamw(w, config.weight_decay)
        every = torch.arange(own(config, self.items[0]))
        batches = [
            runs.Batches(every, config.batch, seed, "finetune", keep_last=True)
            for seed in self.seeds
        ]
        average, of = vectors.clone([*w.values()]), torch.arange(len(self.seeds))
        for t in range(plan.finetune):
            xi = config.lr * rate("linear", t, plan.finetune, config.warmup)
            method.set_rate(optimizer, xi)
            losses = self.losses(w, alpha, *self.batch([rows(t) for rows in batches], of))
            step(optimizer, w, torch.autograd.grad(losses.sum(), [*w.values()]), config.clip)
            if config.ema:
                torch._foreach_lerp_(average, [p.detach() for p in w.values()], 1 - config.ema)
        last = average if config.ema else vectors.clone([*w.values()])
        return dict(zip(w, last, strict=True))


def norms(v: Sequence[Tensor]) -> Tensor:
    """(networks,) length of each network's part of a vector."""
    return vectors.root(torch.stack([x.flatten(1).square().sum(1) for x in v]).sum(0))


def like(number: Tensor, tensor: Tensor) -> Tensor:
    """One number a network, shaped to multiply its part of `tensor`."""
    return number.view(-1, *[1] * (tensor.ndim - 1))


def step(optimizer: torch.optim.Optimizer, w: Weights, g: Sequence[Tensor], clip: float) -> None:
    """One step of w along g, each network's gradient cut to the length `clip`."""
    share = (clip / (norms(g) + 1e-6)).clamp(max=1)
    for p, d in zip(w.values(), g, strict=True):
        p.grad = (d * like(share, d)).contiguous()  # the fused step looks at no strides
    optimizer.step()
    optimizer.zero_grad()


def adamw(w: Weights, weight_decay: float) -> torch.optim.AdamW:
    """As `method.adamw`: biases, one axis more than there, without decay."""
    groups = [
        {"params": [p for p in w.values() if p.ndim > 2], "weight_decay": weight_decay},
        {"params": [p for p in w.values() if p.ndim <= 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)
