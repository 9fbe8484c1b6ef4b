"""End-to-end finetuning of the encoder with a fresh head on labelled images, nothing masked."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import glue, runs
from shared.processes import shard

from . import official
from .data import SHOWN, Problem, Recipe
from .mae import Encoder, Head
from .pretrain import Rows


def labelled_rows(problem: Problem, n: int, seed: int) -> np.ndarray:
    """n stratified rows of D_tr; 0: the whole training set, D_val included."""
    if n == 0:
        return np.sort(np.concatenate([problem.inner, problem.outer]))
    if n > len(problem.inner):
        raise runs.BadInput(
            f"finetune on {n} labels, but D_tr has {len(problem.inner)}; give fewer, or 0 for all"
        )
    if n == len(problem.inner):
        return problem.inner
    labels = problem.train.labels.cpu().numpy()[problem.inner]
    (rows,) = glue.level_split(labels, [n / len(labels)], runs.stream(seed, "labels", n))
    return problem.inner[rows]


class Finetuning:
    """One finetuning run; `E` starts from the pretrained encoder's state, or from its initialisation."""

    def __init__(
        self, config: Any, run: Any, problem: Problem, E: Encoder, labels: int, device: torch.device
    ):
        c = self.config = config
        self.run, self.problem, self.E, self.device = run, problem, E, device
        self.rows = Rows(
            labelled_rows(problem, labels, c.seed), c.finetune_batch, c.seed, f"finetune {labels}"
        )
        self.steps = c.finetune_epochs * self.rows.per_epoch
        runs.seed_global(c.seed, "finetune head", labels)
        self.C = Head(c.width, problem.classes, c.dropout).to(device)
        for k, block in enumerate(E.blocks):
            block.drop_path = c.drop_path * k / max(1, len(E.blocks) - 1)
        std = (
            official.FINETUNE_STD
            if "finetune_std" in c.official and problem.name == "cifar10"
            else ()
        )
        self.recipe = Recipe(True, c.cutout, c.erasing, c.randaug, std)
        self.shown = Recipe(False, std=std)
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            c.finetune_lr,
            betas=(0.9, c.finetune_beta2),
            weight_decay=c.finetune_decay,
            fused=True,
        )

    def _groups(self) -> list[dict[str, Any]]:
        """No decay on biases and norms; layer k of L learns at decay^(L + 1 - k) of the head's rate."""
        c, depth = self.config, len(self.E.blocks)
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, p in [*self.E.named_parameters(), *(("head", p) for p in self.C.parameters())]:
            layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1
            layer = 0 if name.startswith(("patch_embed", "cls_token", "pos_embed")) else layer
            groups.setdefault(
                (layer, p.dim() > 1 and name not in ("pos_embed", "cls_token")), []
            ).append(p)
        return [
            {
                "params": ps,
                "scale": c.layer_decay ** (depth + 1 - layer),
                **({} if decays else {"weight_decay": 0.0}),
            }
            for (layer, decays), ps in groups.items()
        ]

    def step(self, k: int) -> float:
        c = self.config
        rows = self.rows(k)
        images = self.problem.train
        x = shard(images.batch(rows, self.recipe, runs.stream(c.seed, "finetune crop", k)))
        y = shard(images.labels[torch.as_tensor(rows, device=images.labels.device)])
        runs.seed_global(c.seed, "finetune dropout", k)
        self.E.train(), self.C.train()
        with self.autocast():
            logits = self.C(self.E.features(x, c.pool))
        loss = F.cross_entropy(logits.float(), y, label_smoothing=c.smoothing)
        self.run.finite(loss, "finetuning", k, images.ids[rows])
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = c.finetune_lr * group["scale"] * self.schedule(k)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def schedule(self, k: int) -> float:
        """Linear warm-up, then cosine to 0."""
        warm = self.config.warmup_epochs * self.rows.per_epoch
        if k < warm:
            return (k + 1) / warm
        return (1 + math.cos(math.pi * (k - warm) / max(1, self.steps - warm))) / 2

    def autocast(self) -> Any:
        on = self.config.precision == "bf16" and self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else nullcontext()

    @torch.no_grad()
    def predict(self, images: Any, rows: np.ndarray, batch: int = 256) -> Tensor:
        """Predicted classes (n,)."""
        self.E.eval(), self.C.eval()
        shown = self.shown if self.shown.std else SHOWN
        found = []
        for k in range(0, len(rows), batch):
            with self.autocast():
                z = self.E.features(images.batch(rows[k : k + batch], shown), self.config.pool)
                found.append(self.C(z).argmax(1).cpu())
        return torch.cat(found)

    def state(self) -> dict[str, Any]:
        return {
            "E": self.E.state_dict(),
            "C": self.C.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.E.load_state_dict(saved["E"])
        self.C.load_state_dict(saved["C"])
        self.optimizer.load_state_dict(saved["optimizer"])
