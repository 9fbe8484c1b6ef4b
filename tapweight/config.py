"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    pretrain: str = "none"
    # continued pretraining: none, base (prepare what all arms start from), fixed (given weights), tapweight, blo (two levels)
    weights: str = "uniform"
    # of fixed: uniform, random (Dirichlet), learned (by the tapweight run it uses), best (of the runs it uses), one:NAME
    model: str = "minilm"
    # minilm (bundled) or a hub id
    top_blocks: int = 0
    # train only the last n blocks, on cached states of the frozen ones below; 0: everything, embeddings included
    max_length: int = 128
    # word pieces of a text; official: 512
    vocabulary: int = 0
    # word pieces that the MLM head knows, the most frequent ones; 0: all
    per_class: int = 30
    # labelled texts per class of the documentation task
    train_items: int = 0
    # labelled items kept, drawn by the seed; 0: all
    level_split: float = 0.8888889
    # share of the labelled items that is D_tr, the rest is D_val; paper: 8:1
    steps: int = 60
    # cycles T of the three levels; with fixed weights as many Level I steps as there would have been
    steps_factor: float = 1.0
    # of steps, for the control that is given as many gradient evaluations as TapWeight
    steps_I: int = 1
    # Level I steps in a cycle
    steps_II: int = 1
    # Level II steps in a cycle
    micro_batches: int = 1
    # micro-batches of a Level I step; official RoBERTa script: 4
    whole_batch: bool = False
    # gradient of the weights from all micro-batches of the step, or from the last one alone (as in the official code)
    batch_I: int = 8
    # items of D_u in a micro-batch; official: 32 (NLP), 1536 (molecules)
    batch_II: int = 8
    # items of D_tr; official: 32 (NLP), 64 (molecules)
    batch_III: int = 8
    # items of D_val; official: 32 (NLP), 64 (molecules)
    optimizer: str = "adam"
    # of levels I and II: adam (official NLP) or sgd with momentum 0.9 (official molecules)
    optimizer_III: str = "adam"
    # of alpha: adam (official NLP) or plain (SGD, official molecules)
    lr_I: float = 2e-5
    # official: 2e-5 (NLP), 0.05 (molecules)
    lr_II: float = 2e-5
    # official: 2e-5 (NLP), 0.01 / 0.001 (molecules)
    lr_III: float = 2e-3
    # official: 2e-3 (NLP), 200 / 10 (molecules)
    weight_decay: float = 1e-3
    # of levels I and II; official: 1e-3 (NLP), 1e-5 (molecules)
    weight_decay_III: float = 0.0
    # of alpha; official NLP: 1e-3, which pulls the weights towards uniform (specification 8.3: none)
    schedule: str = "linear"
    # of all three levels: linear (warm-up, then down; NLP), step (x 0.9 every 100 steps; molecules), constant
    warmup: float = 0.05
    # share of the steps in which a linear schedule rises; official, before its last commit broke it
    gamma: float = 1e-2
    # strength of the proximal term, a plain sum; {1e-3, 1e-2, 1e-1} are sensible (specification 8.3)
    warmup_III: float = 0.1
    # share of the cycles in which the weights stay uniform (specification 8.5)
    mode: str = "finite-difference"
    # gradient of the weights: finite-difference, exact-dot or jvp
    radius: float = 0.0
    # of the finite difference; 0: 0.01
    independent_masks: bool = False
    # each evaluation of the finite difference draws dropout masks of its own; official (specification 8.1)
    normalise: str = "none"
    # none, or cosine (needs exact-dot)
    entropy: float = 0.0
    # bonus for even weights; 0 in the paper
    preset: str = "paper"
    # paper, or code: the official code's proximal term, second path, decay of alpha, missing MCL, broadcast error
    watch: int = 0
    # cycles between comparisons with exact gradients (and their cosines), for the record; 0: never
    mask_rate: float = 0.15
    # of MLM; official
    temperature: float = 0.05
    # of CL; official
    image: int = 112
    # pixels of a drawing; official: 224
    width: int = 64
    # channels of the ResNet's first stage; 64 is ResNet-18
    clusters: tuple[int, ...] = (10, 100, 1000)
    # granularities of MG3C; official: 100, 1,000, 10,000 for a million molecules
    union: tuple[str, ...] = ()
    # molecule sets whose molecules make up D_u, beside the task's own
    base_steps: int = 0
    # steps of the base that all arms start from
    base_trains: str = "heads"
    # heads (the encoder is pretrained already) or all (a ResNet from scratch)
    base_lr: float = 1e-3
    # Adam
    base_batch: int = 8
    # items of D_u
    finetune_steps: int = 0
    # 0: from finetune_epochs
    finetune_epochs: float = 3
    # passes over the labelled items
    finetune_on: str = "labelled"
    # labelled (D_tr and D_val), or train (D_tr; then D_val is the validation set, for choices)
    finetune_batch: int = 16
    # official (removed scripts): 64
    finetune_lr: float = 1e-4
    # official (removed scripts): 5e-5 or 2e-5
    finetune_weight_decay: float = 5e-3
    # official (removed scripts): 0.005 (small tasks)
    score_held: bool = False
    # also score the documentation task's validation items (tuning)
    eval_batch: int = 100
    # items per batch when scoring; changes no score
    precision: str = "fp32"
    # fp32, or bf16 autocast in Level I, II and finetuning; the gradient of the weights is always fp32
    export: bool = False
