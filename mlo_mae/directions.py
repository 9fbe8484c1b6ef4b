"""Which way does the validation loss fall? Estimates of g_T beside the true gradient, in float64.

    python -m mlo_mae.directions     two minutes on one core; prints a table, writes cosines.svg

A trial takes the networks as they stand before a cycle and replays its inner steps as a function of
T: k1 steps of AdamW of E and D on L1, k2 of C on L2, then L3 on all of D_val. Differentiated
through every one of them, with the masks held, that is the true gradient (tests compare it with
differences of L3). Each way of `head_path` has its cosine with it. Then T is moved, and L3 shows
whether the move descends: with masks held, where T acts through the weights alone, which is all a
gradient knows of, and with masks free to follow T, as they are in training.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared import runs, vectors
from shared.vectors import Vector

from . import data, figures, method
from .config import Config
from .data import Problem, labels_of
from .estimators import ESTIMATORS
from .evaluate import COLUMNS, PATHS
from .method import Levels, Point
from .networks import Mask, Networks

SMALL = 0.02  # norm of a move of T that asks for the direction alone: L3 is nearly linear over it
TAKEN = 0.2  # norm of a move as training makes it: about a step of AdamW at scale cpu
SHOWN = 8  # columns that are printed: cosines and changes of L3 by a small move, masks held
RADIUS = 1e-4  # of the finite difference: float64 has room
Values = dict[str, Tensor]  # parameters by name


def trial_cycles(cycles: int, trials: int) -> set[int]:
    """Cycles before which there is a trial, spread evenly over training."""
    return {int((k + 0.5) * cycles / trials) for k in range(trials)}


class _Whole(nn.Module):
    """All networks as one module, for a call with other parameters than its own."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


class Inner:
    """The inner steps of cycle t as a function of T, from where the networks stand.

    Written without `method.cycle`, so that each checks the other."""

    def __init__(self, L: Levels, problem: Problem, t: int):
        self.L, self.t, self.config = L, t, L.config
        name = {p: n for n, p in _Whole(L.nets.parts()).named_parameters()}
        self.nets = copy.deepcopy(L.nets)
        self.whole = _Whole(self.nets.parts()).double()
        self.start = {n: p.detach().clone() for n, p in self.whole.named_parameters()}
        self.T = [n for n in self.start if n.startswith("T.")]
        self.groups: dict[str, list[tuple[list[str], dict[str, Any]]]] = {}
        self.moments: dict[str, list[Tensor]] = {}
        self.taken: dict[str, int] = {}
        for level in ("first", "second"):
            optimizer, self.groups[level] = L.optimizers[level], []
            for group in optimizer.param_groups:
                self.groups[level].append(([name[p] for p in group["params"]], group))
                for p in group["params"]:
                    state = optimizer.state.get(p, {})
                    self.taken[name[p]] = int(state.get("step", 0))
                    both = [state.get(k, torch.zeros_like(p)) for k in ("exp_avg", "exp_avg_sq")]
                    self.moments[name[p]] = [v.detach().double() for v in both]
        self.xv = problem.train.batch(problem.outer).double()
        self.yv = labels_of(problem.train, problem.outer)

    def call(self, values: Values, compute: Callable[[], Tensor]) -> Tensor:
        return torch.func.functional_call(self.whole, values, (compute,))

    def run(
        self, T: Vector, masks: list[Mask] | None = None, graph: bool = False
    ) -> tuple[Tensor, list[Mask], Values]:
        """L3 after the inner steps with this T, the masks, the parameters. masks: to use in place
        of those that T chooses; graph: L3 can be differentiated for T."""
        c, nets, used = self.config, self.nets, []
        values = {**self.start, **dict(zip(self.T, T))}
        moments = dict(self.moments)
        for n, i in enumerate(range(self.t * c.k1, (self.t + 1) * c.k1)):
            x = self.L.batch["first"](i).x.double()
            s = self.call(values, partial(scores, nets, x))
            mask = masks[n] if masks else method.choose(c, s, x, nets.E.N, i)
            w = 1.0 if c.weight == "one" else method.weights(s, mask.m, c.normalise_scores)
            L1 = partial(reconstruction_loss, nets, x, mask, w)
            self._descend("first", values, moments, L1, i, n, graph)
            used.append(mask)
        nets.C.train()
        for n, j in enumerate(range(self.t * c.k2, (self.t + 1) * c.k2)):
            x2, y2, _ = self.L.batch["second"](j)
            z2 = self.call(values, partial(nets.features, x2.double()))
            runs.seed_global(c.seed, "dropout", j)
            L2 = partial(nets.head_loss, z2, y2)
            self._descend("second", values, moments, L2, j, n, graph)
        nets.C.eval()
        return self.call(values, partial(validation_loss, nets, self.xv, self.yv)), used, values

    def _descend(
        self,
        level: str,
        values: Values,
        moments: dict[str, list[Tensor]],
        loss: Callable[[], Tensor],
        k: int,
        n: int,
        graph: bool,
    ) -> None:
        """Step k of a level by AdamW, the n-th from the start; changes values and moments."""
        names = [name for group, _ in self.groups[level] for name in group]
        # copies, so that the gradient leaves out what reaches the loss by the scores or features
        moving = {name: values[name].requires_grad_() + 0.0 for name in names}
        value = self.call({**values, **moving}, loss)
        g = dict(zip(names, grad(value, list(moving.values()), create_graph=graph)))
        factor = runs.schedule("cosine", k, self.config.steps)
        for group, settings in self.groups[level]:
            for name in group:
                step = self.taken[name] + n + 1
                p, moments[name] = adamw_step(
                    values[name], g[name], moments[name], settings, settings["peak"] * factor, step
                )
                values[name] = p if graph else p.detach()

    def loss(self, T: Vector, masks: list[Mask] | None = None) -> float:
        return self.run(T, masks)[0].item()

    def gradient(self, T: Vector) -> tuple[Vector, list[Mask], Values, float]:
        """dL3/dT through every inner step with masks held; these masks, where the steps end, L3."""
        T = [p.detach().requires_grad_() for p in T]
        with sdpa_kernel(SDPBackend.MATH):
            L3, masks, values = self.run(T, graph=True)
            return list(grad(L3, T)), masks, {k: v.detach() for k, v in values.items()}, L3.item()

    def point(self, values: Values) -> Point:
        """Where `method.cycle` would differentiate, on all of D_val; the networks are put there."""
        c, nets = self.config, self.nets
        with torch.no_grad():
            for name, p in self.whole.named_parameters():
                p.copy_(values[name])
            i, j = (self.t + 1) * c.k1 - 1, (self.t + 1) * c.k2 - 1
            x, (x2, y2, _) = self.L.batch["first"](i).x.double(), self.L.batch["second"](j)
            e = nets.E.embed(x)
            mask = method.choose(c, nets.T(e), x, nets.E.N, i)
        return Point(x, e, mask, x2.double(), y2, self.xv, self.yv)


