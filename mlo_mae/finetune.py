"""End-to-end finetuning of the encoder with a fresh head on labelled images, nothing masked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import glue, runs
from shared.runs import Run

from . import official
from .config import Config
from .data import Images, Loader, Problem, chunks, labels_of
from .folders import Files, Recipe, Rows
from .networks import Block, Encoder, Head, autocast

PREDICTED = 256  # images of a step of a test


@dataclass
class Classifier:
    """An encoder with a head, and how they are trained.

    looks: batches of the test set that are predicted after each epoch, to find the `best` one
    (row 12 of the differences); none by default."""

    config: Config
    E: Encoder
    C: Head
    optimizer: torch.optim.AdamW
    batch: Loader
    test: Images | Files
    looks: list[np.ndarray]
    finite: Callable[..., None]
    best: dict[str, Any] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Training steps of an epoch."""
        return self.batch.order.per_epoch

    @property
    def updates(self) -> int:
        """Training steps."""
        return self.config.finetune_epochs * self.epoch

    @property
    def steps(self) -> int:
        """Training steps and looks."""
        return self.config.finetune_epochs * (self.epoch + len(self.looks))

    def parts(self) -> runs.Parts:
        return runs.Parts(E=self.E, C=self.C, optimizer=self.optimizer, best=self.best)


def rounds(
    run: Run, config: Config, problem: Problem, E: Encoder, labels: int
) -> tuple[dict[str, np.ndarray], dict[str, float], Classifier]:
    """All finetunings of copies of `E` on so many labels (0: all): predictions under the names that
    `evaluate.score` reads, (n,) or (n, rounds); accuracy on validation images; the last one.

    No accuracy where all images with labels were trained on."""
    answers, right = [], []
    for again in range(config.finetune_repeats):
        f = begin(config, problem, copy.deepcopy(E), labels, again, run.finite)
        name = f"{labels} {again + 1}" if again else f"{labels}"
        for k in run.phase(f"finetuning {name}", f.steps, f.parts()):
            if facts := step(f, k):
                run.log(phase=f"finetuning {name}", **facts)
        rows = np.arange(len(problem.test))
        answers.append(predict(run, f"test {name}", f, problem.test, rows))
        judged, rows = problem.judged
        if problem.validation or labels:
            guesses = predict(run, f"validation {name}", f, judged, rows)
            right.append(float(np.mean(guesses == labels_of(judged, rows).cpu().numpy())))
    key = "prediction" if labels == config.finetune_labels[0] else f"prediction_{labels}"
    found = {key: np.stack(answers, 1) if len(answers) > 1 else answers[0]}
    if f.best:
        found["prediction_best_epoch"] = np.array(f.best["prediction"])
    return found, {f"accuracy_{labels}": float(np.mean(right))} if right else {}, f


def predict(
    run: Run, name: str, f: Classifier, images: Images | Files, rows: np.ndarray
) -> np.ndarray:
    """Classes (n,) of whole images."""
    found: list[int] = []
    batches = chunks(rows, PREDICTED)
    for k in run.phase(name, len(batches), runs.Parts(classes=found)):
        found += classes(f, images, batches[k]).tolist()
    return np.array(found)


def begin(
    config: Config,
    problem: Problem,
    E: Encoder,
    labels: int,
    again: int,
    finite: Callable[..., None],
) -> Classifier:
    """`E`, which is trained in place, with a fresh head, on so many labels (0: all).

    again: number of this finetuning among those of as many labels, which differ in all draws."""
    c, test = config, problem.test
    which = (labels, again) if again else (labels,)
    runs.seed_global(c.seed, "finetune head", *which)
    C = Head(c.width, problem.classes, c.dropout).to(E.cls_token.device)
    for k, block in enumerate(E.blocks):
        cast(Block, block).drop_path = c.drop_path * k / max(1, len(E.blocks) - 1)
    other_std = "finetune_std" in c.official and problem.name == "cifar10"
    recipe = Recipe(c.cutout, c.erasing, c.randaug, official.FINETUNE_STD if other_std else ())
    rows = labelled_rows(problem, labels, c.seed)
    order = runs.Batches(rows, c.finetune_batch, c.seed, f"finetune {labels}", *which[1:])
    crops = ("finetune crop", *map(str, which[1:]))
    batch = Loader(problem.train, order, c.seed, crops, recipe)
    optimizer = torch.optim.AdamW(groups(c, E, C), betas=(0.9, c.finetune_beta2), fused=True)
    looked = "best_epoch" in c.official and labels == c.finetune_labels[0]
    looks = chunks(np.arange(len(test)), PREDICTED) if looked else []
    return Classifier(c, E, C, optimizer, batch, test, looks, finite)


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
    """No decay on biases and norms; layer k of L learns at layer_decay^(L + 1 - k) of the rate."""
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


def step(f: Classifier, k: int) -> dict[str, float]:
    """Step k: a training step or, where there are `looks`, one of them. Returns, at the end of an
    epoch, the number of training steps and the loss."""
    epoch, place = divmod(k, f.epoch + len(f.looks))
    if place >= f.epoch:
        part = f.looks[place - f.epoch]
        last = part is f.looks[-1]
        official.look(f.best, classes(f, f.test, part), f.test.labels, last)
        return {}
    done = epoch * f.epoch + place
    loss = descend(f, done)
    return {"step": done + 1, "loss": loss} if place + 1 == f.epoch else {}


def descend(f: Classifier, k: int) -> float:
    """Training step k; returns its loss. Rates: linear warm-up, then a cosine to 0."""
    c, (x, y, ids) = f.config, f.batch(k)
    runs.seed_global(c.seed, "finetune dropout", k)
    f.E.train(), f.C.train()
    with autocast(c, x.device):
        logits = f.C(f.E.features(x, c.pool))
    loss = F.cross_entropy(logits.float(), y, label_smoothing=c.smoothing)
    f.finite(loss, "finetuning", k, ids)
    loss.backward()
    factor = runs.schedule("cosine", k, f.updates, c.warmup_epochs * f.epoch)
    for group in f.optimizer.param_groups:
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
