"""The pretraining loop: k1 steps of level 1, k2 of level 2, one of level 3, and again. Baselines are settings of it."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared import runs, vectors
from shared.processes import all_mean, shard
from shared.vectors import Vector

from . import analysis, baselines, official
from .data import Problem, Recipe
from .mae import Decoder, Encoder, Head, initialise, patch_errors
from .masking import Mask, gumbel, mask_network, mixed, random_scores, rank, statistics, visible
from .method import ESTIMATORS, Networks, Point, weighted_loss, weights

METHODS = {**ESTIMATORS, "official": official.hypergradient}
# backward passes of one level 3: (without, with) the path through the head
EVALUATIONS = {
    "fd_forward": (2, 3),
    "jvp": (2, 3),
    "fd_darts": (3, 5),
    "exact": (4, 7),
    "official": (3, 7),
}
SHOW = 6  # test images whose masks are kept for the figures


class Rows:
    """Rows of batch k of a level: reshuffled every epoch from a stream of its own, incomplete batches left out."""

    def __init__(self, rows: np.ndarray, size: int, seed: int, name: str):
        self.rows, self.size, self.seed, self.name = rows, min(size, len(rows)), seed, name
        self.per_epoch = len(rows) // self.size
        self.epoch = -1

    def __call__(self, k: int) -> np.ndarray:
        epoch, place = divmod(k, self.per_epoch)
        if epoch != self.epoch:
            order = torch.randperm(
                len(self.rows), generator=runs.stream(self.seed, self.name, epoch)
            )
            self.epoch, self.order = epoch, self.rows[order.numpy()]
        return self.order[place * self.size : (place + 1) * self.size]


@dataclass
class Memory:
    """The last batches of the lower levels, which level 3 uses again, and what the replays of `analysis` need."""

    x: Tensor | None = None
    mask: Mask | None = None
    step: int = 0
    x2: Tensor | None = None
    y2: Tensor | None = None
    z2: Tensor | None = None


class Pretraining:
    def __init__(self, config: Any, run: runs.Run, problem: Problem, device: torch.device):
        self.config, self.run, self.problem, self.device = config, run, problem, device
        c, seed = config, config.seed
        E = Encoder(problem.size, problem.channels, c.patch, c.width, c.depth, c.heads)
        D = Decoder(
            E.N,
            c.width,
            c.decoder_width,
            c.decoder_depth,
            c.decoder_heads,
            problem.channels * c.patch**2,
        )
        initialise(E, runs.stream(seed, "encoder"))
        initialise(D, runs.stream(seed, "decoder"))
        runs.seed_global(seed, "masking network")
        scored = c.mask == "learned" or c.weight == "scores" or c.hypergrad != "none"
        T = mask_network(c.T_arch, E.N, c.width, c.T_hidden) if scored else None
        runs.seed_global(seed, "head")
        C = (
            Head(c.width, problem.classes, c.dropout)
            if c.hypergrad != "none" or c.joint_weight
            else None
        )
        self.nets = Networks(E, D, T, C, c.norm_pix, c.pool, c.normalise_scores, all_mean)
        self.parts: dict[str, nn.Module] = {
            k: n.to(device) for k, n in zip("EDTC", (E, D, T, C)) if n is not None
        }
        self.K = visible(E.N, c.mask_ratio)
        self.theta = [*E.parameters(), *D.parameters()]
        decayed = [
            p
            for n in (E, D)
            for name, p in n.named_parameters()
            if p.dim() > 1 and "pos_embed" not in name
        ]
        rest = [p for p in self.theta if not any(p is q for q in decayed)]
        groups = [
            {"params": decayed, "weight_decay": c.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.optimizers = {"E": self._adamw(groups, c.lr)}
        if T is not None and c.hypergrad != "none":
            self.optimizers["T"] = self._adamw(T.parameters(), c.lr_mask)
        if C is not None:
            self.optimizers["C"] = self._adamw(C.parameters(), c.lr_head)
        rows = {"level1": problem.pretrain, "level2": problem.inner, "level3": problem.outer}
        self.rows = {k: Rows(v, c.batch, seed, k) for k, v in rows.items()}
        self.counts = {"level1": 0, "level2": 0, "level3": 0, "evaluations": 0}
        self.facts: dict[str, float] = {"restored": 1.0}
        self.memory = Memory()
        self.masks_shown: list[dict[str, Any]] = []
        self.descent: list[list[float]] = []
        self.before: dict[str, Any] | None = (
            None  # state at the start of a cycle that will be replayed
        )
        self.replayed: list[Mask] = []
        self.scores: Tensor | None = None
        self.trials = (
            analysis.trial_cycles(c.steps // c.k1, c.descent_trials)
            if c.hypergrad != "none"
            else set()
        )

    def _adamw(self, parameters: Any, lr: float) -> torch.optim.AdamW:
        c = self.config
        return torch.optim.AdamW(
            parameters, lr, betas=(0.9, c.beta2), weight_decay=c.outer_decay, fused=True
        )

    # ---------------------------------------------------------------------------------------------------- one step
    def step(self, i: int) -> dict[str, float]:
        """Level-1 step i; after every k1 of them (a cycle) the other two levels."""
        c = self.config
        cycle, place = divmod(i, c.k1)
        if place == 0 and cycle in self.trials:
            self.before, self.replayed = self.snapshot(), []
        found = {"loss": self.level1(i)}
        if place == c.k1 - 1 and c.hypergrad != "none":
            for j in range(cycle * c.k2, (cycle + 1) * c.k2):
                found["head_loss"] = self.level2(j)
            found["hypergradient"] = self.level3(cycle)
        return found

    def batch(self, level: str, k: int) -> tuple[Tensor, Tensor, np.ndarray]:
        rows = self.rows[level](k)
        images = self.problem.train
        x = images.batch(rows, Recipe(), runs.stream(self.config.seed, level, "crop", k))
        return (
            shard(x),
            shard(images.labels[torch.as_tensor(rows, device=images.labels.device)]),
            images.ids[rows],
        )

    def mask(self, s: Tensor | None, B: int, i: int) -> Mask:
        """Patches masked in level-1 step i: by rank of the scores, or at random from a stream that all arms share."""
        c, draw = self.config, runs.stream(self.config.seed, "mask", i)
        if c.mask == "random" or s is None:
            return rank(random_scores(B, self.nets.E.N, draw).to(self.device), self.K)
        ranking = gumbel(s, draw) if c.score_noise == "gumbel" else s
        return rank(mixed(ranking, c.mix_random, draw) if c.mix_random else ranking, self.K)

    def level1(self, i: int, held: Mask | None = None) -> float:
        """One step of E and D on L1. `held`: masks to use instead of T's (replays of `analysis`)."""
        c, nets = self.config, self.nets
        x, _, ids = self.batch("level1", i)
        s = None
        if nets.T is not None and (c.mask == "learned" or c.weight == "scores"):
            attached = "attached_scores" in c.official
            with nullcontext() if attached else torch.no_grad():
                s = nets.T(nets.E.embed(x))
        mask = held or self.mask(s, len(x), i)
        w: Tensor | float = (
            weights(s, mask.m, c.normalise_scores)
            if s is not None and c.weight == "scores"
            else 1.0
        )
        seen: list[Tensor] = []

        def E(images: Tensor, keep: Tensor) -> Tensor:
            seen.append(nets.E(images, keep))
            return seen[0]

        trained = list(self.theta)
        with self.autocast():
            l = patch_errors(E, nets.D, x, mask.keep, mask.restore, c.norm_pix, c.patch)  # noqa: E741
        loss = weighted_loss(l, mask.m, w)
        if c.uniformity:
            loss = loss + c.uniformity * baselines.uniformity(seen[0][:, 0].float())
        if c.joint_weight:
            runs.seed_global(c.seed, "dropout", i)
            x2, y2, _ = self.batch("level2", i)
            with self.autocast():
                logits = nets.C.train()(nets.E.features(x2, c.pool))
            loss = loss + c.joint_weight * baselines.supervised(logits, y2)
            trained += list(nets.C.parameters())
            self.counts["evaluations"] += 1
        self.run.finite(loss, "level 1", i, ids)
        self._descend("E", loss, trained, i, also="C" if c.joint_weight else "")
        self.counts["level1"] += 1
        self.counts["evaluations"] += 1
        self.memory.x, self.memory.mask, self.memory.step = x, mask, i
        if self.before is not None:
            self.replayed.append(mask)
        self.scores = s
        return loss.item()

    def level2(self, k: int) -> float:
        """One step of the head on D_tr; E is a constant. Its feature keeps its graph for the path through the head."""
        c, nets = self.config, self.nets
        x2, y2, ids = self.batch("level2", k)
        keep_graph = c.head_path != "none" and c.hypergrad in ("fd_forward", "jvp")
        with nullcontext() if keep_graph else torch.no_grad():
            z2 = nets.E.features(x2, c.pool)
        runs.seed_global(c.seed, "dropout", k)
        nets.C.train()
        loss = nets.head_loss(z2.detach(), y2)
        self.run.finite(loss, "level 2", k, ids)
        self._descend("C", loss, list(nets.C.parameters()), k)
        self.counts["level2"] += 1
        self.counts["evaluations"] += 1
        self.memory.x2, self.memory.y2, self.memory.z2 = x2, y2, z2 if keep_graph else None
        return loss.item()

    def point(self, cycle: int) -> Point:
        """Where level 3 is differentiated. The head is in evaluation mode: no dropout."""
        nets, m = self.nets, self.memory
        xv, yv, _ = self.batch("level3", cycle)
        nets.C.eval()
        with torch.no_grad():
            e = nets.E.embed(m.x)
            mask = self.mask(nets.T(e), len(m.x), m.step)
        return Point(m.x, e, mask, m.x2, m.y2, xv, yv, m.z2)

    def level3(self, cycle: int) -> float:
        """One step of T along -g_T; returns its norm."""
        c, nets = self.config, self.nets
        at = self.point(cycle)
        with torch.no_grad():
            loss = (
                nets.head_loss(nets.E.features(at.xv, c.pool), at.yv)
                if cycle in self.trials
                else None
            )
        last = c.steps // c.k1 - 1
        if c.self_checks and cycle in (0, last):
            before = {k: vectors.clone(list(n.parameters())) for k, n in self.parts.items()}
            for name, value in analysis.compare_with_exact(
                METHODS[c.hypergrad], nets, at, c
            ).items():
                self.facts[f"{name}_{'first' if cycle == 0 else 'last'}"] = value
        g = all_mean(
            METHODS[c.hypergrad](
                nets, at, c.head_path, self.rate("C", (cycle + 1) * c.k2 - 1), c.radius
            )
        )
        size = vectors.norm(g)
        self.run.finite(size, "level 3", cycle, self.problem.train.ids[self.rows["level3"](cycle)])
        if c.self_checks and cycle in (0, last):
            same = all(
                torch.equal(p, q)
                for k, n in self.parts.items()
                for p, q in zip(n.parameters(), before[k])
            )
            self.facts["restored"] = min(self.facts["restored"], float(same))
        if cycle in self.trials:
            self.descent.append(analysis.descent_trial(self, cycle, at, g, loss.item()))
            self.before, self.replayed = None, []
        for p, x in zip(nets.T.parameters(), g):
            p.grad = x
        self._advance("T", cycle)
        self.counts["level3"] += 1
        self.counts["evaluations"] += EVALUATIONS[c.hypergrad][c.head_path != "none"]
        return size

    def _descend(self, name: str, loss: Tensor, trained: list, k: int, also: str = "") -> None:
        loss.backward(inputs=trained)
        for each in filter(None, (name, also)):
            self._advance(each, k)

    def _advance(self, name: str, k: int) -> None:
        for group in self.optimizers[name].param_groups:
            group["lr"] = self.rate(name, k)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)

    def rate(self, name: str, k: int) -> float:
        """Cosine from the peak to 0 over the number of level-1 steps, for all three levels; T and C step more rarely and so
        end well above 0, as in the official code."""
        c = self.config
        peak = {"E": c.lr, "C": c.lr_head, "T": c.lr_mask}[name]
        return peak * (1 + math.cos(math.pi * min(1.0, k / c.steps))) / 2

    def autocast(self) -> Any:
        """bf16 for level 1 alone: levels 2 and 3 stay in fp32, where a probe of norm 0.01 does not vanish."""
        on = self.config.precision == "bf16" and self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else nullcontext()

    # ------------------------------------------------------------------------------------------------- what is looked at
    def watch(self) -> dict[str, float]:
        """Scores and masks on the last level-1 batch."""
        s, mask = self.scores, self.memory.mask
        return statistics(s, mask.m) if s is not None else {}

    @torch.no_grad()
    def masks_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(s, m), each (B, N): T's scores and masks of images; random masks and scores 1/2 without T."""
        if self.nets.T is None:
            s = torch.full((len(x), self.nets.E.N), 0.5, device=x.device)
            return s, rank(
                random_scores(*s.shape, runs.stream(self.config.seed, "shown")).to(x.device), self.K
            ).m
        s = self.nets.T(self.nets.E.embed(x))
        if self.config.mask == "random":
            return s, rank(
                random_scores(*s.shape, runs.stream(self.config.seed, "shown")).to(x.device), self.K
            ).m
        return s, rank(s, self.K).m

    def show(self, step: int, x: Tensor) -> None:
        """Keep scores and masks of a few images for the figures."""
        s, m = self.masks_of(x)
        self.masks_shown.append({"step": step, "scores": s.cpu(), "masks": m.to(torch.uint8).cpu()})

    # --------------------------------------------------------------------------------------------------------- state
    def snapshot(self) -> dict[str, Any]:
        """Copies of all networks and optimisers."""
        return {
            "parts": {
                k: {n: t.detach().clone() for n, t in p.state_dict().items()}
                for k, p in self.parts.items()
            },
            "optimizers": {k: copy.deepcopy(o.state_dict()) for k, o in self.optimizers.items()},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        for k, part in self.parts.items():
            part.load_state_dict(saved["parts"][k])
        for k, optimizer in self.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(saved["optimizers"][k]))

    def state(self) -> dict[str, Any]:
        # lower-level batches need no saving: level 3 runs in the step that drew them; a replay needs its cycle's start
        masks = [[m.keep, m.restore, m.m] for m in self.replayed]
        return {**self.snapshot(), "counts": dict(self.counts), "facts": dict(self.facts), "descent": self.descent,
                "shown": self.masks_shown, "before": self.before, "replayed": masks}  # fmt: skip

    def load(self, saved: dict[str, Any]) -> None:
        self.restore(saved)
        self.counts, self.facts, self.descent = saved["counts"], saved["facts"], saved["descent"]
        self.masks_shown = saved["shown"]
        self.before = saved["before"]
        self.replayed = [Mask(*(t.to(self.device) for t in m)) for m in saved["replayed"]]

    def parameters(self, part: str) -> Vector:
        return list(self.parts[part].parameters())
