"""End-to-end finetuning of the encoder with a fresh head on labelled images, nothing masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import glue, runs

from . import official
from .config import Config
from .data import Images, Loader, Problem
from .folders import Files, Recipe, Rows
from .networks import Encoder, Head, autocast


@dataclass
class Classifier:
    """An encoder, its head, and how they are trained."""

    config: Config
    E: Encoder
    C: Head
    optimizer: torch.optim.AdamW
    batch: Loader
    finite: Callable[..., None]

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return self.batch.order.per_epoch

    @property
    def steps(self) -> int:
        return self.config.finetune_epochs * self.epoch


def begin(
    config: Config, problem: Problem, E: Encoder, labels: int, finite: Callable[..., None]
) -> Classifier:
    """`E`, which is trained in place, with a fresh head, on so many labels (0: all)."""
    c, device = config, E.cls_token.device
    runs.seed_global(c.seed, "finetune head", labels)
    C = Head(c.width, problem.classes, c.dropout).to(device)
    for k, block in enumerate(E.blocks):
        block.drop_path = c.drop_path * k / max(1, len(E.blocks) - 1)
    other_std = "finetune_std" in c.official and problem.name == "cifar10"
    std = official.FINETUNE_STD if other_std else ()
    recipe = Recipe(c.cutout, c.erasing, c.randaug, std)
    rows = labelled_rows(problem, labels, c.seed)
    order = runs.Batches(rows, c.finetune_batch, c.seed, f"finetune {labels}")
    batch = Loader(problem.train, order, c.seed, ("finetune crop",), recipe)
    optimizer = torch.optim.AdamW(groups(c, E, C), betas=(0.9, c.finetune_beta2), fused=True)
    return Classifier(c, E, C, optimizer, batch, finite)


def labelled_rows(problem: Problem, n: int, seed: int) -> np.ndarray:
    """n stratified rows of D_tr; 0: the whole training set, D_val included."""
    if n == 0:
        return problem.everything
    if n > len(problem.inner):
        what = f"finetune on {n} labels, but D_tr has {len(problem.inner)}"
        raise runs.BadInput(f"{what}; give fewer, or 0 for all")
    if n == len(problem.inner):
        return problem.inner
    labels = problem.train.labels.cpu().numpy()[problem.inner]
    (rows,) = glue.level_split(labels, [n / len(labels)], runs.stream(seed, "labels", n))
    return problem.inner[rows]


def groups(config: Config, E: Encoder, C: Head) -> list[dict[str, object]]:
    """No decay on biases and norms; layer k of L learns at layer_decay^(L + 1 - k) of the peak rate."""
    depth = len(E.blocks)
    of_layer: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in [*E.named_parameters(), *(("head", p) for p in C.parameters())]:
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1
        layer = 0 if name.startswith(("patch_embed", "cls_token", "pos_embed")) else layer
        decays = p.dim() > 1 and name not in ("pos_embed", "cls_token")
        of_layer.setdefault((layer, decays), []).append(p)
    return [
        {
            "params": parameters,
            "peak": config.finetune_lr * config.layer_decay ** (depth + 1 - layer),
            "weight_decay": config.finetune_decay if decays else 0.0,
        }
        for (layer, decays), parameters in of_layer.items()
    ]


def step(f: Classifier, k: int) -> float:
    """Step k; returns its loss. Rates: linear warm-up, then a cosine to 0."""
    c, (x, y, ids) = f.config, f.batch(k)
    runs.seed_global(c.seed, "finetune dropout", k)
    f.E.train(), f.C.train()
    with autocast(c, x.device):
        logits = f.C(f.E.features(x, c.pool))
    loss = F.cross_entropy(logits.float(), y, label_smoothing=c.smoothing)
    f.finite(loss, "finetuning", k, ids)
    loss.backward()
    for group in f.optimizer.param_groups:
        factor = runs.schedule("cosine", k, f.steps, c.warmup_epochs * f.epoch)
        group["lr"] = group["peak"] * factor
    f.optimizer.step()
    f.optimizer.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def classes(f: Classifier, images: Images | Files, rows: Rows) -> Tensor:
    """Predicted classes (n,), on the CPU."""
    f.E.eval(), f.C.eval()
    x = images.batch(rows, f.batch.recipe)
    with autocast(f.config, x.device):
        return f.C(f.E.features(x, f.config.pool)).argmax(1).cpu()
