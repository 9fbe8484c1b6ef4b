"""TapWeight: learn the weights of pretraining objectives from the downstream validation loss, then finetune.

What to expect. `--scale cpu`: MiniLM's two top blocks on ten-way docstring classification (chance 10 %), 10 to 30 s a run on
one core; a run on planted digits takes 3 s. `--scale gpu`: MiniLM on GLUE, ResNet-18 on MoleculeNet. `--scale paper`:
RoBERTa-base and DeBERTa-v3-large on GLUE, RCT, AGNews, IMDB. Commands and expected hours: README.md, `make help`.

    python -m tapweight.train --tiny                                       a minute at most, nothing to download
    python -m tapweight.train --scale cpu --arm tapweight --seed 0         the base first, if it is missing
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared import processes, protocol, runs, vectors
from tapweight import (
    baselines,
    data,
    evaluate,
    images,
    language,
    method,
    molecules,
    official,
    planted,
)
from tapweight.config import Config

# write export/: a transformers checkpoint (language) or safetensors (molecules)


class Domain(Protocol):
    """What a task's family offers: data, networks and losses. `planted`, `language` and `images` hold one each."""

    names: tuple[str, ...]
    kind: str
    metric: str
    outputs: int
    items: dict[str, np.ndarray]  # item ids of train, validation, test
    encoder: nn.Module
    heads: nn.ModuleDict

    @property
    def sizes(self) -> tuple[int, int, int]: ...  # of D_u, D_tr, D_val
    def losses(
        self, encoder: Any, heads: Any, rows: Tensor, step: int, micro: int
    ) -> list[Tensor]: ...
    def head(self, *names: object) -> nn.Module: ...
    def task_loss(self, encoder: nn.Module, head: nn.Module, part: str, rows: Tensor) -> Tensor: ...
    def predict(self, encoder: nn.Module, head: nn.Module, part: str) -> dict[str, Any]: ...


CHOICES = {
    "pretrain": ("none", "base", "fixed", "tapweight", "blo"),
    "mode": method.MODES,
    "normalise": ("none", "cosine"),
    "preset": ("paper", "code"),
    "optimizer": ("adam", "sgd"),
    "optimizer_III": ("adam", "plain"),
    "schedule": ("linear", "step", "constant"),
    "base_trains": ("heads", "all"),
    "finetune_on": ("labelled", "train"),
    "precision": ("fp32", "bf16"),
}


def check(config: Config) -> None:
    """Refuse settings that cannot be meant, before anything is loaded."""
    for name, valid in CHOICES.items():
        if getattr(config, name) not in valid:
            raise runs.BadInput(
                f"{name} = '{getattr(config, name)}' must be one of {', '.join(valid)}"
            )
    if config.gamma < 0:
        raise runs.BadInput(
            f"gamma = {config.gamma}: the strength of the proximal term is 0 or more"
        )
    if config.normalise == "cosine" and config.mode != "exact-dot":
        raise runs.BadInput(
            f"normalise = cosine needs |g_k|, which mode '{config.mode}' does not compute; use exact-dot"
        )
    if config.independent_masks and config.mode != "finite-difference":
        raise runs.BadInput(
            f"independent_masks: mode '{config.mode}' has no two evaluations; use finite-difference"
        )
    for name in (
        "batch_I",
        "batch_II",
        "batch_III",
        "finetune_batch",
        "micro_batches",
        "steps_I",
        "steps_II",
    ):
        if getattr(config, name) < 1:
            raise runs.BadInput(f"{name} = {getattr(config, name)} must be at least 1")


def domain_of(config: Config, device: torch.device, say: Callable[[str], None]) -> Domain:
    """full: with D_u and the objectives, which an arm without pretraining does not need."""
    full = config.pretrain != "none"
    if config.task in ("planted", "tiny"):
        return planted.Planted(config.seed, device)
    if config.task in molecules.SETS:
        return images.Images(config, device, full, say)
    if config.task in data.TASKS:
        return language.Language(config, device, full)
    valid = (*data.TASKS, *molecules.SETS, "planted")
    raise runs.BadInput(f"unknown task '{config.task}'; one of: {', '.join(valid)}")


