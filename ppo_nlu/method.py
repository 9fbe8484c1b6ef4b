"""PPO for a language model that must answer a question, with a rule as the reward.  Read this file first.

One policy pi_theta (a causal language model with LoRA), one value function V_phi (a linear head on the same trunk),
one frozen reference pi_ref (the same network with the adapter switched off), one number R per answer.

    q ----> rollout ----> a_1..a_n ----> rule ----> R                       (the outside world, `rollout`)
    k_t = log pi_old(a_t) - log pi_ref(a_t)                                  (`token_rewards`)
    r_t = -beta k_t + 1[t = n] R
    A_t = sum_l (gamma lam)^l delta_{t+l}                                    (`gae`)
    L   = L_pol + c_v L_val, four times over the same answers                (`policy_loss`, `value_loss`, `update`)

Shapes: B answers in a batch, P prompt columns (padded on the LEFT, so that every answer starts in the same column),
T answer columns (padded on the right).  Masks come from answer LENGTHS, never from "token == pad", because many
checkpoints use one id for padding and for the end of the text, and the end of the text is an action that earns reward.
"""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppo_nlu.processes import all_sum
from shared import processes


@dataclass(frozen=True)
class Hyper:
    """Settings of the official run (defaults of the trainer it used; ppo_nlu/README.md, table of settings)."""

    gamma: float = 1.0  # discount: an answer is short, nothing is discounted
    lam: float = 0.95  # lambda of generalised advantage estimation
    clip: float = 0.2  # epsilon: the ratio may leave 1 by this much before the gain is cut off
    clip_value: float = 0.2  # epsilon_v: the same idea for the value
    value_weight: float = 0.1  # c_v
    inner_epochs: int = 4  # optimiser steps on the same answers
    minibatch: int = 16  # rows of one forward pass; bounds memory, does not move the result
    ratio_limit: float = 10.0  # a minibatch whose mean ratio exceeds this counts zero
    kl_target: float = 6.0  # nats per answer the controller steers to
    kl_horizon: float = (
        10_000.0  # answers after which the controller may have doubled beta; 0 keeps beta fixed
    )


# --- the equations --------------------------------------------------------------------------------------------------


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum()


