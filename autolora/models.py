"""Which network an arm adapts: a whole transformer, or MiniLM's upper blocks on cached states.

Both keep the module names of the stock class of transformers: a trained adapter loads there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from autolora.data import Kind
from autolora.maps import split_fused
from shared import bundled, pretrained
from shared.runs import BadInput

# What --model takes: networks whose query and value maps are called so, or are made so (GPT-2).
ENCODER = pretrained.Kind("an encoder", pretrained.BERT_LIKE, "FacebookAI/roberta-base")
DECODER = pretrained.Kind("a GPT-2", ("gpt2",), "openai-community/gpt2-medium")


@dataclass
class Network:
    model: nn.Module  # model(**inputs).logits
    tokenizer: Any
    head: str  # name of the module that is new and trained by every arm; "" where there is none
    pattern: str = ""  # of the names of adapted maps; "": query and value


def build(
    name: str,
    kind: Kind,
    outputs: int,
    generator: torch.Generator,
    upper_blocks: int = 0,
    attention: str = "sdpa",
    length: int = 0,
) -> Network:
    """A pretrained network with a fresh head, drawn from `generator`. kind: as in `data.py`.

    name: `minilm` (bundled), a folder, or a hub id, looked up as `sources.find_model` says.
    length: tokens of the longest text that it will be shown."""
    if name == "minilm":
        encoder, tokenizer = bundled.minilm(attention=attention)
        pretrained.check_length(encoder, length, "max_length or pad_to")
        if upper_blocks:
            model: nn.Module = UpperBlocks(encoder, upper_blocks, outputs)
        else:
            model = _with_encoder(encoder, kind, outputs)
        head = "classifier"
    else:
        if upper_blocks:
            limit = f"is offered for model 'minilm' only, not for '{name}'; use 0"
            raise BadInput(f"upper_blocks = {upper_blocks} {limit}")
        model, tokenizer, head = _pretrained(name, kind, outputs, attention)
        pretrained.check_length(model, length, "max_length or pad_to")
    if head:
        _fresh(model.get_submodule(head), generator)
    return Network(model, tokenizer, head)


def _pretrained(name: str, kind: Kind, outputs: int, attention: str) -> tuple[nn.Module, Any, str]:
    import transformers

    loading: dict[str, Any] = {"attn_implementation": attention, "dtype": torch.float32}
    if kind == "generation":
        model, tokenizer = pretrained.load(
            name, transformers.AutoModelForCausalLM, DECODER, **loading
        )
        pretrained.need(tokenizer, "eos_token")
        split_fused(model)
        return model, tokenizer, ""
    is_tagging = kind == "tagging"
    cls: Any = transformers.AutoModelForSequenceClassification
    if is_tagging:
        cls = transformers.AutoModelForTokenClassification
    # words of a tagged sentence are tokenised one by one: byte-level pieces want the space before
    words = {"add_prefix_space": True} if is_tagging else {}
    model, tokenizer = pretrained.load(
        name, cls, ENCODER, "classifier", words, num_labels=outputs, **loading
    )
    return model, tokenizer, "classifier"


def _with_encoder(encoder: Any, kind: Kind, outputs: int) -> nn.Module:
    """transformers' own class around the bundled encoder, its pretrained pooler included."""
    from transformers import BertForSequenceClassification, BertForTokenClassification

    config = copy.deepcopy(encoder.config)
    config.num_labels = outputs
    cls = BertForTokenClassification if kind == "tagging" else BertForSequenceClassification
    model = cls(config)
    model.bert = encoder
    return model


@torch.no_grad()
def _fresh(head: nn.Module, generator: torch.Generator) -> None:
    """Normal(0, 0.02) weights and zero biases for every linear layer of the head."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=generator))
            module.bias.zero_()


# --- scale cpu: only the upper blocks run --------------------------------------------------------


class UpperBlocks(nn.Module):
    """The last `n` blocks, the pooler and the head of a BertForSequenceClassification.

    Input is what the blocks below put out (`lower_states`, cached). Modules keep their names in the
    whole model (`bert.encoder.layer.4.attention.self.query`), and so do adapters."""

    def __init__(self, encoder: Any, n: int, outputs: int):
        super().__init__()
        blocks = len(encoder.encoder.layer)
        if not 1 <= n < blocks:
            raise BadInput(f"upper_blocks = {n} must lie in 1..{blocks - 1}; 0 adapts all blocks")
        upper = {str(i): encoder.encoder.layer[i] for i in range(blocks - n, blocks)}
        layers = nn.ModuleDict({"layer": nn.ModuleDict(upper)})
        self.bert = nn.ModuleDict({"encoder": layers, "pooler": encoder.pooler})
        self.dropout = nn.Dropout(encoder.config.hidden_dropout_prob)
        self.classifier = nn.Linear(encoder.config.hidden_size, outputs)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """hidden: (batch, seq, width), attention_mask: (batch, seq) -> logits (batch, outputs)."""
        for block in self.bert["encoder"]["layer"].children():  # type: ignore[index]
            hidden = block(hidden, attention_mask[:, None, None, :])
        pooled = self.bert["pooler"](hidden)
        return SimpleNamespace(logits=self.classifier(self.dropout(pooled)))


@torch.no_grad()
def lower_states(encoder: Any, tokens: dict[str, Tensor], blocks: int, batch: int = 64) -> Tensor:
    """Hidden states after the first `blocks` blocks in evaluation mode, (n, seq, width).

    tokens: the tokenizer's columns, (n, seq) each."""
    encoder = copy.copy(encoder).eval()
    parts = []
    for start in range(0, len(tokens["input_ids"]), batch):
        rows = {name: t[start : start + batch] for name, t in tokens.items()}
        parts.append(encoder(**rows, output_hidden_states=True).hidden_states[blocks].clone())
    return torch.cat(parts)
