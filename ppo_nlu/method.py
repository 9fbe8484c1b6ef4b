"""PPO for a language model that must answer a question, with a rule as the reward. Read this first.

A policy pi_theta (a causal language model under LoRA) is asked a question q and writes an answer
a_1 .. a_n, token by token; the state is s_t = (q, a_1 .. a_{t-1}). A rule reads the answer and pays
ONE number R for it: 1 right, 0 wrong, -1 unreadable (the official code: 1, -1, -3). Two more
functions share the network (policy.py): the value V_phi(s_t), a linear head that says what pay to
expect, and the reference pi_ref, the network with its adapter off, which the policy pays to leave.

There is one level, with one variable: theta, the adapter and the value head. `cycle`, for a batch:

    ask       answers ~ pi_theta; the policy of this moment is pi_old from here on
    pay       R of each answer, by the rule
    update    log pi_old, V and log pi_ref of all tokens, once: `old_view`
              (1) r, (2) A and G, (3) A whitened: once, constants from here on
              4 times: one step of theta down (6), on these answers
              (7) beta for the next batch

Equations: docs/papers/ppo_nlu.md, section 3.4. gamma, lam, eps, eps_v, c_v, target and horizon are
numbers of the configuration (`PPO`).

    token_rewards  (1)  k_t = log pi_old(a_t|s_t) - log pi_ref(a_t|s_t)
                        r_t = -beta k_t + 1[t = n] R
    gae            (2)  delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
                        A_t = sum_l (gamma lam)^l delta_{t+l},   G_t = A_t + V(s_t)
    whiten         (3)  A <- (A - mean) / sd, over all tokens of the batch
    policy_loss    (4)  max(-A rho, -A clip(rho, 1 - eps, 1 + eps)),   rho_t = pi_theta / pi_old
    value_loss     (5)  1/2 max((V - G)^2, (clip(V, V_old - eps_v, V_old + eps_v) - G)^2)
    gradient       (6)  L = mean over tokens of (4) + c_v (5)
    next_beta      (7)  beta <- beta (1 + e batch / horizon),   e = clip(KL / target - 1, -0.2, 0.2)
    sft_loss       (8)  the opponent: -mean log pi_theta(label's tokens)

Why (4) is no miracle: if the answer is one token, right or wrong, E[R] = pi_y has the gradient
pi_y grad log pi_y: that of (8) weighted by the probability of the right answer (section 3.8).

Shapes: (B, T) is B answers of at most T tokens, padded on the right; a mask (B, T) is 1 at the
tokens of an answer. `policy(ids, mask, T)` gives log pi(a_t|s_t) and V(s_t), (B, T), and logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ppo_nlu.config import PPO
from ppo_nlu.policy import Policy, Rollout, all_sum, entropy, left_pad, quiet
from shared import processes
from shared.protocol import BadInput

RATIO_LIMIT = 10.0  # a minibatch whose mean ratio exceeds this counts zero (official)
T_ = TypeVar("T_")


# --- the alternation ------------------------------------------------------------------------------


def cycle(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ask: Callable[[], Rollout],
    pay: Callable[[Rollout], Tensor],
    beta: float,
    ppo: PPO,
) -> tuple[dict[str, float], float]:
    """One batch of questions -> (facts to log, the next beta). Section 3.5.

    ask: samples answers from the policy as it stands, pi_old from here on. pay: the rule, R (B,) of
    the answers."""
    answers = ask()
    R = pay(answers)
    return update(policy, optimizer, answers, R, beta, ppo)


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    answers: Rollout,
    R: Tensor,
    beta: float,
    ppo: PPO,
) -> tuple[dict[str, float], float]:
    """`ppo.inner_epochs` steps on answers that do not change -> (facts, the next beta). R: (B,).

    The advantages are computed once; recomputed inside the loop they would chase the policy. Means
    are over the tokens of the whole batch of all processes: minibatches and processes change
    nothing but memory, and which rows RATIO_LIMIT drops. Raises ValueError where answers do not
    divide into minibatches, FloatingPointError where R is not finite."""
    size, mask = _minibatch(answers, R, ppo), answers.answer_mask()
    quiet(policy)
    old, size = halving(partial(old_view, policy, answers, beta), size)
    r = token_rewards(old.log_pi, old.log_ref, R, mask, beta)
    A, G = gae(r, old.V, mask, ppo.gamma, ppo.lam)
    A = whiten(A, mask)
    passes = partial(gradient, policy, optimizer, answers, old, A, G, ppo)
    steps = []
    for _ in range(ppo.inner_epochs):
        losses, size = halving(passes, size)
        optimizer.step()
        steps.append(losses)
    facts = {f"{name}_first": x for name, x in steps[0].items()} | steps[-1]
    facts |= summary(old, R, G, mask) | {"beta": beta}
    if beta == 0:
        return facts, 0.0
    facts["kl"] = mean_kl(old.log_pi, old.log_ref, mask)
    batch = int(all_sum(mask.new_tensor(float(len(R)))))
    return facts, next_beta(beta, facts["kl"], batch, ppo)


# --- the equations --------------------------------------------------------------------------------


def token_rewards(log_old: Tensor, log_ref: Tensor, R: Tensor, mask: Tensor, beta: float) -> Tensor:
    """(1): log_old, log_ref, mask (B, T), R (B,) -> r (B, T), zero after the answer.

    k_t is a one-sample estimate of the KL divergence and may be negative; its mean is not."""
    r = -beta * (log_old - log_ref) * mask
    # column of a_n, the last REAL token: the end-of-text or closing-tag token
    last = mask.sum(1).long() - 1
    r[torch.arange(len(r), device=r.device), last] += R
    return r


def gae(r: Tensor, V: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(2): A and G = A + V, all (B, T), backwards: A_t = delta_t + gamma lam A_{t+1}.

    V(s_{n+1}) = 0 at the TRUE end of each answer, not at column T. With lam = gamma = 1, G is the
    reward to go."""
    V = V * mask
    A, following = torch.zeros_like(r), torch.zeros_like(r[:, 0])
    for t in reversed(range(r.shape[1])):
        V_next = V[:, t + 1] if t + 1 < r.shape[1] else torch.zeros_like(following)
        delta = r[:, t] + gamma * V_next - V[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        A[:, t] = following
    return A, A + V


def whiten(A: Tensor, mask: Tensor) -> Tensor:
    """(3): over the real tokens of all processes (B, T); unbiased, as in the official trainer."""
    n, total = all_sum(mask.sum()), all_sum((A * mask).sum())
    mean = total / n
    var = all_sum(((A - mean) ** 2 * mask).sum()) / (n - 1).clamp(min=1)
    return (A - mean) * torch.rsqrt(var + 1e-8) * mask


def policy_loss(log_pi: Tensor, log_old: Tensor, A: Tensor, clip: float) -> Tensor:
    """(4) per token (B, T): the pessimistic of two, so that moving far is never rewarded twice."""
    rho = (log_pi - log_old).exp()
    return torch.maximum(-A * rho, -A * rho.clamp(1 - clip, 1 + clip))


def value_loss(V: Tensor, V_old: Tensor, G: Tensor, clip: float) -> Tensor:
    """(5) per token (B, T). The trunk is shared with the policy: this loss moves it too."""
    V_clipped = V_old + (V - V_old).clamp(-clip, clip)
    return 0.5 * torch.maximum((V - G) ** 2, (V_clipped - G) ** 2)


def next_beta(beta: float, kl: float, batch: int, ppo: PPO) -> float:
    """(7): beta after `batch` answers whose mean KL was `kl` nats; always positive."""
    if ppo.kl_horizon == 0:
        return beta
    error = min(max(kl / ppo.kl_target - 1, -0.2), 0.2)
    return beta * (1 + error * batch / ppo.kl_horizon)


def sft_loss(
    policy: Policy, prompts: Sequence[list[int]], targets: Sequence[list[int]], pad: int
) -> Tensor:
    """(8): mean over the targets' tokens of the batch; the prompt is never a target (D6)."""
    log_pi, real = log_pi_of(policy, prompts, targets, pad)
    return -(log_pi * real).sum() / real.sum()


def log_pi_of(
    policy: Policy, prompts: Sequence[list[int]], targets: Sequence[list[int]], pad: int
) -> tuple[Tensor, Tensor]:
    """log pi of the targets' tokens and their mask, (B, longest target)."""
    device = next(policy.parameters()).device
    ids, mask = left_pad(prompts, pad, device)
    T = max(map(len, targets))
    answer = torch.tensor([t + [pad] * (T - len(t)) for t in targets], device=device)
    real = torch.tensor([[1] * len(t) + [0] * (T - len(t)) for t in targets], device=device)
    return policy(torch.cat([ids, answer], 1), torch.cat([mask, real], 1), T)[0], real


# --- passes over the answers, some rows at a time -------------------------------------------------


@dataclass
class Old:
    """What pi_old, V_old and pi_ref say about the answers, each (B, T), before the policy moves."""

    log_pi: Tensor
    V: Tensor
    log_ref: Tensor
    entropy: Tensor
    # where one pass holds all rows, it IS the first training pass: its outputs with their graph
    first_pass: tuple[Tensor, Tensor] | None


def old_view(policy: Policy, answers: Rollout, beta: float, size: int) -> Old:
    """`Old` in passes of `size` rows; where leaving it costs nothing the reference is not asked."""
    shape, device = (len(answers), answers.T), answers.ids.device
    log_pi, V, log_ref, H = (torch.zeros(shape, device=device) for _ in range(4))
    whole = size == len(answers)
    for rows, ids, m, t in answers.minibatches(size):
        if beta:
            with torch.no_grad():
                log_ref[rows, :t] = policy(ids, m, t, reference=True)[0]
        with torch.set_grad_enabled(whole):
            new, value, logits = policy(ids, m, t)
        log_pi[rows, :t], V[rows, :t], H[rows, :t] = new.detach(), value.detach(), entropy(logits)
    if not beta:
        log_ref = log_pi
    return Old(log_pi, V, log_ref, H, (new, value) if whole else None)


def gradient(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    answers: Rollout,
    old: Old,
    A: Tensor,
    G: Tensor,
    ppo: PPO,
    size: int,
) -> dict[str, float]:
    """(6): `.grad` of L, in passes of `size` rows -> losses and how far the ratio is from 1."""
    optimizer.zero_grad(set_to_none=True)
    mask = answers.answer_mask()
    tokens = all_sum(mask.sum())
    first_pass, old.first_pass = old.first_pass, None
    sums = torch.zeros(6, device=mask.device)
    for rows, ids, m, t in answers.minibatches(size):
        log_pi, V = first_pass or policy(ids, m, t)[:2]
        log_old, w = old.log_pi[rows, :t], mask[rows, :t]
        pol = (policy_loss(log_pi, log_old, A[rows, :t], ppo.clip) * w).sum() / tokens
        val = (value_loss(V, old.V[rows, :t], G[rows, :t], ppo.clip_value) * w).sum() / tokens
        rho = (log_pi.detach() - log_old).exp()
        guard = 0.0 if (rho * w).sum() / w.sum() > RATIO_LIMIT else 1.0
        # before a step gradients are AVERAGED over processes, of which each holds its share of one
        # sum
        ((pol + ppo.value_weight * val) * guard * processes.world_size()).backward()
        clipped = ((rho - 1).abs() > ppo.clip).float()
        drift = 0.5 * (log_pi.detach() - log_old) ** 2
        means = ((x * w).sum() / tokens for x in (rho, clipped, drift))
        sums += torch.stack([pol.detach(), val.detach(), *means, pol.new_tensor(1 - guard)])
    names = ("policy_loss", "value_loss", "ratio", "clip_fraction", "kl_old_new", "skipped")
    return dict(zip(names, all_sum(sums).tolist()))


def summary(old: Old, R: Tensor, G: Tensor, mask: Tensor) -> dict[str, float]:
    """Means over the batch of all processes; entropy is one of tokens."""
    B, tokens = all_sum(mask.new_tensor(float(len(R)))), all_sum(mask.sum())
    mean_G = all_sum((G * mask).sum()) / tokens
    spread = all_sum(((G - mean_G) ** 2 * mask).sum()) + 1e-8
    facts = {
        "reward": all_sum(R.sum()) / B,
        "entropy": all_sum((old.entropy * mask).sum()) / tokens,
        "length": tokens / B,
        "value_explained": 1 - all_sum(((G - old.V) ** 2 * mask).sum()) / spread,
    }
    return {name: float(x) for name, x in facts.items()}


def mean_kl(log_pi: Tensor, log_ref: Tensor, mask: Tensor) -> float:
    """Mean over the answers of all processes of sum_t k_t."""
    B = all_sum(mask.new_tensor(float(len(mask))))
    return float(all_sum(((log_pi - log_ref) * mask).sum()) / B)


# --- memory ---------------------------------------------------------------------------------------


def _minibatch(answers: Rollout, R: Tensor, ppo: PPO) -> int:
    """Rows of one pass; refuses answers that do not divide and a pay that is no number."""
    size = min(ppo.minibatch, len(answers))
    if len(answers) % size:
        what = f"{len(answers)} answers do not divide into minibatches of {size}"
        raise ValueError(f"{what}; set minibatch")
    if not bool(torch.isfinite(R).all()):
        bad = int((~torch.isfinite(R)).nonzero()[0])
        raise FloatingPointError(f"reward of answer {bad} is {R[bad]} for {answers.texts[bad]!r}")
    return size


def halving(passes: Callable[[int], T_], size: int) -> tuple[T_, int]:
    """(`passes(size)`, size); out of memory, with half the rows at a time: the same result."""
    while True:
        try:
            return passes(size), size
        except torch.OutOfMemoryError as error:
            if size % 2:
                remedy = "lower --max-prompt, or give --checkpointing"
                raise BadInput(f"out of memory with minibatches of {size}; {remedy}") from error
            size //= 2
