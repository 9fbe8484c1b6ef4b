"""A selection layer and its two losses, a BERT of twelve blocks, and rehearsal runs of the arms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora import method, train
from autolora.config import Config
from shared import protocol, runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _runs_of_this_test(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    runs.be_worker(lambda: False)


@pytest.fixture
def layer() -> Callable[..., method.SelectionLoRA]:
    """A 6 x 5 map (unless told otherwise) with random B and beta."""

    def make(k=4, d_in=6, d_out=5, dtype=torch.float64, seed=0, dropout=0.0):
        torch.manual_seed(seed)
        made = method.SelectionLoRA(nn.Linear(d_in, d_out), k, dropout=dropout).to(dtype)
        with torch.no_grad():
            made.B.normal_()
            made.beta.normal_()
        return made

    return make


@pytest.fixture
def regression(layer) -> Callable[..., tuple[method.SelectionLoRA, Any, Any]]:
    """A LoRA regression: (levels that move by SGD and Adam, training loss, validation loss)."""

    def make(eta=0.1, dropout=0.0):
        made = layer(dropout=dropout)
        x, y = torch.randn(2, 20, 6).double(), torch.randn(2, 20, 5).double()
        w: list[Tensor] = [made.A, made.B]
        inner, outer = torch.optim.SGD(w, lr=eta), torch.optim.Adam([made.beta], lr=0.5)
        train_loss, validation_loss = (lambda i=i: F.mse_loss(made(x[i]), y[i]) for i in (0, 1))
        return method.Levels(w, [made.beta], inner, outer, eta), train_loss, validation_loss, made

    return make


@pytest.fixture
def tiny_bert() -> nn.Module:
    """BertForSequenceClassification: 12 blocks of width 16, 3 classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 12, "intermediate_size": 16}
    config = BertConfig(vocab_size=50, num_attention_heads=2, max_position_embeddings=16, **sizes)
    config.num_labels = 3
    return BertForSequenceClassification(config)


@pytest.fixture
def tiny_gpt2() -> nn.Module:
    """GPT2LMHeadModel: two blocks of width 16."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


@pytest.fixture
def rehearse(tmp_path) -> Callable[..., Path]:
    """One rehearsal run (and what it uses) below `folder` of the test; returns its directory."""
    paper = protocol.Protocol(ROOT / "autolora")

    def make(arm, task, folder="runs", seed=0, **settings):
        node = paper.node("rehearsal", arm, task, seed)
        uses = {key[0]: str(make(*key[:2], folder, key[2])) for key in node.uses}
        place = {"uses": uses, "out": str(tmp_path / folder / task / str(seed) / arm)}
        return train.run(Config(**paper.config("rehearsal", node) | settings | place))

    return make


@pytest.fixture
def record() -> Callable[[Path], dict[str, Any]]:
    def read(directory: Path) -> dict[str, Any]:
        content = protocol.read_record(directory)
        assert content is not None
        return content

    return read
