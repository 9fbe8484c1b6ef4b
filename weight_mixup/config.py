"""Settings of a run, by section. "Official" in a comment means the authors' released scripts.

"Section" in a comment means a section of docs/papers/weight_mixup.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig

Data = Literal["digits", "movie", "cola", "mrpc", "rte", "stsb", "sst2", "qnli", "qqp", "mnli"]
Form = Literal["factored", "convex"]
Estimator = Literal["finite_difference", "first_order", "exact"]
Accident = Literal["betty_direction", "drift", "double_step", "independent_masks"]
Finetuning = Literal["plain", "mixout", "r3f", "r_drop", "child_f", "child_d", "reinit", "dps"]
SEARCHES = ("averaging", "joint", "bilevel")  # jobs with phase 1


@dataclass(frozen=True)
class Job:
    """What a run does before and while it finetunes on all of D."""

    # what precedes the finetuning. bilevel: K searches, W on D_tr and alpha on D_val (the method);
    # averaging: the same searches with gates at one (K-avg); joint: both levels on all of D (C4);
    # random_gates: gates drawn once and frozen (C5); finetuning: nothing
    job: Literal["finetuning", "random_gates", "averaging", "joint", "bilevel"] = "finetuning"
    # without searches, steps of the finetuning. own: its epochs; updates: as many as the searches
    # and phase 2 together; passes: as many gradient evaluations as they have
    length: Literal["own", "updates", "passes"] = "own"
    # write export/: a plain transformers checkpoint with the mixed weights folded in
    export: bool = False


@dataclass(frozen=True)
class Examples:
    """Examples and the network that reads them (section 6)."""

    # digits, movie (both bundled), or a GLUE task
    data: Data = "digits"
    # training examples drawn by the seed, unstratified (movie: half of each class); 0: all
    n: int = 0
    # further labelled examples, drawn after the n and put aside; not of film reviews
    extra: int = 0
    # digits: so many seeds are trained side by side, in one batched product; 1: each alone
    stack: int = 1
    # who reads the examples put aside. own: nobody; gates: the upper level, in place of its part of
    # the n (a bound of what gates can do); all: every level, as if n were that much larger
    labels: Literal["own", "gates", "all"] = "own"
    # minilm (bundled), a folder, or a hub id; ignored for digits
    model: str = "minilm"
    # attention kernel of transformers; estimator exact and the self check need eager
    attention: Literal["sdpa", "eager"] = "sdpa"
    # word pieces of a text; official
    max_length: int = 128
    # train (and gate) only the top blocks, pooler and head, on cached activations of the blocks
    # below; 0: everything, embeddings included
    top_blocks: int = 0


@dataclass(frozen=True)
class Gates:
    """The mixed weight of each linear map (sections 3.2 and 3.7)."""

    # factored (Eq. 2, official) or convex (Eq. 1)
    mix_form: Form = "factored"
    # r of A = u v; official and paper
    rank: int = 1
    # standard deviation of the gates' start around one, or of random gates; official and paper
    sigma: float = 0.005


@dataclass(frozen=True)
class Search:
    """Phase 1: K searches, each on a random split of D (sections 3.4 to 3.6)."""

    # searches, averaged; official
    K: int = 5
    # epochs of D_tr in a search; official
    search_epochs: int = 3
    # |D_tr| / |D|; official and paper
    train_share: float = 0.8
    # largest norm of the gradient of w; official
    search_clip: float = 5.0
    # peak rate of AdamW on alpha, cosine schedule; official
    alpha_lr: float = 2e-3
    # of AdamW on alpha: the paper's pull of alpha towards W0; official: 0
    alpha_weight_decay: float = 0.0
    # phase 2 starts from the averaged w, and not from the averaged alpha alone; official
    average_all: bool = True
    # of the hypergradient (Eq. 5): finite_difference, first_order (its first term), or exact
    estimator: Estimator = "finite_difference"
    # accidents of the official code to reproduce (section 4, rows 2, 3, 4, 9)
    official: tuple[Accident, ...] = ()


@dataclass(frozen=True)
class Optimisation:
    """AdamW on w, in both phases."""

    # examples in a batch, both levels; official
    batch: int = 16
    # peak rate, linear schedule; official
    lr: float = 2e-5
    # on matrices, not on biases and LayerNorm; official
    weight_decay: float = 0.01
    # share of the steps in which a rate rises, both levels; official
    warmup: float = 0.1
    # epochs of D in the finetuning; official: 1 on full RTE, 3 on subsets
    epochs: int = 3
    # largest norm of the gradient in the finetuning; official (default of its Trainer)
    clip: float = 1.0
    # decay of an exponential moving average over the finetuning, scored in place of w; 0: none
    ema: float = 0.0


@dataclass(frozen=True)
class Baseline:
    """What the finetuning adds to the loss or takes from the gradient (section 5)."""

    # plain, or a published method of stable finetuning
    finetune: Finetuning = "plain"
    # p of mixout, child_f, child_d and dps; lambda of r3f; coefficient of r_drop; blocks that
    # reinit draws anew
    strength: float = 0.0


@dataclass(frozen=True)
class Config(RunConfig, Job, Examples, Gates, Search, Optimisation, Baseline):
    """One run of weight mixup or of an arm that it is compared with."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise BadInput(f"batch = {self.batch}: give at least 1")
        if self.length != "own" and self.job in SEARCHES:
            limit = f"a run with searches has its own length, not {self.length}"
            raise BadInput(f"job {self.job}: {limit}; use length own")
        if self.official and (self.job, self.estimator) != ("bilevel", "finite_difference"):
            limit = "accidents belong to job bilevel with estimator finite_difference"
            raise BadInput(f"official = {', '.join(self.official)}: {limit}")
        if self.extra and (self.data == "movie" or not self.n):
            limit = "film reviews have none" if self.n else "n = 0 takes all"
            raise BadInput(f"extra = {self.extra}: {limit}; use 0")
        if self.labels != "own" and not self.extra:
            raise BadInput(f"labels {self.labels} needs examples put aside; give extra")
        if self.labels == "gates" and self.job != "bilevel":
            raise BadInput(f"labels gates: job {self.job} has no upper level; use job bilevel")
        if not 0 <= self.ema < 1:
            raise BadInput(f"ema = {self.ema}: give a decay from 0 (no average) to below 1")
        if self.stack < 1 or (self.stack > 1 and self._alone()):
            limit = f"side by side there is no {', '.join(self._alone()) or 'block of 0'}; use 1"
            raise BadInput(f"stack = {self.stack}: {limit}")
        if self.finetune != "plain" and self.strength <= 0:
            limit = f"{self.finetune} needs a positive strength, not {self.strength}"
            raise BadInput(f"strength: {limit}; protocol.yaml has values")
        if self.export and self.data == "digits":
            limit = "the digits network is no transformers checkpoint"
            raise BadInput(f"export: {limit}; export a text task")

    def _alone(self) -> list[str]:
        """Settings that only a run by itself can have, as they are here."""
        stackable: dict[str, object] = {"data": "digits", "rank": 1, "finetune": "plain"}
        stackable |= {"average_all": True, "estimator": "finite_difference", "official": ()}
        return [f"{k} {getattr(self, k)}" for k, v in stackable.items() if getattr(self, k) != v]
