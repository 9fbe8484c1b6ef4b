"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    method: Literal[
        "ppo", "sft", "prompt", "reinforce", "grpo", "rloo", "classifier", "start", "base"
    ] = "ppo"
    # how the arm learns; "prompt" does not; "base" and "start" make what the others use
    stage: bool = False
    # stop after training: other arms build on it
    model: str = "digits"
    # digits, minilm, decoder (trained in the run), tiny-llama, tiny-qwen2, tiny-mpt, or a hub id
    steps: int = 300
    # batches
    epochs: float = 0.0
    # passes over the training items instead of `steps`; 0: `steps` counts
    mixture: tuple[str, ...] = ()
    # tasks trained on together (multi-task supervised stage; start)
    batch: int = 16
    # labelled examples in a batch (official scripts)
    examples: int = 0
    # labelled examples an arm may see, those of runs it uses included: the currency of the comparison; 0: not declared
    lr: float = 9e-6
    # learning rate (official scripts)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    # the official PPO uses Adafactor without its own step sizes
    schedule: Literal["constant", "linear"] = "linear"
    # linear: 5 % warm-up, then down to a tenth; the official code is constant
    gradient_steps: int = 1
    # supervised steps on each batch (PPO takes inner_epochs)
    shots: int = 0
    # solved examples in the prompt
    flip: float = 0.0
    # share of training labels replaced by another label
    shuffle: bool = False
    # control: the rule pays for the labels of other training examples
    train_limit: int = 0
    # first training items only; 0: all
    test_limit: int = 0
    # first test items only (rehearsal); 0: all
    samples: int = 4
    # sampled answers per test item
    probe_every: int = 30
    # batches between two looks at validation items; 0: never
    max_new: int = 4
    # longest answer in tokens; 0: drawn from 12..31 per batch, as the official code does
    max_prompt: int = 650
    # longer training prompts are left out and counted (the official rule never fires)
    temperature: float = 1.0
    # of sampling; 0.7 repeats the official accident (log-probabilities stay at 1)
    stop_at_tag: bool = True
    # an answer ends with its closing tag; the official code writes on
    parser: Literal["strict", "official"] = "strict"
    # how an answer is read in training
    test_parser: Literal["strict", "official"] = "strict"
    # how one is read afterwards, and at the looks at validation items; official: what cannot be read is a random label (D9)
    targets: Literal["words", "official"] = "words"
    # what the supervised arm learns to write
    few: Literal["balanced", "first"] = "balanced"
    # which solved examples; the official code takes the first rows
    invalid: float = -3.0
    # what an unreadable answer earns
    responses: int = 1
    # answers per prompt
    beta: float = 0.2
    # weight of the KL to the reference at the start
    kl_target: float = 6.0
    # nats per answer the controller steers to
    kl_horizon: float = 10000.0
    # answers after which beta may have doubled; 0: fixed
    gamma: float = 1.0
    # discount
    lam: float = 0.95
    # lambda of generalised advantage estimation
    clip: float = 0.2
    # epsilon
    clip_value: float = 0.2
    # epsilon of the value
    value_weight: float = 0.1
    # c_v
    inner_epochs: int = 4
    # optimiser steps on one batch of answers
    minibatch: int = 16
    # answers in one forward pass: bounds memory, moves nothing
    lora_rank: int = 16
    # 0: all weights train, the reference is a copy
    lora_alpha: int = 32
    # scale alpha / sqrt(rank) = 8 (rank-stabilised)
    lora_bias: Literal["none", "all"] = "none"
    # the official "all" moves the reference (D13)
    lora_targets: Literal["default", "all"] = "default"
    # default: query and value projections
    precision: Literal["float32", "bfloat16"] = "float32"
    # of the frozen network; adapter and value head stay fp32
    checkpointing: bool = False
    # recompute activations in the backward pass
    start_right: float = 0.6
    # start: share of right labels among well-formed answers
    start_malformed: float = 0.15
    # start: share of answers that break the format
    width: int = 32
    # of the decoder trained in the run
    layers: int = 2
    # of the decoder trained in the run
    vocabulary: int = 600
    # of its tokenizer
    context: int = 128
