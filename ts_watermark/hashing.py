"""The hash: which tokens are green after a given previous token, and the test that counts them.

    seed_t  = key * p                  p = previous token id (context width 1)
    perm    = permutation of 0..V-1 drawn from a generator seeded with seed_t
    green_t = first floor(V * gamma_t) entries of perm

One permutation per previous token: gamma only decides how far to read it, so lists for the same p
nest.

The official generator lives on a CUDA device, and a CPU generator with the same seed draws an
unrelated permutation: text watermarked on one cannot be detected on the other. `philox_cuda`
rebuilds the CUDA permutation anywhere (PyTorch sorts 0..V-1 by Philox-4x32-10 keys, then shuffles
runs of equal keys); `torch` is the CPU generator, which shows the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from shared.protocol import BadInput

KEY = 15485863  # the official hash key, a prime
PERMUTATIONS = ("philox_cuda", "torch")
ROUNDINGS = ("floor", "fp16")
LOW32 = 0xFFFFFFFF


# --- permutation ----------------------------------------------------------------------------------


def key_bits(n: int) -> int:
    """Bits of a sort key: enough that n keys are distinct with probability 0.9 (34 for n = 50272,
    33 for 32000).

    Below 33 bits PyTorch takes another path whose layout depends on the launch. There (n < 26,000)
    we keep 33 bits: still one permutation per seed, the same on every device, but no CUDA generator
    draws it.
    """
    return max(33, math.ceil(math.log2(n - (6 * n * n + 1) / (12 * math.log(0.9)))))


def philox(low: Any, high: Any, counter: Any, index: Any) -> tuple[Any, ...]:
    """Philox-4x32-10 at counter words (counter, 0, index, 0) and key (low, high): the four 32-bit
    outputs.

    Arguments broadcast: numpy uint64 arrays, or torch int64 tensors (products wrap, the low 64 bits
    agree).
    """
    c0, c1, c2, c3 = counter, 0, index, 0
    for round_ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        k0, k1 = (low + round_ * 0x9E3779B9) & LOW32, (high + round_ * 0xBB67AE85) & LOW32
        c0 = ((product1 >> 32) & LOW32) ^ (c1 ^ k0)
        c1 = product1 & LOW32
        c2 = ((product0 >> 32) & LOW32) ^ (c3 ^ k1)
        c3 = product0 & LOW32
    return c0, c1, c2, c3


def sort_keys(seed: int, n: int) -> np.ndarray:
    """The n keys, (n,) uint64, that PyTorch's CUDA permutation of this seed sorts by."""
    index = np.arange(n, dtype=np.uint64)
    counter = np.zeros(1, np.uint64)  # an array: numpy wraps its products silently
    w0, w1, _, _ = philox(seed & LOW32, (seed >> 32) & LOW32, counter, index)
    return ((w0 << np.uint64(32)) | w1) & np.uint64((1 << key_bits(n)) - 1)


def shuffle_ties(order: np.ndarray, keys: np.ndarray, seed: int) -> None:
    """Shuffle, in place, each run of equal sorted keys as the CUDA kernel does (7 % of permutations
    have one).

    order, keys: (n,), sorted by key. The generator has moved on by one block, hence counter word 1.
    """
    equal = np.flatnonzero(keys[1:] == keys[:-1])
    for start in equal[~np.isin(equal - 1, equal)]:
        size = 2
        while start + size < len(keys) and keys[start + size] == keys[start]:
            size += 1
        one, index = np.ones(1, np.uint64), np.array([start], np.uint64)
        words = philox(seed & LOW32, (seed >> 32) & LOW32, one, index)
        # Fisher-Yates; more than five equal keys: never
        for turn, last in enumerate(range(size - 1, 0, -1)):
            other = int(words[turn % 4][0]) % (last + 1)
            order[[start + last, start + other]] = order[[start + other, start + last]]


