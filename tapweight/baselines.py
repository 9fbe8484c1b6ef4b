"""What TapWeight is compared with: pretraining under fixed weights, and two levels instead of three."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared import protocol, runs

from . import method
from .method import Facts, Levels, Loss, Losses

# ------------------------------------------------------------------------------------------------- fixed weights


def fixed_weights(rule: str, names: Sequence[str], seed: int, uses: dict[str, str]) -> Tensor:
    """(K,) weights of continued pretraining that nothing learns.

    uniform: 1 / K. one:NAME: that objective alone. random: Dirichlet(1), our control. learned: those that the run of arm
    tapweight ended with. best: those of the candidate among `uses` with the best validation score (a grid search)."""
    K = len(names)
    if rule == "uniform":
        return torch.full((K,), 1.0 / K)
    if rule.startswith("one:"):
        name = rule.removeprefix("one:")
        if name not in names:
            raise protocol.unknown(name, names, "weights: one:")
        return torch.eye(K)[list(names).index(name)]
    if rule == "random":
        exponential = -torch.rand(
            K, generator=runs.stream(seed, "random weights"), dtype=torch.float64
        ).log()
        return (exponential / exponential.sum()).float()
    if rule == "learned":
        return read_weights(uses, "tapweight", names)
    if rule == "best":
        scores = {
            a: (protocol.read_record(Path(d)) or {})["validation"]["score"]
            for a, d in uses.items()
            if a.startswith("grid-")
        }
        if not scores:
            raise runs.BadInput(
                "weights = best chooses among the grid-... runs it uses; none is listed"
            )
        return read_weights(uses, max(scores, key=lambda arm: scores[arm]), names)
    raise runs.BadInput(
        f"weights '{rule}' is unknown; it is uniform, random, learned, best or one:NAME"
    )


def read_weights(uses: dict[str, str], arm: str, names: Sequence[str]) -> Tensor:
    if arm not in uses:
        raise runs.BadInput(
            f"the weights of arm '{arm}' are asked for; list it under uses, or give --uses.{arm} DIR"
        )
    found = json.loads((Path(uses[arm]) / "weights.json").read_text())
    if found["names"] != list(names):
        raise runs.BadInput(
            f"{uses[arm]}/weights.json weighs {found['names']}, this task has {list(names)}"
        )
    return torch.tensor(found["weights"])


# ------------------------------------------------------------------------------------------- two levels (row 17)


class TwoLevels(Levels):
    """The ablation: pretraining and finetuning losses summed on one encoder, weights from the validation loss.

    theta, w: grad of sum_k lam_k L_k + L_task(D_tr), one step; then h_k = -< grad_theta L_val, g_k >: no phi, no gamma, and
    one identity in place of an inverse Hessian instead of two. `phi` is `theta`."""

    def cycle(
        self,
        level_one: Sequence[Sequence[Losses]],
        level_two: Sequence[Loss],
        validation_loss: Loss,
        learn: bool = True,
        watch: bool = False,
    ) -> Facts:
        lam, K = method.weights(self.alpha), len(self.alpha)
        train = torch.tensor(0.0)
        for micro_batches, task_loss in zip(level_one, level_two, strict=True):
            values = torch.zeros(K)
            self.optimizers[0].zero_grad(set_to_none=True)
            for losses in micro_batches:
                with self.autocast():
                    found = torch.stack([loss.float() for loss in losses()])
                ((lam.to(found.device) * found).sum() / len(micro_batches)).backward()
                values += found.detach().cpu() / len(micro_batches)
            with self.autocast():
                train = task_loss()
            train.backward()
            self.optimizers[0].step()
        facts = Facts(values, float(train.detach()))
        if learn:
            v, validation = method.validation_gradient(validation_loss, self.theta_e)
            facts.validation = float(validation)
            used = level_one[-1] if self.whole else level_one[-1][-1:]
            facts.found = method.alignment(used, self.theta_e, v, K, self.mode, self.radius)
            method.level_three_step(
                self.optimizers[2], self.alpha, facts.found, self.normalise, self.entropy
            )
        return facts


def plain_cycle(
    optimizer: torch.optim.Optimizer,
    level_one: Sequence[Sequence[Losses]],
    lam: Tensor,
    autocast: method.Precision = contextlib.nullcontext,
) -> Facts:
    """Continued pretraining under fixed weights: Level I alone."""
    values = [
        method.level_one_step(optimizer, micro_batches, lam, autocast)
        for micro_batches in level_one
    ]
    return Facts(torch.stack(values).mean(0), float("nan"))


def optimizer(
    kind: str, parameters: Sequence[nn.Parameter] | Sequence[Tensor], lr: float, weight_decay: float
) -> Any:
    """adam: coupled weight decay, as in the official NLP code. sgd: momentum 0.9, as in its molecule code. plain: neither."""
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, foreach=True)
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    if kind == "plain":
        return torch.optim.SGD(parameters, lr=lr)
    raise runs.BadInput(f"optimizer '{kind}' is unknown; it is adam, sgd or plain")


def schedule(kind: str, step: int, steps: int, warmup: float) -> float:
    """Factor of the rate at `step`. linear: up over `warmup` of the steps, then down to 0. step: x 0.9 every 100 steps."""
    if kind == "linear":
        ramp = int(warmup * steps)
        return (step + 1) / (ramp + 1) if step < ramp else (steps - step) / max(1, steps - ramp)
    if kind == "step":
        return 0.9 ** (step // 100)
    if kind == "constant":
        return 1.0
    raise runs.BadInput(f"schedule '{kind}' is unknown; it is linear, step or constant")
