"""What AutoLoRA is compared with, and the controls that could explain its gain without the idea.

full        every weight (at scale cpu: of the same two blocks) is fine-tuned
uniform     the same rank everywhere; `equal` = the learned total, spread as evenly as it goes
grid        the best uniform rank by held-out score
AdaLoRA     one run that prunes singular triplets under a global budget, the learned total (peft)
permuted    the learned ranks on the wrong maps: the same budget, the same multiset (control of claims 1, 8)
random      i.i.d. logits of the observed spread through the same threshold: the noise law (control of claim 6)
spectral    the spectrum of one plain LoRA run: no second level at all
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora.method import count, patterns, spectral_rank, start_A
from autolora.official import ranks_from_list

# --- ranks -------------------------------------------------------------------------------------------------------


def uniform(names: Sequence[str], rank: int) -> dict[str, int]:
    return dict.fromkeys(names, rank)


def equal_budget(ranks: Mapping[str, int]) -> dict[str, int]:
    """Uniform at exactly the same total: the remainder goes, one each, to the last maps."""
    low, extra = divmod(sum(ranks.values()), len(ranks))
    return {name: low + (i >= len(ranks) - extra) for i, name in enumerate(ranks)}


def nearest_budget(ranks: Mapping[str, int]) -> dict[str, int]:
    """Uniform at the nearest total, halves rounded up."""
    return uniform(list(ranks), math.floor(sum(ranks.values()) / len(ranks) + 0.5))


def permuted(ranks: Mapping[str, int], generator: torch.Generator) -> dict[str, int]:
    """The same multiset on other maps; a permutation that changes something, where one exists."""
    values = torch.tensor(list(ranks.values()))
    shuffled = values
    while len(set(values.tolist())) > 1 and torch.equal(shuffled, values):
        shuffled = values[torch.randperm(len(values), generator=generator)]
    return dict(zip(ranks, shuffled.tolist(), strict=True))


def random_ranks(beta: Mapping[str, Sequence[float]], generator: torch.Generator) -> dict[str, int]:
    """The noise law: normal logits with the spread that the learned ones have within a map, same threshold 1/k."""
    logits = torch.tensor([list(b) for b in beta.values()], dtype=torch.float64)  # (M, k)
    sigma = (
        (logits - logits.mean(1, keepdim=True))
        .pow(2)
        .sum()
        .div(logits.numel() - len(logits))
        .sqrt()
    )
    drawn = sigma * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    return {name: count(alpha) for name, alpha in zip(beta, torch.softmax(drawn, 1))}


def choose(
    rule: str, found: dict[str, Any] | None, names: Sequence[str], generator: torch.Generator
) -> dict[str, int]:
    """Ranks of a retraining arm: `learned`, `norm_weighted`, `spectral`, `permuted`, `random`, `equal`, `nearest`
    from a search's `ranks.json` (`found`), or from a number, or from a list of numbers as the official code has it."""
    values = [int(word) for word in rule.split(",")] if rule.replace(",", "").isdigit() else []
    if values:
        return uniform(names, values[0]) if len(values) == 1 else ranks_from_list(values, names)
    rules = {
        "learned": lambda: dict(found["ranks"]),
        "norm_weighted": lambda: dict(found["rules"]["norm_weighted"]),
        "spectral": lambda: dict(found["rules"]["spectral"]),
        "permuted": lambda: permuted(found["ranks"], generator),
        "random": lambda: random_ranks(found["beta"], generator),
        "equal": lambda: equal_budget(found["ranks"]),
        "nearest": lambda: nearest_budget(found["ranks"]),
    }
    if rule not in rules:
        raise ValueError(
            f"ranks = '{rule}' must be a number, a list of {len(names)} numbers, or one of {', '.join(rules)}"
        )
    if found is None:
        raise ValueError(f"ranks = '{rule}' needs the directory of a search (--uses.search DIR)")
    return rules[rule]()


def read_ranks(directory: Path) -> dict[str, Any]:
    """`ranks.json` of a search or of a spectral probe."""
    return json.loads((Path(directory) / "ranks.json").read_text())


# --- LoRA through peft -------------------------------------------------------------------------------------------


def lora(
    model: nn.Module,
    ranks: Mapping[str, int],
    k: int,
    head: str,
    draw: Any,
    c: float = 16.0,
    scale: str = "per_rank",
    dropout: float = 0.1,
    bias: str = "none",
) -> nn.Module:
    """The model with plain LoRA of rank r_l in map l: peft's `rank_pattern`, fresh A, B = 0, head trainable."""
    from peft import LoraConfig

    config = LoraConfig(
        **patterns(ranks, k, c, scale),
        lora_dropout=dropout,
        bias=bias,
        modules_to_save=[head] if head else None,
    )
    wrapped = _wrapped(model, config)
    for name, layer in lora_layers(wrapped).items():
        start_A(layer.lora_A["default"].weight, draw(name))
    return wrapped


