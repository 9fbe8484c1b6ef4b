"""The language models: a tiny one for digits, one trained in the run, the MiniLM encoder as a prefix model, the hub's."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ppo_nlu.prompts import CLOSE, OPEN

GREY = [f"g{level}" for level in range(16)]
DIGIT_WORDS = ["[pad]", "[end]", OPEN, CLOSE, "Yes", "No", "Maybe", "Both", *GREY]


def digits_tokenizer():
    """Whole words, so that an answer is one token: the case in which PPO's gradient can be written down."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(DIGIT_WORDS)}, unk_token="[pad]")
    )
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[pad]", eos_token="[end]")


def trained_tokenizer(texts, size: int):
    """Byte-level BPE learned from `texts`; the two tags are single tokens, so the rest of the text cannot split them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["[pad]", "[end]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    plain.add_tokens([OPEN, CLOSE])
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[pad]", eos_token="[end]")


def llama(vocabulary: int, width: int, layers: int, heads: int, inner: int, context: int):
    """A Llama of any size with random weights (drawn from torch's global generator)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                    num_key_value_heads=heads, intermediate_size=inner, max_position_embeddings=context,
                    tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    )  # fmt: skip


def tiny(family: str, vocabulary: int):
    """The paper's model classes at a size for rehearsals: llama, qwen2 or mpt."""
    if family == "llama":
        return llama(vocabulary, 32, 2, 2, 64, 2048)
    from transformers import MptConfig, MptForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                            num_key_value_heads=1, intermediate_size=64, max_position_embeddings=2048))  # fmt: skip
    if family == "mpt":
        return MptForCausalLM(MptConfig(vocab_size=vocabulary, d_model=32, n_heads=2, n_layers=2, expansion_ratio=2, max_seq_len=2048))  # fmt: skip
    raise ValueError(f"unknown model family '{family}'; known: llama, qwen2, mpt")


class PrefixLM(nn.Module):
    """An encoder as a language model: prompt tokens see each other, answer tokens see the prompt and what precedes them.

    The prompt ends at the last opened tag, which can never be generated.  Output words are tied to the input
    embeddings through one fresh linear map.  There is no cache: an encoder layer has nowhere to put it.
    """

    def __init__(self, encoder: nn.Module, open_id: int):
        super().__init__()
        self.encoder, self.open_id, self.config = encoder, open_id, encoder.config
        self.transform = nn.Sequential(
            nn.Linear(self.config.hidden_size, self.config.hidden_size),
            nn.GELU(),
            nn.LayerNorm(self.config.hidden_size),
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logits_to_keep: int = 0,
        **_,
    ):
        """Like a causal model of transformers: `.logits` of the last columns, `.hidden_states[-1]` of all."""
        L = input_ids.shape[1]
        column = torch.arange(L, device=input_ids.device)
        prompt = column <= torch.where(input_ids == self.open_id, column, -1).amax(
            1, keepdim=True
        )  # (B, L)
        sees = (column[:, None] >= column) | prompt[:, None, :]  # (B, L, L)
        sees = sees & attention_mask[:, None, :].bool() | torch.eye(
            L, dtype=torch.bool, device=input_ids.device
        )
        bias = torch.zeros(sees.shape, device=input_ids.device).masked_fill(
            ~sees, torch.finfo(torch.float32).min
        )
        h = self.encoder(
            input_ids=input_ids, attention_mask=bias[:, None], position_ids=position_ids
        ).last_hidden_state
        words = self.encoder.get_input_embeddings().weight
        logits = self.transform(h[:, -logits_to_keep:]) @ words.T
        logits[..., self.open_id] = -1e9
        return SimpleNamespace(logits=logits, hidden_states=(h,), past_key_values=None)


def base_of(lm):
    """The network under its adapter, or itself."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def add_lora(lm: nn.Module, rank: int, alpha: int, rslora: bool, bias: str, targets: str):
    """`lm` under a fresh adapter.  targets: "default" (the library's for the architecture: query and value) or "all"."""
    import warnings

    from peft import LoraConfig, get_peft_model

    names = None if targets == "default" else "all-linear"
    if isinstance(lm, PrefixLM):
        names = ["query", "value"]  # peft knows the encoder's layers, not ours
    if bias != "none" and any(n.endswith(".bias") for n, _ in lm.named_parameters()):
        warnings.warn(f"lora_bias={bias!r} trains biases of the base model, and switching the adapter off does not bring "
                      "them back: the KL is then measured against a moving reference (D13); use 'none'", stacklevel=2)  # fmt: skip
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        lora_dropout=0.0,
        bias=bias,
        target_modules=names,
    )
    return get_peft_model(lm, settings)


def load(source: str | Path, dtype: torch.dtype = torch.float32):
    """(model, tokenizer) of a directory in the layout of transformers; padding falls back to the end of the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{source}: the tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless here: masks come from lengths
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype), tokenizer


def check_pad(tokenizer) -> None:
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer has no padding token; set tokenizer.pad_token = tokenizer.eos_token"
        )


def encode(tokenizer, prompt: str, target: str | None = None) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of what follows it, cut from ONE tokenisation: pieces can merge across the seam."""
    end = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}

    def ids(text: str) -> list[int]:
        found = list(tokenizer(text)["input_ids"])
        while (
            found and found[-1] in end
        ):  # some tokenizers close every text; the answer has not begun yet
            found.pop()
        return found

    q = ids(prompt)
    if target is None:
        return q, []
    both = ids(prompt + target)
    n = next((i for i, (a, b) in enumerate(zip(q, both)) if a != b), len(q))
    return both[:n], [*both[n:], tokenizer.eos_token_id]


def save(lm: nn.Module, tokenizer, folder: Path) -> None:
    """A checkpoint of transformers; a prefix model as its tensors beside the tokenizer."""
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    if isinstance(lm, PrefixLM):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.contiguous() for k, v in lm.state_dict().items()}, folder / "prefix.safetensors"
        )
    else:
        lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def restore(folder: Path, dtype: torch.dtype = torch.float32):
    """(model, tokenizer) that `save` wrote."""
    if not (folder / "prefix.safetensors").exists():
        return load(folder, dtype)
    from safetensors.torch import load_file

    lm, tokenizer = prefix_minilm()
    lm.load_state_dict(load_file(folder / "prefix.safetensors"))
    return lm, tokenizer


def prefix_minilm():
    """The bundled MiniLM encoder as a prefix model; the tags and the end of the text become words of their own."""
    from shared import bundled

    encoder, tokenizer = bundled.minilm()
    tokenizer.add_tokens([OPEN, CLOSE, "[end]"])
    tokenizer.eos_token = "[end]"
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return PrefixLM(encoder, tokenizer.convert_tokens_to_ids(OPEN)), tokenizer


def context(lm: nn.Module) -> int:
    """The longest text the model takes."""
    base = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    return getattr(base.config, "max_position_embeddings", None) or getattr(
        base.config, "max_seq_len", 1 << 30
    )


def classifier(name: str, outputs: int, texts: list[str], vocabulary: int):
    """(encoder with a classification head, tokenizer); `tiny-bert` for rehearsals, else a hub id."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
    )

    if name == "tiny-bert":
        tokenizer = trained_tokenizer(texts, vocabulary)
        small = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=64, num_labels=outputs)  # fmt: skip
        return BertForSequenceClassification(small), tokenizer
    from shared import sources

    folder, _ = sources.find_model(name)
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=outputs
    ), AutoTokenizer.from_pretrained(folder)
