"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    job: str = "evaluate"
    # base (language model and prompts), generators (train them) or evaluate (generate, attack, score)

    # -- models and text
    model: str = "small"
    # language model: small (trained here, stage base) or a hub id; tiny:<name> is a rehearsal's stand-in
    encoder: str = "minilm"
    # sentence encoder: minilm or a hub id
    judge: str = "self"
    # language model that measures perplexity: self, a hub id, or empty for none
    shared_ids: bool = True
    # language model and encoder share token ids (OPT and RoBERTa do, LLaMA does not)
    steering: str = ""
    # hub id whose tokenizer and token ids choose the lists, if not the model's own (LLaMA: OPT; section 3.9)
    corpus: str = "documentation"
    # documentation, english, c4 or sample (invented text in C4's layout)
    precision: str = "fp32"
    # of the frozen language model: fp32, bf16 or fp16 (official: fp16 autocast)

    # -- the small language model
    vocab_size: int = 4000
    # most frequent word pieces of MiniLM that are kept; 0 = all 30,522
    lm_d: int = 128
    lm_layers: int = 2
    lm_heads: int = 4
    lm_context: int = 256
    lm_length: int = 64
    # tokens of a training block
    lm_batch: int = 16
    lm_steps: int = 600
    lm_lr: float = 3e-3

    # -- prompts
    new_tokens: int = 200
    # T at evaluation; paper: 200, short settings 50
    min_prompt: int = 300
    # evaluation filter (paper: 300 prompt tokens, 200 completion, 1000 together)
    train_min_prompt: int = 200
    # training filter (paper: 200 + 200, 500 together)
    max_prompt: int = 800
    # longer prompts keep their last tokens
    train_max_prompt: int = 300
    train_prompts: int = 6400
    validation_prompts: int = 500
    test_prompts: int = 500
    null_texts: int = 0
    # further human texts per test item, for the null distribution of z

    # -- generators
    objective: str = "moo"
    # moo (MGDA) or weighted_sum (4e-4 on -zhat; Figure 9)
    inits: tuple[str, ...] = ("0.25_1.75",)
    # initial gamma and delta of each pair of networks: the strength knob
    hidden: tuple[int, ...] = (64,)
    # widths between embedding and output; official alternatives (256, 32), (512, 128, 64, 16)
    zero_last_layer: bool = False
    # start from exact KGW instead of token-specific random values
    train_steps: int = 1600
    # 2 epochs of 6400 prompts, batch 8
    batch: int = 8
    train_tokens: int = 200
    # T in training
    lr: float = 1e-4
    weight_decay: float = 1e-5
    tau: float = 0.1
    # temperature of the relaxed green mask
    mix: float = 0.5
    # share of the hard token in a soft token
    mgda_cap: float | None = 0.01
    # largest weight of L_D (official code: 0.01; null = textbook MGDA)
    save_every: int = 100
    # log a checkpoint line every so many steps (official: a checkpoint)
    context_tokens: int = 5
    # prompt tokens that the encoder sees before the text

    # -- evaluation
    family: str = "ts"
    # ts, start (untrained generators), permuted, matched (controls), kgw, sweet
    strengths: tuple[str, ...] = ()
    # kgw and sweet: gamma_delta of each point of the sweep; the others have one point per init
    top_k: int = 50
    greedy: bool = False
    eval_batch: int = 20
    attacks: tuple[str, ...] = ()
    # copy_paste_1, copy_paste_3, delete_0.2, substitute_0.2, dipper
    window: int = 200
    # tokens of the copy-paste detector's window; three pieces use 3/10 of it (paper: 200 and 60)
    key: int = 15485863
    key_per_seed: bool = False
    # another hash key for each seed, so that seeds replicate the null distribution too (scales cpu, gpu)
    size_rounding: str = "floor"