class Batches:
    """Rows of batch t: reshuffled every epoch from a stream of its own, which does not know the arm."""

    def __init__(self, n: int, size: int, seed: int, name: str):
        self.n, self.size, self.seed, self.name = n, min(size, n), seed, name
        self.per_epoch = n // self.size
        self.epoch, self.order = -1, torch.arange(n)

    def __call__(self, t: int) -> Tensor:
        epoch, place = divmod(t, self.per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = torch.randperm(self.n, generator=runs.stream(self.seed, self.name, epoch))
        return processes.shard(self.order[place * self.size : (place + 1) * self.size])


# -------------------------------------------------------------------------------------------- continued pretraining


class Pretraining:
    """State of the first phase; `step` is one cycle (or, under fixed weights, its Level I part)."""

    def __init__(self, config: Config, run: runs.Run, domain: Domain, device: torch.device):
        self.config, self.run, self.domain, self.device = config, run, domain, device
        self.total = {"none": 0, "base": config.base_steps}.get(config.pretrain, config.steps)
        if config.pretrain == "fixed":
            self.total = round(config.steps * config.steps_factor)
        self.learned = config.pretrain in ("tapweight", "blo")
        self.evaluations, self.seconds = 0, [0.0, 0.0, 0.0]
        self.worst_cosine = 1.0
        if config.pretrain == "none":
            return
        n_u, n_tr, n_val = domain.sizes
        size = config.base_batch if config.pretrain == "base" else config.batch_I
        self.unlabelled = Batches(n_u, size, config.seed, "unlabelled")
        self.labelled = Batches(n_tr, config.batch_II, config.seed, "labelled")
        self.held = Batches(n_val, config.batch_III, config.seed, "held")
        K = len(domain.names)
        encoder, heads = domain.encoder, domain.heads
        if config.pretrain == "base":
            trained = [*heads.parameters()] + (
                [*encoder.parameters()] if config.base_trains == "all" else []
            )
            encoder.requires_grad_(config.base_trains == "all")
            self.optimizers = [baselines.optimizer("adam", trained, config.base_lr, 0.0)]
            self.lam = torch.full((K,), 1.0 / K)
        elif config.pretrain == "fixed":
            theta = [*encoder.parameters(), *heads.parameters()]
            self.optimizers = [
                baselines.optimizer(config.optimizer, theta, config.lr_I, config.weight_decay)
            ]
            self.lam = baselines.fixed_weights(
                config.weights, domain.names, config.seed, config.uses
            )
        else:
            self._three_levels(K)

    def _three_levels(self, K: int) -> None:
        config, domain = self.config, self.domain
        encoder, heads = domain.encoder, domain.heads
        two = config.pretrain == "blo"
        self.w = domain.head(config.seed, "head", "level two")
        self.phi = encoder if two else _copy(encoder)
        alpha = method.start_logits(K)
        theta = [*encoder.parameters(), *heads.parameters(), *(self.w.parameters() if two else [])]
        code = config.preset == "code"
        decay = 1e-3 if code and config.optimizer_III == "adam" else config.weight_decay_III
        self.optimizers = [
            baselines.optimizer(config.optimizer, theta, config.lr_I, config.weight_decay),
            baselines.optimizer(
                config.optimizer,
                [*self.phi.parameters(), *self.w.parameters()],
                config.lr_II,
                config.weight_decay,
            ),
            baselines.optimizer(config.optimizer_III, [alpha], config.lr_III, decay),
        ]
        prox = method.SquaredDistance(config.gamma)
        if code:
            absolute = domain.names == language.NAMES
            names = [n for n, p in self.phi.named_parameters() if p.requires_grad]
            squared = frozenset(i for i, n in enumerate(names) if "embedding" in n)
            prox = official.AbsoluteDistance(config.gamma, squared) if absolute else prox
        self.levels = (baselines.TwoLevels if two else method.Levels)(
            encoder, self.phi, alpha, self.optimizers, prox, config.mode, config.radius or None, config.normalise,
            config.entropy, config.whole_batch, self._autocast,
        )  # fmt: skip
        if code and domain.names == language.NAMES and not two:
            self.levels.more = official.direct_path

    def _autocast(self) -> Any:
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def objectives(self, t: int, micro: int) -> method.Losses:
        """The K losses of micro-batch `micro` of Level I step t: the same masks and dropout whenever it is evaluated."""
        config, domain = self.config, self.domain
        rows = self.unlabelled(t * config.micro_batches + micro)
        evaluation = itertools.count()

        def losses() -> list[Tensor]:
            own = [next(evaluation)] if config.independent_masks else []  # README, row 21
            runs.seed_global(config.seed, "dropout I", t, micro, *own)
            found = domain.losses(domain.encoder, domain.heads, rows, t, micro)
            if config.preset == "code" and isinstance(domain, images.Images):
                found = official.zero_mask_contrast(found)
            for name, loss in zip(domain.names, found):
                self.run.finite(loss, f"I ({name})", t, rows)
            return found

        return losses

    def task(self, part: str, batches: Batches, t: int) -> method.Loss:
        rows = batches(t)
        task_loss: Callable[..., Tensor] = self.domain.task_loss
        if self.config.preset == "code" and isinstance(self.domain, language.Language):
            task_loss = functools.partial(task_loss, squared_error=official.broadcast_squared_error)

        def loss() -> Tensor:
            runs.seed_global(self.config.seed, "dropout", part, t)
            found = task_loss(self.phi, self.w, part, rows)
            self.run.finite(found, {"train": "II", "validation": "III"}[part], t, rows)
            return found

        return loss

    def step(self, t: int) -> None:
        config, domain = self.config, self.domain
        factor = baselines.schedule(config.schedule, t, self.total, config.warmup)
        method.set_rates(self.optimizers, [factor] * len(self.optimizers))
        domain.encoder.train()
        domain.heads.train()
        micro, n = config.micro_batches, config.steps_I
        one = [[self.objectives(t * n + i, m) for m in range(micro)] for i in range(n)]
        self.evaluations += n * micro
        if not self.learned:
            facts = baselines.plain_cycle(self.optimizers[0], one, self.lam, self._autocast)
        else:
            self.phi.train()
            self.w.train()
            two = [
                self.task("train", self.labelled, t * config.steps_II + i)
                for i in range(config.steps_II)
            ]
            learn = t >= math.ceil(config.warmup_III * self.total)
            watch = bool(config.watch) and t % config.watch == config.watch - 1
            facts = self.levels.cycle(one, two, self.task("validation", self.held, t), learn, watch)
            used = micro if config.whole_batch else 1
            self.evaluations += config.steps_II + learn * (
                1 + used * {"finite-difference": 2}.get(config.mode, 1)
            )
            self.lam = method.weights(self.levels.alpha)
            self.run.finite(self.lam, "III", t)
            self.seconds = [a + b for a, b in zip(self.seconds, [*facts.seconds, 0, 0, 0])]
        self._log(t, facts)

    def _log(self, t: int, facts: method.Facts) -> None:
        values: dict[str, Any] = {
            "step": t,
            "phase": "pretrain",
            "losses": facts.losses,
            "weights": self.lam,
        }
        if self.learned:
            values |= {"train": facts.train, "validation": facts.validation}
        if facts.found is not None:
            values["h"] = facts.found.h
        if facts.exact is not None:
            values |= {
                "exact_h": facts.exact.h,
                "cosines": facts.exact.gram,
                "norms": facts.exact.norms,
            }
            if facts.found is not None:
                both = [facts.found.h.double()], [facts.exact.h.double()]
                values["agreement"] = vectors.cosine(*both)
                self.worst_cosine = min(self.worst_cosine, values["agreement"])
        self.run.log(**values)

    def state(self) -> dict[str, Any]:
        found = {
            "encoder": self.domain.encoder.state_dict(),
            "optimizers": [o.state_dict() for o in getattr(self, "optimizers", [])],
            "lam": getattr(self, "lam", torch.zeros(0)),
            "counts": [self.evaluations, *self.seconds, self.worst_cosine],
        }
        if self.config.pretrain != "none":
            found["heads"] = self.domain.heads.state_dict()
        if self.learned:
            found |= {
                "phi": self.phi.state_dict(),
                "w": self.w.state_dict(),
                "alpha": self.levels.alpha,
            }
        return found

    def load(self, saved: dict[str, Any]) -> None:
        self.domain.encoder.load_state_dict(saved["encoder"])
        if self.config.pretrain != "none":
            self.domain.heads.load_state_dict(saved["heads"])
            self.lam = saved["lam"]
        for optimizer, state in zip(
            getattr(self, "optimizers", []), saved["optimizers"], strict=True
        ):
            optimizer.load_state_dict(state)
        if self.learned:
            self.phi.load_state_dict(saved["phi"])
            self.w.load_state_dict(saved["w"])
            self.levels.alpha.copy_(saved["alpha"])
        self.evaluations, *self.seconds, self.worst_cosine = saved["counts"]


def _copy(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module)


# ------------------------------------------------------------------------------------------------------- finetuning


class Finetuning:
    """A fresh head on the encoder, AdamW, linear schedule; the same head, batches and dropout for all arms of a seed."""

    def __init__(
        self, config: Config, run: runs.Run, domain: Domain, device: torch.device, offset: int
    ):
        """offset: steps of the first phase, before these."""
        self.config, self.run, self.domain, self.device, self.offset = (
            config,
            run,
            domain,
            device,
            offset,
        )
        _, n_tr, n_val = domain_sizes(domain)
        self.part, n = (
            ("train", n_tr) if config.finetune_on == "train" else ("labelled", n_tr + n_val)
        )
        self.batches = Batches(n, config.finetune_batch, config.seed, "finetune")
        self.total = config.finetune_steps or max(
            1, round(config.finetune_epochs * self.batches.per_epoch)
        )
        self.head = domain.head(config.seed, "head", "finetune")
        self.optimizer: torch.optim.Optimizer | None = None

    def begin(self) -> None:
        parameters = [*self.domain.encoder.parameters(), *self.head.parameters()]
        lr, decay = self.config.finetune_lr, self.config.finetune_weight_decay
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, foreach=True)

    def step(self, t: int) -> None:
        config, domain = self.config, self.domain
        if self.optimizer is None:
            self.begin()
        assert self.optimizer is not None
        domain.encoder.train()
        self.head.train()
        method.set_rates(
            [self.optimizer], [baselines.schedule("linear", t, self.total, config.warmup)]
        )
        rows = self.batches(t)
        runs.seed_global(config.seed, "dropout", "finetune", t)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"
        ):
            loss = domain.task_loss(domain.encoder, self.head, self.part, rows)
        self.run.finite(loss, "finetuning", t, rows)
        loss.backward()
        self.optimizer.step()
        if t % 10 == 0 or t == self.total - 1:
            self.run.log(step=self.offset + t, phase="finetune", loss=loss.item())

    def state(self) -> dict[str, Any]:
        if self.optimizer is None:
            return {}
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        if saved:
            self.begin()
            assert self.optimizer is not None
            self.head.load_state_dict(saved["head"])
            self.optimizer.load_state_dict(saved["optimizer"])


