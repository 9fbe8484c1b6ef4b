"""One search: the three updates of the algorithm and their order, in either space, for every variant and control.

for each batch of D_tr:   (1) generator level    phi, theta        joint, weighted, adversarial
                          (2) architecture level A                  after the warm-up epochs of the base
                          (3) weight level       W                  always on real training images
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import runs, vectors
from shared.processes import single, shard, noise_names

from . import baselines, darts_space, generators, method, nasbench
from .data import Images, Problem, batch, gan_images

GENERATED = (
    "static",
    "joint",
    "weighted",
    "adversarial",
)  # variants whose level 3 sees generated images
VARIANTS = ("darts", *GENERATED, "train_as_val", "aug_val", "random", "generator")


@dataclass(frozen=True)
class Stage:
    """A stretch of the search with one relaxed network; P-DARTS has three, the other bases one."""

    layers: int
    epochs: int
    warmup: int  # epochs without architecture steps
    operations: int
    skip_dropout: float


class Search:
    """State of a search; `step(t)` is one pass of the loop above, `cell()` what is derived from A."""

    def __init__(
        self, config: Any, problem: Problem, device: torch.device, gan: generators.GAN | None
    ):
        self.config, self.problem, self.device, self.gan = config, problem, device, gan
        self.seed = config.seed
        self.stages = stages_of(config)
        self.per_epoch = max(1, len(problem.train) // config.batch)
        self.steps = self.per_epoch * sum(s.epochs for s in self.stages)
        self.kept = darts_space.everything()
        self.counts = {
            "weight_steps": 0,
            "architecture_steps": 0,
            "gan_steps": 0,
            "gradient_evaluations": 0,
        }
        self.history: list[dict[str, Any]] = []
        self.facts: dict[str, float] = {}
        self.omega = method.ClassWeights(problem.classes)
        self.begin(0)

    @cached_property
    def weight_images(self) -> Images:
        """D_tr; with `full_data_weights` D_val too, in the same number of steps."""
        return gan_images(self.problem, "trainval" if self.config.full_data_weights else "train")

    @cached_property
    def generator_images(self) -> Images:
        return gan_images(self.problem, self.config.gan_data)

    # -- stages

    def begin(self, number: int) -> None:
        """A new relaxed network, A and optimisers; the same start for every variant of a seed."""
        c, stage = self.config, self.stages[number]
        self.stage = number
        runs.seed_global(self.seed, "supernet", number)
        stream = runs.stream(self.seed, "A", number)
        if c.space == "nasbench":
            self.net: torch.nn.Module = nasbench.Network(None, **network_settings(c, self.problem))
            A = nasbench.initial(c.nodes, stream)
        else:
            self.net = darts_space.RelaxedNetwork(
                c.channels,
                stage.layers,
                self.problem.classes,
                self.kept,
                c.partial,
                stage.skip_dropout,
            )
            A = darts_space.initial(self.kept, c.partial, stream)
        self.net.to(self.device)
        self.W = list(self.net.parameters())
        self.A = [a.to(self.device).requires_grad_() for a in A]
        self.opt_W = torch.optim.SGD(
            self.W, c.lr, momentum=c.momentum, weight_decay=c.weight_decay, nesterov=c.nesterov
        )
        self.opt_A = torch.optim.Adam(
            self.A, c.arch_lr, betas=(0.5, 0.999), weight_decay=c.arch_weight_decay
        )

    def place(self, t: int) -> tuple[int, int]:
        """Step -> (stage, epoch within the stage)."""
        epoch = t // self.per_epoch
        for number, stage in enumerate(self.stages):
            if epoch < stage.epochs:
                return number, epoch
            epoch -= stage.epochs
        raise ValueError(f"step {t} is beyond the search's {self.steps}")

    def rate(self, t: int) -> float:
        """Learning rate of W: cosine over the stage, by epochs."""
        number, epoch = self.place(t)
        c = self.config
        return c.lr_min + 0.5 * (c.lr - c.lr_min) * (
            1 + math.cos(math.pi * epoch / self.stages[number].epochs)
        )

    # -- one pass of the loop

    def step(self, t: int) -> dict[str, float]:
        c = self.config
        number, epoch = self.place(t)
        if number != self.stage:
            self.kept = darts_space.shrink(self.A, self.kept, self.stages[number].operations)
            self.begin(number)
        runs.seed_global(self.seed, "dropout", t)
        for group in self.opt_W.param_groups:
            group["lr"] = self.rate(t)
        watch = t == 0
        before = self._parts() if watch else {}
        facts: dict[str, float] = {}

        if self.gan is not None and c.variant in ("joint", "weighted", "adversarial"):
            facts |= self.gan_step()
            if watch:
                self._moved(before, {"theta", "phi"})
                before = self._parts()

        x, y = self.real(self.weight_images, t, "batches")

        def L_tr() -> Tensor:
            return F.cross_entropy(self.net(x, self.A), y)

        if epoch >= self.stages[number].warmup:
            loss_A, gradient = self.architecture_gradient(t, L_tr, x, y)
            if c.arch_clip:
                size = vectors.norm(gradient)
                gradient = [g * min(1.0, c.arch_clip / (size + 1e-6)) for g in gradient]
            method.architecture_step(gradient, self.A, self.opt_A)
            self.counts["architecture_steps"] += 1
            facts["loss_A"] = loss_A
            if watch:
                self._moved(before, {"A"})
                before = self._parts()

        loss = L_tr()
        facts["loss_W"] = float(loss.detach())
        if not math.isfinite(facts["loss_W"]):
            raise runs.Diverged("weight", t, None, facts["loss_W"])
        method.weight_step(loss, self.W, self.opt_W, c.clip)
        self.counts["weight_steps"] += 1
        self.counts["gradient_evaluations"] += 1
        if watch:
            self._moved(before, {"W"})
        if (t + 1) % self.per_epoch == 0:
            self.history.append(self.watch(t))
        return facts

    def gan_step(self) -> dict[str, float]:
        """Level 2: one step of phi and one of theta on images of D_tr (and, with eta > 0, on the classifier's weakness)."""
        c, gan = self.config, self.gan
        assert gan is not None
        images = self.generator_images
        rows = shard(batch(len(images), c.gan_batch, gan.steps, self.seed, "gan batches")).to(
            self.device
        )
        stream = runs.stream(self.seed, "gan view", gan.steps, *noise_names())

        def hunted(fake: Tensor, y: Tensor) -> Tensor:
            return c.eta * method.weakness(self.net(self.problem.T(fake, stream), self.A), y)

        hunting = hunted if c.variant == "adversarial" and c.eta else None
        losses = gan.step(self.problem.signed(images.pixels[rows]), images.labels[rows], hunting)
        self.counts["gan_steps"] += 1
        self.counts["gradient_evaluations"] += 6 if gan.kind == "dcgan" else 2
        return losses

    def architecture_gradient(
        self, t: int, L_tr: Callable[[], Tensor], x: Tensor, y: Tensor
    ) -> tuple[float, vectors.Vector]:
        """dF/dA of this step. Everything random is drawn before the closures are made, or from a stream that each call
        begins anew: both sides of a difference quotient see the same z, y and crops."""
        c = self.config
        lam = c.lam if c.variant in GENERATED else 0.0
        values: list[float] = []

        def noted(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def call() -> Tensor:
                value = loss()
                values.append(float(value.detach()))
                return value

            return call

        synthesized, J, theta = self.synthesized(t) if lam > 0 else (None, None, [])
        real = None
        if lam < 1:
            xv, yv = (x, y) if c.variant == "train_as_val" else self.held_out(t)

            def real() -> Tensor:
                return F.cross_entropy(self.net(xv, self.A), yv)

        F_ = noted(method.architecture_loss(lam, synthesized, real))
        xi = self.rate(t) if c.order == 2 else 0.0
        inner = (
            method.look_ahead_loss(L_tr, self.W, self.momentum(), c.momentum, c.weight_decay)
            if xi
            else L_tr
        )
        estimator = method.ESTIMATORS[c.estimator]()
        if xi and J is not None:
            found = method.nested_gradient(
                F_, inner, J, self.W, theta, self.A, xi, c.gan_lr, estimator
            )
            self.counts["gradient_evaluations"] += found.gradient_evaluations
            return values[0], found.grads
        gradient = method.architecture_gradient(F_, inner, self.W, self.A, xi, estimator)
        passes = {"finite_difference": 4, "exact": 3}[c.estimator]
        self.counts["gradient_evaluations"] += passes if xi else 1
        return values[0], gradient

    def synthesized(
        self, t: int
    ) -> tuple[Callable[[], Tensor], Callable[[], Tensor] | None, list[Tensor]]:
        """L_syn of this step as a closure; with eta > 0 also the generator's J and theta, through which F then reaches."""
        c, gan = self.config, self.gan
        assert gan is not None
        omega = None
        if c.variant == "weighted":
            source = self.problem.validation if c.omega_from == "validation" else self.problem.train
            with (
                torch.no_grad(),
                single(),
            ):  # all processes see the whole batch: omega is not a gradient
                xo, yo = self.real(source, t, "omega batches")
                self.omega.update(self.net(xo, self.A), yo)
            omega = self.omega.omega.to(self.device)
        n, crops = len(shard(range(c.batch))), (self.seed, "crops", t, *noise_names())
        if c.variant == "adversarial" and c.eta:
            z, ys = gan.draw(n, "architecture", t)

            def logits() -> Tensor:
                return self.net(self.problem.T(gan.G(z, ys), runs.stream(*crops)), self.A)

            def J() -> Tensor:
                return gan.generator_loss(gan.G(z, ys), ys) - c.eta * method.weakness(logits(), ys)

            return lambda: method.synthesized_loss(logits(), ys), J, list(gan.G.parameters())
        fake, ys = gan.sample(n, "architecture", t)
        xs = self.problem.T(fake, runs.stream(*crops))
        if c.labels == "permuted":
            ys = baselines.permuted(ys, runs.stream(self.seed, "permuted labels", t))
        return lambda: method.synthesized_loss(self.net(xs, self.A), ys, omega), None, []

    # -- data of the levels

    def real(self, images: Images, t: int, name: str) -> tuple[Tensor, Tensor]:
        rows = shard(batch(len(images), self.config.batch, t, self.seed, name)).to(self.device)
        stream = runs.stream(self.seed, "view", name, t, *noise_names())
        return self.problem.view(images.pixels[rows], stream), images.labels[rows]

    def held_out(self, t: int) -> tuple[Tensor, Tensor]:
        """Level 3's real images: D_val; `aug_val`: D_tr, strongly augmented."""
        if self.config.variant != "aug_val":
            return self.real(self.problem.validation, t, "validation batches")
        images = self.problem.train
        rows = shard(batch(len(images), self.config.batch, t, self.seed, "augmented batches")).to(
            self.device
        )
        stream = runs.stream(self.seed, "strong", t, *noise_names())
        pixels = baselines.strong(images.pixels[rows], stream, self.problem.photographs)
        return self.problem.normalise(pixels), images.labels[rows]

    def momentum(self) -> list[Tensor | None]:
        return [
            self.opt_W.state[p].get("momentum_buffer") if p in self.opt_W.state else None
            for p in self.W
        ]

    # -- what comes out

    def cell(self) -> Any:
        """What is derived from A: a cell string, or a Genotype."""
        if self.config.space == "nasbench":
            return nasbench.derive(self.A[0].cpu(), self.config.nodes, self.config.exclude_none)
        limit = self.config.most_skips if self.config.most_skips >= 0 else None
        return darts_space.derive([a.detach().cpu() for a in self.A], self.kept, limit)

    def watch(self, t: int) -> dict[str, Any]:
        """One line per epoch: derived cell, skips, entropy, softmax(A)."""
        cell = self.cell()
        skips = nasbench.skips(cell) if isinstance(cell, str) else cell.skips()
        softmax = [F.softmax(a.detach(), -1).cpu().tolist() for a in self.A[:2]]
        text = cell if isinstance(cell, str) else cell.to_json()
        return {
            "step": t,
            "cell": text,
            "skips": skips,
            "entropy": method.entropy(self.A[:2]),
            "softmax": softmax,
        }

    def early(self) -> str:
        """The cell of the last epoch before skips filled more than half of the (normal) cell; the final one if never."""
        most = len(self.A[0]) / 2 if self.config.space == "nasbench" else darts_space.NODES
        kept = self.history[0]["cell"]
        for line in self.history:
            if line["skips"] > most:
                return kept
            kept = line["cell"]
        return kept

    @torch.no_grad()
    def held_out_accuracy(self) -> float:
        """The relaxed network on D_val: a search-time quantity, the only one that settings were chosen by."""
        v = self.problem.validation
        parts = torch.arange(len(v), device=self.device).split(256)
        right = [
            self.net(self.problem.normalise(v.pixels[r]), self.A).argmax(1) == v.labels[r]
            for r in parts
        ]
        return float(torch.cat(right).float().mean())

    # -- which variables a level moved (acceptance check 7), on the first step

    def _parts(self) -> dict[str, list[Tensor]]:
        parts = {"W": self.W, "A": self.A}
        if self.gan is not None:
            parts |= {"theta": list(self.gan.G.parameters()), "phi": list(self.gan.H.parameters())}
        return {name: vectors.clone(v) for name, v in parts.items()}

    def _moved(self, before: dict[str, list[Tensor]], allowed: set[str]) -> None:
        now = self._parts()
        moved = {n for n in before if not all(torch.equal(a, b) for a, b in zip(before[n], now[n]))}
        self.facts["levels_apart"] = float(self.facts.get("levels_apart", 1.0) and moved == allowed)

    # -- checkpoints

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(), "A": vectors.clone(self.A), "opt_W": self.opt_W.state_dict(),
            "opt_A": self.opt_A.state_dict(), "stage": self.stage, "kept": self.kept, "counts": self.counts,
            "history": self.history, "facts": self.facts, "omega": self.omega.running,
            "gan": self.gan.state() if self.gan is not None else None,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]
        self.begin(state["stage"])
        self.net.load_state_dict(state["net"])
        vectors.copy_(self.A, [a.to(self.device) for a in state["A"]])
        self.opt_W.load_state_dict(state["opt_W"])
        self.opt_A.load_state_dict(state["opt_A"])
        self.counts, self.history, self.facts = state["counts"], state["history"], state["facts"]
        self.omega.running = state["omega"]
        if self.gan is not None:
            self.gan.load(state["gan"])


def stages_of(config: Any) -> list[Stage]:
    """DARTS and PC-DARTS: one stage. P-DARTS: three, deeper each time, with fewer operations and more dropout on skips."""
    if config.base != "pdarts":
        return [Stage(config.layers, config.epochs, config.warmup, 8, 0.0)]
    plan = zip(
        config.pdarts_layers, config.pdarts_operations, config.pdarts_skip_dropout, strict=True
    )
    return [
        Stage(layers, config.epochs, config.warmup, operations, drop)
        for layers, operations, drop in plan
    ]


def network_settings(config: Any, problem: Problem) -> dict[str, Any]:
    """Arguments of nasbench.Network for this search space."""
    digits = problem.name == "digits"
    return {
        "channels": config.channels, "N": config.cells_per_stage, "stages": 2 if digits else 3, "nodes": config.nodes,
        "classes": problem.classes, "c_in": problem.shape[0], "reduction": "conv" if digits else "residual",
    }  # fmt: skip
