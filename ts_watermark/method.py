"""Token-specific watermarking: what the paper adds to a red/green watermark. Read this file first.

A red/green watermark (KGW) splits the vocabulary anew after each token, adds delta to the logits of the green
part and later counts green tokens. Here the share gamma and the bias delta depend on the previous token:

    gamma_t = sigmoid(MLP_gamma(e(p)))    delta_t = MLP_delta(e(p))        p = x_{t-1}, e = the LM's embedding

and the two small networks are trained for detectability (L_D) and meaning (L_S) at once, by MGDA. The hash
(`hashing.py`) cannot be differentiated and is absent from training: a random relaxed mask takes its place.

Order of reading: the networks, the relaxed mask, soft decoding, the two objectives, MGDA; then the hash.
Shapes: B sequences, T new tokens, V vocabulary, d embedding width. Equations by section of the specification.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ts_watermark.hashing import (
    KEY,
    GreenLists,
    Score,
    list_sizes,
    permutation_of,
    z_score,
    z_scores,
)

__all__ = ["KEY", "Generators", "GreenLists", "Score", "SoftText", "detection_loss", "list_sizes", "mgda_weight",
           "permutation_of", "relaxed_green_mask", "relaxed_z", "semantic_loss", "sentence_embedding", "soft_decode",
           "two_gradients", "z_score", "z_scores"]  # fmt: skip

GAMMA_LIMIT = 1e-3  # gamma stays in [1e-3, 1 - 1e-3]: a variance of 0 or log 0 otherwise


# ---- the two generators (3.3) --------------------------------------------------------------------------------


class Generators(nn.Module):
    """G_gamma and G_delta: d -> hidden -> ... -> 1 each, LeakyReLU(0.01) between; (..., d) -> gamma, delta (...).

    Kaiming-normal weights in all layers, the last included, and last biases logit(g0) and d0. So gamma and delta
    already differ between tokens at step 0; `zero_last_layer` starts from exact KGW instead.
    """

    def __init__(
        self, d: int, hidden=(64,), gamma0=0.25, delta0=1.75, zero_last_layer=False, generator=None
    ):
        super().__init__()
        if not 0 < gamma0 < 1:
            raise ValueError(
                f"gamma0={gamma0}: the initial share of green tokens must lie inside (0, 1)"
            )
        self.gamma = mlp(d, hidden, math.log(gamma0 / (1 - gamma0)), zero_last_layer, generator)
        self.delta = mlp(d, hidden, delta0, zero_last_layer, generator)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        gamma = torch.sigmoid(self.gamma(e)).squeeze(-1).clamp(GAMMA_LIMIT, 1 - GAMMA_LIMIT)
        return gamma, self.delta(e).squeeze(-1)  # delta is not constrained: it may turn negative


def mlp(d: int, hidden, last_bias: float, zero_last_layer: bool, generator) -> nn.Sequential:
    widths = [d, *hidden, 1]
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(0.01)] if i < len(hidden) else [linear]
    nn.init.constant_(linear.bias, last_bias)
    if zero_last_layer:
        nn.init.zeros_(linear.weight)
    return nn.Sequential(*layers)


# ---- the relaxed green list (3.4) ----------------------------------------------------------------------------


def relaxed_green_mask(gamma: Tensor, noise: Tensor, tau: float = 0.1) -> Tensor:
    """m_t[v] = sigmoid((logit(gamma_t) + L_tv) / tau), a soft coin per vocabulary item. (B,), (B, V) -> (B, V)

    noise L: standard logistic. Equal in law to a two-class Gumbel-softmax over (1 - gamma, gamma), with half the
    noise; P(m > 1/2) = gamma exactly, for every tau.
    """
    return torch.sigmoid((torch.logit(gamma)[:, None] + noise) / tau)


def logistic_noise(shape, generator: torch.Generator, device) -> Tensor:
    """Standard logistic noise from `generator`, drawn on the generator's own device."""
    u = torch.rand(shape, generator=generator, device=generator.device).clamp_(1e-7, 1 - 1e-7)
    return torch.logit(u).to(device)