def token_rewards(
    log_old: Tensor, log_ref: Tensor, scores: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """r_t = -beta k_t + 1[t = n] R.   log_old, log_ref, mask: (B, T); scores: (B,) -> (B, T), zero after the answer.

    k_t is a one-sample estimate of the KL divergence and may be negative; its mean is not.
    """
    r = -beta * (log_old - log_ref) * mask
    last = (
        mask.sum(1).long() - 1
    )  # column of a_n, the last REAL token: the end-of-text or closing-tag token
    r[torch.arange(len(r), device=r.device), last] += scores
    return r


def gae(r: Tensor, V: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages A and returns G = A + V, all (B, T).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t) with V(s_{n+1}) = 0 at the TRUE end of each answer (not at column T);
    A_t = delta_t + gamma lam A_{t+1}.  With lam = gamma = 1 the return is the reward to go.
    """
    V = V * mask
    A, following = torch.zeros_like(r), torch.zeros_like(r[:, 0])
    for t in reversed(range(r.shape[1])):
        V_next = V[:, t + 1] if t + 1 < r.shape[1] else torch.zeros_like(following)
        delta = r[:, t] + gamma * V_next - V[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        A[:, t] = following
    return A, A + V


def whiten(A: Tensor, mask: Tensor) -> Tensor:
    """(A - mean) / sqrt(var + 1e-8) over all real tokens of the rollout, over all processes (B, T)."""
    n, total = all_sum(mask.sum()), all_sum((A * mask).sum())
    mean = total / n
    var = all_sum(((A - mean) ** 2 * mask).sum()) / (n - 1).clamp(
        min=1
    )  # unbiased, as the official trainer has it
    return (A - mean) * torch.rsqrt(var + 1e-8) * mask


def policy_loss(log_pi: Tensor, log_old: Tensor, A: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho)) per token (B, T): the pessimistic one, so that moving far is never rewarded twice."""
    rho = (log_pi - log_old).exp()
    return torch.maximum(-A * rho, -A * rho.clamp(1 - clip, 1 + clip))


def value_loss(V: Tensor, V_old: Tensor, G: Tensor, clip: float) -> Tensor:
    """1/2 max((V - G)^2, (clip(V) - G)^2) per token (B, T)."""
    V_clipped = V_old + (V - V_old).clamp(-clip, clip)
    return 0.5 * torch.maximum((V - G) ** 2, (V_clipped - G) ** 2)


def next_beta(beta: float, kl: float, batch: int, hyper: Hyper) -> float:
    """beta <- beta (1 + e batch / horizon), e = clip(KL / target - 1, -0.2, 0.2); always positive."""
    if hyper.kl_horizon == 0:
        return beta
    error = min(max(kl / hyper.kl_target - 1, -0.2), 0.2)
    return beta * (1 + error * batch / hyper.kl_horizon)


# --- the networks ---------------------------------------------------------------------------------------------------


class Policy(nn.Module):
    """pi_theta, V_phi and pi_ref in one.  `lm` is any causal language model of transformers, bare or under peft.

    Under peft the reference is the same network with the adapter off: no second copy, and exactly the model that was
    loaded as long as the adapter trains no bias of it.  A bare model is trained whole, against a frozen copy.
    """

    def __init__(self, lm: nn.Module):
        super().__init__()
        self.lm = lm
        self.adapter = hasattr(lm, "disable_adapter")
        base = lm.get_base_model() if self.adapter else lm
        self.accepts = set(inspect.signature(base.forward).parameters)
        self.value = nn.Linear(
            base.config.hidden_size, 1, device=next(lm.parameters()).device
        )  # stays fp32
        # a list hides the copy from .parameters(): it is not part of what trains, moves or is saved
        self.frozen = [] if self.adapter else [copy.deepcopy(lm).eval().requires_grad_(False)]

    def call(self, lm: nn.Module, ids: Tensor, mask: Tensor, keep: int, **more):
        """One forward pass of `lm`; logits of the last `keep` columns only: the vocabulary is what costs memory."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[
            :, -ids.shape[1] :
        ]  # left padding must not shift positions
        inputs = {"position_ids": positions, "logits_to_keep": keep}
        return lm(
            input_ids=ids,
            attention_mask=mask,
            **{k: v for k, v in inputs.items() if k in self.accepts},
            **more,
        )

    def forward(
        self, ids: Tensor, mask: Tensor, T: int, reference: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log pi(a_t|s_t), V(s_t), entropy at the T answer columns, each (B, T).   ids, mask: (B, P + T).

        The logits of column j speak about token j + 1, so the first answer token is judged at the LAST PROMPT column.
        """
        lm = self.frozen[0] if reference and self.frozen else self.lm
        off = self.lm.disable_adapter() if reference and self.adapter else contextlib.nullcontext()
        with off:
            out = self.call(lm, ids, mask, T + 1, output_hidden_states=True, use_cache=False)
        logits = out.logits[:, -T - 1 : -1]
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(
            -1
        )  # never in half precision
        log_pi = log_p.gather(-1, ids[:, -T:, None]).squeeze(-1)
        h = out.hidden_states[-1][:, -T - 1 : -1]
        return (
            log_pi,
            self.value(h.to(self.value.weight.dtype)).squeeze(-1),
            -(log_p.exp() * log_p).sum(-1),
        )


# --- the outside world ----------------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """ids, mask: (B, P + T); lengths: (B,) number of answer tokens, the one that ends the answer included."""

    ids: Tensor
    mask: Tensor
    lengths: Tensor
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def T(self) -> int:
        return int(self.lengths.max())

    def answer_mask(self) -> Tensor:
        return (torch.arange(self.T, device=self.ids.device) < self.lengths[:, None]).float()

    def minibatches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """(rows, ids, mask, T) of `size` rows of similar length, cut to their own width: padding costs as much as text."""
        P = self.ids.shape[1] - self.T
        for rows in self.mask.sum(1).argsort(descending=True, stable=True).split(size):
            left = int(self.mask[rows, :P].argmax(1).min()) if P else 0
            T = int(self.lengths[rows].max())
            yield rows, self.ids[rows, left : P + T], self.mask[rows, left : P + T], T


def left_pad(prompts: Sequence[Sequence[int]], pad: int, device=None) -> tuple[Tensor, Tensor]:
    """Lists of token ids -> ids, mask (B, P), padded on the left."""
    P = max(map(len, prompts))
    ids = torch.tensor([[pad] * (P - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


@torch.no_grad()
def rollout(
    policy: Policy,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    uniforms: Tensor | None = None,
    stop: str | None = "</Judgement>",
    temperature: float = 1.0,
    cache: bool = True,
) -> Rollout:
    """Answers to `prompts` (lists of token ids): sampled where `uniforms` (B, max_new) in [0, 1) are given, else greedy.

    One uniform number picks one token through the cumulative distribution, so an answer depends on its own row of
    numbers only: on how many processes or in which groups the rows are generated does not matter.
    An answer ends with the end-of-text token, with the token that completes `stop`, or after max_new tokens.
    """
    device = next(policy.lm.parameters()).device
    policy.eval()  # a rollout in training mode would sample from a dropout network and judge by another one
    ids, mask = left_pad(prompts, tokenizer.pad_token_id, device)
    B, P = ids.shape
    open_ = torch.ones(B, dtype=torch.bool, device=device)
    lengths = torch.zeros(B, dtype=torch.long, device=device)
    past, new = None, ids
    for t in range(max_new):
        out = policy.call(
            policy.lm, new if cache else ids, mask, 1, past_key_values=past, use_cache=cache
        )
        past = out.past_key_values if cache else None
        logits = out.logits[:, -1].float()
        if uniforms is None:
            token = logits.argmax(-1)
        else:
            cdf = (logits / temperature).softmax(-1).cumsum(-1)
            u = (
                uniforms[:, t : t + 1].to(device) * cdf[:, -1:]
            )  # rounding: the sum may be a little below 1
            token = torch.searchsorted(cdf, u, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
        token = torch.where(open_, token, tokenizer.pad_token_id)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, open_[:, None].to(mask.dtype)], 1)
        lengths += open_
        open_ = open_ & (token != tokenizer.eos_token_id)
        if (
            stop is not None
        ):  # found in the text: the tag may span tokens, and where they divide depends on what is before
            tails = tokenizer.batch_decode(ids[:, max(P, P + t - 15) :])
            open_ = open_ & torch.tensor([stop not in tail for tail in tails], device=device)
        if (
            all_sum(open_.sum()) == 0
        ):  # sharded models run in step: a process waits for the others' answers
            break
        new = token[:, None]
    T = int(lengths.max())
    ids, mask = ids[:, : P + T], mask[:, : P + T]
    texts = tokenizer.batch_decode(
        [row[P : P + n].tolist() for row, n in zip(ids, lengths)], skip_special_tokens=True
    )
    return Rollout(ids, mask, lengths, texts)


# --- one PPO batch --------------------------------------------------------------------------------------------------


def update(
    policy: Policy, optimizer, batch: Rollout, scores: Tensor, beta: float, hyper: Hyper
) -> tuple[dict[str, float], float]:
    """`hyper.inner_epochs` optimiser steps on one batch of answers -> (metrics, the next beta).   scores: (B,) fp32.

    Losses are means over the real tokens of the whole batch of all processes, so `minibatch` and the number of
    processes change nothing but memory.  Advantages are computed once; recomputing them inside would chase itself.
    """
    if len(batch) % hyper.minibatch:
        raise ValueError(
            f"{len(batch)} answers do not divide into minibatches of {hyper.minibatch}; set minibatch"
        )
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).nonzero()[0])
        raise FloatingPointError(
            f"reward of answer {bad} is {float(scores[bad])} for {batch.texts[bad]!r}"
        )
    quiet(policy)
    world = processes.world_size()
    B, T, mask = len(batch), batch.T, batch.answer_mask()
    tokens = all_sum(mask.sum())
    log_old, V_old, log_ref, entropy = (torch.zeros(B, T, device=mask.device) for _ in range(4))
    single = (
        hyper.minibatch == B
    )  # then the first training pass, before any step, IS the old policy's pass
    for rows, ids, m, t in batch.minibatches(hyper.minibatch):
        with torch.no_grad():
            log_ref[rows, :t] = policy(ids, m, t, reference=True)[0]
        with torch.set_grad_enabled(single):
            first = policy(ids, m, t)
        log_old[rows, :t], V_old[rows, :t], entropy[rows, :t] = (x.detach() for x in first)
    r = token_rewards(log_old, log_ref, scores, mask, beta)
    A, G = gae(r, V_old, mask, hyper.gamma, hyper.lam)
    A = whiten(A, mask)
    log: dict[str, Tensor] = {}
    for epoch in range(hyper.inner_epochs):
        optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(6, device=mask.device)
        for rows, ids, m, t in batch.minibatches(hyper.minibatch):
            log_pi, V, _ = first if single and epoch == 0 else policy(ids, m, t)
            old, w = log_old[rows, :t], mask[rows, :t]
            pol = (policy_loss(log_pi, old, A[rows, :t], hyper.clip) * w).sum() / tokens
            val = (value_loss(V, V_old[rows, :t], G[rows, :t], hyper.clip_value) * w).sum() / tokens
            rho = (log_pi.detach() - old).exp()
            guard = 0.0 if masked_mean(rho, w) > hyper.ratio_limit else 1.0
            # gradients are AVERAGED over processes before a step (also by FSDP), while each holds its share of one sum: hence x world
            ((pol + hyper.value_weight * val) * guard * world).backward()
            clipped = ((rho - 1).abs() > hyper.clip).float()
            drift = 0.5 * (log_pi.detach() - old) ** 2
            means = ((x * w).sum() / tokens for x in (rho, clipped, drift))
            sums += torch.stack([pol.detach(), val.detach(), *means, pol.new_tensor(1 - guard)])
        optimizer.step()
        now = dict(
            zip(
                ["policy_loss", "value_loss", "ratio", "clip_fraction", "kl_old_new", "skipped"],
                all_sum(sums),
            )
        )
        log |= now if epoch else {f"{name}_first": x for name, x in now.items()} | now
    rows_all = all_sum(torch.tensor(float(B), device=mask.device))
    kl = float(all_sum(((log_old - log_ref) * mask).sum()) / rows_all)
    spread = all_sum(((G - all_sum((G * mask).sum()) / tokens) ** 2 * mask).sum()) + 1e-8
    log |= {
        "reward": all_sum(scores.sum()) / rows_all,
        "entropy": all_sum((entropy * mask).sum()) / tokens,
        "length": tokens / rows_all,
        "value_explained": 1 - all_sum(((G - V_old) ** 2 * mask).sum()) / spread,
    }
    metrics = {name: float(x) for name, x in log.items()} | {"kl": kl, "beta": beta}
    return metrics, next_beta(beta, kl, int(rows_all), hyper)


def quiet(policy: nn.Module) -> None:
    """No dropout, also in the training passes: otherwise rho is not 1 where nothing has moved.

    Layers that recompute their activations do so in training mode only; they keep it, the modules inside do not."""
    policy.eval()
    for layer in policy.modules():
        layer.training = getattr(layer, "gradient_checkpointing", False) is True
