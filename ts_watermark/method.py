"""Token-specific watermarking: what the paper adds to a red/green watermark. Read this file first.

A red/green watermark (KGW) splits the vocabulary anew after each token, adds delta to the logits of
the green part, and later counts green tokens. Here the share gamma of green tokens and the bias
delta depend on the previous token p = x_{t-1}, through two small networks over e(p), its row of the
language model's embedding matrix:

    gamma_t = sigmoid(MLP_gamma(e(p)))        delta_t = MLP_delta(e(p))
    z = (sum_t [x_t is green] - sum_t gamma_t) / sqrt(sum_t gamma_t (1 - gamma_t))

Detection computes z (`hashing.py`), without delta. Training has one level and two objectives and
moves the two networks, nothing else. One step (`training_step`), for a batch of prompts:

    write    T soft tokens; q_t says how green token t is, relaxed              3.4  `soft_decode`
    compare  L_D = -zhat, z with q_t; L_S = -cos with the unwatermarked meaning 3.5  `*_loss`
    move     Adam along g = lambda grad L_D + (1 - lambda) grad L_S             3.6  `mgda`

The hash that draws the lists has no gradient: in training a random relaxed mask takes its place.
B sequences, T new tokens, V vocabulary, d embedding width; sections of docs/papers/ts_watermark.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from shared import processes
from ts_watermark.config import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GAMMA_LIMIT = 1e-3  # gamma stays in [1e-3, 1 - 1e-3]: a variance of 0 or log 0 otherwise
CONTEXT = 5  # prompt tokens that the sentence encoder reads before the text (section 3.5)

Noise = Callable[[torch.Size], Tensor]
Seen = dict[str, float]  # what a descent saw, by its name in metrics.jsonl
Descent = Callable[[Tensor, Tensor, Sequence[nn.Parameter]], tuple[Tensor, Seen]]


@dataclass
class Frozen:
    """A causal language model; a sentence encoder over the same token ids, with its word
    embeddings `sim` (V_sim, d_sim) and its pooling, `mean` or `pooler`."""

    model: PreTrainedModel
    encoder: PreTrainedModel
    sim: Tensor
    pooling: str


# --- one step of training (section 3.7) -----------------------------------------------------------


class Step(NamedTuple):
    """What a step did: losses, what the descent saw, the gradient (n,) for all weights, text."""

    loss_D: Tensor
    loss_S: Tensor
    seen: Seen
    gradient: Tensor
    text: SoftText


def training_step(
    frozen: Frozen,
    generators: Generators,
    optimizer: torch.optim.Optimizer,
    prompt: dict[str, Tensor],
    reference: Tensor,
    noise: Noise,
    descent: Descent,
    config: Training,
) -> Step:
    """Write softly, compare, and step along a common descent direction of both losses.

    prompt: input_ids and attention_mask (B, P), left-padded. reference: (B, d_out), `meaning` of
    what the language model writes without a watermark. descent: `mgda`, or a baseline's."""
    model, sim, T = frozen.model, frozen.sim, config.train_tokens
    text = soft_decode(model, prompt, T, sim, generators, noise, config.tau, config.mix)
    loss_D = detection_loss(text)
    loss_S = semantic_loss(meaning(frozen, prompt, text), reference)
    parameters = list(generators.parameters())
    gradient, seen = descent(loss_D, loss_S, parameters)
    set_gradient(parameters, gradient)
    optimizer.step()
    return Step(loss_D.detach(), loss_S.detach(), seen, gradient, text)


# --- the two generators (section 3.3) -------------------------------------------------------------


