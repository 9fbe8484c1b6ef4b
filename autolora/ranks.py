"""Ranks of a retraining: read off a search by three rules, drawn as controls, or given as numbers.

learned        the paper's count (`method.count`)
norm_weighted  components whose weight times norms is at or above the mean of their map
spectral       singular values of the learned update above 10 % of the largest
permuted       the learned ranks on the wrong maps: same budget, same multiset (claims 1 and 8)
random         normal logits of the learned spread through the same threshold, drawn until they have
               the learned total (claim 6)
equal          uniform at exactly the learned total; nearest: uniform at the nearest total
oracle         the planted ranks, where the task knows them
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from autolora import method, official
from autolora.config import Config
from autolora.maps import lora_layers, size
from autolora.method import TIE, SelectionLoRA, count
from shared.runs import BadInput

Ranks = dict[str, int]  # full module name -> rank, in depth order, query before value


class Search(TypedDict, total=False):
    """What is read of a run's `ranks.json`. A spectral probe has `ranks` and `budget` alone."""

    ranks: Ranks
    budget: int
    rules: dict[str, Ranks]
    beta: dict[str, list[float]]


def read(directory: Path) -> Search:
    return json.loads((directory / "ranks.json").read_text(encoding="utf-8"))


# --- rules: from what a map has learned to its rank ----------------------------------------------


def norm_weighted_count(alpha: Tensor, A: Tensor, B: Tensor) -> int:
    """Components with alpha_j |a_j| |b_j| at or above their mean.

    alpha: (k,), A: (k, d_in), B: (d_out, k). Unlike alpha, the product does not depend on how a
    component's size is split between its factors (docs/papers/autolora.md, section 8.2)."""
    weight = (alpha * B.norm(dim=0) * A.norm(dim=1)).double()
    return int((weight >= weight.mean() * (1 - TIE)).sum())


def spectral_rank(left: Tensor, right: Tensor, share: float = 0.1) -> int:
    """Singular values of left @ right above `share` of the largest; (d_out, k) and (k, d_in)."""
    # the product of the triangular factors, (k, k), has the same spectrum
    small = torch.linalg.qr(left.double()).R @ torch.linalg.qr(right.double().T).R.T
    values = torch.linalg.svdvals(small)
    return max(1, int((values > share * values[0]).sum()))


RULES: dict[str, Callable[[Tensor, Tensor, Tensor], int]] = {
    "count": lambda alpha, A, B: count(alpha),
    "norm_weighted": norm_weighted_count,
    "spectral": lambda alpha, A, B: spectral_rank(B * alpha, A),
}


@torch.no_grad()
def by_every_rule(layers: Mapping[str, SelectionLoRA]) -> dict[str, Ranks]:
    return {
        name: {m: rule(layer.alpha, layer.A, layer.B) for m, layer in layers.items()}
        for name, rule in RULES.items()
    }


def of_probe(wrapped: nn.Module) -> Search:
    """Content of ranks.json after plain LoRA: the spectral rank of each trained update."""
    ranks = {}
    for name, layer in lora_layers(wrapped).items():
        left, right = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        ranks[name] = spectral_rank(left.detach().cpu(), right.detach().cpu())
    return {"ranks": ranks, "budget": sum(ranks.values())}


def undecided(layers: Mapping[str, SelectionLoRA]) -> list[str]:
    """Maps whose logits are all equal: nothing was learned there, and the count k means nothing."""
    return [name for name, layer in layers.items() if bool((layer.beta == layer.beta[0]).all())]


def noise_counts(sigma: float, k: int, draws: int, generator: torch.Generator) -> Tensor:
    """Counts, (draws,), when nothing was learned (docs/papers/autolora.md, section 8.1).

    sigma: standard deviation of i.i.d. normal logits."""
    logits = sigma * torch.randn(draws, k, generator=generator, dtype=torch.float64)
    return (torch.softmax(logits, dim=1) >= (1 - TIE) / k).sum(1)


