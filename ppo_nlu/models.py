"""The language models: tiny, trained in the run, the hub's; and what an arm starts from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppo_nlu import data, prompts
from ppo_nlu.config import Config, Training
from ppo_nlu.policy import Policy, Tokenizer, base_of
from ppo_nlu.prompts import CLOSE, OPEN
from shared import door, pretrained, runs
from shared.protocol import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GREY = [f"g{level}" for level in range(16)]
DIGIT_WORDS = ["[pad]", "[end]", OPEN, CLOSE, "Yes", "No", "Maybe", "Both", *GREY]

DECODER = pretrained.Kind("a causal language model", (), "Qwen/Qwen2.5-7B-Instruct")
Pair = tuple[Any, Any]  # a model and its tokenizer, of the classes of transformers


# --- what an arm starts from ----------------------------------------------------------------------


def base_model(config: Config) -> Pair:
    """(model, tokenizer) before any run of ours has touched it."""
    runs.seed_global(config.seed, "model")
    if config.model == "digits":
        tokenizer, width = digits_tokenizer(), config.width
        lm = llama(len(tokenizer), width, config.layers, 2, 3 * width, config.context)
        return lm, tokenizer
    if config.model == "minilm":
        from ppo_nlu import prefix

        return prefix.minilm()
    if config.model == "decoder":
        return restore(Path(config.uses["base"]) / "model")
    if config.model.startswith("tiny-"):
        items = data.load(config)
        tokenizer = trained_tokenizer(
            [
                prompts.prompt(items.task, x.fields) + prompts.target(items.task, x.label)
                for x in items.train
            ],
            config.vocabulary,
        )
        return tiny(config.model.removeprefix("tiny-"), len(tokenizer)), tokenizer
    return load(config.model, getattr(torch, config.precision))


def starting_policy(config: Config, run: runs.Run) -> Pair:
    """(model, tokenizer) of the starting stage, whose weights must be those it recorded.

    What a supervised stage trained takes its place; its adapter is merged in."""
    dtype = getattr(torch, config.precision)
    folders = {name: Path(folder) for name, folder in config.uses.items()}
    start = folders.get("start") or folders.get("text_start")
    if start and (start / "model").exists():
        lm, tokenizer = restore(start / "model", dtype)
    else:
        lm, tokenizer = base_model(config)
    if start:
        sha256 = runs.state_sha256(weights(lm))
        recorded = json.loads((start / "record.json").read_text(encoding="utf-8"))["state_sha256"]
        detail = f"sha256 of the starting weights {sha256[:12]}, of the stage {recorded[:12]}"
        run.gate("same-start", sha256 == recorded, detail)
    for name, folder in folders.items():
        if (folder / "export" / "model").exists():
            lm, tokenizer = restore(folder / "export" / "model", dtype)
        elif (folder / "export" / "adapter_config.json").exists():
            from peft import PeftModel

            door.tensors(folder / "export" / "adapter_model.safetensors")
            run.say(f"{name}: its adapter is merged; the reference is the merged model")
            lm = PeftModel.from_pretrained(lm, str(folder / "export")).merge_and_unload()
    check_pad(tokenizer)
    return lm, tokenizer


def check_pad(tokenizer: Tokenizer) -> None:
    if tokenizer.pad_token_id is None:
        remedy = "set tokenizer.pad_token = tokenizer.eos_token"
        raise BadInput(f"the tokenizer has no padding token; {remedy}")


def weights(lm: nn.Module) -> list[Tensor]:
    return [p for _, p in sorted(lm.named_parameters())]


def add_lora(
    lm: nn.Module, rank: int, alpha: int, bias: str = "none", targets: str = "default"
) -> nn.Module:
    """`lm` under a fresh adapter with scale alpha / sqrt(rank), without dropout (D18).

    targets: "default" (the library's for the architecture: query and value) or "all"."""
    from peft import LoraConfig, get_peft_model

    names: str | list[str] | None = None if targets == "default" else "all-linear"
    if hasattr(lm, "lora_targets"):  # peft knows the encoder's layers, not those of a prefix model
        names = list(lm.lora_targets)  # type: ignore[arg-type]
    if bias != "none" and any(n.endswith(".bias") for n, _ in lm.named_parameters()):
        warnings.warn(
            f"lora_bias={bias!r} trains biases of the base model; switching the adapter off does"
            " not bring them back: the KL is measured against a moving reference (D13); use 'none'",
            stacklevel=2,
        )
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=True,
        lora_dropout=0.0,
        bias=bias,  # type: ignore[arg-type]
        target_modules=names,
    )
    return get_peft_model(lm, settings)  # type: ignore[arg-type,return-value]


