"""What a model folder is, and whether it is whole: looked at before anything is loaded.

Headers and JSON are read, never tensors, so that 13 GB are judged in milliseconds; nothing of a
folder is executed. Where a folder comes from is the business of `sources.py`, which goes through
`model_files` for every root.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from shared import protocol  # the module: it may be half imported when this one is

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
OTHERS = {".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".ot": "rust-bert"}
SUFFIXES = (".json", ".txt", ".model", ".jinja")  # of configuration and tokenizer
READ = re.compile(  # what transformers reads beside the weights
    r"((generation_)?config|special_tokens_map|added_tokens|chat_template|tokenizer.*|.*vocab.*|"
    r"merges)\.(json|txt|jinja)|.*\.model"
)
LFS = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_DTYPE = re.compile(r"BOOL|[IU](8|16|32|64)|B?F16|F32|F64|C64|F8_\w+|F6_\w+|F4")
_FLOAT = re.compile(r"B?F16|F32|F64")

CONVERT = "load it where you trust it, and write it again with save_pretrained (safetensors)"
AGAIN = "fetch it again"


def refuse(place: Path | str, what: str, remedy: str) -> NoReturn:
    raise protocol.BadInput(f"{place} {what}\n  remedy:  {remedy}")


def model_files(folder: Path, parts: Collection[str] = ("weights", "tokenizer")) -> list[Path]:
    """The files that decide what a model computes. BadInput unless all of them are there and whole.

    parts: what is needed of `weights` (with config.json) and `tokenizer`."""
    if not folder.is_dir():
        _refuse_file(folder)
    try:
        files = {path.name: path for path in sorted(folder.iterdir()) if path.name[0] != "."}
    except OSError as error:
        refuse(folder, f"cannot be read ({error.strerror})", "correct its permissions")
    if "adapter_config.json" in files:
        _refuse_adapter(files["adapter_config.json"])
    weights = []
    if "weights" in parts:
        if "config.json" not in files:
            _refuse_unknown(folder, list(files))
        config = json_object(files["config.json"])
        if not isinstance(config.get("model_type"), str):
            what = "names no model_type: it is no configuration of transformers"
            refuse(files["config.json"], what, "write the model with save_pretrained")
        weights = _weights(folder, files)
    if "tokenizer" in parts:
        _check_vocabulary(folder, files)
    small = [path for name, path in files.items() if READ.fullmatch(name)]
    for path in small:
        json_object(path) if path.suffix == ".json" else size_of(path)
    return [*small, *weights]


def is_read(name: str) -> bool:
    """Whether a file of this name in a model's folder can decide what the model computes."""
    return name.endswith(".safetensors") or READ.fullmatch(name) is not None


def is_whole(folder: Path, parts: Collection[str]) -> bool:
    try:
        return bool(model_files(folder, parts))
    except protocol.BadInput:
        return False


# --- what kind of thing it is --------------------------------------------------------------------


def _refuse_file(path: Path) -> NoReturn:
    """Of a path that is no folder."""
    if not path.exists():
        refuse(path, "is a link that leads nowhere", "correct the link")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        remedy = "give the folder, with config.json and the tokenizer's files beside it"
        refuse(path, "is one file of weights, not a model folder", remedy)
    if kind := _foreign(suffix):
        refuse(path, f"is {kind[0]}", kind[1])
    refuse(path, "is a file, not a model folder", "give the folder that holds config.json")


def _foreign(suffix: str) -> tuple[str, str] | None:
    """(kind, remedy) of weights that are not read here."""
    if suffix == ".gguf":
        remedy = "take the checkpoint that it was made of (config.json, model.safetensors)"
        return "a GGUF file (quantised, for llama.cpp), which is not read here", remedy
    if suffix in PICKLES:
        return "a pickle, which can run code and is not read here (safetensors are)", CONVERT
    if suffix in OTHERS:
        return f"a file of weights for {OTHERS[suffix]}, which is not read here", CONVERT
    return None


def _refuse_adapter(path: Path) -> NoReturn:
    base = json_object(path).get("base_model_name_or_path") or "its base model"
    merge = f"PeftModel.from_pretrained(base, {str(path.parent)!r}).merge_and_unload()"
    what = f"is a peft adapter of {base}, not a model"
    remedy = f"give {base}, or merge first: {merge}.save_pretrained(folder), then its tokenizer's"
    refuse(path.parent, what, remedy)


def _refuse_unknown(folder: Path, names: list[str]) -> NoReturn:
    """Of a folder without config.json."""
    if not names:
        refuse(folder, "is an empty folder", AGAIN)
    for path in itertools.chain(folder.glob("*/config.json"), folder.glob("*/*/config.json")):
        refuse(folder, "is no model folder, but one below it is", f"give {path.parent}")
    for name in names:
        if kind := _foreign(Path(name).suffix.lower()):
            refuse(folder, f"has no config.json, and {name} is {kind[0]}", kind[1])
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    remedy = "give a folder with config.json, model.safetensors and the tokenizer's files"
    refuse(folder, f"is no model folder: it has no config.json (it holds {some})", remedy)


# --- weights -------------------------------------------------------------------------------------


def _weights(folder: Path, files: dict[str, Path]) -> list[Path]:
    """The files that transformers will read: one, or an index and its shards."""
    if WHOLE in files:
        _floats(files[WHOLE])
        return [files[WHOLE]]
    if INDEX in files:
        return _shards(files[INDEX], files)
    for name in files:
        if name.lower() in (WHOLE, INDEX):
            refuse(files[name], f"is not spelled as it must be: {name.lower()}", "rename it")
        if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name):
            refuse(folder, f"has shards of weights but not their {INDEX}", AGAIN)
    unusual = [name for name in files if name.lower().endswith(".safetensors")]
    if unusual:
        remedy = f"name it {WHOLE} if it holds the whole model"
        refuse(folder, f"has {', '.join(unusual)}, but neither {WHOLE} nor {INDEX}", remedy)
    for name in files:
        if kind := _foreign(Path(name).suffix.lower()):
            refuse(folder, f"is not usable: {name} is {kind[0]}", kind[1])
    remedy = f"{AGAIN}; where the hub has pickles alone: {CONVERT}"
    refuse(folder, f"is not usable: it has no weights ({WHOLE})", remedy)


