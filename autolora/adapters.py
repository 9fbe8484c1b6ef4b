"""What retraining trains: plain LoRA with given ranks, every weight, or AdaLoRA.

AdaLoRA is the opponent that prunes singular triplets under a global budget in one run (peft's).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora import grid, maps, method, official, ranks
from autolora.config import Config
from autolora.maps import lora_layers
from autolora.method import with_peft
from autolora.models import Network
from autolora.ranks import Ranks
from autolora.setting import Setting
from shared import bundled, runs
from shared.runs import BadInput, Run

ORTHOGONALITY = 0.5  # weight of |P P^T - I| in the loss; peft's default
FEWEST = 3  # steps of AdaLoRA: at least one before, one while and one after it prunes


def adapted(
    config: Config, run: Run, setting: Setting, adapt: dict[str, nn.Module], total: int
) -> tuple[nn.Module, Ranks]:
    """The network with what this arm trains, and the rank of every map ({} where there is none).

    adapt: maps; total: training steps."""
    model, head = setting.network.model, setting.network.head
    if config.adapter == "full":
        return model.requires_grad_(True), {}
    if config.adapter == "adalora":
        budget = ranks.read(used(config))["budget"]
        runs.seed_global(config.seed, "adalora")
        wrapped = adalora(model, list(adapt), budget, total, head, config.c, config.lora_dropout)
        return wrapped.to(setting.device).train(), {}
    rule, search = config.ranks, None
    if rule == "grid":
        rule = str(grid.best_of(config)[1])
    elif config.uses:
        search = ranks.read(used(config))
    stream = runs.stream(config.seed, "control ranks", rule)
    chosen = ranks.choose(rule, search, adapt, stream, setting.task.true_ranks)
    if config.rank_total:
        chosen = ranks.scaled(chosen, config.rank_total)
    ranks.check(chosen, adapt)
    wrapped = method.lora(
        model,
        chosen,
        config.k,
        head,
        setting.draw,
        config.c,
        config.scale_rule,
        config.lora_dropout,
        config.bias,
    )
    built = maps.ranks_read_back(wrapped)
    detail = f"wanted {list(chosen.values())}, built {list(built.values())}"
    run.gate("ranks-read-back", built == chosen, detail)
    if search and rule in ("permuted", "equal", "random"):
        gate_control(run, rule, search["ranks"], chosen)
    return wrapped.to(setting.device).train(), chosen


def selection(config: Config, network: Network) -> dict[str, Any]:
    """What a search tells `method.attach` beside its first arguments: the defaults, or habits."""
    start = official.start(config.weights, config.k, config.beta_init)
    weigh = official.WEIGHTS[config.weights]
    named = {"pattern": network.pattern, "dropout": config.search_dropout}
    return {**named, "beta_init": start, "weigh": weigh}


def gate_control(run: Run, rule: str, learned: Ranks, chosen: Ranks) -> None:
    """Whether a control has the learned budget, and other maps where a permutation can differ."""
    before, after = sorted(learned.values()), sorted(chosen.values())
    same = before == after if rule == "permuted" else sum(before) == sum(after)
    run.gate("equal-budget", same, f"{rule}: {after}, learned: {before}")
    if rule == "permuted":
        alike = chosen == learned and len(set(before)) > 1
        detail = f"learned {list(learned.values())}, permuted {list(chosen.values())}"
        run.gate("permutation-differs", not alike, detail)


def used(config: Config) -> Path:
    """Directory of the one run that this one uses."""
    if len(config.uses) != 1:
        number = f"it has {', '.join(config.uses) or 'none'}; give --uses.search DIR"
        raise BadInput(f"arm '{config.arm}' reads ranks from exactly one run, {number}")
    return Path(next(iter(config.uses.values())))


def export(config: Config, run: Run, setting: Setting, wrapped: Any) -> None:
    """Write the trained adapter, with a README."""
    folder = run.directory / "export"
    base = bundled.MINILM if config.model == "minilm" else config.model
    save(wrapped, folder, base)
    loaded = LOADED[setting.task.kind].format(base, setting.task.outputs)
    text = EXPORTED.format(**{**vars(config), "model": base, "loaded": loaded})
    (folder / "README.md").write_text(text, encoding="utf-8")


def save(wrapped: Any, folder: Path, base: str | None = None) -> None:
    """Write a trained adapter in peft's format, for the stock model of the name `base`: what was
    learned on a split projection (`maps.split_fused`) is put together again."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = copy.deepcopy(wrapped.peft_config["default"])
    settings, state = maps.fuse_adapter(settings, get_peft_model_state_dict(wrapped), wrapped)
    settings.inference_mode = True
    settings.base_model_name_or_path = base
    settings.save_pretrained(folder)
    # with bias=all two names are one tensor
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


