"""The language models: tiny, SmolLM2, the hub's; and what an arm starts from."""

from __future__ import annotations

import copy
import functools
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppo_nlu import data, prompts
from ppo_nlu.cached import CachedPolicy
from ppo_nlu.config import Config, Network, Training
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
        tokenizer = digits_tokenizer()
        return llama(len(tokenizer), 32, 2, 2, 96, 128), tokenizer
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
    dtype = getattr(torch, config.precision)
    if config.model == "smollm2":
        from shared import bundled

        return _shared(bundled.smollm2(), dtype)
    return load(config.model, dtype)


@functools.lru_cache(maxsize=1)
def _read(folder: Path, dtype: torch.dtype, written: int) -> Pair:
    lm, tokenizer = load(folder, dtype)
    return lm.requires_grad_(False), tokenizer


def _shared(folder: Path, dtype: torch.dtype) -> Pair:
    """(model, tokenizer) read once in a process: each run has modules of its own around the same
    weights, which under an adapter nothing changes (gate reference-kept)."""
    lm, tokenizer = _read(folder, dtype, (folder / "model.safetensors").stat().st_mtime_ns)
    return copy.deepcopy(lm, {id(p): p for p in lm.parameters()}), tokenizer


def starting_policy(config: Config, run: runs.Run) -> Pair:
    """(model, tokenizer) of the starting stage, whose weights must be those it recorded.

    What a supervised stage trained takes its place; its adapter is merged in, or, where prompts
    are computed once, goes on (`adapted`)."""
    dtype = getattr(torch, config.precision)
    folders = {name: Path(folder) for name, folder in config.uses.items()}
    start = folders.get("start")
    if start and (start / "model").exists():
        lm, tokenizer = load(start / "model", dtype)
    else:
        lm, tokenizer = base_model(config)
    if start:
        sha256 = runs.state_sha256(weights(lm))
        recorded = json.loads((start / "record.json").read_text(encoding="utf-8"))["state_sha256"]
        detail = f"sha256 of the starting weights {sha256[:12]}, of the stage {recorded[:12]}"
        run.gate("same-start", sha256 == recorded, detail)
    for name, folder in folders.items():
        if (folder / "export" / "model").exists():
            lm, tokenizer = load(folder / "export" / "model", dtype)
        elif not config.cached and (folder / "export" / "adapter_config.json").exists():
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


def add_lora(lm: nn.Module, network: Network, opening: Sequence[int] = ()) -> nn.Module:
    """`lm` under a fresh adapter with scale alpha / sqrt(rank), without dropout (D18).

    opening: tokens that open an answer, from which alone the adapter acts (activated LoRA)."""
    from peft import LoraConfig, get_peft_model

    base: Any = base_of(lm)
    bias, blocks = network.lora_bias, base.config.num_hidden_layers
    if bias != "none" and any(n.endswith(".bias") for n, _ in lm.named_parameters()):
        warnings.warn(
            f"lora_bias={bias!r} trains biases of the base model; switching the adapter off does"
            " not bring them back: the KL is measured against a moving reference (D13); use 'none'",
            stacklevel=2,
        )
    adapted = list(range(max(0, blocks - network.lora_blocks), blocks))
    settings = LoraConfig(
        r=network.lora_rank,
        lora_alpha=network.lora_alpha,
        use_rslora=True,
        lora_dropout=0.0,
        bias=bias,
        # the library's for the architecture: query and value
        target_modules=None if network.lora_targets == "default" else "all-linear",
        layers_to_transform=adapted if network.lora_blocks else None,
        task_type="CAUSAL_LM",
        alora_invocation_tokens=list(opening) or None,
    )
    return get_peft_model(lm, settings)  # type: ignore[arg-type,return-value]