def permutation_of(
    token: int, vocab_size: int, key: int = KEY, permutation: str = "philox_cuda"
) -> np.ndarray:
    """Permutation of 0..vocab_size-1 for one previous token, (vocab_size,) int64."""
    seed = key * int(token)
    if permutation == "torch":
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(vocab_size, generator=generator).numpy()
    if permutation != "philox_cuda":
        raise BadInput(f"permutation={permutation!r}: choose one of {', '.join(PERMUTATIONS)}")
    # key above, index below in one word: a plain sort is then the stable one, and much faster
    shift = np.uint64(max(1, (vocab_size - 1).bit_length()))
    index = np.arange(vocab_size, dtype=np.uint64)
    packed = np.sort((sort_keys(seed, vocab_size) << shift) | index)
    order = (packed & np.uint64((1 << int(shift)) - 1)).astype(np.int64)
    shuffle_ties(order, packed >> shift, seed)
    return order


def ranks_in(
    token: int, candidates: np.ndarray, vocab_size: int, key: int, permutation: str
) -> np.ndarray:
    """Place of each candidate in the permutation of `token`: green if smaller than the list size.
    (m,) -> (m,)"""
    distinct, inverse = np.unique(candidates, return_inverse=True)
    if permutation == "philox_cuda" and len(distinct) <= 16:  # cheaper to count smaller keys
        keys = sort_keys(key * int(token), vocab_size)
        below = np.array([np.count_nonzero(keys < k) for k in keys[distinct]])
        up_to = np.array([np.count_nonzero(keys <= k) for k in keys[distinct]])
        if (up_to == below + 1).all():  # else a tie, whose order only the whole permutation knows
            return below[inverse]
    place = np.empty(vocab_size, np.int64)
    place[permutation_of(token, vocab_size, key, permutation)] = np.arange(vocab_size)
    return place[candidates]


def list_sizes(gammas: torch.Tensor, vocab_size: int, size_rounding: str = "floor") -> torch.Tensor:
    """Number of green tokens for each gamma: floor(V * gamma), or the official fp16 product.

    fp16: under autocast the official product is rounded to 11 bits (steps of 8 near 12,000) and
    then truncated (docs/papers/ts_watermark.md, section 3.8).
    """
    if size_rounding == "floor":
        return (gammas.double() * vocab_size).floor().long()
    if size_rounding != "fp16":
        raise BadInput(f"size_rounding={size_rounding!r}: choose one of {', '.join(ROUNDINGS)}")
    product = gammas.half().float() * vocab_size
    if product.numel() and product.max() > 65504:
        what = f"a list of {product.max():.0f} overflows fp16"
        raise BadInput(f"size_rounding='fp16': {what}; use 'floor'")
    return product.half().long()


# --- green lists during generation and detection --------------------------------------------------


