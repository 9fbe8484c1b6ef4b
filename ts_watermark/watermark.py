"""A finished watermark: gamma and delta of every token, put into `generate()`, saved to and loaded
from a folder.

    watermark = Watermark.load("generators")
    processor = WatermarkLogitsProcessor(watermark)
    model.generate(**prompt, do_sample=True, top_k=50, logits_processor=[processor])

gamma and delta depend on the previous token alone, so two vectors of P numbers replace the networks
and the language model's embedding table: the folder of an OPT-1.3B watermark holds 1.5 MB and
detects without the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

from shared import door
from shared.protocol import BadInput
from ts_watermark.hashing import KEY, PERMUTATIONS, ROUNDINGS, GreenLists, GreenPairs, list_sizes
from ts_watermark.method import Generators

if TYPE_CHECKING:
    from ts_watermark.data import Codec

TENSORS, SETTINGS = "watermark.safetensors", "watermark.json"


@dataclass(frozen=True)
class Watermark:
    """gamma, delta: (P,) float32, by previous token id. vocab_size: V, the number of logits that
    are biased.

    P = V, except where another vocabulary steers the list (OPT ids over LLaMA's logits). networks:
    state dict of the generators they came from, if any: for the record.
    """

    gamma: Tensor
    delta: Tensor
    vocab_size: int
    key: int = KEY
    size_rounding: str = "floor"
    permutation: str = "philox_cuda"
    about: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gamma, delta = self.gamma, self.delta
        if gamma.ndim != 1 or gamma.shape != delta.shape:
            shapes = f"gamma {tuple(gamma.shape)} and delta {tuple(delta.shape)}"
            raise BadInput(f"{shapes} must be two (P,) vectors")
        if not bool(((gamma > 0) & (gamma < 1)).all()):
            span = f"{gamma.min():.3g} to {gamma.max():.3g}"
            raise BadInput(f"gamma must lie inside (0, 1); it is {span}")
        if type(self.vocab_size) is not int or type(self.key) is not int:
            raise BadInput(f"vocab_size={self.vocab_size!r}, key={self.key!r}: not whole numbers")
        if self.permutation not in PERMUTATIONS or self.size_rounding not in ROUNDINGS:
            values = f"permutation={self.permutation!r}, size_rounding={self.size_rounding!r}"
            raise BadInput(f"{values}: choose from {PERMUTATIONS} and {ROUNDINGS}")

    def green_lists(self, device: torch.device | str = "cpu", max_bytes: int = 2**28) -> GreenLists:
        sizes = list_sizes(self.gamma, self.vocab_size, self.size_rounding)
        return GreenLists(sizes, self.vocab_size, self.key, self.permutation, device, max_bytes)

    def green_pairs(self) -> GreenPairs:
        sizes = list_sizes(self.gamma, self.vocab_size, self.size_rounding)
        return GreenPairs(sizes, self.vocab_size, self.key, self.permutation)

    def save(self, folder: Path, tokenizer: Codec | None = None) -> Path:
        """Write safetensors, the tokenizer if any, and a JSON of settings and sha256 of all."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer")
        networks = {f"networks.{name}": tensor for name, tensor in self.networks.items()}
        tensors = {"gamma": self.gamma, "delta": self.delta, **networks}
        payload = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        (folder / TENSORS).write_bytes(payload)
        settings: dict[str, Any] = {"kind": "ts_watermark"}
        for name in ("vocab_size", "key", "size_rounding", "permutation", "about"):
            settings[name] = getattr(self, name)
        settings["sha256"] = _hashes(folder, settings)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Watermark:
        """Read what `save` wrote. FileNotFoundError if it is none, BadInput if it changed."""
        from safetensors.torch import load

        folder = Path(folder)
        for name in (SETTINGS, TENSORS):
            if not (folder / name).is_file():
                remedy = "a run of `python -m ts_watermark.train` writes one under export/"
                what = f"{folder} is no watermark folder: {name} is missing"
                raise FileNotFoundError(f"{what}; {remedy}")
        try:
            settings = door.json_object(folder / SETTINGS)
            expected = dict(settings.pop("sha256"))
            actual = _hashes(folder, settings)
            kind = settings.pop("kind")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{folder / SETTINGS} is damaged ({error})"
            raise BadInput(f"{what}; take a fresh copy") from error
        changed = sorted(k for k in expected | actual if expected.get(k) != actual.get(k))
        if kind != "ts_watermark" or changed:
            what = f"{', '.join(changed) or SETTINGS} changed after it was saved (sha256)"
            raise BadInput(f"{folder}: {what}; take a fresh copy")
        if not {"gamma", "delta"} <= door.tensors(folder / TENSORS).keys():
            raise BadInput(f"{folder / TENSORS} holds no gamma and delta; take a fresh copy")
        tensors = load((folder / TENSORS).read_bytes())
        start = "networks."
        networks = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        try:
            return cls(tensors["gamma"], tensors["delta"], networks=networks, **settings)
        except TypeError as error:
            what = f"{folder / SETTINGS} is another version's ({error})"
            raise BadInput(f"{what}; take a fresh copy") from error


