"""Toys of the watermark's tests: a tiny language model, random watermarks, fixed noise."""

import math

import torch
from transformers import OPTConfig, OPTForCausalLM

from ts_watermark import hashing, method
from ts_watermark.watermark import Watermark

V = 300  # vocabulary of the random watermarks


def tiny_opt(vocab_size=50, d=16, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=vocab_size,
        hidden_size=d,
        word_embed_proj_dim=d,
        num_hidden_layers=1,
        ffn_dim=32,
        num_attention_heads=2,
        max_position_embeddings=64,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return OPTForCausalLM(config).to(dtype).eval().requires_grad_(False)


def random_watermark(vocab_size=V, seed=0, **settings):
    g = torch.Generator().manual_seed(seed)
    gamma = 0.15 + 0.3 * torch.rand(vocab_size, generator=g)
    return Watermark(gamma, 1 + torch.rand(vocab_size, generator=g), vocab_size, **settings)


def brute_force(ids, gammas, vocab_size, key=hashing.KEY):
    """z by the definition, one position after the other, with the whole permutation."""
    green = mean = variance = 0.0
    for t in range(1, len(ids)):
        g = gammas[t - 1]
        order = hashing.permutation_of(ids[t - 1], vocab_size, key)
        green += ids[t] in order[: math.floor(vocab_size * g)].tolist()
        mean, variance = mean + g, variance + g * (1 - g)
    return (green - mean) / math.sqrt(variance), int(green)


def prompts_of(rows):
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class Fixed:
    """The same noise at the same step each time it is asked."""

    def __init__(self, seed=0, dtype=torch.float64):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, shape):
        return method.logistic_noise(shape, self.generator).to(self.dtype)


class Replay:
    """A language model that repeats its first logits, since no gradient passes through it."""

    def __init__(self, model):
        self.model, self.stored, self.turn = model, [], 0
        self.get_input_embeddings = model.get_input_embeddings

    def __call__(self, **inputs):
        if self.turn == len(self.stored):
            self.stored.append(self.model(**inputs))
        self.turn += 1
        return self.stored[self.turn - 1]


class Letters:
    """A toy tokenizer: one id per letter a-z; other characters vanish."""

    def __init__(self, shift=0):
        self.shift = shift

    def encode(self, text):
        return [(ord(c) - 97 + self.shift) % 26 for c in text if c.isalpha()]

    def decode(self, ids):
        return "".join(chr(97 + (i - self.shift) % 26) if i < 26 else "." for i in ids)