class Generators(nn.Module):
    """G_gamma and G_delta, each d -> hidden -> ... -> 1: embeddings (..., d) -> gamma, delta (...).

    Kaiming-normal weights in all layers, the last included, and last biases logit(g0) and d0: gamma
    and delta differ between tokens from step 0; `zero_last_layer` starts from exact KGW instead."""

    def __init__(
        self,
        d: int,
        hidden: Sequence[int] = (64,),
        gamma0: float = 0.25,
        delta0: float = 1.75,
        zero_last_layer: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not 0 < gamma0 < 1:
            raise ValueError(f"gamma0 = {gamma0} must lie inside (0, 1)")
        self.gamma = mlp(d, hidden, math.log(gamma0 / (1 - gamma0)), zero_last_layer, generator)
        self.delta = mlp(d, hidden, delta0, zero_last_layer, generator)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        gamma = torch.sigmoid(self.gamma(e)).squeeze(-1).clamp(GAMMA_LIMIT, 1 - GAMMA_LIMIT)
        return gamma, self.delta(e).squeeze(-1)  # delta is not constrained: it may turn negative


def mlp(
    d: int, hidden: Sequence[int], last_bias: float, zero: bool, generator: torch.Generator | None
) -> nn.Sequential:
    """Linear layers with LeakyReLU(0.01) between."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([d, *hidden, 1]):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(0.01)]
    nn.init.constant_(linear.bias, last_bias)
    if zero:
        nn.init.zeros_(linear.weight)
    return nn.Sequential(*layers[:-1])


# --- soft decoding (section 3.4) ------------------------------------------------------------------


def relaxed_green_mask(gamma: Tensor, noise: Tensor, tau: float = 0.1) -> Tensor:
    """m_t[v] = sigmoid((logit(gamma_t) + L_tv) / tau): a soft coin per item, (B,) -> (B, V).

    L: (B, V), standard logistic: a two-class Gumbel-softmax in law. P(m > 1/2) = gamma."""
    return torch.sigmoid((torch.logit(gamma)[:, None] + noise) / tau)


def logistic_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard logistic noise, drawn on the generator's device."""
    u = torch.rand(shape, generator=generator, device=generator.device)
    return torch.logit(u.clamp_(1e-7, 1 - 1e-7))


def wide(x: Tensor) -> Tensor:
    """At least fp32: softmax and the generators never run in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SoftText(NamedTuple):
    """T soft tokens. sentence: (B, T, d_sim), what the encoder reads; q, gamma, delta: (B, T), None
    without a watermark."""

    sentence: Tensor
    q: Tensor | None
    gamma: Tensor | None
    delta: Tensor | None


def soft_decode(
    model: PreTrainedModel,
    prompt: dict[str, Tensor],
    steps: int,
    sim: Tensor,
    generators: Generators | None = None,
    noise: Noise | None = None,
    tau: float = 0.1,
    mix: float = 0.5,
) -> SoftText:
    """Greedy decoding with soft tokens; the language model runs without gradient, over a cache.
        l'_t = l_t + delta_t m_t                               l_t: logits of the language model
        s_t = softmax(l'_t)
        a_t = mix onehot(argmax s_t) + (1 - mix) s_t           the soft token
        E_t = a_t E_lm                   next input of the language model and of both generators
        F_t = a_t E_sim                  the same token for the sentence encoder
        q_t = sum_v a_t[v] m_t[v]        relaxed "is green"

    sim: E_sim (V_sim, d_sim); ids above V_sim are cut off (7 unused ids of OPT). noise: (B, V) ->
    noise of a step. Without generators: the unwatermarked text, decoded alike with m = 0.
    Gradient reaches gamma and delta through q_t and through the chain E_t -> generators at t + 1,
    never through the language model. So a cache serves (official: `official.prefix_decode`)."""
    (table,) = model.get_input_embeddings().parameters()  # (V, d)
    E = table[prompt["input_ids"]]
    mask, last, cache = prompt["attention_mask"], E[:, -1], None
    sentence, q, gammas, deltas = [], [], [], []
    for _ in range(steps):
        past = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        with torch.no_grad():
            out = model(inputs_embeds=E.detach(), attention_mask=mask, **past)
        cache, logits = out.past_key_values, wide(out.logits[:, -1])
        if generators is not None:
            assert noise is not None
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
        sentence.append(a[:, : len(sim)].to(sim.dtype) @ sim)
        E, mask = last[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    stacks = [torch.stack(x, dim=1) if x else None for x in (q, gammas, deltas)]
    return SoftText(torch.stack(sentence, dim=1), *stacks)


# --- the two objectives (section 3.5) -------------------------------------------------------------


def relaxed_z(q: Tensor, gamma: Tensor) -> Tensor:
    """zhat = mean over the batch of sum_t (q_t - gamma_t) / sqrt(sum_t gamma_t (1 - gamma_t)).
    q, gamma: (B, T). z itself, with the relaxed q_t in place of the green flags."""
    return ((q - gamma).sum(1) * (gamma * (1 - gamma)).sum(1).rsqrt()).mean()


def detection_loss(text: SoftText) -> Tensor:
    """L_D = - zhat."""
    assert text.q is not None and text.gamma is not None  # the unwatermarked text has none
    return -relaxed_z(text.q, text.gamma)


def meaning(frozen: Frozen, prompt: dict[str, Tensor], text: SoftText) -> Tensor:
    """Enc of the last 5 prompt tokens and the soft tokens: (B, d_out)."""
    tail = frozen.sim[prompt["input_ids"][:, -CONTEXT:]]
    embeddings = torch.cat([tail, text.sentence.float()], dim=1)
    return sentence_embedding(frozen.encoder, embeddings, frozen.pooling)


def sentence_embedding(encoder: PreTrainedModel, embeddings: Tensor, pooling: str) -> Tensor:
    """Enc(F) of word embeddings (B, L, d_sim), no padding -> (B, d_out). The encoder adds
    positions. pooling: `mean` of the last layer (MiniLM) or `pooler` (SimCSE)."""
    out = encoder(inputs_embeds=embeddings)
    return out.pooler_output if pooling == "pooler" else out.last_hidden_state.mean(1)


def semantic_loss(watermarked: Tensor, reference: Tensor) -> Tensor:
    """L_S = - mean cos(Enc(F_wm), Enc(F_no)): near the *unwatermarked* text, not the human one."""
    return -torch.cosine_similarity(watermarked, reference, dim=-1).mean()


# --- MGDA for two objectives (section 3.6) --------------------------------------------------------


def mgda(
    loss_D: Tensor, loss_S: Tensor, parameters: Sequence[nn.Parameter], cap: float | None = None
) -> tuple[Tensor, Seen]:
    """g = lambda g_D + (1 - lambda) g_S, (n,), with lambda, both norms and the cosine."""
    g_D, g_S = processes.all_mean(two_gradients(loss_D, loss_S, parameters))
    lam = mgda_weight(g_D, g_S, cap)
    return lam * g_D + (1 - lam) * g_S, {"lam": lam} | norms_and_angle(g_D, g_S)


def norms_and_angle(g_D: Tensor, g_S: Tensor) -> Seen:
    cosine = float(torch.cosine_similarity(g_D, g_S, dim=0))
    return {"norm_D": float(g_D.norm()), "norm_S": float(g_S.norm()), "cosine_DS": cosine}


def mgda_weight(g_D: Tensor, g_S: Tensor, cap: float | None = None) -> float:
    """lambda = argmin over [0, 1] of ||lambda g_D + (1 - lambda) g_S||^2: the weight of L_D.
    The closest point of a segment to the origin. Uncapped, it has a non-negative product with both
    gradients, so both losses fall. With the cap (official: 0.01) binding, L_D *need not* fall."""
    g_D, g_S = g_D.double(), g_S.double()
    dd, ss, ds = float(g_D @ g_D), float(g_S @ g_S), float(g_D @ g_S)
    if ds >= dd:  # also equal gradients, where every point of the segment is the same
        lam = 1.0
    elif ds >= ss:
        lam = 0.0
    else:
        lam = (ss - ds) / (dd + ss - 2 * ds)
    return lam if cap is None else min(lam, cap)


def two_gradients(
    loss_D: Tensor, loss_S: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """g_D, g_S as flat vectors (n,): two backward passes through one graph."""
    missing: Any = {"allow_unused": True, "materialize_grads": True}  # unused weights: 0
    g_D = torch.autograd.grad(loss_D, parameters, retain_graph=True, **missing)
    g_S = torch.autograd.grad(loss_S, parameters, **missing)
    return torch.cat([g.reshape(-1) for g in g_D]), torch.cat([g.reshape(-1) for g in g_S])


def set_gradient(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Write a flat gradient (n,) into `.grad`, for Adam."""
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p).clone()
