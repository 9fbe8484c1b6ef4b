"""What a run can be told, section by section. The comment above a field is its help (`--help`).

`official` means the scripts of github.com/ruz048/AutoLoRA; a row is one of the table of differences
in docs/papers/autolora.md, section 4.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig

RankRule = Literal[
    "learned",
    "norm_weighted",
    "spectral",
    "permuted",
    "random",
    "equal",
    "nearest",
    "grid",
    "oracle",
]


@dataclass(frozen=True)
class Job:
    """What the run does."""

    # search ranks (writes ranks.json), or retrain with ranks
    job: Literal["search", "retrain"] = "retrain"


@dataclass(frozen=True)
class Data:
    """Which items, and how much of each text."""

    # training items kept, 0 for all
    train_items: int = 0
    # share of the training set that the inner level sees (D_tr); the paper prints 0.5; official:
    # 0.7, not stratified
    level_split: float = 0.5
    # tokens kept of a text
    max_length: int = 128
    # tokens that the search pads a batch to, 0 for its longest text; official search: 512 (row 18)
    pad_to: int = 0


@dataclass(frozen=True)
class Network:
    """The pretrained network and the part of it that is adapted."""

    # minilm (bundled), a folder, or a hub id; official: roberta-base
    model: str = "minilm"
    # adapt only the last n blocks of minilm and cache the states below them; 0, as in the paper:
    # the whole network
    upper_blocks: int = 0
    # rank that every map has in the search; official: 8
    k: int = 8
    # lora_alpha: the scale is c / k in the search and c / r_l in retraining; official: 16
    c: float = 16.0


@dataclass(frozen=True)
class Search:
    """The two levels (docs/papers/autolora.md, sections 3.3 to 3.6)."""

    # steps, each of the outer and then of the inner level; official on CoLA: 3,760 (20 epochs)
    search_steps: int = 100
    # items per batch at both levels; official: 32 (GLUE), 16 (BioNLP)
    search_batch: int = 16
    # AdamW of the inner level, and eta of the look-ahead; the paper prints 1e-4; official: 3e-4
    # (GLUE), 1e-3 (BioNLP)
    inner_lr: float = 1e-4
    # of the inner level; AdamW's default
    inner_weight_decay: float = 0.01
    # outer rate times outer steps: bounds how far a selection logit moves, and so decides the
    # ranks; printed: 1e-3, over the official 3,760 steps on CoLA 3.8; official: 3e-4 * 3,760 = 1.1
    outer_travel: float = 3.8
    # dropout on the LoRA branch in the search; official: 0 (row 15)
    search_dropout: float = 0.0
    # items of the outer level: validation (D_val), or train (D_tr, the ablation of claim 7)
    select_on: Literal["validation", "train"] = "validation"
    # finite_difference (radius 0.01), exact, or first_order (no look-ahead, no implicit term)
    hypergradient: Literal["finite_difference", "exact", "first_order"] = "finite_difference"
    # lambda of the count, 0 for 1/k; official: 1/k
    threshold: float = 0.0
    # alpha from the logits: softmax; or the paper's ablations, free (alpha = beta, counted where it
    # is at or above its mean) and sigmoid (counted at or above 0.5). Its third, eta = 0, is
    # hypergradient=first_order
    weights: Literal["softmax", "free", "sigmoid"] = "softmax"
    # any word: another draw of batch order and dropout; data, levels, head and A stay (claim 9)
    draw: str = ""


@dataclass(frozen=True)
class OfficialHabits:
    """What the official search does and ours does not (autolora/official.py)."""

    # softmax as in the BioNLP script, or raw as in the GLUE script, with beta_init 1 (row 1)
    threshold_rule: Literal["softmax", "raw"] = "softmax"
    # constant start of the selection logits; official: 0 (BioNLP), 1 (GLUE)
    beta_init: float = 0.0
    # factor of the implicit term: eta, or 1 as in the official bilevel library (row 3)
    implicit_coef: Literal["eta", "1"] = "eta"
    # perturb around w (theta), or around w' (stepped) as official (row 4)
    around: Literal["theta", "stepped"] = "theta"
    # sgd, or adam as official: one step of the inner optimiser, rolled back (row 5)
    look_ahead: Literal["sgd", "adam"] = "sgd"
    # dropout masks of the two perturbed evaluations: same, or independent as official (row 6)
    masks: Literal["same", "independent"] = "same"
    # fine-tune the whole encoder in the search, as the BioNLP script does (row 7)
    search_encoder: bool = False


@dataclass(frozen=True)
class Retraining:
    """Plain LoRA with the ranks, or an opponent, from the pretrained weights."""

    # what is trained: lora, adalora, or full (every weight of the blocks that run)
    adapter: Literal["lora", "adalora", "full"] = "lora"
    # learned, norm_weighted, spectral, permuted, random, equal, nearest, grid, oracle, a number, or
    # a list q0,v0,q1,v1,... (autolora/ranks.py)
    ranks: str = "learned"
    # total to which the ranks are scaled, as equally as rounding allows; 0: as they are
    rank_total: int = 0
    # per_rank: c / r_l, as executed officially; constant: c / k as in the search (row 13)
    scale_rule: Literal["per_rank", "constant"] = "per_rank"
    # items: all, or inner: D_tr alone, then D_val scores the run (grid points, spectral probe)
    train_on: Literal["all", "inner"] = "all"
    # steps, 0 for epochs
    steps: int = 150
    # passes over the items if steps is 0; official: 30, QQP and MNLI 10 (CoLA's 80 is lost, row 9)
    epochs: float = 30
    # items per batch; official: 16 (GLUE), 64 (BioNLP)
    batch: int = 16
    # AdamW, linear decay after the warm-up; official: 1e-4 (GLUE), 1e-3 (BioNLP)
    lr: float = 1e-4
    # AdamW's default, as executed officially
    weight_decay: float = 0.01
    # share of the steps in which the rate rises; official: 0.06
    warmup: float = 0.06
    # dropout on the LoRA branch; official: 0.1 (row 15)
    lora_dropout: float = 0.1
    # biases trained: none (official GLUE), or all (official BioNLP, row 16)
    bias: Literal["none", "all"] = "none"
    # of the cross-entropy; LoRA's E2E recipe: 0.1
    label_smoothing: float = 0.0
    # write the trained adapter in peft's format
    export: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What is scored."""

    # items per batch; changes no score
    eval_batch: int = 64
    # score the task's validation items too (tuning, grid)
    score_validation: bool = False
    # also score the test items after every epoch and report the best, the official habit (row 17);
    # no claim uses it
    best_epoch: bool = False
    # leave out the last incomplete batch of 16, as the official loader does (row 10)
    drop_last_eval: bool = False
    # beams of generation; LoRA's E2E recipe: 10, length penalty 0.8, no repeated 4-grams
    beams: int = 10
    # longest generated text, in tokens
    new_tokens: int = 64


