"""What a run can be told, section by section. The comment above a field is its help (`--help`).

`paper` means arXiv 2402.18059, `official` the code of github.com/mignonjia/TS_watermark, as
docs/papers/ts_watermark.md, section 6, lists them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig


@dataclass(frozen=True)
class Job:
    """What the run does."""

    # base: language model and prompts; generators: train them; evaluate: generate, attack, score;
    # null: the test on human text, without a language model
    job: Literal["base", "generators", "evaluate", "null"] = "evaluate"


@dataclass(frozen=True)
class Models:
    """The frozen models around the generators."""

    # language model: small (trained here, stage base), smollm2 (packaged; its ids are not the
    # encoder's), a folder, or a hub id; tiny:<name>: a rehearsal's stand-in; paper:
    # facebook/opt-1.3b
    model: str = "small"
    # sentence encoder: minilm (bundled), a folder, or a hub id; paper:
    # princeton-nlp/sup-simcse-roberta-base
    encoder: str = "minilm"
    # language model that measures perplexity: self, a folder, a hub id, or empty for none;
    # paper: OPT-2.7B
    judge: str = "self"
    # language model and encoder share token ids: OPT and RoBERTa do, LLaMA does not
    shared_ids: bool = True
    # model whose token ids choose the lists, if not the model's own: OPT's for LLaMA
    # (docs/papers/ts_watermark.md, section 3.9)
    steering: str = ""
    # of the frozen language model; official: fp16 autocast
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True)
class LanguageModel:
    """The small language model that is trained here (docs/papers/ts_watermark.md, section 9)."""

    # most frequent word pieces of MiniLM that are kept; 0: all 30,522
    vocab_size: int = 4000
    # width
    lm_d: int = 128
    # blocks
    lm_layers: int = 2
    # attention heads
    lm_heads: int = 4
    # longest text that it can read, in tokens
    lm_context: int = 256
    # tokens of a training block
    lm_length: int = 64
    # blocks of a batch
    lm_batch: int = 16
    # steps of AdamW
    lm_steps: int = 600
    # learning rate, after a warm-up of a twentieth of the steps
    lm_lr: float = 3e-3


@dataclass(frozen=True)
class Prompts:
    """Which texts, and how they are cut (paper: C4 real-news-like)."""

    # editorials: of a newspaper, packaged; sample: invented text in C4's layout
    corpus: Literal["documentation", "editorials", "english", "c4", "sample"] = "documentation"
    # T, tokens of a human continuation and of a generated text; paper: 200, short settings 50
    new_tokens: int = 200
    # least tokens of an evaluation prompt; paper: 300 (+ 200 of the continuation)
    min_prompt: int = 300
    # longer prompts keep their last tokens; paper: at most 1,000 with the continuation
    max_prompt: int = 800
    # least tokens of a training prompt; paper: 200
    train_min_prompt: int = 200
    # the same limit for training; paper: at most 500 with the continuation
    train_max_prompt: int = 300
    # training prompts; paper: 6,400
    train_prompts: int = 6400
    # prompts of the mean gamma and delta, and of SWEET's threshold; paper: 500
    validation_prompts: int = 500
    # test prompts; paper: 500
    test_prompts: int = 500
    # keys of a run of job `null`
    null_keys: int = 20


@dataclass(frozen=True)
class Training:
    """The two networks and their training (docs/papers/ts_watermark.md, sections 3.3 to 3.7)."""

    # moo: MGDA; moo_normalised: of gradients of norm 1; weighted_sum: 4e-4 on -zhat (the paper's
    # Figure 10)
    objective: Literal["moo", "moo_normalised", "weighted_sum"] = "moo"
    # initial gamma and delta of each pair of networks, the strength knob; official: 0.25_1.75
    inits: tuple[str, ...] = ("0.25_1.75",)
    # widths between embedding and output; official: 64, or 256 32, or 512 128 64 16
    hidden: tuple[int, ...] = (64,)
    # steps of Adam; paper: 2 epochs of 6,400 prompts
    train_steps: int = 1600
    # prompts of a training batch; paper: 8
    batch: int = 8
    # T in training; paper: 200
    train_tokens: int = 200
    # learning rate of Adam; official: 1e-4
    lr: float = 1e-4
    # temperature of the relaxed green mask; official: 0.1
    tau: float = 0.1
    # share of the hard token in a soft token; official: 0.5
    mix: float = 0.5
    # largest weight of L_D; official: 0.01; None: textbook MGDA
    mgda_cap: float | None = 0.01


@dataclass(frozen=True)
class Evaluation:
    """Texts, attacks, detection (docs/papers/ts_watermark.md, section 6)."""

    # ts: trained generators; start: untrained ones; official: the authors' own; permuted and
    # matched: controls; kgw, sweet, unigram and synthid: opponents
    family: Literal[
        "ts", "start", "official", "permuted", "matched", "kgw", "sweet", "unigram", "synthid"
    ] = "ts"
    # of family official: folder of REPRO_DATA with init_<gamma>_<delta>.pth
    checkpoints: str = "official/TS_watermark/ckpt/opt"
    # opponents: gamma_delta of each point of the sweep (SynthID: 0.5_rounds); the others have one
    # point per init
    strengths: tuple[str, ...] = ()
    # share of a text that the detector sees: below 1 a handicap of known sign (positive control)
    seen_share: float = 1.0
    # tokens that sampling chooses from; paper: 50
    top_k: int = 50
    # the likeliest token instead of a sampled one (the paper's settings 1 and 3)
    greedy: bool = False
    # prompts of a generated batch, whose sampler is seeded anew; official: 20
    eval_batch: int = 20
    # copy_paste_1 and copy_paste_3, delete_SHARE, substitute_SHARE, dipper
    attacks: tuple[str, ...] = ()
    # tokens of the copy-paste detector's window, 3/10 of it for three pieces; paper: 200 and 60
    window: int = 200
    # hash key, the watermark's secret; official: the prime 15485863
    key: int = 15485863
    # keys of each seed's own, which its batches of test prompts take in turn, so that no result
    # hangs on the lists of one key; 0: `key` for all; paper: 0
    keys: int = 0
    # of a list's size V gamma; official runs: fp16 (docs/papers/ts_watermark.md, section 3.8)
    size_rounding: Literal["floor", "fp16"] = "floor"


STRENGTH = re.compile(r"0\.\d*[1-9]\d*_\d+(\.\d+)?")
ATTACK = re.compile(r"copy_paste_[13]|(delete|substitute)_0\.\d+|dipper")


@dataclass(frozen=True)
class Config(RunConfig, Job, Models, LanguageModel, Prompts, Training, Evaluation):
    """One run of token-specific watermarking."""

    def __post_init__(self) -> None:
        for field in ("inits", "strengths"):
            for name in getattr(self, field):
                if not STRENGTH.fullmatch(name):
                    form = "gamma_delta with gamma inside (0, 1), as in 0.25_1.75"
                    raise BadInput(f"{field}: {name!r} is not {form}")
        for name in self.attacks:
            if not ATTACK.fullmatch(name):
                choices = "copy_paste_1, copy_paste_3, delete_SHARE, substitute_SHARE, dipper"
                raise BadInput(f"attacks: {name!r} is not one of {choices}")
        if self.new_tokens < 2:
            remedy = "a text has at least 2, of which the first is not scored"
            raise BadInput(f"new_tokens = {self.new_tokens}: {remedy}")
        if self.job == "generators" and not 0 < self.batch <= self.train_prompts:
            limit = f"train_prompts = {self.train_prompts}"
            raise BadInput(f"batch = {self.batch} must lie in 1 .. {limit}; give more prompts")
        if self.model == "small" and self.lm_d % self.lm_heads:
            raise BadInput(f"lm_d = {self.lm_d} must be a multiple of lm_heads = {self.lm_heads}")