def adapted(config: Config, lm: nn.Module, device: torch.device) -> Policy:
    """The policy: `lm` under a fresh adapter, or whole where lora_rank is 0."""
    runs.seed_global(config.seed, "adapter")
    if config.lora_rank:
        lm = add_lora(
            lm, config.lora_rank, config.lora_alpha, config.lora_bias, config.lora_targets
        )
        for p in lm.parameters():  # a bf16 network under an fp32 adapter
            p.data = p.data.float() if p.requires_grad else p.data
    if config.checkpointing:
        network: Any = lm
        network.enable_input_require_grads()
        network.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(lm.to(device)).to(device)


def context(lm: nn.Module) -> int:
    """The longest text the model takes."""
    settings: Any = base_of(lm).config
    names = ("max_position_embeddings", "max_seq_len")
    return next(filter(None, (getattr(settings, name, None) for name in names)), 1 << 30)


# --- optimisers -----------------------------------------------------------------------------------


def make_optimizer(config: Training, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        return Adafactor(parameters, lr=config.lr, **fixed)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, config: Training, step: int, steps: int) -> None:
    """Constant, or up within 5 % of the steps and down to a tenth (`runs.schedule` goes to 0)."""
    warmup, decay = (step + 1) / (0.05 * steps + 1), 1 - 0.9 * (step / steps)
    factor = 1.0 if config.schedule == "constant" else min(warmup, decay)
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


# --- networks and tokenizers ----------------------------------------------------------------------


def digits_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, so that an answer is one token: docs/papers/ppo_nlu.md, section 3.8."""
    from tokenizers import Tokenizer as Plain
    from tokenizers import models, pre_tokenizers

    words = {w: i for i, w in enumerate(DIGIT_WORDS)}
    plain = Plain(models.WordLevel(words, unk_token="[pad]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(plain)


def trained_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `texts`; the two tags are single tokens, which nothing can split."""
    from tokenizers import Tokenizer as Plain
    from tokenizers import decoders, models, pre_tokenizers, trainers

    plain = Plain(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["[pad]", "[end]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(texts, trainer)
    plain.add_tokens([OPEN, CLOSE])
    return _fast(plain)


def _fast(plain: Any) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[pad]", eos_token="[end]")


def llama(
    vocabulary: int, width: int, layers: int, heads: int, inner: int, context: int
) -> nn.Module:
    """A Llama of any size with random weights (drawn from torch's global generator)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=inner,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def tiny(family: str, vocabulary: int) -> nn.Module:
    """The paper's model classes at a size for rehearsals: llama, qwen2 or mpt."""
    if family == "llama":
        return llama(vocabulary, 32, 2, 2, 64, 2048)
    from transformers import MptConfig, MptForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if family == "qwen2":
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=vocabulary,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=64,
                max_position_embeddings=2048,
            )
        )
    if family == "mpt":
        return MptForCausalLM(
            MptConfig(
                vocab_size=vocabulary,
                d_model=32,
                n_heads=2,
                n_layers=2,
                expansion_ratio=2,
                max_seq_len=2048,
            )
        )
    raise BadInput(f"unknown model family '{family}'; it is one of llama, qwen2, mpt")


def encode(tokenizer: Any, prompt: str, target: str | None = None) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of what follows, cut from ONE tokenisation: pieces can merge."""
    end = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}

    def ids(text: str) -> list[int]:
        tokens = list(tokenizer(text)["input_ids"])
        while (
            tokens and tokens[-1] in end
        ):  # some tokenizers close every text; the answer is to come
            tokens.pop()
        return tokens

    q = ids(prompt)
    if target is None:
        return q, []
    both = ids(prompt + target)
    n = next((i for i, (a, b) in enumerate(zip(q, both)) if a != b), len(q))
    return both[:n], [*both[n:], tokenizer.eos_token_id]


# --- files ----------------------------------------------------------------------------------------


def load(source: str | Path, dtype: torch.dtype = torch.float32) -> Pair:
    """(model, tokenizer) of a hub id, or of a folder; padding may be the end of the text."""
    from transformers import AutoModelForCausalLM

    lm, tokenizer = pretrained.load(source, AutoModelForCausalLM, DECODER, dtype=dtype)
    pretrained.need(tokenizer, "eos_token")
    return lm, tokenizer


def save(lm: Any, tokenizer: Any, folder: Path) -> None:
    """A checkpoint of transformers; a prefix model as its tensors beside the tokenizer."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def restore(folder: Path, dtype: torch.dtype = torch.float32) -> Pair:
    """(model, tokenizer) that `save` wrote."""
    if not (folder / "prefix.safetensors").exists():
        return load(folder, dtype)
    from ppo_nlu import prefix

    return prefix.minilm(folder)