def domain_sizes(domain: Domain) -> tuple[int, int, int]:
    """Sizes of D_u (0 where it was not read), D_tr, D_val."""
    return 0, len(domain.items["train"]), len(domain.items["validation"])


# -------------------------------------------------------------------------------------------------------------- run


def run(config: Config) -> Path:
    check(config)
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        device = runs.device(config)
        domain = domain_of(config, device, run.say)
        run.splits(**domain.items)
        for arm in {"base", "deberta-base"} & set(config.uses):
            load_base(domain, Path(config.uses[arm]))
        first = Pretraining(config, run, domain, device)
        stage = config.pretrain == "base"
        second = None if stage else Finetuning(config, run, domain, device, first.total)

        def save() -> dict[str, Any]:
            return {"first": first.state(), "second": second.state() if second else {}}

        saved = run.resume()
        if saved:
            first.load(saved["first"])
            if second:
                second.load(saved["second"])
        for step in run.steps(
            saved["step"] if saved else 0, first.total + (second.total if second else 0), save
        ):
            if step < first.total:
                first.step(step)
            elif second:
                second.step(step - first.total)
        if stage:
            return finish_base(run, domain, first)
        assert second is not None
        finish(config, run, domain, first, second)
    return run.directory


def load_base(domain: Domain, directory: Path) -> None:
    """What all arms start from: prepared objective heads, and the encoder where the base trained it."""
    path = directory / "base.pt"
    saved = runs.unpack(path.read_bytes(), str(path))
    if saved["encoder"]:
        domain.encoder.load_state_dict(saved["encoder"])
    if hasattr(domain, "heads"):
        domain.heads.load_state_dict(saved["heads"])