@dataclass(frozen=True)
class Config(RunConfig, Job, Data, Network, Search, OfficialHabits, Retraining, Evaluation):
    """All sections together."""

    def __post_init__(self) -> None:
        if not 0 < self.level_split < 1:
            limit = "must lie in (0, 1): the share of the training set that the inner level sees"
            raise BadInput(f"level_split = {self.level_split} {limit}")
        if self.k < 1:
            raise BadInput(f"k = {self.k} must be at least 1: the rank of every map in the search")
        if self.search_steps < 1:
            raise BadInput(f"search_steps = {self.search_steps} must be at least 1; raise it")
        if not 0 <= self.threshold <= 1:
            raise BadInput(f"threshold = {self.threshold} must lie in (0, 1], or be 0 for 1/k")
        if self.threshold and self.weights != "softmax":
            own = "has a threshold of its own"
            raise BadInput(f"weights = {self.weights} {own}; leave threshold at 0")
        if self.habits and self.hypergradient != "finite_difference":
            habits = "implicit_coef, around, look_ahead and masks are habits of finite_difference"
            remedy = "set hypergradient to it or leave them"
            raise BadInput(f"{habits}, not of {self.hypergradient}; {remedy}")
        rules = typing.get_args(RankRule)
        if self.ranks not in rules and not self.ranks.replace(",", "").isdigit():
            choices = f"a number, a list of numbers, or one of {', '.join(rules)}"
            raise BadInput(f"ranks = '{self.ranks}' must be {choices}")

    @property
    def habits(self) -> bool:
        """Whether the hypergradient differs from the method's own (rows 3 to 6)."""
        habits = self.implicit_coef, self.around, self.look_ahead, self.masks
        return habits != ("eta", "theta", "sgd", "same")
