"""Pretrained transformers as they come in: of the right kind, loaded whole, with their tokenizer.

Every paper takes its models from here. What would train on noise without a sign is refused: weights
that are missing or do not fit, a tokenizer of another size, texts that it cannot tell apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shared import door, sources
from shared.protocol import BadInput

# One stack of blocks `encoder.layer`, maps `query`, `key`, `value`, a new head `classifier`.
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
# Relative positions: no text is too long.
RELATIVE = {"deberta", "deberta-v2", "t5", "mt5", "mpt", "xlnet"}
RIGHT = "take the tokenizer that the model was trained with"
# Constants that older checkpoints store.
_CONSTANTS = re.compile(r"(position_ids|attn\.bias|masked_bias|inv_freq)$")
SAMPLED = 400  # texts that the guard looks at
MOST_UNKNOWN, FEWEST = 0.2, 20  # share of the pieces of texts, if they are so many


@dataclass(frozen=True)
class Kind:
    """Models that a paper takes.

    types: their `model_type`, () for any language model. example: one that fits."""

    what: str
    types: Collection[str]
    example: str


def decoders() -> set[str]:
    """Model types that predict the next token and nothing else."""
    from transformers.models.auto import modeling_auto as auto

    both = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES  # encoders: they would see what is to come
    return set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(both)


def load(
    name: str | Path,
    cls: Any,
    kind: Kind,
    fresh: str = "",
    words: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """(model, tokenizer), the latter with a padding token. See `load_model`, `load_tokenizer`."""
    folder = _folder(name, ("weights", "tokenizer"))
    config = _config(name, folder, kind)
    rows = config.get_text_config().vocab_size
    tokenizer = _tokenizer(name, folder, rows, words or {})
    if kind.types and config.pad_token_id not in (None, tokenizer.pad_token_id):
        # encoders count positions from behind the padding id
        what = f"pads with {tokenizer.pad_token!r} (id {tokenizer.pad_token_id})"
        raise BadInput(
            f"model {name}: the tokenizer {what}, the model {config.pad_token_id}; {RIGHT}"
        )
    if tokenizer.pad_token is None:
        need(tokenizer, "eos_token")
        tokenizer.pad_token = tokenizer.eos_token  # masks come from lengths
    return _model(name, folder, cls, fresh, options), tokenizer


def load_model(name: str | Path, cls: Any, kind: Kind, fresh: str = "", **options: Any) -> Any:
    """A pretrained model, all of it from the checkpoint but modules whose name begins with `fresh`.

    name: what a user gave (`sources.find_model`), or as a Path the folder of a run of ours. cls: a
    class of transformers. Raises BadInput for another kind and for weights that are missing, left
    over or of another shape, by name."""
    folder = _folder(name, ("weights",))
    _config(name, folder, kind)
    return _model(name, folder, cls, fresh, options)


def load_tokenizer(name: str | Path, rows: int = 0, **options: Any) -> Any:
    """The tokenizer. rows: of the embedding that its ids go into, 0 for none.

    Raises BadInput if an id has no row, or if it has far fewer pieces than there are rows."""
    return _tokenizer(name, _folder(name, ("tokenizer",)), rows, options)


def _folder(name: str | Path, parts: Collection[str]) -> Path:
    if isinstance(name, str):
        return Path(sources.find_model(name, parts)[0])
    door.model_files(name, parts)
    return name


def _config(name: str | Path, folder: Path, kind: Kind) -> Any:
    from transformers import AutoConfig

    model_type = door.json_object(folder / "config.json")["model_type"]
    if model_type not in (kind.types or decoders()):
        takes = f"{kind.what} is needed here" + (
            f" ({', '.join(kind.types)})" if kind.types else ""
        )
        raise BadInput(f"model {name} is a {model_type}: {takes}; for example {kind.example}")
    return _tried(name, AutoConfig, folder)


def _tried(name: str | Path, cls: Any, folder: Path, **options: Any) -> Any:
    """`from_pretrained` without network and foreign code; what it trips over is the user's file."""
    import transformers

    try:
        safe = {"local_files_only": True, "trust_remote_code": False}
        return cls.from_pretrained(folder, **safe, **options)
    except MemoryError:
        raise
    except Exception as error:
        what = f"transformers {transformers.__version__} cannot load it as {cls.__name__}"
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadInput(f"model {name}: {what} ({detail}); take one that it can") from error


