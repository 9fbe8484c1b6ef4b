"""Examples of a user's own, as a tokenizer returns them: tensors by name, a row for each example.

Used by the `tool.py` of a method; no run of a protocol reads this file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shared.protocol import BadInput

Examples = Mapping[str, Tensor]  # name -> (n, ...): input_ids, attention_mask, labels
BatchLoss = Callable[[nn.Module, dict[str, Tensor]], Tensor]  # a scalar


def count(examples: Examples, at_least: int = 4) -> int:
    """Number of examples. BadInput where it differs between tensors or is below `at_least`."""
    if not isinstance(examples, Mapping) or not all(map(torch.is_tensor, examples.values())):
        remedy = "give what tokenizer(texts, padding=True, return_tensors='pt') returns, and labels"
        raise BadInput(f"examples are no mapping from names to tensors; {remedy}")
    rows = {name: len(tensor) for name, tensor in examples.items()}
    if len(set(rows.values())) != 1:
        raise BadInput(
            f"examples: numbers of rows differ, {rows}; each tensor has a row an example"
        )
    n = next(iter(rows.values()))
    if n < at_least:
        raise BadInput(f"{n} examples: give at least {at_least}")
    return n


def batch(examples: Examples, rows: Tensor, device: torch.device | str) -> dict[str, Tensor]:
    """The rows (B,) of every tensor, on `device`."""
    return {name: tensor[rows].to(device) for name, tensor in examples.items()}


def model_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that a model of transformers computes where a batch has labels."""
    loss = model(**batch).loss
    if loss is None:
        what = f"{type(model).__name__} returns no loss for a batch of {', '.join(batch)}"
        raise BadInput(f"{what}; add labels to the examples, or give loss=")
    return loss


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def checked_module(argument: str, model: nn.Module, name: str) -> None:
    """BadInput where `model` has no module of this name, which the user gave as `argument`."""
    names = [there for there, _ in model.named_modules() if there]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        children = ", ".join(child for child, _ in model.named_children())
        what = f"{argument}={name!r}: {type(model).__name__} has no module of this name"
        raise BadInput(f"{what}; {hint}it has {children} (and what is in them)")


def checked_call(name: str, value: object) -> None:
    """BadInput where something that is to be called is a value."""
    if not callable(value):
        what = f"{name} is {type(value).__name__}, not a function"
        raise BadInput(f"{what}; give f(model, batch) -> scalar, called anew at every step")
