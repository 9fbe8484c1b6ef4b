"""Everything a run can be told. The text above a field is its help and names its source.

"Official" is the official code: its scripts or, where they set nothing, the defaults of their
trainer (trl 0.11.4; docs/papers/ppo_nlu.md, section 6). D.. are rows of the table of differences in
ppo_nlu/README.md."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig

Job = Literal["ppo", "sft", "prompt", "reinforce", "grpo", "rloo", "classifier", "start", "base"]


@dataclass(frozen=True)
class Examples:
    """Which labelled examples an arm sees."""

    # tasks trained on together: multi-task SFT (D3) and the starting policy; empty: the run's task
    mixture: tuple[str, ...] = ()
    # first training items only; 0: all
    train_limit: int = 0
    # first test items only; 0: all
    test_limit: int = 0
    # validation items that are answered after training, and by which shots are chosen; 0: all
    validation_limit: int = 0
    # longer training prompts, in tokens, are left out and counted (D8: the official rule never
    # fires)
    max_prompt: int = 650
    # our control: the rule pays for the labels of other training examples
    shuffle: bool = False


@dataclass(frozen=True)
class Network:
    """The language model and what of it trains."""

    # smollm2 (from a package), digits (trained in the run), tiny-llama, -qwen2, -mpt or -bert, a
    # folder, or a hub id (D2)
    model: str = "smollm2"
    # of a tokenizer learned in the run: number of tokens
    vocabulary: int = 600
    # rank of LoRA (official); 0: all weights train and the reference is a copy
    lora_rank: int = 16
    # the adapter counts alpha / sqrt(rank) = 8, rank-stabilised (official)
    lora_alpha: int = 32
    # biases that train; the official "all" moves the reference (D13)
    lora_bias: Literal["none", "all"] = "none"
    # default: query and value projections (official); all: every linear map
    lora_targets: Literal["default", "all"] = "default"
    # blocks that get an adapter, counted from the last; 0: all
    lora_blocks: int = 0
    # the adapter acts on the answer and its opening alone (activated LoRA), so that each prompt is
    # computed once for all arms and seeds (shared/alora.py)
    cached: bool = False
    # of an adapter on cached prompts: last tokens of the opening that it acts on; 0: all of it
    opening: int = 0
    # of the frozen network (official: bfloat16); adapter and value head stay float32
    precision: Literal["float32", "bfloat16"] = "float32"
    # recompute activations in the backward pass: less memory, more time
    checkpointing: bool = False

    @property
    def from_hub(self) -> bool:
        """Whether `model` was trained elsewhere: then no stage makes a policy from data."""
        return not re.fullmatch("digits|tiny-.*", self.model)


@dataclass(frozen=True)
class Training:
    """How an arm learns, and for how long."""

    # how the arm learns; "prompt" does not; "base" and "start" make what all others use
    job: Job = "ppo"
    # stop after training: other arms build on it
    stage: bool = False
    # batches
    steps: int = 300
    # passes over the training items instead of `steps` (official: PPO 3, SFT 1); 0: `steps` counts
    epochs: float = 0.0
    # questions in a batch (official)
    batch: int = 16
    # labelled examples an arm may see, those of runs it uses included: the currency of the
    # comparison, checked by gate `budget`; 0: not declared
    examples: int = 0
    # learning rate (official; a small one for LoRA)
    lr: float = 9e-6
    # the official PPO uses Adafactor without its own step sizes; the official SFT AdamW (D4)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    # cosine: up within a tenth of the batches, then down to a tenth of the rate (paper); constant
    # (official)
    schedule: Literal["constant", "cosine"] = "cosine"
    # supervised steps on each batch; PPO takes `inner_epochs`
    gradient_steps: int = 1
    # an arm that ends with one and the same answer to every validation item begins anew, from the
    # same start with other batches and draws, so many times in all at most; the last one counts
    attempts: int = 1

    def batches(self, items: int) -> int:
        """Batches of the run where there are `items` training items."""
        return max(1, round(self.epochs * items / self.batch)) if self.epochs else self.steps


@dataclass(frozen=True)
class Answering:
    """What a question shows, how an answer is sampled and read."""

    # how a question is written: tags, the official code's plain text; chat, the model's template
    form: Literal["tags", "chat"] = "tags"
    # solved examples in the prompt (official few-shot: 5), the same for all seeds
    shots: int = 0
    # 1 to `shots` examples are tried on validation items and the best number is taken (paper)
    choose_shots: bool = False
    # which solved examples; first: the first rows of the file, as the official code takes them
    # (D12)
    few: Literal["balanced", "first"] = "balanced"
    # longest answer in tokens; 0: drawn from 12..31 for each batch (D23)
    max_new: int = 4
    # of sampling; 0.7 repeats the official accident: log-probabilities stay at 1 (D7)
    temperature: float = 1.0
    # an answer ends with its closing tag; the official code writes on (D11)
    stop_at_tag: bool = True
    # how an answer is read in training; official: containment (D10)
    parser: Literal["strict", "official"] = "strict"
    # what the supervised arm learns to write; official: numbers where the prompt asks for words
    # (D5)
    targets: Literal["words", "official"] = "words"


@dataclass(frozen=True)
class PPO:
    """What `method.update` reads; symbols of docs/papers/ppo_nlu.md, section 3.4."""

    # R of a right, a wrong and an unreadable answer: 1, 0, -1 (paper) or 1, -1, -3 (official)
    reward: Literal["paper", "official"] = "paper"
    # answers to each question of a batch (official)
    responses: int = 1
    # beta: what a nat of KL to the reference costs at the start (official)
    beta: float = 0.2
    # nats an answer that the controller of beta steers to (official)
    kl_target: float = 6.0
    # answers after which beta may have doubled: it hardly moves in a run (official); 0: fixed
    kl_horizon: float = 10_000.0
    # gamma, the discount: an answer is short, nothing is discounted (official)
    gamma: float = 1.0
    # lambda of generalised advantage estimation (official)
    lam: float = 0.95
    # epsilon: the ratio may leave 1 by this much before the gain is cut off (official)
    clip: float = 0.2
    # epsilon_v: the same idea for the value (official)
    clip_value: float = 0.2
    # c_v: weight of the value loss (official)
    value_weight: float = 0.1
    # optimiser steps on the same answers (official)
    inner_epochs: int = 4
    # answers in one forward pass: bounds memory; moves only which rows RATIO_LIMIT drops (D20)
    minibatch: int = 16


@dataclass(frozen=True)
class Start:
    """What a model trained in the run has heard (ours; it stands for a chat model)."""

    # share of right labels among the well-formed answers it is trained on
    start_right: float = 0.6


@dataclass(frozen=True)
class Evaluation:
    """How an arm is judged."""

    # sampled answers to each test item, beside the greedy one
    samples: int = 4
    # also answer the benchmark's own test part, and write the file that its server takes
    server: bool = False
    # validation items of a look while training
    probed: int = 150
    # batches between two looks at validation items; 0: never
    probe_every: int = 30
    # how test and validation answers are read; official: an unreadable one is a random label (D9)
    test_parser: Literal["strict", "official"] = "strict"


@dataclass(frozen=True)
class Config(RunConfig, Examples, Network, Training, Answering, PPO, Start, Evaluation):
    """Everything a run of PPO for language understanding can be told."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise BadInput(f"lr = {self.lr} must be above 0; the official value is 9e-6")
        at_least_1 = (
            "batch",
            "responses",
            "minibatch",
            "gradient_steps",
            "inner_epochs",
            "samples",
            "attempts",
        )
        for name in at_least_1:
            if getattr(self, name) < 1:
                raise BadInput(f"{name} = {getattr(self, name)} must be at least 1")
        if self.cached and not self.lora_rank:
            raise BadInput("cached prompts need an adapter: give --lora-rank, or --no-cached")
        if self.cached and (self.temperature != 1 or self.form != "chat"):
            raise BadInput("cached prompts: --temperature 1 and --form chat, or --no-cached")
        if self.choose_shots and not self.shots:
            raise BadInput("choose_shots: --shots says how many examples are tried at most")
        if self.choose_shots and self.cached:
            raise BadInput("choose_shots computes prompts of its own: give --no-cached")
        answers = self.batch * self.responses
        if self.job in ("ppo", "sft") and answers % min(self.minibatch, answers):
            raise BadInput(
                f"batch x responses = {answers} is not a multiple of minibatch = {self.minibatch}; "
                f"set --minibatch {math.gcd(answers, self.minibatch)}"
            )