def adapted(
    config: Config,
    lm: nn.Module,
    device: torch.device,
    prompts: Sequence[list[int]] = (),
    opening: Sequence[int] = (),
) -> Policy:
    """The policy: `lm` under a fresh adapter, or whole where lora_rank is 0.

    Where `config.cached`, the questions are rows of `prompts`, which end in `opening`, and the
    adapter is that of the supervised stage, if one is used: what acts on answers alone cannot be
    merged into weights that read the questions too."""
    runs.seed_global(config.seed, "adapter")
    if config.lora_rank:
        lm = add_lora(lm, config, opening if config.cached else ())
        for p in lm.parameters():  # a bf16 network under an fp32 adapter
            p.data = p.data.float() if p.requires_grad else p.data
    if config.checkpointing:
        network: Any = lm
        network.enable_input_require_grads()
        network.gradient_checkpointing_enable({"use_reentrant": False})
    lm = lm.to(device).eval()
    policy = CachedPolicy(lm, prompts) if config.cached else Policy(lm)
    if isinstance(policy, CachedPolicy):
        for name in set(config.uses) - {"start"}:
            file = Path(config.uses[name]) / "export" / "adapter_model.safetensors"
            if file.exists():
                policy.begin_with(file)
    return policy.to(device)


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
    """Constant, or up within a tenth of the steps and down a cosine to a tenth (paper)."""
    warm = max(1, steps // 10)
    fall = 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))
    factor = (step + 1) / warm if step < warm else fall
    for group in optimizer.param_groups:
        group["lr"] = config.lr * (1.0 if config.schedule == "constant" else factor)


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


def encode(
    tokenizer: Any, prompt: str, target: str | None = None, special: bool = True
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of what follows, cut from ONE tokenisation: pieces can merge.

    special: the tokenizer may add its own, which a chat template has written already."""
    end = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None} if special else set()

    def ids(text: str) -> list[int]:
        tokens = list(tokenizer(text, add_special_tokens=special)["input_ids"])
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


def chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The messages in the tokenizer's chat template, and what opens the answer.

    A system message goes into the first question where the template has no place for it. Raises
    BadInput where the tokenizer has no template."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise BadInput(
            "the tokenizer has no chat template; give --form tags, or an instructed model"
        )
    options = {"tokenize": False, "add_generation_prompt": True}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError:
        system, first, *rest = messages
        if system["role"] != "system":
            raise
        first = {**first, "content": f"{system['content']} {first['content']}"}
        return tokenizer.apply_chat_template([first, *rest], **options)


def opening(tokenizer: Any) -> list[int]:
    """The tokens that a chat template opens every answer with."""
    question = [{"role": "user", "content": "?"}]
    plain = {"return_dict": False}
    without = tokenizer.apply_chat_template(question, **plain)
    return tokenizer.apply_chat_template(question, add_generation_prompt=True, **plain)[
        len(without) :
    ]


# --- files ----------------------------------------------------------------------------------------


def load(source: str | Path, dtype: torch.dtype = torch.float32) -> Pair:
    """(model, tokenizer) of a hub id, or of a folder; padding may be the end of the text."""
    from transformers import AutoModelForCausalLM

    lm, tokenizer = pretrained.load(source, AutoModelForCausalLM, DECODER, dtype=dtype)
    pretrained.need(tokenizer, "eos_token")
    return lm, tokenizer


def save(lm: Any, tokenizer: Any, folder: Path) -> None:
    """A checkpoint of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def export(config: Config, lm: Any, tokenizer: Any, run: Path) -> list[str]:
    """export/: the adapter for peft, or in export/model/ a model all of whose weights trained."""
    folder = run / "export"
    if config.lora_rank:
        lm.save_pretrained(str(folder))
        what = f"LoRA adapter; base model: {config.model}"
        how = "peft.PeftModel.from_pretrained(base, this_folder)"
    else:
        save(lm, tokenizer, folder / "model")
        what = "The whole model"
        how = "transformers.AutoModelForCausalLM.from_pretrained(this_folder + '/model')"
    origin = f"{config.arm} on {config.task}, scale {config.scale}, seed {config.seed}"
    licence = "Licence: that of the base model and of the data."
    (folder / "README.md").write_text(
        f"{origin}. {what}. Load with {how}.\n\n{licence}\n", encoding="utf-8"
    )
    return ["export"]
