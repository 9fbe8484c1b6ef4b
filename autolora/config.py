"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    kind: str = "retrain"
    # what this run does: search, retrain, grid (keep the best of the runs it uses), planted
    model: str = "minilm"
    # minilm (bundled), a folder, or a hub id; official code: FacebookAI/roberta-base
    upper_blocks: int = 0
    # adapt only the last n blocks and cache the states below them (0: the whole model, as the paper does)
    max_length: int = 128
    # tokens kept of a text
    pad_to: int = 0
    # 0: pad to the longest text of a batch; official search: 512 (row 18)
    per_class: int = 30
    # training texts per class of the documentation task
    train_items: int = 0
    # training items kept, 0 for all
    eval_batch: int = 64
    # items per batch when scoring; changes no score
    draw: str = ""
    # any word: another draw of A, batch order and dropout, with data, levels and head as they were (claim 9)
    k: int = 8
    # search rank of every map; official scripts
    c: float = 16.0
    # lora_alpha: the scale is c / k in the search, c / r_l in retraining; official scripts
    level_split: float = 0.7
    # share of the training set that the inner level sees; official scripts
    select_on: str = "validation"
    # items of the outer level: validation (D_val), or train (D_tr, ablation of claim 7)
    hypergradient: str = "finite_difference"
    # finite_difference (radius 0.01), exact, or first_order (no look-ahead, no implicit term)
    threshold: float = 0.0
    # lambda; 0 for 1/k, the value of all official scripts
    threshold_rule: str = "softmax"
    # softmax (BioNLP script), or raw (GLUE script, row 1; needs beta_init 1)
    beta_init: float = 0.0
    # constant start of the selection logits: 0 in the BioNLP script, 1 in the GLUE script
    warmup_inner: int = 0
    # inner steps before the first outer step
    search_steps: int = 100
    # inner steps of the search, an outer step after each; 0: from search_epochs
    search_epochs: float = 20
    # passes over D_tr; official GLUE script 20, BioNLP script 50
    search_batch: int = 16
    # items per batch at both levels; official: 32 (GLUE), 16 (BioNLP)
    inner_lr: float = 1e-4
    # AdamW of the search, and eta of the look-ahead
    inner_weight_decay: float = 0.01
    # AdamW's default
    outer_lr: float = 0.0
    # Adam of the selection logits; 0: outer_travel / number of outer steps. Official: 3e-4
    outer_travel: float = 1.1
    # outer rate * outer steps bounds how far a logit moves and so decides the ranks; official GLUE script: 1.1
    outer_weight_decay: float = 0.0
    # official: 0 (GLUE), 1e-3 (BioNLP)
    search_dropout: float = 0.0
    # dropout on the LoRA branch in the search; official (row 15)
    search_encoder: bool = False
    # fine-tune the whole encoder during the search, as the BioNLP script does (row 7)
    implicit_coef: str = "eta"
    # factor of the implicit term: eta, or 1 as in the official bilevel library (row 3)
    around: str = "theta"
    # perturb around w (theta) or around w' (stepped, row 4)
    look_ahead: str = "sgd"
    # sgd, or adam: one step of the inner optimiser, rolled back (row 5)
    masks: str = "same"
    # dropout masks of the two perturbed evaluations: same or independent (row 6)
    self_check: bool = True
    # compare the hypergradient of the first batch with the exact one (cosine and error in the record)
    record_every: int = 10
    # steps between lines of metrics.jsonl
    adapter: str = "lora"
    # what retraining trains: lora, adalora, or full (every weight of the blocks that run)
    ranks: str = "learned"
    # learned, norm_weighted, spectral, permuted, random, equal, nearest, grid, a number, or a list q0,v0,q1,v1,...
    scale_rule: str = "per_rank"
    # per_rank: c / r_l, as executed officially; constant: c / k as in the search (row 13)
    lora_dropout: float = 0.1
    # dropout on the LoRA branch in retraining; official (row 15)
    bias: str = "none"
    # biases trained in retraining: none (GLUE), all (BioNLP, row 16)
    train_on: str = "all"
    # all, or inner: D_tr alone, then D_val is the validation set (grid points, spectral probe)
    steps: int = 150
    # retraining steps; 0: from epochs
    epochs: float = 30
    # official: 30 (10 for QQP and MNLI; CoLA's 80 is overwritten by 30, row 9)
    batch: int = 16
    # items per batch; official: 16 (GLUE), 64 (BioNLP)
    lr: float = 1e-4
    # AdamW, linear decay after warm-up; official: 1e-4 (GLUE), 1e-3 (BioNLP)
    weight_decay: float = 0.01
    # AdamW's default
    warmup: float = 0.06
    # share of the steps in which the rate rises; official
    label_smoothing: float = 0.0
    # LoRA's E2E recipe: 0.1
    precision: str = "fp32"
    # fp32, or bf16 autocast in retraining; the search is always fp32
    best_epoch: bool = False
    # also score the test items after every epoch and report the best, the official habit (row 17); no claim uses it
    drop_last_eval: bool = False
    # leave out the last incomplete batch of 16 when scoring, as the official loader does (row 10)
    score_validation: bool = False
    # score the task's validation items too (tuning, grid)
    beams: int = 10
    # beam search of generation; LoRA's E2E recipe: 10, length penalty 0.8, no repeated 4-grams
    new_tokens: int = 64
    # longest generated text
    export: bool = False