def _model(name: str | Path, folder: Path, cls: Any, fresh: str, options: dict[str, Any]) -> Any:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of new head weights is no news
    logging.disable_progress_bar()
    info = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = _tried(name, cls, folder, use_safetensors=True, **info, **options)
    finally:
        logging.set_verbosity(level)

    def matters(weight: str) -> bool:
        return not (fresh and re.search(rf"(^|\.){fresh}\.", weight))

    what = f"model {name} ({type(model).__name__})"
    if missing := sorted(filter(matters, info["missing_keys"])):
        raise BadInput(
            f"{what} lacks {len(missing)} weights, the first is {missing[0]}; take a whole one"
        )
    for weight, stored, built in sorted(info["mismatched_keys"]):
        if matters(weight):
            shapes = f"{tuple(stored)} in the file, {tuple(built)} by config.json"
            raise BadInput(f"{what}: {weight} is {shapes}; take both from one model")
    parts = {child for child, _ in model.base_model.named_children()}
    start = f"{model.base_model_prefix}."
    for weight in sorted(info["unexpected_keys"]):  # heads of the pretraining may be left over
        part = weight.removeprefix(start).split(".")[0]
        if part in parts and matters(weight) and not _CONSTANTS.search(weight):
            raise BadInput(f"{what} has no place for {weight}: its config.json is another model's")
    for weight, value in model.named_parameters():
        if matters(weight) and not value.isfinite().all():
            raise BadInput(f"{what}: {weight} is not finite; fetch it again")
        if value.dim() > 1 and len(value) > 1 and matters(weight) and not value.any():
            raise BadInput(f"{what}: {weight} is zero: fetched in part, or emptied; fetch it again")
    return model


def load_state(module: nn.Module, path: Path) -> None:
    """Weights of a safetensors file that a run of ours wrote; BadInput if they are another's."""
    from safetensors.torch import load_file

    stored = door.tensors(path)
    built = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if other := sorted(k for k in stored | built if stored.get(k) != built.get(k)):
        shapes = " there, ".join(str(x.get(other[0], "missing")) for x in (stored, built))
        raise BadInput(f"{path} belongs to another network: {other[0]} is {shapes} here")
    module.load_state_dict(load_file(path))


# --- tokenizers ----------------------------------------------------------------------------------


def _tokenizer(name: str | Path, folder: Path, rows: int, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = _tried(name, AutoTokenizer, folder, **options)
    ids = tokenizer.get_vocab().values()
    if rows and max(ids, default=0) >= rows:
        what = f"ids up to {max(ids)}, the embedding {rows} rows"
        raise BadInput(f"model {name}: the tokenizer has {what}; {RIGHT}")
    if len(ids) < rows / 2:  # embeddings are padded, by a third at most (ByT5)
        what = f"{len(ids)} pieces, the embedding {rows} rows"
        raise BadInput(f"model {name}: the tokenizer has only {what}; {RIGHT}")
    return tokenizer


def need(tokenizer: Any, *tokens: str) -> None:
    """BadInput if the tokenizer lacks one of these special tokens (`eos_token`)."""
    for token in tokens:
        if getattr(tokenizer, token) is None:
            remedy = "set it in its tokenizer_config.json"
            raise BadInput(f"{_named(tokenizer)} has no {token}; {remedy}")


def _named(tokenizer: Any) -> str:
    return f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"


def check_texts(tokenizer: Any, texts: Sequence[str | Sequence[str]]) -> None:
    """BadInput where a tokenizer cannot read these texts: unknown pieces, or all texts alike.

    texts: strings, or tuples and lists of strings; of many, some are looked at."""
    some = [texts[i] for i in range(0, len(texts), max(1, len(texts) // SAMPLED))]
    plain = [text if isinstance(text, str) else " ".join(text) for text in some]
    if not plain:
        return
    ids = tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"]
    total, unknown = sum(map(len, ids)), tokenizer.unk_token_id
    strange = 0 if unknown is None else sum(row.count(unknown) for row in ids)
    few = total < FEWEST  # pieces: a share of them says little
    if strange and (strange == total if few else strange > MOST_UNKNOWN * total):
        share = f"{strange / total:.0%} of the pieces of these texts"
        raise BadInput(
            f"{_named(tokenizer)} does not know {share} (limit {MOST_UNKNOWN:.0%}); {RIGHT}"
        )
    different = len(set(map(_letters, plain)) - {""})
    if (different and not total) or (different > 1 and len(set(map(tuple, ids))) == 1):
        raise BadInput(
            f"{_named(tokenizer)} makes the same ids of {different} different texts; {RIGHT}"
        )


def _letters(text: str) -> str:
    """What every tokenizer tells apart: no case, no accents, no spaces and signs."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


# --- positions -----------------------------------------------------------------------------------


def positions(model: Any) -> int:
    """Tokens of the longest text that a model takes; 0: any length."""
    for name, module in model.named_modules():
        table = re.search(r"(^|\.)(position_embeddings|embed_positions|wpe)$", name)
        if table and isinstance(module, nn.Embedding):
            # RoBERTa counts from behind the padding id, OPT from `offset`
            before = getattr(module, "offset", 0) or 0
            before += 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    config = model.config.get_text_config()
    if config.model_type in RELATIVE:
        return 0
    return getattr(config, "max_position_embeddings", None) or 0


def check_length(model: Any, length: int, option: str) -> None:
    """BadInput if texts may be longer than the model's positions. option: what sets `length`."""
    limit = positions(model)
    if limit and length > limit:
        what = f"a {model.config.model_type} of {limit} positions"
        raise BadInput(f"{option} = {length}: the model is {what}; give at most {limit}")