def selection(layers: dict[str, SelectionLoRA], weights: str) -> dict[str, Any]:
    """What metrics.jsonl says of the selection weights; README.md explains each word."""
    beta = torch.stack([layer.beta.detach().cpu() for layer in layers.values()])
    alpha = torch.stack([layer.alpha.detach().cpu() for layer in layers.values()])
    shares = alpha.clamp(min=0) / alpha.clamp(min=0).sum(1, keepdim=True).clamp(min=1e-12)
    return {
        "alpha": [[round(x, 5) for x in row] for row in alpha.tolist()],
        "ranks": [official.count_of(weights, row) for row in alpha],
        "entropy": float(-torch.special.xlogy(shares, shares).sum(1).mean()),
        "travel": float((beta - beta.mean(1, keepdim=True)).abs().max()),
    }


def of_search(config: Config, layers: Mapping[str, SelectionLoRA]) -> dict[str, Any]:
    """Content of ranks.json: ranks by the chosen rule, by every rule, and what they come from."""
    lam = config.threshold or None
    if config.threshold_rule == "raw":
        ranks = {n: official.raw_count(layer.beta.detach(), lam) for n, layer in layers.items()}
    else:
        alpha = {n: layer.alpha.detach() for n, layer in layers.items()}
        ranks = {n: official.count_of(config.weights, a, lam) for n, a in alpha.items()}
    adapted = {name: r for name, r in ranks.items() if r}  # lambda above 1/k can leave a map none
    return {
        "k": config.k,
        "lambda": lam or 1 / config.k,
        "c": config.c,
        "model": config.model,
        "task": config.task,
        "seed": config.seed,
        "ranks": ranks,
        "budget": sum(ranks.values()),
        "undecided": undecided(layers),
        "rules": by_every_rule(layers),
        "alpha": {name: layer.alpha.tolist() for name, layer in layers.items()},
        "beta": {name: layer.beta.tolist() for name, layer in layers.items()},
        "peft": method.patterns(adapted, config.k, config.c, config.scale_rule),
    }


# --- opponents and controls ----------------------------------------------------------------------


def equal_budget(ranks: Ranks) -> Ranks:
    """Uniform at exactly the same total: the remainder goes, one each, to the last maps."""
    low, extra = divmod(sum(ranks.values()), len(ranks))
    return {name: low + (i >= len(ranks) - extra) for i, name in enumerate(ranks)}


def nearest_budget(ranks: Ranks) -> Ranks:
    """Uniform at the nearest total, halves rounded up."""
    return dict.fromkeys(ranks, math.floor(sum(ranks.values()) / len(ranks) + 0.5))


def permuted(ranks: Ranks, generator: torch.Generator) -> Ranks:
    """The same multiset on other maps; a permutation that changes something, where one exists."""
    values = torch.tensor(list(ranks.values()))
    shuffled = values
    while len(set(values.tolist())) > 1 and torch.equal(shuffled, values):
        shuffled = values[torch.randperm(len(values), generator=generator)]
    return dict(zip(ranks, shuffled.tolist(), strict=True))


def random_ranks(
    beta: Mapping[str, Sequence[float]], total: int, generator: torch.Generator, draws: int = 5000
) -> Ranks:
    """The noise law: normal logits with the spread that the learned ones have within a map.

    Of `draws` the first with the learned `total`; else the nearest, one rank at a time moved to it.
    """
    logits = torch.tensor([list(b) for b in beta.values()], dtype=torch.float64)  # (M, k)
    squares = (logits - logits.mean(1, keepdim=True)).pow(2).sum()
    sigma = math.sqrt(squares / (logits.numel() - len(logits)))
    k = logits.shape[1]
    counts = noise_counts(sigma, k, draws * len(logits), generator).view(draws, len(logits))
    chosen = counts[int((counts.sum(1) - total).abs().argmin())].clone()
    while gap := total - int(chosen.sum()):
        step = 1 if gap > 0 else -1
        free = ((chosen + step >= 1) & (chosen + step <= k)).nonzero()[:, 0]
        chosen[free[int(torch.randint(len(free), (1,), generator=generator))]] += step
    return dict(zip(beta, chosen.tolist(), strict=True))