def adamw_step(
    p: Tensor, g: Tensor, moments: list[Tensor], group: dict[str, Any], rate: float, step: int
) -> tuple[Tensor, list[Tensor]]:
    """AdamW's step number `step` (from 1) as a function: p and both moments after it."""
    a, b = group["betas"]
    m, s = a * moments[0] + (1 - a) * g, b * moments[1] + (1 - b) * g * g
    # a root of zero has no derivative: where the gradient always was zero, the size is a constant
    size = torch.where(s > 0, vectors.root(torch.where(s > 0, s, 1.0) / (1 - b**step)), 0.0)
    p = p * (1 - rate * group["weight_decay"]) - rate * m / (1 - a**step) / (size + group["eps"])
    return p, [m, s]


def scores(nets: Networks, x: Tensor) -> Tensor:
    return nets.T(nets.E.embed(x))


def reconstruction_loss(nets: Networks, x: Tensor, mask: Mask, w: Tensor | float) -> Tensor:
    return method.weighted_loss(nets.errors(x, mask), mask.m, w)


def validation_loss(nets: Networks, x: Tensor, y: Tensor) -> Tensor:
    return nets.head_loss(nets.features(x), y)


def trial(L: Levels, problem: Problem, t: int) -> list[float]:
    """A row of `evaluate.COLUMNS`. Nothing of L changes."""
    c = L.config
    inner, draw = Inner(L, problem, t), runs.stream(c.seed, "directions", t)
    T = [inner.start[name] for name in inner.T]
    true, masks, values, start = inner.gradient(T)
    at = inner.point(values)
    row = {"step": float(t * c.k1), "L3": start}

    def change(g: Vector, size: float, held: list[Mask] | None) -> float:
        """Of L3, when T moves along -g by that much."""
        return inner.loss(vectors.minus(T, g, size / max(vectors.norm(g), 1e-30)), held) - start

    for path in PATHS:
        its = replace(at, head_rate=method.head_rate(c, path, (t + 1) * c.k2 - 1))
        v = method.validation_direction(inner.nets, its)
        a = method.alignment(inner.nets, its.x, its.mask, v, RADIUS)
        g = method.mask_gradient(inner.nets, its.e, its.mask.m, a)
        row[f"cosine_{path}"], row[f"small_{path}"] = (
            vectors.cosine(g, true),
            change(g, SMALL, masks),
        )
        if path == c.head_path:
            row["taken"], row["free"] = change(g, TAKEN, masks), change(g, TAKEN, None)
            row["small"], hidden = row[f"small_{path}"], its.mask.m > 0
            order = torch.randperm(int(hidden.sum()), generator=draw).to(a.device)
            a = a.masked_scatter(hidden, a[hidden][order])
            g = method.mask_gradient(inner.nets, its.e, its.mask.m, a)
            row["shuffled_small"] = change(g, SMALL, masks)
            row["shuffled_free"] = change(g, TAKEN, None)
    return [row[name] for name in COLUMNS]


def main() -> None:
    """A run of the arm `mlo` at scale cpu, a trial every few cycles."""
    from shared.protocol import Protocol

    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--task", default="codes", choices=("codes", "mnist"))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--trials", type=int, default=20)
    options.add_argument("--out", default="cosines.svg")
    asked = options.parse_args()
    paper = Protocol(Path(__file__).resolve().parent)
    settings = paper.config("cpu", paper.node("cpu", "mlo", asked.task, asked.seed))
    config = Config(**settings | {"device": "cpu"})
    rows = followed(config, asked.trials)
    figures.cosines(asked.task, [rows])[-1].savefig(asked.out)
    print(f"wrote {asked.out}")


def followed(config: Config, trials: int) -> np.ndarray:
    """Rows of `evaluate.COLUMNS` over a pretraining without anything after it; prints them."""
    from . import train

    problem = data.load(config, torch.device("cpu"))
    levels = train.begin(config, problem, torch.device("cpu"), lambda *_: None)
    estimate, cycles = ESTIMATORS[config.hypergrad], config.steps // config.k1
    shown, rows = trial_cycles(cycles, trials), []
    print("  ".join(f"{name:>15}" for name in COLUMNS[:SHOWN]), flush=True)
    for t in range(cycles):
        if t in shown:
            rows.append(trial(levels, problem, t))
            print("  ".join(f"{v:15.3g}" for v in rows[-1][:SHOWN]), flush=True)
        method.cycle(levels, t, estimate)
    return np.array(rows)


if __name__ == "__main__":
    main()
