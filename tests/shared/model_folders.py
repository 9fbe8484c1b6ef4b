"""Model folders made by hand: whole ones, and one for each way to break them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

Breaker = Callable[[Path], object]

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"


def safetensors(*names: str) -> bytes:
    """A file of vectors of two zeros each."""
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, name in enumerate(names)
    }
    start = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return len(start).to_bytes(8, "little") + start + bytes(8 * len(names))


def write(folder: Path) -> Path:
    """The least that is a model: configuration, weights, tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(safetensors("a", "b"))
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {}}}')
    return folder


def shard(folder: Path, n: int = 3) -> None:
    """The weights of `write` in n files and an index."""
    (folder / "model.safetensors").unlink()
    names = [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(safetensors(f"w{i}"))
    placed = {f"w{i}": name for i, name in enumerate(names)}
    write_index(folder, placed)


def write_index(folder: Path, placed: object) -> None:
    text = json.dumps({"weight_map": placed})
    (folder / "model.safetensors.index.json").write_text(text)


def puts(name: str, content: str | bytes) -> Breaker:
    def put(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return put


def lacks(*names: str) -> Breaker:
    return lambda folder: [(folder / name).unlink() for name in names]


def renamed(old: str, new: str) -> Breaker:
    return lambda folder: (folder / old).rename(folder / new)


def cut(name: str, size: int) -> Breaker:
    return lambda folder: os.truncate(folder / name, size)


def sharded(then: Breaker) -> Breaker:
    def make(folder: Path) -> None:
        shard(folder)
        then(folder)

    return make


def header(name: str = "x", **changes: object) -> bytes:
    """A file of one tensor whose entry has these changes."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    start = json.dumps({name: entry}).encode()
    return len(start).to_bytes(8, "little") + start + bytes(8)


def loop(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def foreign(*names: str) -> Breaker:
    """Only these files, in place of config.json and weights."""

    def make(folder: Path) -> None:
        lacks("config.json", "model.safetensors", "tokenizer.json")(folder)
        for name in names:
            (folder / name).write_bytes(b"x")

    return make


def adapter(folder: Path) -> None:
    puts("adapter_config.json", '{"base_model_name_or_path": "some/base"}')(folder)
    (folder / "adapter_model.safetensors").write_bytes(safetensors("a"))


WHOLE, INDEX, LAST = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00003-of-00003.safetensors",
)
_ONCE = b'"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
TWICE = (2 * len(_ONCE) + 4).to_bytes(8, "little") + b"{%b, %b}" % (_ONCE, _ONCE) + bytes(8)
TWO = {"w0": "model-00001-of-00003.safetensors", "w2": LAST}
# what is wrong -> (how it came to be, what the message says)
BROKEN: dict[str, tuple[Breaker, str]] = {
    "adapter": (adapter, r"peft adapter of some/base.*merge"),
    "empty folder": (foreign(), "is an empty folder"),
    "unknown folder": (foreign("a.csv", "b.csv"), r"no config.json \(it holds a.csv, b.csv\)"),
    "GGUF": (foreign("x.Q4_1.gguf"), "GGUF"),
    "GGUF beside config": (renamed(WHOLE, "x.gguf"), "GGUF"),
    "no config": (lacks("config.json"), "no config.json"),
    "pickle": (renamed(WHOLE, "pytorch_model.bin"), r"pickle.*save_pretrained"),
    "sharded pickle": (renamed(WHOLE, "pytorch_model-00001-of-00002.bin"), "pickle"),
    "upper-case pickle": (renamed(WHOLE, "MODEL.PTH"), "pickle"),
    "TensorFlow": (renamed(WHOLE, "tf_model.h5"), "TensorFlow"),
    "no weights": (lacks(WHOLE), "it has no weights"),
    "upper-case weights": (renamed(WHOLE, "model.SAFETENSORS"), "not spelled as it must be"),
    "other name": (renamed(WHOLE, "weights.safetensors"), "neither model.safetensors nor"),
    "pointer as weights": (puts(WHOLE, POINTER), "model.safetensors is a git-LFS pointer"),
    "pointer as config": (puts("config.json", POINTER), "config.json is a git-LFS pointer"),
    "pointer as tokenizer": (puts("tokenizer.json", POINTER), "tokenizer.json is a git-LFS"),
    "pointer as merges": (puts("merges.txt", POINTER), "merges.txt is a git-LFS pointer"),
    "empty weights": (puts(WHOLE, ""), "model.safetensors is empty"),
    "empty config": (puts("config.json", ""), "config.json is empty"),
    "cut weights": (cut(WHOLE, len(safetensors("a", "b")) - 3), r"is cut.* bytes, it has"),
    "cut in the header": (cut(WHOLE, 40), "is cut, or no safetensors file"),
    "5 bytes": (cut(WHOLE, 5), "is cut, or no safetensors file"),
    "too long": (puts(WHOLE, safetensors("a") + b"x"), "is cut: its header describes"),
    "absurd header": (puts(WHOLE, b"\xff" * 8 + b"{}" + bytes(99)), "header of 18,446,744"),
    "page as weights": (puts(WHOLE, "<!DOCTYPE html><p>404</p>"), "no safetensors file"),
    "header is a list": (puts(WHOLE, (2).to_bytes(8, "little") + b"[]"), "header cannot be read"),
    "header is nothing": (puts(WHOLE, (2).to_bytes(8, "little") + b"{}"), "holds no weights"),
    "unknown dtype": (puts(WHOLE, header(dtype="F33")), "header cannot be read"),
    "negative offsets": (puts(WHOLE, header(data_offsets=[-8, 0])), "x does not fit its place"),
    "wrong shape": (puts(WHOLE, header(shape=[3])), "x does not fit its place"),
    "config is cut": (puts("config.json", '{"model_type": "be'), "config.json is not JSON"),
    "config has a mark": (puts("config.json", b"\xef\xbb\xbf{}"), "is not JSON .*without a mark"),
    "config is a list": (puts("config.json", "[]"), "holds a list, not an object"),
    "config is Latin-1": (puts("config.json", b'{"x": "\xe9"}'), "is not JSON"),
    "config nests": (puts("config.json", "[" * 200_000), "config.json is not JSON"),
    "config of others": (puts("config.json", '{"layers": 2}'), "names no model_type"),
    "config says it twice": (
        puts("config.json", '{"model_type": "a", "model_type": "bert"}'),
        "twice",
    ),
    "settings are cut": (puts("generation_config.json", "{"), "generation_config.json is not JSON"),
    "tokens are a list": (puts("special_tokens_map.json", "[]"), "holds a list, not an object"),
    "whole numbers": (puts(WHOLE, header("weight", dtype="I32")), "holds weight as I32, which"),
    "a tensor twice": (puts(WHOLE, TWICE), "the key 'x' is there twice"),
    "pipe": (lambda f: (lacks(WHOLE)(f), os.mkfifo(f / WHOLE)), "model.safetensors is not a file"),
    "config loops": (loop, "config.json cannot be read"),
    "no tokenizer": (lacks("tokenizer.json"), "has no tokenizer"),
    "only its settings": (renamed("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "no merges": (renamed("tokenizer.json", "vocab.json"), "vocab.json without merges.txt"),
    "tokenizer is cut": (cut("tokenizer.json", 20), "tokenizer.json is not JSON"),
    "tokenizer of nothing": (puts("tokenizer.json", "{}"), "describes no tokenizer"),
    "missing shard": (sharded(lacks(LAST)), f"not there: {LAST}"),
    "shard left out": (sharded(lambda f: write_index(f, TWO)), "not there: model-00002-of-00003"),
    "no index": (sharded(lacks(INDEX)), "shards of weights but not their"),
    "empty index": (sharded(lambda f: write_index(f, {})), "has no weight_map"),
    "index to outside": (sharded(lambda f: write_index(f, {"w": f"../{WHOLE}"})), "points to"),
    "index is cut": (sharded(cut(INDEX, 30)), "index.json is not JSON"),
    "empty shard": (sharded(puts(LAST, "")), f"{LAST} is empty"),
    "weight elsewhere": (sharded(puts(LAST, safetensors("other"))), f"{LAST} lacks w2"),
}
