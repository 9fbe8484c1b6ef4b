"""What a run leaves behind: the base for other arms; scores, gates, weights and an export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from shared import protocol, runs, vectors
from shared.runs import Run
from tapweight import data, evaluate, images, language, method, planted
from tapweight.config import Config
from tapweight.domain import Domain, Part, Predictions


@dataclass
class Pretrained:
    """What is noted of the continued pretraining. lam: (K,) weights, None without pretraining."""

    lam: Tensor | None = None
    steps: int = 0
    seconds: list[float] = field(default_factory=list)  # of Levels I, II, III
    agreement: list[float] = field(default_factory=list)  # cosines with the exact gradient of lam


def load_base(domain: Domain, directory: str) -> None:
    """What all arms start from: prepared heads, and the encoder where the base trained it."""
    path = Path(directory) / "base.pt"
    try:
        saved = runs.unpack(path.read_bytes(), str(path))
        if saved["encoder"]:
            domain.encoder.load_state_dict(saved["encoder"])
        if hasattr(domain, "heads"):
            domain.heads.load_state_dict(saved["heads"])
    except (OSError, RuntimeError) as error:  # of another model, or of a job that writes none
        what = " ".join(str(error).split())[:300]
        raise runs.BadInput(f"{path} is no base of this model ({what}); train it again") from error


def finish_base(config: Config, run: Run, domain: Domain, pretrained: Pretrained) -> None:
    """base.pt and the record of job base, which has no score."""
    encoder = domain.encoder.state_dict() if config.base_trains == "all" else {}
    heads = domain.heads.state_dict()
    cpu = {
        name: {k: v.detach().cpu() for k, v in state.items()}
        for name, state in (("encoder", encoder), ("heads", heads))
    }
    runs.write_bytes(run.directory / "base.pt", runs.pack(cpu))
    count = gradient_evaluations(config, pretrained.steps)
    run.finish(state=[*encoder.values(), *heads.values()], gradient_evaluations=count)


def finish(
    config: Config,
    run: Run,
    domain: Domain,
    head: nn.Module,
    pretrained: Pretrained,
    finetuned: int,
    test: Predictions,
    choices: Predictions | None,
) -> None:
    """Everything else. finetuned: steps; choices: predictions for choices between settings."""
    lam, predictions = pretrained.lam, scored(domain, test, pretrained.lam)
    if lam is not None:
        weights = {"names": domain.names, "weights": lam.tolist()}
        runs.write_json(run.directory / "weights.json", weights)
    if lam is not None and config.job in ("tapweight", "blo"):
        check_weights(config, run, lam, pretrained.agreement)
    if (config.task, config.job) == ("planted", "tapweight") and config.seed % 100 == 0:
        check_quadratic(run, config.seed)
    run.predictions(**predictions)
    count = gradient_evaluations(config, pretrained.steps) + finetuned
    costs = {"gradient_evaluations": count, "cost": count + cost_of_search(config.uses)}
    seconds = [round(s, 3) for s in pretrained.seconds]
    run.finish(
        metrics=evaluate.score(predictions) | costs,
        validation=evaluate.score(scored(domain, choices, None)) if choices else {},
        state=[*domain.encoder.state_dict().values(), *head.state_dict().values()],
        gradient_evaluations=count,
        chosen_step=pretrained.steps + finetuned,
        exports=export(config, domain, head, run.directory / "export") if config.export else [],
        steps={"pretrain": pretrained.steps, "finetune": finetuned},
        level_seconds=dict(zip(("I", "II", "III"), seconds)),
    )


def scored(domain: Domain, predictions: Predictions, lam: Tensor | None) -> dict[str, np.ndarray]:
    """Arrays of predictions.npz; names with `_` are not per item. lam: (K,) or None."""
    more: dict[str, np.ndarray] = {"_kind": np.array(evaluate.KINDS.index(domain.metric))}
    if lam is not None:
        more["_weights"] = lam.numpy().astype(np.float64)
    if isinstance(domain, planted.Planted):
        more["_planted"] = np.array(planted.ALIGNED)
    return {k: np.asarray(v) for k, v in predictions.items()} | more


def part_for_choices(config: Config) -> Part | None:
    """What choices between settings are made on, never on test: items the finetuning left out."""
    if config.score_spare:
        return "spare"
    return "validation" if config.finetune_on == "train" else None


def compare(
    levels: method.Levels,
    three: tuple[method.Loss, Sequence[method.Losses]],
    h: Tensor | None,
    agreement: list[float],
) -> dict[str, Tensor | float | None]:
    """The exact gradient of the weights beside h (K,); their cosine joins `agreement`."""
    v, _ = method.validation_gradient(three[0], levels.phi)
    exact = method.gradient_of_weights(levels, three[1], v, "exact-dot")
    values = {"exact_h": exact.h, "cosines": exact.gram, "norms": exact.norms}
    if h is None:  # the weights warm up
        return {**values}
    agreement.append(vectors.cosine([h.double()], [exact.h.double()]))
    return {**values, "agreement": agreement[-1]}


def check_weights(config: Config, run: Run, lam: Tensor, agreement: list[float]) -> None:
    """The gates of learned weights. agreement: cosines with the exact gradient, where watched."""
    # in float32 a softmax below 1e-45 reads 0
    on = bool((lam >= 0).all()) and abs(float(lam.double().sum()) - 1) < 1e-5
    run.gate("weights-on-simplex", on, f"weights {[round(x, 4) for x in lam.tolist()]}")
    if config.watch and config.job == "tapweight":
        worst = min([1.0, *agreement])
        detail = f"smallest cosine with the exact gradient of the weights {worst:.6f}"
        run.gate("gradient-of-weights", worst > 0.99, detail)


def check_quadratic(run: Run, first: int) -> None:
    """The gates of A1 (docs/papers/tapweight.md, section 9), in the run of a block's first seed:
    twenty problems drawn from that seed and the nineteen after it."""
    from tapweight import toys

    improved, worst = toys.gate(20, first)
    what = "the exact outer loss falls below that of uniform weights"
    run.gate("quadratic", improved >= 18, f"{what} in {improved} of 20")
    run.gate("exact-implicit", worst < 1e-6, f"relative error against the closed form: {worst:.1e}")


def warm_up(config: Config) -> int:
    """Cycles in which the weights stay uniform."""
    return math.ceil(config.warmup_III * config.steps)


def gradient_evaluations(config: Config, steps: int) -> int:
    """Of `steps` steps or cycles of pretraining: backward passes, and probes for the weights."""
    count = steps * config.steps_I * config.micro_batches
    if config.job in ("tapweight", "blo"):
        probes = 2 if config.mode == "finite-difference" else 1
        probes *= config.micro_batches if config.whole_batch else 1
        learning = max(0, steps - warm_up(config))
        count += steps * config.steps_II + learning * (1 + probes)
    return count


def cost_of_search(uses: Mapping[str, str]) -> int:
    """Gradient evaluations of the runs that this one learned its weights from.

    The base, common to all arms, does not count."""
    used = [protocol.read_record(Path(d)) or {} for a, d in uses.items() if not a.endswith("base")]
    return sum(int(record["gradient_evaluations"]) for record in used)


def export(config: Config, domain: Domain, head: nn.Module, directory: Path) -> list[str]:
    """The model for others to load, and its card. Planted digits are of no use to them."""
    if isinstance(domain, language.Language):
        load = "AutoModel.from_pretrained; head.safetensors: dense, tanh, dropout, linear on the "
        load += "first token"
    elif isinstance(domain, images.Images):
        load = "encoder.safetensors: tapweight.images.ResNet18; head.safetensors: a linear layer"
    else:
        return []
    domain.export(head, directory)
    base = config.model if config.task in data.TASKS else "ResNet-18 trained here"
    (directory / "README.md").write_text(
        f"# {config.task}\n\nMade by arm `{config.arm}` of TapWeight (arXiv 2410.10006), scale "
        f"`{config.scale}`, seed {config.seed}.\nBase model: {base}; its licence applies to these "
        f"weights, the terms of the data to their use.\nLoad: {load}.\n",
        encoding="utf-8",
    )
    return ["export"]
