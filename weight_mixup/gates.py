"""The gates of a model: put on its linear maps, read, described, folded away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared import vectors

from .method import Form, Mixup, coefficient_sum, factored


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps that the method mixes: all in the encoder's blocks, and the pooler.

    A block is an entry of a list of modules inside `base_model` (without one: inside the model), a
    linear map what owns a matrix of floats that is no embedding: `nn.Linear`, and GPT-2's `Conv1D`,
    whose matrix is the transpose (Eq. 2 is its own transpose with u and v exchanged). Fused maps
    (GPT-2's `c_attn`, ModernBERT's `Wqkv`) are one map with one pair of gates. Embeddings,
    LayerNorm, poolers and heads outside `base_model` (they start at random values) are not among
    them (docs/papers/weight_mixup.md, section 3.7)."""
    base = getattr(model, "base_model", model)
    prefix = next((f"{name}." for name, m in model.named_modules() if m is base and name), "")

    def is_mixed(name: str, module: nn.Module) -> bool:
        parts = name.split(".")
        weight = getattr(module, "weight", None)
        matrix = isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()
        inside = any(part.isdigit() for part in parts) or "pooler" in parts
        return matrix and inside and not isinstance(module, nn.Embedding)

    return {prefix + name: m for name, m in base.named_modules() if is_mixed(name, m)}


def matrix_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor), "one of linear_maps"
    return weight


def attach(model: nn.Module, rank: int = 1, form: Form = factored) -> list[str]:
    """Put a gate on each of `linear_maps`, in place, and return their names.

    Gates are one: outputs stay as they were. ValueError where no map of a block is found (a pooler
    alone is not this method), and for a model that is gated already."""
    maps = linear_maps(model)
    if not any(part.isdigit() for name in maps for part in name.split(".")):
        alone = f" (only {', '.join(maps)})" if maps else ""
        raise ValueError(
            f"{type(model).__name__} has no list of blocks with linear maps in its encoder{alone}: "
            "nothing to gate"
        )
    for name, module in maps.items():
        if parametrize.is_parametrized(module, "weight"):
            raise ValueError(f"{name} is gated already; a model can be gated once")
    for module in maps.values():
        gate = Mixup(matrix_of(module), rank, form)
        parametrize.register_parametrization(module, "weight", gate)
    return list(maps)


def gates_of(model: nn.Module) -> dict[str, Mixup]:
    """Name of the gated map -> its gate, in the model's order; empty for a model without gates."""
    suffix = ".parametrizations.weight.0"
    return {n.removesuffix(suffix): m for n, m in model.named_modules() if isinstance(m, Mixup)}


def alpha_of(model: nn.Module) -> list[Tensor]:
    """alpha: u and v of every gate, as a list of tensors."""
    return [factor for gate in gates_of(model).values() for factor in (gate.u, gate.v)]


def w_of(model: nn.Module) -> dict[str, Tensor]:
    """w = (W, theta): every trained parameter that is no gate, under its name in the stock model.

    In order of name, so that sums over w (gradient norms) have the same bits with and without
    gates."""
    alpha = {id(factor) for factor in alpha_of(model)}
    suffix = ".parametrizations.weight.original"
    stock = {n.replace(suffix, ".weight"): p for n, p in model.named_parameters()}
    return {n: p for n, p in sorted(stock.items()) if p.requires_grad and id(p) not in alpha}


@dataclass
class Network:
    """A model with its variables, and what a run notes about them.

    w: by name; alpha: empty without gates; start: w before the first step, pretrained weights and
    this seed's head; counts: gradient evaluations, lowest and highest gate of any step; check: of
    the first hypergradient."""

    model: nn.Module
    w: dict[str, Tensor]
    alpha: list[Tensor]
    start: list[Tensor]
    counts: dict[str, float]
    check: dict[str, Any]

    def note_gates(self) -> None:
        low, high = extremes(self.alpha)
        self.counts["alpha_lowest"] = min(self.counts["alpha_lowest"], low)
        self.counts["alpha_highest"] = max(self.counts["alpha_highest"], high)


def network_of(model: nn.Module) -> Network:
    w, counts = w_of(model), {"evaluations": 0, "alpha_lowest": 1.0, "alpha_highest": 1.0}
    return Network(model, w, alpha_of(model), vectors.clone([*w.values()]), counts, {})


def extremes(alpha: Sequence[Tensor]) -> tuple[float, float]:
    """The lowest and the highest gate."""
    low, high = torch.cat([factor.detach().flatten() for factor in alpha]).aminmax()
    return float(low), float(high)


def check(alpha: Sequence[Tensor]) -> None:
    """Refuse gates outside [0, 1]: a checkpoint or a step that is not this method's."""
    for factor in alpha:
        low, high = extremes([factor])
        if not (low >= 0 and high <= 1):
            outside = f"gates from {low:.4g} to {high:.4g} lie outside [0, 1]"
            raise ValueError(f"{outside}: not a state of this method; delete checkpoint/")


def quantiles(alpha: Sequence[Tensor]) -> list[float]:
    """Quantiles 0, 10, 50, 90, 100 % of all entries of u and v."""
    entries = torch.cat([factor.detach().flatten() for factor in alpha])
    levels = torch.tensor([0, 0.1, 0.5, 0.9, 1.0], device=entries.device)
    return torch.quantile(entries, levels).tolist()


@torch.no_grad()
def statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    """Per map: mean and least A = u v, share of u, v at one, mean and least coefficient sum s."""
    of_map = {}
    for name, gate in gates_of(model).items():
        A, s = gate.u @ gate.v / gate.u.shape[1], coefficient_sum(gate.u, gate.v)
        at_one = torch.cat([gate.u.flatten(), gate.v.flatten()]) == 1
        values = {"mean": A.mean(), "min": A.min(), "at_one": at_one.float().mean()}
        values |= {"s_mean": s.mean(), "s_min": s.min()}
        of_map[name] = {key: float(value) for key, value in values.items()}
    return of_map


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold W~ into plain weights, in place: no gate, no W0, the state dict of the stock model."""
    for name in gates_of(model):
        module = model.get_submodule(name)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