class GreenLists:
    """Green masks by previous token, in a cache of bounded size.

    sizes: (P,) list size after each of the P possible previous tokens. vocab_size: V. The cache is
    one (slots, V) bool table on `device`, filled in turn; a list depends on the previous token
    alone, so ordinary text soon hits it every time. `max_bytes` bounds the table (at V = 50272 the
    default holds 5,339 lists).
    """

    def __init__(
        self,
        sizes: torch.Tensor,
        vocab_size: int,
        key: int = KEY,
        permutation: str = "philox_cuda",
        device: torch.device | str = "cpu",
        max_bytes: int = 2**28,
    ):
        if permutation not in PERMUTATIONS:
            choices = ", ".join(PERMUTATIONS)
            raise BadInput(f"permutation={permutation!r}: choose one of {choices}")
        self.sizes, self.vocab_size = sizes.cpu(), vocab_size
        self.key, self.permutation = key, permutation
        self.device = torch.device(device)
        slots = max(1, min(len(sizes), max_bytes // vocab_size))
        self.table = torch.zeros(slots, vocab_size, dtype=torch.bool, device=self.device)
        self.slot_of = torch.full((len(sizes),), -1, dtype=torch.long)
        self.token_in = torch.full((slots,), -1, dtype=torch.long)
        self.next_slot = 0

    def masks(self, previous: torch.Tensor) -> torch.Tensor:
        """previous: (B,) ids -> (B, V) bool on the device of the lists."""
        previous = previous.cpu()
        slots = self.slot_of[previous]
        if (slots < 0).any():
            missing = previous[slots < 0].unique()
            distinct = previous.unique()
            if len(distinct) > len(self.table):  # a batch larger than the cache is not stored
                place = torch.searchsorted(distinct, previous)
                return self.compute(distinct)[place.to(self.device)]
            self.store(missing, keep=distinct)
            slots = self.slot_of[previous]
        return self.table[slots.to(self.device)]

    def store(self, tokens: torch.Tensor, keep: torch.Tensor) -> None:
        """Compute the lists of `tokens` into the next slots, skipping those that hold a token of
        `keep`."""
        free: list[int] = []
        while len(free) < len(tokens):
            if not (self.token_in[self.next_slot] == keep).any():
                free.append(self.next_slot)
            self.next_slot = (self.next_slot + 1) % len(self.table)
        slots = torch.tensor(free)
        evicted = self.token_in[slots]
        self.slot_of[evicted[evicted >= 0]] = -1
        self.token_in[slots], self.slot_of[tokens] = tokens, slots
        self.table[slots.to(self.device)] = self.compute(tokens)

    def compute(self, tokens: torch.Tensor) -> torch.Tensor:
        """The cold path: masks of `tokens` (m,) -> (m, V)."""
        if self.device.type == "cuda" and self.permutation == "philox_cuda":
            return torch.cat([self.compute_on_device(part) for part in tokens.split(64)])
        masks = torch.zeros(len(tokens), self.vocab_size, dtype=torch.bool)
        for mask, token in zip(masks, tokens.tolist()):
            order = permutation_of(token, self.vocab_size, self.key, self.permutation)
            mask[torch.from_numpy(order[: int(self.sizes[token])])] = True
        return masks.to(self.device)

    def compute_on_device(self, tokens: torch.Tensor) -> torch.Tensor:
        """The same with one batched sort. Ties keep their order: they matter only where a list ends
        in one."""
        n, seed = self.vocab_size, (tokens * self.key).to(self.device)[:, None]
        index = torch.arange(n, device=self.device)[None]
        counter = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        w0, w1, _, _ = philox(seed & LOW32, (seed >> 32) & LOW32, counter, index)
        keys = ((w0 << 32) | w1) & ((1 << key_bits(n)) - 1)
        order = keys.argsort(dim=1, stable=True)
        inside = index < self.sizes[tokens].to(self.device)[:, None]
        return torch.zeros_like(inside).scatter_(1, order, inside)


# --- the same, pair by pair -----------------------------------------------------------------------


class GreenPairs:
    """Is token x green after token p? As `GreenLists`, for detection: no list is written.

    x is green if its sort key is among the smallest `sizes[p]` of the keys of p. The largest of
    those lies near 2^bits sizes[p] / V, so that most keys tell at once; only within SLACK standard
    deviations (one pair in thirty) are all V keys of p drawn, once for each p. The short way errs
    for fewer than one key in 10^9.
    """

    SLACK = 8

    def __init__(self, sizes: torch.Tensor, vocab_size: int, key: int, permutation: str):
        self.sizes, self.vocab_size = sizes.numpy(), vocab_size
        self.key, self.permutation = key, permutation
        self.last: dict[int, int] = {}  # p -> largest key of its list
        self.lists: dict[int, np.ndarray] = {}  # p -> (V,) bool, where keys do not tell

    def __call__(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """previous, following: (m,) ids -> (m,) bool."""
        green = np.zeros(len(previous), dtype=bool)
        for start in range(0, len(previous), 2**14):
            part = slice(start, start + 2**14)
            p, x = previous[part], following[part]
            if self.permutation == "philox_cuda":
                green[part] = self.by_key(p, x)
            else:
                green[part] = [self.by_list(a)[b] for a, b in zip(p.tolist(), x.tolist())]
        return green

    def by_key(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        seeds = previous.astype(np.uint64) * np.uint64(self.key % 2**64)
        counter, index = np.zeros(1, np.uint64), following.astype(np.uint64)
        w0, w1, _, _ = philox(seeds & LOW32, (seeds >> 32) & LOW32, counter, index)
        whole = 1 << key_bits(self.vocab_size)
        keys = (((w0 << np.uint64(32)) | w1) & np.uint64(whole - 1)).astype(np.int64)
        share = self.sizes[previous] / self.vocab_size
        slack = self.SLACK * np.sqrt(share * (1 - share) / self.vocab_size) + 32 / self.vocab_size
        green = keys < share * whole
        for t in np.flatnonzero(np.abs(keys - share * whole) < slack * whole):
            p = int(previous[t])
            if p not in self.last and p not in self.lists:
                self.draw(p)
            green[t] = keys[t] <= self.last[p] if p in self.last else self.lists[p][following[t]]
        return green

    def draw(self, p: int) -> None:
        """All keys of p: where its list ends, or the list itself if it ends between equal keys."""
        size = int(self.sizes[p])
        if 0 < size < self.vocab_size:
            ends = np.partition(sort_keys(self.key * p, self.vocab_size), (size - 1, size))
            if ends[size - 1] < ends[size]:
                self.last[p] = int(ends[size - 1])
                return
        self.by_list(p)

    def by_list(self, p: int) -> np.ndarray:
        if p not in self.lists:
            order = permutation_of(p, self.vocab_size, self.key, self.permutation)
            self.lists[p] = np.zeros(self.vocab_size, dtype=bool)
            self.lists[p][order[: int(self.sizes[p])]] = True
        return self.lists[p]


# --- the test -------------------------------------------------------------------------------------


class Score(NamedTuple):
    """z, number of green tokens among the scored ones, one-sided p-value of the normal
    approximation."""

    z: float
    green_count: int
    p_value: float


def z_from_counts(green: float, gamma_sum: float, variance_sum: float) -> float:
    """z = (sum green_t - sum gamma_t) / sqrt(sum gamma_t (1 - gamma_t)): KGW's test with unequal
    coins."""
    return (green - gamma_sum) / math.sqrt(variance_sum)


def p_value(z: float) -> float:
    """Upper tail of the standard normal."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def count_laws(coins: np.ndarray) -> np.ndarray:
    """Poisson-binomial laws: P(k of the coins fall green), (B, n) chances -> (B, n + 1).

    Coins of chance 0 change nothing: ragged rows are filled up with them. Only positive terms are
    added, so that the smallest probabilities have all their digits.
    """
    law = np.zeros((coins.shape[0], coins.shape[1] + 1))
    law[:, 0] = 1
    for t in range(coins.shape[1]):
        chance = coins[:, t : t + 1]
        more = law[:, : t + 1] * chance
        law[:, : t + 1] *= 1 - chance
        law[:, 1 : t + 2] += more
    return law


def exact_tails(
    coins: np.ndarray, green: np.ndarray, rows: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """P(at least `green` of the coins fall green) in each row, and P(more): (B, n), (B,) -> (B,)
    each. rows: computed together."""
    as_many, more = np.zeros(len(coins)), np.zeros(len(coins))
    for start in range(0, len(coins), rows):
        part = slice(start, start + rows)
        law, k = count_laws(coins[part]), green[part, None].astype(int)
        at_least = np.arange(law.shape[1]) >= k
        as_many[part] = np.minimum(1.0, (law * at_least).sum(1))
        more[part] = as_many[part] - np.take_along_axis(law, k, 1)[:, 0]
    return as_many, np.maximum(more, 0.0)


def exact_tail(coins: np.ndarray, green: int, block: int = 256) -> float:
    """The same for one text of any length n, in O(n^1.5): (n,) -> p.

    Laws of blocks are convolved; ends below 1e-290 are cut, which is all that a tail can lose."""
    filled = np.zeros(-(-len(coins) // block) * block)
    filled[: len(coins)] = coins
    first, law = 0, np.ones(1)  # law[i]: chance of first + i green ones
    for part in count_laws(filled.reshape(-1, block)):
        law = np.convolve(law, part)
        inside = np.flatnonzero(law > 1e-290)
        first, law = first + int(inside[0]), law[inside[0] : inside[-1] + 1]
    return min(1.0, float(law[max(0, green - first) :].sum()))


def checked_ids(
    token_ids: ArrayLike | torch.Tensor, vocab_size: int, at_least: int = 2
) -> np.ndarray:
    """token_ids as (n,) int64, or a BadInput that says what is wrong with them."""
    ids = np.asarray(token_ids.cpu() if isinstance(token_ids, torch.Tensor) else token_ids)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        what = f"got shape {ids.shape}, {ids.dtype}"
        raise BadInput(f"token_ids: expected one flat list of integers, {what}")
    if len(ids) < at_least:
        need = f"at least {at_least} are needed (the first is not scored)"
        raise BadInput(f"the text has {len(ids)} token(s); {need}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        bad = int(ids.min() if ids.min() < 0 else ids.max())
        limit = f"outside 0..{vocab_size - 1}"
        raise BadInput(f"token id {bad} is {limit}: the text is in another vocabulary?")
    return ids.astype(np.int64)


def z_score(
    token_ids: Sequence[int],
    gammas: float | Sequence[float],
    vocab_size: int,
    key: int = KEY,
    size_rounding: str = "floor",
    permutation: str = "philox_cuda",
) -> Score:
    """Score one text: positions 2..n, each against the list of the token before it. Pure.

    gammas: a scalar, or one value per position; entry t governs token t+1, so the last is not used
    and may be left out. The prompt is not needed and the first token has no predecessor.
    """
    return z_scores([token_ids], [gammas], vocab_size, key, size_rounding, permutation)[0]


def z_scores(
    texts: Sequence[Sequence[int]],
    gammas: Sequence[float | Sequence[float]],
    vocab_size: int,
    key: int = KEY,
    size_rounding: str = "floor",
    permutation: str = "philox_cuda",
) -> list[Score]:
    """`z_score` of many texts; each previous token that they share is hashed once.

    gammas: one entry per text, each a scalar or a list as in `z_score`.
    """
    ids = [checked_ids(text, vocab_size) for text in texts]
    rows = [checked_gammas(g, len(text)) for g, text in zip(gammas, ids, strict=True)]
    previous = np.concatenate([text[:-1] for text in ids])
    following = np.concatenate([text[1:] for text in ids])
    ranks = np.empty(len(previous), np.int64)
    order = np.argsort(previous, kind="stable")
    tokens, starts = np.unique(previous[order], return_index=True)
    for token, where in zip(tokens, np.split(order, starts[1:])):
        ranks[where] = ranks_in(token, following[where], vocab_size, key, permutation)
    sizes = list_sizes(torch.from_numpy(np.concatenate(rows)), vocab_size, size_rounding)
    green, scores = ranks < sizes.numpy(), []
    for flags, gamma in zip(np.split(green, np.cumsum([len(r) for r in rows])[:-1]), rows):
        z = z_from_counts(flags.sum(), gamma.sum(), (gamma * (1 - gamma)).sum())
        scores.append(Score(float(z), int(flags.sum()), p_value(z)))
    return scores


def checked_gammas(gammas: ArrayLike | torch.Tensor, n: int) -> np.ndarray:
    """(n-1,) float64, one share per scored token."""
    plain = gammas.cpu() if isinstance(gammas, torch.Tensor) else gammas
    values = np.asarray(plain, dtype=np.float64)
    if values.ndim == 0:
        values = np.full(n - 1, float(values))
    elif values.ndim != 1 or len(values) not in (n, n - 1):
        what = f"gammas: {values.shape} values for {n} tokens"
        raise BadInput(f"{what}; give a scalar or one value per token")
    values = values[: n - 1]
    if not ((values > 0) & (values < 1)).all():  # also refuses nan
        outside = values[~((values > 0) & (values < 1))][0]
        raise BadInput(f"gamma = {outside} must lie inside (0, 1)")
    return values