def finish_base(run: runs.Run, domain: Domain, first: Pretraining) -> Path:
    encoder = domain.encoder.state_dict() if first.config.base_trains == "all" else {}
    heads = domain.heads.state_dict()
    cpu = lambda state: {k: v.detach().cpu() for k, v in state.items()}  # noqa: E731
    runs.write_bytes(
        run.directory / "base.pt", runs.pack({"encoder": cpu(encoder), "heads": cpu(heads)})
    )
    run.finish(state=[*encoder.values(), *heads.values()], gradient_evaluations=first.evaluations)
    return run.directory


def predictions(
    config: Config, domain: Domain, found: dict[str, Any], lam: Tensor | None
) -> dict[str, Any]:
    """Rows of predictions.npz; names with `_` are not per item."""
    more: dict[str, Any] = {"_kind": np.int64(evaluate.KINDS.index(domain.metric))}
    if lam is not None:
        more["_weights"] = lam.numpy().astype(np.float64)
    if isinstance(domain, planted.Planted):
        more["_planted"] = np.int64(planted.ALIGNED)
    return {k: np.asarray(v) for k, v in found.items()} | more


def finish(
    config: Config, run: runs.Run, domain: Domain, first: Pretraining, second: Finetuning
) -> None:
    """Predictions, gates, record, export."""
    lam = first.lam if config.pretrain != "none" else None
    domain.encoder.eval()
    second.head.eval()
    found = predictions(config, domain, domain.predict(domain.encoder, second.head, "test"), lam)
    validation = {}
    part = "held" if config.score_held and "held" in domain.items else "validation"
    if part == "held" or config.finetune_on == "train":
        held = predictions(config, domain, domain.predict(domain.encoder, second.head, part), None)
        validation = evaluate.score(held)
    if lam is not None:
        runs.write_json(
            run.directory / "weights.json", {"names": domain.names, "weights": lam.tolist()}
        )
    if first.learned:
        # in float32 a softmax below 1e-45 reads 0
        on = bool((lam >= 0).all()) and abs(float(lam.double().sum()) - 1) < 1e-5  # type: ignore[union-attr]
        run.gate("weights-on-simplex", on, f"weights {[round(x, 4) for x in lam.tolist()]}")  # type: ignore[union-attr]
        if config.watch and config.pretrain == "tapweight":
            detail = (
                f"smallest cosine with the exact gradient of the weights {first.worst_cosine:.6f}"
            )
            run.gate("gradient-of-weights", first.worst_cosine > 0.99, detail)
    if config.task == "planted" and config.pretrain == "tapweight" and config.seed % 100 == 0:
        quadratic(run, config.seed)
    run.predictions(**found)
    exports = []
    if config.export and not isinstance(domain, planted.Planted):
        domain.export(domain.encoder, second.head, run.directory / "export")  # type: ignore[attr-defined]
        write_card(config, domain, run.directory / "export")
        exports = ["export"]
    evaluations = first.evaluations + second.total
    run.finish(
        metrics={
            **evaluate.score(found),
            "gradient_evaluations": evaluations,
            "cost": evaluations + searched(config),
        },
        validation=validation,
        state=[*domain.encoder.state_dict().values(), *second.head.state_dict().values()],
        gradient_evaluations=evaluations,
        selection="last",
        chosen_step=first.total + second.total,
        exports=exports,
        steps={"pretrain": first.total, "finetune": second.total},
        level_seconds=dict(zip(("I", "II", "III"), [round(s, 3) for s in first.seconds]))
        if first.learned
        else {},
    )