def _hashes(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """File -> sha256 of all that a watermark consists of; `settings` stand for their file."""
    files = [folder / TENSORS, *sorted(p for p in (folder / "tokenizer").rglob("*") if p.is_file())]
    contents = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
    contents[SETTINGS] = json.dumps(settings, sort_keys=True).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@torch.no_grad()
def tabulate(generators: Generators, embedding: Tensor, **settings: Any) -> Watermark:
    """Run trained generators once over the embedding table (P, d): all that embedding and detection
    need."""
    parts = [generators(rows.float()) for rows in embedding.split(8192)]
    gamma, delta = torch.cat([g for g, _ in parts]).cpu(), torch.cat([d for _, d in parts]).cpu()
    networks = {k: v.cpu().clone() for k, v in generators.state_dict().items()}
    settings.setdefault("vocab_size", len(embedding))
    return Watermark(gamma, delta, networks=networks, **settings)


class WatermarkLogitsProcessor(LogitsProcessor):
    """Adds delta_p to the green logits after each row's last token p.

    For sampling, greedy decoding and beams, with left padding.
    The list depends on the last token only, so a reordered beam simply brings its own token along.
    """

    def __init__(
        self, watermark: Watermark, device: torch.device | str = "cpu", max_bytes: int = 2**28
    ):
        self.watermark = watermark
        self.lists = watermark.green_lists(device, max_bytes)
        self.delta = watermark.delta.to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (B, L). scores: (B, V), the logits."""
        if scores.shape[-1] != self.watermark.vocab_size:
            sizes = (
                f"the model has {scores.shape[-1]} logits, the watermark {self.lists.vocab_size}"
            )
            raise BadInput(f"{sizes}: they belong to different vocabularies")
        p = input_ids[:, -1]
        bias = self.delta[p].to(scores.dtype)[:, None]
        green = self.lists.masks(p).view(torch.uint8).to(scores.dtype)
        return torch.addcmul(scores, green, bias)  # a fifth of the time of torch.where


class ConvertedLogitsProcessor(WatermarkLogitsProcessor):
    """For a model of another vocabulary: p is a token of the watermark's own one.

    As docs/papers/ts_watermark.md, section 3.9, describes it: the last 5 tokens are decoded to text
    and tokenised by the watermark's tokenizer; its last id is p. Rows whose text gives no token are
    left alone.
    """

    def __init__(
        self,
        watermark: Watermark,
        convert: Converter,
        device: torch.device | str = "cpu",
        max_bytes: int = 2**28,
    ):
        super().__init__(watermark, device, max_bytes)
        self.convert = convert

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = input_ids[:, -Converter.WINDOW :].tolist()
        p = torch.tensor([self.convert(row) for row in rows], device=scores.device)
        converts = p >= 0
        if converts.any():
            last = p.clamp(min=0)[:, None]
            scores = torch.where(converts[:, None], super().__call__(last, scores), scores)
        return scores


class Tokenizer(Protocol):
    """Both directions without special tokens, as `data.Codec` has them."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Converter:
    """ids of the language model (up to 5) -> last id of the watermark's tokenizer, or -1."""

    WINDOW = 5

    def __init__(self, model_tokenizer: Tokenizer, watermark_tokenizer: Tokenizer):
        self.model_tokenizer, self.watermark_tokenizer = model_tokenizer, watermark_tokenizer

    def __call__(self, ids: Sequence[int]) -> int:
        text = self.model_tokenizer.decode(list(ids)[-self.WINDOW :])
        converted = self.watermark_tokenizer.encode(text)
        return int(converted[-1]) if len(converted) else -1
