"""Encoders of texts (whole models, or MiniLM's top blocks on cached states) and their heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import bundled, pretrained, protocol, runs

ENCODER = pretrained.Kind(
    "an encoder", (*pretrained.BERT_LIKE, "deberta", "deberta-v2"), "FacebookAI/roberta-base"
)
Columns = dict[
    str, Tensor
]  # of n texts: padded tokens, or states below the top blocks; (n, S, ...)


class Whole(nn.Module):
    """A transformers encoder. Result: the first token's state (B, d), or the states at the places
    `at` (B, M, d)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Columns, at: Tensor | None = None) -> Tensor:
        hidden = self.model(**inputs).last_hidden_state
        return hidden[:, 0] if at is None else at_places(hidden, at)

    def embedding(self) -> Tensor:
        """The matrix that the MLM head is tied to, (V, d); a parameter of the encoder."""
        return self.model.get_input_embeddings().weight  # type: ignore[operator]


def at_places(hidden: Tensor, at: Tensor) -> Tensor:
    """hidden: (B, S, d), at: (B, M) -> (B, M, d)"""
    return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))


class TopBlocks(nn.Module):
    """The last n blocks of a BERT encoder, fed with what the frozen blocks below put out (cached).

    The last block is computed only where somebody looks: at the first token, or at the masked
    places. That is the same function, at about a quarter of that block's cost."""

    def __init__(self, encoder: Any, n: int, vocabulary: Tensor):
        super().__init__()
        blocks = encoder.encoder.layer
        if not 1 <= n < len(blocks):
            limit = f"must lie in 1..{len(blocks) - 1}, or be 0 for the whole encoder"
            raise runs.BadInput(f"top_blocks = {n} {limit}")
        self.blocks = nn.ModuleList(blocks[-n:])
        self.heads = encoder.config.num_attention_heads
        # a constant here, for the embeddings lie below the cached states
        embeddings = encoder.get_input_embeddings().weight.detach()
        self.register_buffer("frequent", embeddings[vocabulary].clone())

    def forward(self, inputs: Columns, at: Tensor | None = None) -> Tensor:
        hidden, mask = inputs["hidden"], inputs["attention_mask"].bool()
        for block in self.blocks[:-1]:
            hidden = self._block(block, hidden, hidden, mask)
        if at is None:
            return self._block(self.blocks[-1], hidden[:, :1], hidden, mask)[:, 0]
        return self._block(self.blocks[-1], at_places(hidden, at), hidden, mask)

    def _block(self, block: Any, query: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """transformers' BertLayer. query: (B, M, d), hidden: (B, S, d) -> (B, M, d)"""
        attention = block.attention.self

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        context = F.scaled_dot_product_attention(
            split(attention.query(query)),
            split(attention.key(hidden)),
            split(attention.value(hidden)),
            attn_mask=mask[:, None, None],
            dropout_p=attention.dropout.p if self.training else 0.0,
        )
        x = block.attention.output(context.transpose(1, 2).flatten(2), query)
        return block.output(block.intermediate(x), x)

    def embedding(self) -> Tensor:
        assert isinstance(self.frequent, Tensor)
        return self.frequent


def load_model(name: str) -> tuple[Any, Any]:
    """(encoder without pooler, tokenizer): bundled MiniLM, a folder, or a model of the hub."""
    if name == "minilm":
        model, tokenizer = bundled.minilm()
    else:
        from transformers import AutoModel

        model, tokenizer = pretrained.load(name, AutoModel, ENCODER, "pooler", dtype=torch.float32)
        pretrained.need(tokenizer, "mask_token")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # the raw first-token state is used: its parameters had no gradient
    return model, tokenizer


@torch.no_grad()
def lower_states(model: Any, tokens: Columns, depth: int, batch: int = 64) -> Tensor:
    """Hidden states after the first `depth` blocks in evaluation mode, (n, S, d)."""
    parts, layers = [], model.encoder.layer
    model.encoder.layer = layers[:depth]
    try:
        for start in range(0, len(tokens["input_ids"]), batch):
            inputs = {name: t[start : start + batch].long() for name, t in tokens.items()}
            parts.append(model(**inputs).last_hidden_state)
    finally:
        model.encoder.layer = layers
    return torch.cat(parts)


def vocabulary(tokenizer: Any, size: int) -> Tensor:
    """The `size` most frequent word pieces of the movie sentences, sorted. (V,) int64

    0: all but special tokens."""
    special = set(tokenizer.all_special_ids)
    if size == 0:
        return torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    if not 0 < size <= len(tokenizer) - len(special):
        there = f"the tokenizer has {len(tokenizer) - len(special)} word pieces"
        raise runs.BadInput(f"vocabulary = {size}: {there}; give at most that many")

    sentences = bundled.ratings("movie").train

    def count() -> Tensor:
        texts = [str(text) for text in sentences.texts]
        counts = torch.zeros(len(tokenizer), dtype=torch.int64)
        for start in range(0, len(texts), 1000):
            ids = tokenizer(texts[start : start + 1000], add_special_tokens=False)["input_ids"]
            flat = torch.tensor([i for text in ids for i in text])
            counts += torch.bincount(flat, minlength=len(tokenizer))
        return counts

    pieces = protocol.sha256_json(sorted(tokenizer.get_vocab().items()))
    corpus = protocol.sha256_json(list(map(str, sentences.texts)))
    counts = runs.cached(("tapweight word pieces", pieces, corpus), count)
    counts[list(special)] = -1
    return counts.argsort(descending=True, stable=True)[:size].sort().values


# ----------------------------------------------------------------------------------------- heads


class MLMHead(nn.Module):
    """Dense, GELU, LayerNorm, then scores against the encoder's own embeddings."""

    def __init__(self, d: int, V: int):
        super().__init__()
        self.dense, self.norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.bias = nn.Parameter(torch.zeros(V))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(states))) @ embedding.T + self.bias


def two_layers(d: int, outputs: int, dropout: float) -> nn.Sequential:
    """Dense, tanh, dropout, linear: the head of SOP and of every downstream task."""
    return nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Dropout(dropout), nn.Linear(d, outputs))


def objective_heads(d: int, V: int, dropout: float) -> nn.ModuleDict:
    """Heads of CL, MLM and SOP."""
    contrast = nn.Sequential(nn.Linear(d, d), nn.Tanh())
    heads = {"CL": contrast, "MLM": MLMHead(d, V), "SOP": two_layers(d, 2, dropout)}
    return draw_each(heads)


def draw_each(heads: dict[str, nn.Module]) -> nn.ModuleDict:
    """Objective heads with weights that are the same for all seeds and arms."""
    for name, head in heads.items():
        draw(head, 0, "objective head", name)
    return nn.ModuleDict(heads)


@torch.no_grad()
def draw(module: nn.Module, *names: object) -> nn.Module:
    """Weights N(0, 0.02^2), biases 0, from the stream `names` (seed first), for all arms alike."""
    g = runs.stream(int(str(names[0])), *names[1:])
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.copy_(0.02 * torch.randn(part.weight.shape, generator=g))
            part.bias.zero_()
    return module
