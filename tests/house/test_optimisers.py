"""Arithmetic of training loops that is the same on all processors."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch

from benchmarks import PAPERS
from shared import vectors


@pytest.mark.parametrize("paper", PAPERS)
def test_every_adam_is_fused(root, paper):
    """The other forms take torch.sqrt, which is MKL's on a CPU."""
    calls = []
    for path in (root / paper).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Adam", "AdamW")):
                calls.append((path.name, node.lineno, ast.unparse(node)))
    plain = [c for c in calls if "fused=True" not in c[2] and "**common" not in c[2]]
    assert calls and not plain


def test_the_root_is_ieee():
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) * 10
    exact = np.float32(1) / (np.float32(1) / np.sqrt(x.numpy()))
    assert np.array_equal(vectors.root(x).numpy(), exact)
    assert vectors.root(torch.zeros(2)).tolist() == [0.0, 0.0]