def _shards(index: Path, files: dict[str, Path]) -> list[Path]:
    placed = json_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        refuse(index, "has no weight_map: it does not say which shard holds which weight", AGAIN)
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            refuse(index, f"points to {name!r}, which is no safetensors file beside it", AGAIN)
    missing = sorted({*missing_parts(names), *(name for name in names if name not in files)})
    if missing:
        refuse(index, f"names shards that are not there: {', '.join(missing)}", AGAIN)
    content = {name: _floats(files[name]) for name in names}
    for weight, name in placed.items():
        if weight not in content[name]:
            refuse(files[name], f"lacks {weight}, which {index.name} places there", AGAIN)
    return [index, *(files[name] for name in names)]


def missing_parts(names: Collection[str]) -> list[str]:
    """Of families `...-00002-of-00003...`: the members that are not among the names."""
    missing = []
    for name in names:
        if match := re.search(r"-(\d+)-of-(\d+)", name):
            first, digits, last = name[: match.start()], len(match[1]), name[match.end() :]
            for k in range(1, min(int(match[2]), 10_000) + 1):
                other = f"{first}-{k:0{digits}d}-of-{match[2]}{last}"
                if other not in names and other not in missing:
                    missing.append(other)
    return missing


def _floats(path: Path) -> dict[str, Any]:
    """The header of a file of weights; transformers casts integers to floats without a word."""
    header = _header(path)
    for name, entry in header.items():
        if name.endswith("weight") and not _FLOAT.fullmatch(entry["dtype"]):
            remedy = "take the weights as F64, F32, F16 or BF16, before they were quantised"
            refuse(path, f"holds {name} as {entry['dtype']}, which are no weights", remedy)
    return header


def tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, by its header; BadInput unless the file is whole."""
    return {name: tuple(map(int, entry["shape"])) for name, entry in _header(path).items()}


def _header(path: Path) -> dict[str, Any]:
    size = size_of(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
            what = f"is cut, or no safetensors file: a header of {length:,} bytes, {size:,} in all"
            refuse(path, what, AGAIN)
        start = file.read(length)
    try:
        header = strict_json(start.decode())
        header.pop("__metadata__", None)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
        places = sorted((*map(int, header[name]["data_offsets"]), name) for name in shapes)
        bits = {name: _bits(entry["dtype"]) for name, entry in header.items()}
        end = 0
        for first, last, name in places:
            if first != end or 8 * (last - first) != math.prod(shapes[name]) * bits[name]:
                refuse(path, f"is damaged: {name} does not fit its place in the file", AGAIN)
            end = last
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        if isinstance(error, protocol.BadInput):
            raise
        refuse(path, f"is no safetensors file: its header cannot be read ({error!r})", AGAIN)
    if not places:
        refuse(path, "holds no weights", AGAIN)
    if 8 + length + end != size:
        refuse(
            path, f"is cut: its header describes {8 + length + end:,} bytes, it has {size:,}", AGAIN
        )
    return header


def _bits(dtype: str) -> int:
    """Of one element (`BF16`: 16)."""
    if not _DTYPE.fullmatch(dtype):
        raise ValueError(f"dtype {dtype!r}")
    return int("".join(filter(str.isdigit, dtype.split("_")[0])) or 8)


# --- configuration and tokenizer -----------------------------------------------------------------


def _check_vocabulary(folder: Path, files: dict[str, Path]) -> None:
    """transformers makes an empty tokenizer, without a word, where there is no vocabulary."""
    pieces = [name for name in files if name.endswith(".model") or name == "vocab.txt"]
    if "tokenizer.json" in files:
        if not isinstance(json_object(files["tokenizer.json"]).get("model"), dict):
            refuse(files["tokenizer.json"], "describes no tokenizer: it has no model", AGAIN)
    elif "vocab.json" in files:
        json_object(files["vocab.json"])
        if "merges.txt" not in files and not pieces:
            refuse(folder, "has no whole tokenizer: vocab.json without merges.txt", AGAIN)
    elif not pieces:
        what = "has no tokenizer: no tokenizer.json, vocab.txt, vocab.json or *.model"
        refuse(folder, what, "put the files of the tokenizer that it was trained with beside it")


def size_of(path: Path) -> int:
    """Bytes of a file that is there: no pointer, no empty file, nothing but a file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            refuse(path, "is not a file", AGAIN)
        with open(path, "rb") as file:
            start = file.read(len(LFS))
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror})", AGAIN)
    if start == LFS:
        what = "is a git-LFS pointer: it stands for a file that was not fetched"
        refuse(path, what, "git lfs pull, or fetch it with `hf download`")
    if not start:
        refuse(path, "is empty", AGAIN)
    return status.st_size


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; BadInput unless it is one object."""
    size_of(path)
    try:
        content = strict_json(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        what = str(error) or "nested too deeply"
        refuse(path, f"is not JSON ({what})", "write it as UTF-8 without a mark, or fetch it again")
    if not isinstance(content, dict):
        refuse(path, f"holds a {type(content).__name__}, not an object", AGAIN)
    return content


def strict_json(text: str) -> Any:
    """What JSON says; ValueError where it says a key twice, or half of a pair of surrogates."""
    content = json.loads(text, object_pairs_hook=_once)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return row