def searched(config: Config) -> int:
    """Gradient evaluations of the runs that this one learned its weights from; the base is common to all arms."""
    used = [
        protocol.read_record(Path(d)) or {}
        for arm, d in config.uses.items()
        if not arm.endswith("base")
    ]
    return sum(int(record["gradient_evaluations"]) for record in used)


def quadratic(run: runs.Run, first: int) -> None:
    """A1, in the run of a block's first seed: twenty quadratic problems, drawn from that seed and the nineteen after it."""
    from tapweight import toys

    improved, worst = toys.gate(20, first)
    run.gate(
        "quadratic",
        improved >= 18,
        f"the exact outer loss falls below that of uniform weights in {improved} of 20",
    )
    run.gate("exact-implicit", worst < 1e-6, f"relative error against the closed form: {worst:.1e}")


def write_card(config: Config, domain: Domain, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    what = "AutoModel.from_pretrained; head.safetensors: dense, tanh, dropout, linear on the first token"
    if isinstance(domain, images.Images):
        what = "encoder.safetensors: tapweight.images.ResNet18; head.safetensors: a linear layer"
    (directory / "README.md").write_text(
        f"# {config.task}\n\nMade by arm `{config.arm}` of TapWeight (arXiv 2410.10006), scale `{config.scale}`, seed "
        f"{config.seed}.\nBase model: {config.model if config.task in data.TASKS else 'ResNet-18 trained here'}; its licence "
        f"applies to these weights, the terms of the data to their use.\nLoad: {what}.\n"
    )


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