def wide(x: Tensor) -> Tensor:
    """At least fp32: softmax and the generators never run in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---- soft decoding (3.4) -------------------------------------------------------------------------------------


class SoftText(NamedTuple):
    """T soft tokens: what the encoder reads (B, T, d_sim), and q, gamma, delta (B, T); None without watermark."""

    sentence: Tensor
    q: Tensor | None
    gamma: Tensor | None
    delta: Tensor | None


def soft_decode(
    model, prompt, steps, sim_embedding, generators=None, noise=None, tau=0.1, mix=0.5
) -> SoftText:
    """Greedy decoding with soft tokens; the language model runs without gradient, over a key-value cache.

        l'_t = l_t + delta_t m_t      s_t = softmax(l'_t)      a_t = mix onehot(argmax s_t) + (1 - mix) s_t
        E_t = a_t E_lm  (next input of the LM, and of both generators)      q_t = sum_v a_t[v] m_t[v]

    model: a frozen causal LM of transformers. prompt: dict of input_ids, attention_mask (B, P), left-padded.
    sim_embedding: (V_sim, d_sim) word embeddings of the encoder; ids above V_sim are cut off (OPT: 7 unused ids).
    generators None: the unwatermarked reference, decoded alike with m = 0. noise: (B, V) -> logistic noise of a step.

    Gradient reaches gamma and delta through q_t and the chain of soft embeddings E_t -> generators at t + 1, never
    through the language model. The official code has the same gradient and runs the whole prefix again each step.
    """
    table = model.get_input_embeddings().weight  # (V, d)
    E = table[prompt["input_ids"]]
    mask, last, cache = prompt["attention_mask"], E[:, -1], None
    sentence, q, gammas, deltas = [], [], [], []
    for _ in range(steps):
        with torch.no_grad():
            out = model(inputs_embeds=E.detach(), attention_mask=mask, past_key_values=cache, use_cache=True,
                        logits_to_keep=1)  # fmt: skip
        cache, logits = out.past_key_values, wide(out.logits[:, -1])
        if generators is not None:
            gamma, delta = generators(wide(last))
            m = relaxed_green_mask(gamma, noise(logits.shape), tau)
            logits = logits + delta[:, None] * m
        s = torch.softmax(logits, dim=-1)
        a = ((1 - mix) * s).scatter_add(1, s.argmax(-1, keepdim=True), s.new_full((len(s), 1), mix))
        if generators is not None:
            q.append((a * m).sum(-1))
            gammas.append(gamma)
            deltas.append(delta)
        last = a.to(table.dtype) @ table
        sentence.append(a[:, : len(sim_embedding)].to(sim_embedding.dtype) @ sim_embedding)
        E, mask = last[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    stack = [torch.stack(x, dim=1) if x else None for x in (q, gammas, deltas)]
    return SoftText(torch.stack(sentence, dim=1), *stack)


# ---- the two objectives (3.5) --------------------------------------------------------------------------------


def relaxed_z(q: Tensor, gamma: Tensor) -> Tensor:
    """zhat = mean over the batch of sum_t (q_t - gamma_t) / sqrt(sum_t gamma_t (1 - gamma_t)). (B, T) -> ()"""
    return ((q - gamma).sum(1) / (gamma * (1 - gamma)).sum(1).sqrt()).mean()


def detection_loss(text: SoftText) -> Tensor:
    """L_D = - zhat."""
    assert text.q is not None and text.gamma is not None  # the unwatermarked text has none
    return -relaxed_z(text.q, text.gamma)


def sentence_embedding(encoder, embeddings: Tensor, pooling: str = "mean") -> Tensor:
    """Enc(F): a sentence encoder fed with word embeddings (B, L, d_sim), no padding -> (B, d_out).

    The encoder adds positions itself. pooling: `mean` of the last layer (MiniLM) or the `pooler` (SimCSE).
    """
    out = encoder(inputs_embeds=embeddings)
    return out.pooler_output if pooling == "pooler" else out.last_hidden_state.mean(1)


def semantic_loss(watermarked: Tensor, reference: Tensor) -> Tensor:
    """L_S = - mean cos(Enc(F_wm), Enc(F_no)): closeness to the *unwatermarked* continuation, not to human text."""
    return -torch.cosine_similarity(watermarked, reference, dim=-1).mean()


# ---- MGDA for two tasks (3.6) --------------------------------------------------------------------------------


def mgda_weight(g_D: Tensor, g_S: Tensor, cap: float | None = None) -> float:
    """lambda = argmin over [0, 1] of ||lambda g_D + (1 - lambda) g_S||^2, capped: the weight of L_D.

    The closest point of a segment to the origin. Uncapped, it has a non-negative product with both gradients, so
    both losses fall. With the cap (official: 0.01) binding, descent of L_D is *not* guaranteed.
    """
    g_D, g_S = g_D.double(), g_S.double()
    dd, ss, ds = float(g_D @ g_D), float(g_S @ g_S), float(g_D @ g_S)
    if ds >= dd:  # also equal gradients, where every point of the segment is the same
        lam = 1.0
    elif ds >= ss:
        lam = 0.0
    else:
        lam = (ss - ds) / (dd + ss - 2 * ds)
    return lam if cap is None else min(lam, cap)


def two_gradients(loss_D: Tensor, loss_S: Tensor, parameters) -> tuple[Tensor, Tensor]:
    """g_D, g_S as flat vectors (n,): two backward passes through one graph."""
    parameters = list(parameters)
    g_D = torch.autograd.grad(
        loss_D, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    g_S = torch.autograd.grad(loss_S, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in g_D]), torch.cat([g.reshape(-1) for g in g_S])


def set_gradient(parameters, flat: Tensor) -> None:
    """Write a flat gradient (n,) into `.grad`, for Adam."""
    parameters = list(parameters)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p).clone()