_LABELLED = "AutoModelForSequenceClassification.from_pretrained('{}', num_labels={})"
LOADED = {
    "classification": _LABELLED,
    "regression": _LABELLED,
    "tagging": "AutoModelForTokenClassification.from_pretrained('{}', num_labels={})",
    "generation": "AutoModelForCausalLM.from_pretrained('{}')",
}
EXPORTED = """# AutoLoRA adapter: {arm}, task {task}, seed {seed}

A peft adapter (`adapter_config.json`, `adapter_model.safetensors`) for the base model `{model}`,
trained at scale `{scale}` ({upper_blocks} upper blocks adapted; 0 means all). Ranks differ between
maps: see `rank_pattern`. It loads on the stock model: `peft.PeftModel.from_pretrained(base,
folder)` with `base = {loaded}` of transformers. Weights:
Apache-2.0 for the adapter; the base model keeps its own licence.
"""


# --- AdaLoRA -------------------------------------------------------------------------------------


def adalora(
    model: nn.Module,
    names: Sequence[str],
    total: int,
    steps: int,
    head: str,
    c: float = 16.0,
    dropout: float = 0.1,
) -> nn.Module:
    """AdaLoRA that ends with `total` triplets over the maps `names`, from half as many again.

    Pruning begins after a tenth of the steps and ends at six tenths. BadInput where the steps are
    too few for that."""
    from peft import AdaLoraConfig

    if steps < FEWEST:
        needed = f"AdaLoRA warms up, prunes and settles, which takes at least {FEWEST}"
        raise BadInput(f"{steps} training steps: {needed}; raise steps (or epochs where steps=0)")
    config = AdaLoraConfig(
        init_r=math.ceil(1.5 * total / len(names)),
        target_r=max(1, total // len(names)),
        lora_alpha=c,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(names),
        modules_to_save=[head] if head else None,
        tinit=max(1, steps // 10),
        tfinal=max(1, 4 * steps // 10),
        deltaT=max(1, steps // 100),
        total_step=steps,
        beta1=0.85,
        beta2=0.85,
        orth_reg_weight=ORTHOGONALITY,
    )
    wrapped = with_peft(model, config)
    # target_r is per map; this makes the total exact
    Allocator(wrapped).allocator.target_bgt = total
    return wrapped


class Allocator:
    """What AdaLoRA does beside a step of its parameters, and what it remembers between steps."""

    def __init__(self, wrapped: nn.Module):
        model: Any = wrapped  # peft adds most of these names at run time
        self.wrapped, self.tuner = wrapped, model.base_model
        self.allocator, self.config = self.tuner.rankallocator, model.peft_config["default"]

    def penalty(self) -> Tensor:
        """Orthogonality: 0.5 times the mean over P and Q of |P P^T - I|_F.

        peft adds it only where a model returns its own loss."""
        norms = []
        for layer in lora_layers(self.wrapped).values():
            for factor in (layer.lora_A["default"], layer.lora_B["default"].T):
                identity = torch.eye(len(factor), device=factor.device)
                norms.append(torch.linalg.norm(factor @ factor.T - identity))
        return ORTHOGONALITY * torch.stack(norms).mean()

    def prune(self, step: int) -> None:
        """After the optimiser's step and before gradients are zeroed: sensitivity needs them."""
        self.tuner.update_and_allocate(step)

    def ranks(self) -> Ranks:
        """Triplets left in each map: peft's final pattern is a mask, not a number."""
        left = {}
        for name, mask in (self.config.rank_pattern or {}).items():
            name = name.split(".lora_E")[0].removeprefix("base_model.model.")
            left[name.removeprefix("model.")] = sum(mask)
        layers = lora_layers(self.wrapped)
        return {n: int(left.get(n, len(layer.lora_A["default"]))) for n, layer in layers.items()}

    def state_dict(self) -> dict[str, Any]:
        sizes = self.allocator
        smoothed = {"mean": sizes.exp_avg_ipt, "uncertainty": sizes.exp_avg_unc}
        return {"ipt": sizes.ipt, **smoothed, "pattern": self.config.rank_pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = next(self.wrapped.parameters()).device

        def moved(key: str) -> dict[str, Tensor]:
            return {name: tensor.to(device) for name, tensor in state[key].items()}

        self.allocator.ipt = moved("ipt")
        self.allocator.exp_avg_ipt = moved("mean")
        self.allocator.exp_avg_unc = moved("uncertainty")
        self.config.rank_pattern = state["pattern"]


def gate_budget(config: Config, run: Run, left: Ranks) -> None:
    """Whether AdaLoRA ended with exactly the learned total."""
    total, budget = sum(left.values()), ranks.read(used(config))["budget"]
    run.gate("adalora-budget", total == budget, f"{total} triplets left, {budget} wanted")
