"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    # digits, documentation, or a GLUE task (cola, mrpc, rte, stsb, sst2, qnli, qqp, mnli)
    data: str = "digits"
    # training examples drawn by the seed, unstratified (documentation: n / 10 per class); 0: all
    n: int = 0
    # minilm, or a model of the hub or of REPRO_MODELS; ignored for digits
    model: str = "minilm"
    # attention kernel of transformers; `exact` and the self check differentiate twice and need "eager"
    attention: str = "sdpa"
    # word pieces of a text [code]
    max_length: int = 128
    # train (and gate) only the top blocks, pooler and head, on cached activations; 0: everything, embeddings included
    top_blocks: int = 0
    # both levels [code]
    batch: int = 16
    # lower level and finetuning, AdamW [code]
    lr: float = 2e-5
    # of w, none on biases and LayerNorm [code]
    weight_decay: float = 0.01
    # share of the steps, both schedules [code]
    warmup: float = 0.1
    # phase 2 on all of D, and plain finetuning
    epochs: int = 3
    # gradient norm in phase 2 [code: Trainer's default]
    clip: float = 1.0
    # phase 1: none, frozen (gates at one: the K-avg control), joint (both levels on D), or the estimator of the
    # hypergradient: finite_difference (Eq. 5), first_order, exact
    search: str = "none"
    # searches on independent splits, averaged [code]
    K: int = 5
    # epochs of D_tr per search [code]
    search_epochs: int = 3
    # gradient norm of w in phase 1 [code]
    search_clip: float = 5.0
    # |D_tr| / |D| [A, code]
    train_share: float = 0.8
    # phase 2 starts from the averaged w (both official scripts), not only from the averaged alpha
    average_all: bool = True
    # none, learned (by the search), random (drawn once and frozen: C5)
    gates: str = "none"
    # factored (Eq. 2, the official code) or convex (Eq. 1)
    mix_form: str = "factored"
    # of A [code, A]
    rank: int = 1
    # sd of the gates' start, or of random gates [code, A]
    sigma: float = 0.005
    # AdamW, cosine schedule [code]
    alpha_lr: float = 2e-3
    # the paper's pull of alpha towards W0; 0 in both official scripts
    alpha_weight_decay: float = 0.0
    # accidents of the official code to reproduce: betty_direction, drift, double_step, independent_masks
    official: tuple[str, ...] = ()
    # without a search: own (epochs), updates (as many as K searches and phase 2), passes (as many gradient evaluations)
    length: str = "own"
    # plain, mixout, r3f, r_drop, child_f, child_d, reinit, dps
    finetune: str = "plain"
    # of the baseline: p of Mixout, CHILD-TUNING and DPS; lambda of R3F; coefficient of R-Drop; blocks to re-initialise
    strength: float = 0.0
    # write export/: a plain transformers checkpoint with W~ folded in
    export: bool = False