def _wrapped(model: nn.Module, config: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # peft asks transformers for a property that is being renamed
        return get_peft_model(model, config)


def lora_layers(wrapped: nn.Module) -> dict[str, Any]:
    """Full module name in the original model -> peft's LoRA (or AdaLoRA) layer."""
    prefix = "base_model.model."
    return {
        n.removeprefix(prefix): m
        for n, m in wrapped.named_modules()
        if hasattr(m, "lora_A") and hasattr(m, "scaling")
    }


def ranks_read_back(wrapped: nn.Module) -> dict[str, int]:
    """The rank that each map really has. peft ignores a pattern key that matches nothing, hence this."""
    return {
        name: int(layer.lora_A["default"].weight.shape[0])
        for name, layer in lora_layers(wrapped).items()
    }


def spectral_ranks(wrapped: nn.Module) -> dict[str, int]:
    """Singular values of each trained update above 10 % of its largest."""
    found = {}
    for name, layer in lora_layers(wrapped).items():
        left, right = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        found[name] = spectral_rank(left.detach().cpu(), right.detach().cpu())
    return found


# --- AdaLoRA through peft ----------------------------------------------------------------------------------------


def adalora(
    model: nn.Module,
    names: Sequence[str],
    total: int,
    steps: int,
    head: str,
    c: float = 16.0,
    dropout: float = 0.1,
):
    """AdaLoRA whose final budget is `total` triplets over all maps, starting from half as many again.

    Pruning begins after a tenth of the steps and ends at six tenths; beta1 = beta2 = 0.85, orthogonality 0.5."""
    from peft import AdaLoraConfig

    start = math.ceil(1.5 * total / len(names))
    config = AdaLoraConfig(
        init_r=start, target_r=max(1, total // len(names)), lora_alpha=c, lora_dropout=dropout,
        target_modules=list(names), modules_to_save=[head] if head else None,
        tinit=max(1, steps // 10), tfinal=max(1, 4 * steps // 10), deltaT=max(1, steps // 100), total_step=steps,
        beta1=0.85, beta2=0.85, orth_reg_weight=0.5,
    )  # fmt: skip
    wrapped = _wrapped(model, config)
    wrapped.base_model.rankallocator.target_bgt = (
        total  # target_r is per map; this makes the total exact
    )
    return wrapped


def orthogonality(wrapped: nn.Module) -> Tensor:
    """Mean over P and Q of |P P^T - I|_F; peft adds it only to models that return their own loss."""
    parts = []
    for layer in lora_layers(wrapped).values():
        for factor in (layer.lora_A["default"], layer.lora_B["default"].T):
            parts.append(
                torch.linalg.norm(factor @ factor.T - torch.eye(len(factor), device=factor.device))
            )
    return torch.stack(parts).mean()


def adalora_ranks(wrapped: nn.Module) -> dict[str, int]:
    """Triplets left in each map: peft's final pattern is a mask, not a number."""
    masks = wrapped.peft_config["default"].rank_pattern or {}
    kept = {
        n.split(".lora_E")[0].removeprefix("base_model.model.").removeprefix("model."): sum(m)
        for n, m in masks.items()
    }
    return {
        name: int(kept.get(name, len(layer.lora_A["default"])))
        for name, layer in lora_layers(wrapped).items()
    }


def allocator_state(wrapped: nn.Module) -> dict[str, Any]:
    """What AdaLoRA remembers between steps beside its parameters; for checkpoints."""
    allocator = wrapped.base_model.rankallocator
    smoothed = {
        "ipt": allocator.ipt,
        "mean": allocator.exp_avg_ipt,
        "uncertainty": allocator.exp_avg_unc,
    }
    return {**smoothed, "pattern": wrapped.peft_config["default"].rank_pattern}


def restore_allocator(wrapped: nn.Module, state: dict[str, Any], device: torch.device) -> None:
    allocator = wrapped.base_model.rankallocator
    moved = {
        key: {n: t.to(device) for n, t in state[key].items()}
        for key in ("ipt", "mean", "uncertainty")
    }
    allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc = (
        moved["ipt"],
        moved["mean"],
        moved["uncertainty"],
    )
    wrapped.peft_config["default"].rank_pattern = state["pattern"]


# --- full fine-tuning --------------------------------------------------------------------------------------------


def unfreeze(model: nn.Module) -> None:
    """Train every weight of the model that the retraining sees (embeddings included, where it has them)."""
    model.requires_grad_(True)
