"""Which maps of a network are adapted: query and value, whatever its architecture calls them.

BERT, RoBERTa, ELECTRA, ALBERT     query, value; ALBERT's blocks share one of each
DeBERTa                            query_proj, value_proj (version 2 and 3)
DistilBERT                         q_lin, v_lin
Llama, Qwen2, Mistral, ...         q_proj, v_proj
GPT-2, ModernBERT                  one fused map for query, key and value (c_attn, Wqkv): it gets
                                   one rank, unless `split_fused` has made three maps of it first
anything else                      by `pattern`, a regular expression over module names
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

QUERY_VALUE = r"(^|\.)((query|value)(_proj)?|[qv]_(proj|lin))$"
FUSED = r"(^|\.)(c_attn|Wqkv|query_key_value|qkv_proj)$"


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Full module name -> linear map that can be adapted (nn.Linear, GPT-2's Conv1D), in order."""
    from transformers.pytorch_utils import Conv1D

    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def adapted_maps(model: nn.Module, pattern: str = "") -> dict[str, nn.Module]:
    """Full module name -> map to adapt, in depth order, query first.

    pattern: searched in module names; "": query and value maps, else fused ones, with a warning
    that says so, and one where blocks share a map. Raises ValueError where nothing matches, or
    where weights are quantised."""
    there = linear_maps(model)
    found = _matching(there, pattern or QUERY_VALUE)
    kind = type(model).__name__
    if not found and not pattern:
        found = _matching(there, FUSED)
        if found:
            fused = next(iter(found)).rpartition(".")[2]
            one = f"query, key and value of a block are one map ({fused}), which gets one rank"
            remedy = "maps.split_fused(model) first gives them ranks of their own"
            warnings.warn(f"{kind}: {one}; {remedy}", stacklevel=2)
    if not found:
        last = Counter(name.rpartition(".")[2] for name in there)
        names = ", ".join(f"{name} ({n})" for name, n in last.most_common(12)) or "none"
        asked = f"matches {pattern!r}" if pattern else "is called query or value"
        remedy = "give attach a pattern, such as pattern=r'\\.(q|v)$'"
        raise ValueError(f"no linear map of {kind} {asked}; it has {names}: {remedy}")
    for name, base in found.items():
        if not base.weight.is_floating_point():  # type: ignore[operator]
            stored = f"its weights are stored as {base.weight.dtype}"
            raise ValueError(f"{name} of {kind} is quantised ({stored}); load it unquantised")
    blocks = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
    most = max(Counter(name.rpartition(".")[2] for name in found).values())
    if not pattern and most < blocks and ".albert_layer_groups." in next(iter(found)):
        shared = f"its {blocks} blocks share {most} query and value map(s)"
        warnings.warn(f"{kind}: {shared}, so there are {len(found)} ranks", stacklevel=2)
    return found


def _matching(there: dict[str, nn.Module], pattern: str) -> dict[str, nn.Module]:
    return {name: module for name, module in there.items() if re.search(pattern, name)}


def size(base: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a map; a Conv1D stores its weight the other way round."""
    rows, columns = base.weight.shape  # type: ignore[union-attr,misc]
    return (rows, columns) if isinstance(base, nn.Linear) else (columns, rows)


# --- a fused map as three ------------------------------------------------------------------------


class SplitProjection(nn.Module):
    """A fused projection as three linear maps: query and value get ranks of their own."""

    def __init__(self, fused: nn.Module):
        super().__init__()
        self.conv = not isinstance(fused, nn.Linear)
        whole: Tensor = fused.weight.data  # type: ignore[union-attr,assignment]
        weight = (whole.T if self.conv else whole).chunk(3)
        bias = [None] * 3 if fused.bias is None else fused.bias.data.chunk(3)  # type: ignore
        for name, w, b in zip(("query", "key", "value"), weight, bias, strict=True):
            linear = nn.Linear(w.shape[1], w.shape[0], bias=b is not None, dtype=w.dtype)
            linear.weight.data = w.contiguous().clone()
            if b is not None:
                linear.bias.data = b.clone()
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.children()], dim=-1)


def split_fused(model: nn.Module) -> None:
    """Replace every fused projection in place; the function computed stays the same.

    Raises ValueError for one whose parts differ in size (grouped keys and values)."""
    for name, module in list(linear_maps(model).items()):
        if re.search(FUSED, name):
            d_out, d_in = size(module)
            if d_out != 3 * d_in:
                raise ValueError(f"{name} is {d_out} x {d_in}, not three maps of one size")
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, SplitProjection(module))


def fuse_adapter(
    config: Any, state: dict[str, Tensor], wrapped: nn.Module
) -> tuple[Any, dict[str, Tensor]]:
    """peft's (config, state) of a model with split projections -> the same for the stock model.

    Low-rank updates of query and value are one of the fused map, of rank r_q + r_v, with blocks of
    zeros in B: exact. Models without split projections pass unchanged."""
    splits = {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if isinstance(module, SplitProjection)
    }
    if not splits:
        return config, state
    state, ranks = dict(state), dict[str, int]()
    for name, module in splits.items():
        lefts, rights, width = [], [], 0
        parts = dict(module.named_children())
        for i, (part, layer) in enumerate(parts.items()):
            stem = f"base_model.model.{name}.{part}"
            if f"{stem}.lora_A.weight" not in state:
                continue
            A = state.pop(f"{stem}.lora_A.weight")
            B = state.pop(f"{stem}.lora_B.weight") * layer.scaling["default"]  # type: ignore
            width = len(B)
            left = B.new_zeros(3 * width, len(A))
            left[i * width : (i + 1) * width] = B
            lefts.append(left)
            rights.append(A)
        state[f"base_model.model.{name}.lora_A.weight"] = torch.cat(rights)
        state[f"base_model.model.{name}.lora_B.weight"] = torch.cat(lefts, dim=1)
        ranks[name] = sum(map(len, rights))
    config.target_modules = set(ranks)
    # scale 1: the scales of the parts are in B
    config.rank_pattern, config.alpha_pattern = ranks, dict[str, float](ranks)
    config.fan_in_fan_out = next(iter(splits.values())).conv
    return config, state


# --- peft's layers --------------------------------------------------------------------------------


def lora_layers(wrapped: nn.Module) -> dict[str, Any]:
    """Full module name in the original model -> peft's LoRA (or AdaLoRA) layer."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }


def ranks_read_back(wrapped: nn.Module) -> dict[str, int]:
    """The rank that each map really has: peft ignores a pattern key that matches nothing."""
    return {n: len(layer.lora_A["default"].weight) for n, layer in lora_layers(wrapped).items()}