def scaled(ranks: Ranks, total: int) -> Ranks:
    """The same proportions at another total: at least 1 each, what rounding leaves by largest
    remainder, ties to the last maps. Raises BadInput for a total below one rank per map."""
    if total < len(ranks):
        raise BadInput(f"rank_total = {total}: {len(ranks)} maps need at least that much")
    above = torch.tensor(list(ranks.values()), dtype=torch.float64) - 1
    if not above.any():
        above += 1
    share = 1 + above * (total - len(ranks)) / above.sum()
    low = (share + TIE).floor().long()
    last_first = torch.arange(len(ranks)).flip(0)
    behind = (share - low)[last_first].round(decimals=6)  # ties are ties, whatever rounding made
    order = last_first[torch.argsort(behind, descending=True, stable=True)]
    low[order[: total - int(low.sum())]] += 1
    return dict(zip(ranks, low.tolist(), strict=True))


def choose(
    rule: str,
    search: Search | None,
    maps: Mapping[str, nn.Module],
    generator: torch.Generator,
    truth: Sequence[int] = (),
) -> Ranks:
    """Ranks by `rule` (see the head of this file) from a search, or a number, or a list of numbers.

    Raises BadInput for a rule that does not exist, that needs a search, or a planted truth."""
    if rule == "oracle":
        if not truth:
            raise BadInput(
                "ranks = 'oracle': only a planted task knows its ranks; use task planted"
            )
        return from_list(truth, list(maps))
    values = [int(word) for word in rule.split(",")] if rule.replace(",", "").isdigit() else []
    if len(values) == 1:
        return dict.fromkeys(maps, values[0])
    if values:
        return from_list(values, list(maps))
    rules: dict[str, Callable[[Search], Ranks]] = {
        "learned": lambda s: s["ranks"],
        "norm_weighted": lambda s: s["rules"]["norm_weighted"],
        "spectral": lambda s: s["rules"]["spectral"],
        "permuted": lambda s: permuted(s["ranks"], generator),
        "random": lambda s: random_ranks(s["beta"], s["budget"], generator),
        "equal": lambda s: equal_budget(s["ranks"]),
        "nearest": lambda s: nearest_budget(s["ranks"]),
    }
    if search is None:
        raise BadInput(f"ranks = '{rule}' needs the directory of a search (--uses.search DIR)")
    return rules[rule](search)


def from_list(values: Sequence[int], names: Sequence[str]) -> Ranks:
    """A list as the official code has it, in depth order, keyed by full module name."""
    if len(values) != len(names):
        order = f"in the order {', '.join(names[:4])}, ..."
        raise BadInput(f"{len(values)} ranks for {len(names)} maps; give one for each, {order}")
    return dict(zip(names, values, strict=True))


def check(ranks: Mapping[str, int], maps: Mapping[str, nn.Module]) -> None:
    """BadInput naming the map for a wrong key, length or type, or a rank outside its limits."""
    for name in ranks:
        if name not in maps:
            adapted = ", ".join(maps)
            raise BadInput(f"rank given for '{name}', which is not an adapted map; use {adapted}")
    for name, base in maps.items():
        if name not in ranks:
            numbers = f"{len(ranks)} ranks for {len(maps)} maps"
            raise BadInput(f"no rank given for map '{name}': {numbers}; add it")
        rank, most = ranks[name], min(size(base))
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise BadInput(f"rank of map '{name}' must be an integer, got {rank!r}")
        if not 1 <= rank <= most:
            remedy = "to leave a map out, do not adapt it"
            raise BadInput(f"rank {rank} of map '{name}' must lie in 1..{most}; {remedy}")


def adapter_parameters(ranks: Mapping[str, int], maps: Mapping[str, nn.Module]) -> int:
    """Sum over maps of r_l (d_in + d_out): the budget that arms are matched on. No head."""
    return sum(ranks[name] * sum(size(base)) for name, base in maps.items())
