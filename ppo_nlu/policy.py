"""The policy, its value and its reference in one network, and the answers it writes.

Shapes: B answers in a batch, P prompt columns (padded on the LEFT, so that every answer starts in
the same column), T answer columns (padded on the right). Masks come from answer LENGTHS, never from
"token == pad": many checkpoints use one id for padding and for the end of the text, and the end of
the text is an action that earns reward."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared import processes


class Tokenizer(Protocol):
    """What `rollout` needs of a tokenizer."""

    pad_token_id: Any
    eos_token_id: Any

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]: ...


def base_of(lm: nn.Module) -> nn.Module:
    """The network under its adapter, or itself."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm  # type: ignore[operator]


def _contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last columns alone go into the head; as a slice they would be multiplied answer by
    answer, which is several times slower on a CPU."""
    return inputs[0].contiguous(), *inputs[1:]


class Policy(nn.Module):
    """pi_theta, V_phi and pi_ref in one. `lm`: a causal model of transformers, or under peft.

    Under peft the reference is the same network with the adapter off: no second copy, and exactly
    the model that was loaded as long as the adapter trains no bias of it. A bare model is trained
    whole, against a frozen copy."""

    def __init__(self, lm: nn.Module):
        super().__init__()
        self.lm: Any = lm
        self.adapter = hasattr(lm, "disable_adapter")
        base: Any = base_of(lm)
        self.accepts = set(inspect.signature(base.forward).parameters)
        self.caches = getattr(
            base, "caches", True
        )  # keys and values of earlier tokens, in `rollout`
        if hasattr(base, "get_output_embeddings"):
            base.get_output_embeddings().register_forward_pre_hook(_contiguous)
        width = base.config.hidden_size
        self.value = nn.Linear(width, 1, device=next(lm.parameters()).device)  # stays fp32
        # a list hides the copy from .parameters(): it is not part of what trains, moves or is saved
        self.frozen = [] if self.adapter else [copy.deepcopy(lm).eval().requires_grad_(False)]

    def trained(self) -> list[Tensor]:
        """What training moves: adapter and value head, or all weights."""
        return [p for p in self.parameters() if p.requires_grad]

    def call(self, lm: nn.Module, ids: Tensor, mask: Tensor, keep: int, **more: Any) -> Any:
        """One pass; logits of the last `keep` columns only: the vocabulary costs memory."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # left padding must not shift positions
        inputs = {"position_ids": positions[:, -ids.shape[1] :], "logits_to_keep": keep}
        accepted = {k: v for k, v in inputs.items() if k in self.accepts}
        return lm(input_ids=ids, attention_mask=mask, **accepted, **more)

    def forward(
        self, ids: Tensor, mask: Tensor, T: int, reference: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log pi(a_t|s_t), V(s_t), logits (B, T, words) at the answer columns.

        ids, mask: (B, P + T).

        The logits of column j speak about token j + 1, so the first answer token is judged at the
        LAST PROMPT column."""
        lm = self.frozen[0] if reference and self.frozen else self.lm
        off = self.lm.disable_adapter() if reference and self.adapter else contextlib.nullcontext()
        with off:
            out = self.call(lm, ids, mask, T + 1, output_hidden_states=True, use_cache=False)
        logits, h = out.logits[:, -T - 1 : -1], out.hidden_states[-1][:, -T - 1 : -1]
        return self.judged(logits, h, ids[:, -T:])

    def judged(self, logits: Tensor, h: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log pi and V (B, T) of the answers' tokens (B, T), of which column t of the logits
        (B, T, words) and states (B, T, width) speaks; and the logits."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        flat = nn.functional.cross_entropy(
            logits.flatten(0, 1), answers.flatten(), reduction="none"
        )
        V = self.value(h.to(self.value.weight.dtype)).squeeze(-1)
        return -flat.view(answers.shape), V, logits

    def answers(
        self,
        tokenizer: Tokenizer,
        questions: Sequence[Sequence[int]],
        max_new: int,
        uniforms: Tensor | None = None,
        stop: str | None = None,
        temperature: float = 1.0,
    ) -> Rollout:
        """`rollout` of this policy."""
        return rollout(self, tokenizer, questions, max_new, uniforms, stop, temperature)


@torch.no_grad()
def entropy(logits: Tensor) -> Tensor:
    """(..., words) -> (...): nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def quiet(policy: nn.Module) -> None:
    """No dropout, also in the training passes: otherwise rho is not 1 where nothing has moved.

    Layers that recompute their activations do so in training mode only; they keep it, the modules
    inside do not."""
    policy.eval()
    for layer in policy.modules():
        layer.training = getattr(layer, "gradient_checkpointing", False) is True


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes; x itself where there is one."""
    if processes.world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def whole(p: Tensor) -> Tensor:
    """A tensor that FSDP may have divided (sharding.py), put together."""
    return p.full_tensor() if hasattr(p, "full_tensor") else p


# --- answers --------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """ids, mask: (B, P + T); lengths: (B,) tokens of each answer, the one that ends it included."""

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
        """(B, T) float: 1 at the tokens of an answer."""
        return (torch.arange(self.T, device=self.ids.device) < self.lengths[:, None]).float()

    def minibatches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """(rows, ids, mask, T) of `size` rows of similar length, cut to their own width."""
        P = self.ids.shape[1] - self.T
        for rows in self.mask.sum(1).argsort(descending=True, stable=True).split(size):
            left = int(self.mask[rows, :P].argmax(1).min()) if P else 0
            T = int(self.lengths[rows].max())
            yield rows, self.ids[rows, left : P + T], self.mask[rows, left : P + T], T


def left_pad(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Lists of token ids -> ids, mask (B, P), padded on the left."""
    P = max(map(len, prompts))
    ids = torch.tensor([[pad] * (P - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


@torch.no_grad()
def rollout(
    policy: Policy,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    uniforms: Tensor | None = None,
    stop: str | None = "</Judgement>",
    temperature: float = 1.0,
) -> Rollout:
    """Answers to `prompts`: sampled with `uniforms` (B, max_new) in [0, 1), else greedy.

    One uniform number picks one token through the cumulative distribution, so an answer depends on
    its own row of numbers only: on how many processes or in which groups the rows are generated
    does not matter. An answer ends with the end-of-text token, with the token that completes
    `stop`, or after max_new tokens."""
    device = next(policy.lm.parameters()).device
    policy.eval()  # in training mode it would sample from one network and judge by another
    ids, mask = left_pad(prompts, tokenizer.pad_token_id, device)
    B, P = ids.shape
    is_open = torch.ones(B, dtype=torch.bool, device=device)
    lengths = torch.zeros(B, dtype=torch.long, device=device)
    past, new, cache = None, ids, policy.caches
    for t in range(max_new):
        inputs = new if cache else ids
        out = policy.call(policy.lm, inputs, mask, 1, past_key_values=past, use_cache=cache)
        past = out.past_key_values if cache else None
        chosen = _next_token(
            out.logits[:, -1].float(),
            None if uniforms is None else uniforms[:, t : t + 1].to(device),
            temperature,
        )
        token = torch.where(is_open, chosen, tokenizer.pad_token_id)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, is_open[:, None].to(mask.dtype)], 1)
        lengths += is_open
        is_open = is_open & (token != tokenizer.eos_token_id)
        if stop is not None:  # read in the text, since the tag may span tokens
            tails = tokenizer.batch_decode(ids[:, max(P, P + t - 15) :])
            is_open = is_open & torch.tensor([stop not in tail for tail in tails], device=device)
        if all_sum(is_open.sum()) == 0:  # sharded models run in step: wait for the others' answers
            break
        new = token[:, None]
    T = int(lengths.max())
    rows = [row[P : P + n].tolist() for row, n in zip(ids, lengths)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return Rollout(ids[:, : P + T], mask[:, : P + T], lengths, texts)


def _next_token(logits: Tensor, u: Tensor | None, temperature: float) -> Tensor:
    """(B,) token ids from logits (B, V): the most probable, or the one that u (B, 1) falls on."""
    if u is None:
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    cdf = (p * 2.0**40).long().cumsum(-1)  # integers: the same sums on any device
    u = (u.double() * cdf[:, -1:]).long()  # the whole of them is a little below 2^40
    return torch.searchsorted(cdf, u, right=True).squeeze(1)
