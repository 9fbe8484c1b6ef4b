"""Settings of a run, by section. Official: from the authors' code.

"Section" in a comment means a section of docs/papers/tapweight.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig

Weights = Literal[
    "uniform",
    "random",
    "learned",
    "permuted",
    "best",
    "one:CL",
    "one:MLM",
    "one:SOP",
    "one:half-noise",
]
Mode = Literal["finite-difference", "exact-dot", "jvp"]
Normalise = Literal["none", "cosine"]
OptimizerName = Literal["adam", "sgd", "plain"]
Schedule = Literal["linear", "step", "constant"]


@dataclass(frozen=True)
class Job:
    """What the run does before it finetunes the encoder and scores it."""

    # continued pretraining before the finetuning: finetune (none of it), base (prepare what all
    # arms start from, no finetuning), fixed (given weights), tapweight, blo (two levels)
    job: Literal["finetune", "base", "fixed", "tapweight", "blo"] = "finetune"
    # of job fixed: uniform, random (Dirichlet), learned (by the tapweight run it uses), permuted
    # (the learned ones on other objectives), best (of the runs it uses), or one:NAME (that
    # objective alone); section 5
    weights: Weights = "uniform"
    # fp32, or bf16 autocast in Levels I, II and finetuning; the gradient of the weights is always
    # fp32 (section 8, item 9)
    precision: Literal["fp32", "bf16"] = "fp32"
    # write export/: a transformers checkpoint (language) or safetensors (molecules)
    export: bool = False


@dataclass(frozen=True)
class Language:
    """Encoder and texts of the language tasks, and how their objectives look at them."""

    # minilm (bundled), a folder or a hub id; paper: roberta-base and deberta-v3-large (section 6)
    model: str = "minilm"
    # train only the last n blocks, on cached states of the frozen ones below; 0: everything,
    # embeddings included (paper)
    top_blocks: int = 0
    # word pieces of a text; official: 512
    max_length: int = 128
    # word pieces that the MLM head scores, the most frequent ones; 0: all (official)
    vocabulary: int = 0
    # labelled sentences of the movie task, which is ours
    labelled: int = 100
    # sentences of its D_u, the labelled ones among them
    unlabelled: int = 600
    # share of the labelled items that is D_tr, the rest is D_val; paper: 8:1
    level_split: float = 0.8888889
    # share of the word pieces that MLM masks; official
    mask_rate: float = 0.15
    # of the cosines in CL; official
    temperature: float = 0.05


@dataclass(frozen=True)
class Molecules:
    """Drawings of the molecule tasks, the network that reads them, and their clusters."""

    # pixels of a drawing; official: 224
    image: int = 112
    # channels of the ResNet's first stage; 64 is ResNet-18 (paper)
    width: int = 64
    # granularities of MG3C; official: 100, 1,000 and 10,000 for a million molecules
    clusters: tuple[int, ...] = (10, 100, 1000)
    # molecule sets whose molecules make up D_u, beside the task's own; paper: PubChem
    union: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """Preparation of what all arms start from (job base)."""

    # Level I steps under uniform weights; official: none, it starts from ImageMol or RoBERTa
    base_steps: int = 0
    # heads (the encoder is pretrained already) or all (a ResNet from scratch)
    base_trains: Literal["heads", "all"] = "heads"
    # items of D_u in a step
    base_batch: int = 8


@dataclass(frozen=True)
class Optimisation:
    """Steps, batches and optimisers of the three levels (section 3.6)."""

    # cycles T of the three levels; with fixed weights as many Level I steps as there would have
    # been; official: 20,000 (NLP), 10,000 (molecules)
    steps: int = 60
    # of steps, for the control that is given as many gradient evaluations as TapWeight
    steps_factor: float = 1.0
    # Level I steps in a cycle; official: 1
    steps_I: int = 1
    # Level II steps in a cycle; official: 1
    steps_II: int = 1
    # micro-batches of a Level I step; official RoBERTa script: 4
    micro_batches: int = 1
    # items of D_u in a micro-batch; official: 32 (NLP), 1536 (molecules)
    batch_I: int = 8
    # items of D_tr; official: 32 (NLP), 64 (molecules)
    batch_II: int = 8
    # items of D_val; official: 32 (NLP), 64 (molecules)
    batch_III: int = 8
    # of Levels I and II: adam (official NLP) or sgd with momentum 0.9 (official molecules)
    optimizer: Literal["adam", "sgd"] = "adam"
    # of alpha: adam (official NLP) or plain (SGD, official molecules)
    optimizer_III: Literal["adam", "plain"] = "adam"
    # of Level I; official: 2e-5 (NLP), 0.05 (molecules)
    lr_I: float = 2e-5
    # of Level II; official: 2e-5 (NLP), 0.01 / 0.001 (molecules)
    lr_II: float = 2e-5
    # of Level III; official: 2e-3 (NLP), 200 / 10 (molecules)
    lr_III: float = 2e-3
    # of Levels I and II; official: 1e-3 (NLP), 1e-5 (molecules). Alpha has none (section 8, item 3)
    weight_decay: float = 1e-3
    # of all three levels: linear (warm-up, then down; NLP), step (x 0.9 every 100 steps;
    # molecules), constant
    schedule: Schedule = "linear"
    # share of the steps in which a linear schedule rises; official, before its last commit broke it
    warmup: float = 0.05


@dataclass(frozen=True)
class Weighing:
    """How the weights of the objectives are learned (sections 3.3 and 8)."""

    # strength of the proximal term, a plain sum; official: 1e-3 or 1e-2 (molecules), while its NLP
    # code divides 1 by the number of parameters (section 8, item 3)
    gamma: float = 1e-2
    # share of the cycles in which the weights stay uniform; official: 0 (section 8, item 5)
    warmup_III: float = 0.1
    # the way to the gradient of the weights; official: finite-difference
    mode: Mode = "finite-difference"
    # from all micro-batches of the last Level I step, or from its last one alone (official)
    whole_batch: bool = False
    # each evaluation of the finite difference draws dropout masks of its own; official (section 8,
    # item 1)
    independent_masks: bool = False
    # none (official), or cosine: the cosines of v and g_k in place of h (section 8, item 4)
    normalise: Normalise = "none"
    # paper, or code: the official code's proximal term, second path, decay of alpha, missing MCL
    # and broadcast error (section 4, rows 1, 2, 5, 10)
    preset: Literal["paper", "code"] = "paper"
    # cycles between comparisons with exact gradients (and their cosines), for the record; 0: never
    watch: int = 0
    # shuffle the labels of D_tr and of D_val while the weights are learned, not those of the
    # finetuning: a control for what the labels contribute, on planted digits
    shuffle_labels: bool = False


@dataclass(frozen=True)
class Finetuning:
    """The finetuning that decides the score, the same for all arms (section 8, item 11)."""

    # optimiser steps; 0: from finetune_epochs
    finetune_steps: int = 0
    # passes over the labelled items; official (removed scripts): 10 to 50
    finetune_epochs: float = 3
    # labelled (D_tr and D_val), or train (D_tr; then D_val is the validation set, for choices)
    finetune_on: Literal["labelled", "train"] = "labelled"
    # labelled items in a batch; official (removed scripts): 64
    finetune_batch: int = 16
    # of AdamW; official (removed scripts): 5e-5 or 2e-5
    finetune_lr: float = 1e-4
    # of AdamW; official (removed scripts): 0.005 (small tasks)
    finetune_weight_decay: float = 5e-3
    # also score the movie task's spare items, which no level sees, for choices between settings
    score_spare: bool = False


@dataclass(frozen=True)
class Config(RunConfig, Job, Language, Molecules, Base, Optimisation, Weighing, Finetuning):
    """One run of TapWeight or of an arm that it is compared with."""

    def __post_init__(self) -> None:
        counted = ("base_batch", "batch_I", "batch_II", "batch_III", "finetune_batch")
        for name in (*counted, "micro_batches", "steps_I", "steps_II"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} = {getattr(self, name)}: give at least 1")
        if not self.gamma >= 0:
            limit = "the strength of the proximal term is at least 0"
            raise BadInput(f"gamma = {self.gamma}: {limit}; 1e-3, 1e-2 and 1e-1 are sensible")
        if not 0 < self.level_split < 1:
            limit = "D_tr's share of the labelled items lies in (0, 1)"
            raise BadInput(f"level_split = {self.level_split}: {limit}; the paper has 0.89")
        if self.mode != "exact-dot" and self.normalise == "cosine":
            lacking = f"needs |g_k|, which mode '{self.mode}' does not compute"
            raise BadInput(f"normalise = cosine {lacking}; use mode exact-dot")
        if self.mode != "finite-difference" and self.independent_masks:
            lacking = f"mode '{self.mode}' has no two evaluations"
            raise BadInput(f"independent_masks: {lacking}; use mode finite-difference")
        if self.job == "blo" and self.steps_I != self.steps_II:
            sums = f"blo sums both losses in a step, steps_I = {self.steps_I}"
            raise BadInput(f"{sums}, steps_II = {self.steps_II}; give the same number")
        if self.shuffle_labels and not (self.task == "planted" and self.finetune_on == "labelled"):
            limit = "only task planted can, and its finetuning then needs finetune_on = labelled"
            raise BadInput(f"shuffle_labels on task {self.task}, {self.finetune_on}: {limit}")
        if self.score_spare and self.task not in ("", "movie"):
            raise BadInput(f"score_spare: only task movie has spare items, not {self.task}")
