"""A finished watermark: gamma and delta of every token, put into `generate()`, saved to and loaded from a folder.

    watermark = Watermark.load("generators")
    model.generate(**prompt, do_sample=True, top_k=50, logits_processor=[WatermarkLogitsProcessor(watermark)])

gamma and delta depend on the previous token alone, so two vectors of P numbers replace the networks and the
language model's embedding table: the folder of an OPT-1.3B watermark holds 1.5 MB and detects without the model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ts_watermark.hashing import KEY, PERMUTATIONS, ROUNDINGS, GreenLists, list_sizes
from ts_watermark.method import Generators

TENSORS, SETTINGS = "watermark.safetensors", "watermark.json"


@dataclass(frozen=True)
class Watermark:
    """gamma, delta: (P,) float32, by previous token id. vocab_size: V, the number of logits that are biased.

    P = V, except where another vocabulary steers the list (OPT ids over LLaMA's logits).
    networks: state dict of the generators they came from, if any (kept for a paper trail; not used).
    """

    gamma: Tensor
    delta: Tensor
    vocab_size: int
    key: int = KEY
    size_rounding: str = "floor"
    permutation: str = "philox_cuda"
    about: dict = field(default_factory=dict)
    networks: dict = field(default_factory=dict)

    def __post_init__(self):
        gamma, delta = self.gamma, self.delta
        if gamma.ndim != 1 or gamma.shape != delta.shape:
            raise ValueError(
                f"gamma {tuple(gamma.shape)} and delta {tuple(delta.shape)} must be two (P,) vectors"
            )
        if not bool(((gamma > 0) & (gamma < 1)).all()):
            raise ValueError(
                f"gamma must lie inside (0, 1); found {gamma.min():.3g} to {gamma.max():.3g}"
            )
        if self.permutation not in PERMUTATIONS or self.size_rounding not in ROUNDINGS:
            raise ValueError(f"permutation={self.permutation!r}, size_rounding={self.size_rounding!r}: "
                             f"choose from {PERMUTATIONS} and {ROUNDINGS}")  # fmt: skip

    def green_lists(self, device="cpu", max_bytes: int = 2**28) -> GreenLists:
        sizes = list_sizes(self.gamma, self.vocab_size, self.size_rounding)
        return GreenLists(sizes, self.vocab_size, self.key, self.permutation, device, max_bytes)

    def save(self, folder: str | Path, tokenizer=None) -> Path:
        """Write safetensors, the tokenizer if given, and a JSON of settings with the sha256 of all three."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer")
        tensors = {
            "gamma": self.gamma,
            "delta": self.delta,
            **{f"networks.{k}": v for k, v in self.networks.items()},
        }
        payload = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        (folder / TENSORS).write_bytes(payload)
        settings = {"kind": "ts_watermark", "vocab_size": self.vocab_size, "key": self.key,
                    "size_rounding": self.size_rounding, "permutation": self.permutation, "about": self.about}  # fmt: skip
        settings["sha256"] = _hashes(folder, settings)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Watermark:
        """Read a folder that `save` wrote. FileNotFoundError if it is not one, ValueError if it was changed."""
        from safetensors.torch import load

        folder = Path(folder)
        for name in (SETTINGS, TENSORS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no watermark folder: {name} is missing; a run of "
                                        "`python -m ts_watermark.train` writes one under export/")  # fmt: skip
        try:
            settings = json.loads((folder / SETTINGS).read_text())
            expected = dict(settings.pop("sha256"))
            found = _hashes(folder, settings)
            kind = settings.pop("kind")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / SETTINGS} is damaged ({error}); take a fresh copy"
            ) from error
        changed = sorted(k for k in expected | found if expected.get(k) != found.get(k))
        if kind != "ts_watermark" or changed:
            raise ValueError(f"{folder}: {', '.join(changed) or SETTINGS} changed after it was saved (sha256); "
                             "take a fresh copy")  # fmt: skip
        tensors = load((folder / TENSORS).read_bytes())
        networks = {
            k.removeprefix("networks."): v for k, v in tensors.items() if k.startswith("networks.")
        }
        return cls(tensors["gamma"], tensors["delta"], networks=networks, **settings)


def _hashes(folder: Path, settings: dict) -> dict[str, str]:
    """File -> sha256 of what a watermark consists of; `settings` (without their hashes) stand for their file."""
    files = [folder / TENSORS, *sorted(p for p in (folder / "tokenizer").rglob("*") if p.is_file())]
    hashes = {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    text = json.dumps(settings, sort_keys=True)
    return hashes | {SETTINGS: hashlib.sha256(text.encode()).hexdigest()}


@torch.no_grad()
def tabulate(generators: Generators, embedding: Tensor, **settings) -> Watermark:
    """Run trained generators once over the embedding table (P, d): all that embedding and detection need."""
    parts = [generators(rows.float()) for rows in embedding.split(8192)]
    gamma, delta = torch.cat([g for g, _ in parts]).cpu(), torch.cat([d for _, d in parts]).cpu()
    networks = {k: v.cpu().clone() for k, v in generators.state_dict().items()}
    settings.setdefault("vocab_size", len(embedding))
    return Watermark(gamma, delta, networks=networks, **settings)


class WatermarkLogitsProcessor(LogitsProcessor):
    """Adds delta_p to the green logits after each row's last token p: sampling, beams, left padding alike.

    The list depends on the last token only, so a reordered beam simply brings its own token along.
    """

    def __init__(self, watermark: Watermark, device="cpu", max_bytes: int = 2**28):
        self.watermark = watermark
        self.lists = watermark.green_lists(device, max_bytes)
        self.delta = watermark.delta.to(device)

    def previous(self, input_ids: Tensor) -> Tensor:
        """(B, L) -> (B,) ids that choose the list."""
        return input_ids[:, -1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.shape[-1] != self.watermark.vocab_size:
            raise ValueError(f"the model has {scores.shape[-1]} logits, the watermark {self.watermark.vocab_size}: "
                             "they belong to different vocabularies")  # fmt: skip
        p = self.previous(input_ids)
        bias = self.delta[p].to(scores.dtype)[:, None]
        return (
            scores + self.lists.masks(p) * bias
        )  # a third of the time of torch.where; red logits are unchanged


class ConvertedLogitsProcessor(WatermarkLogitsProcessor):
    """For a model of another vocabulary (3.9): the list is chosen by a token of the watermark's own vocabulary.

    The last 5 tokens are decoded to text and tokenised by the watermark's tokenizer; its last id is p. Rows whose
    text gives no token are left alone.
    """

    def __init__(self, watermark: Watermark, convert, device="cpu", max_bytes: int = 2**28):
        super().__init__(watermark, device, max_bytes)
        self.convert = convert

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        p = torch.tensor(
            [self.convert(row) for row in input_ids[:, -5:].tolist()], device=scores.device
        )
        known = p >= 0
        if known.any():
            last = p.clamp(min=0)[:, None]
            scores = torch.where(known[:, None], super().__call__(last, scores), scores)
        return scores


class Converter:
    """ids of the language model (up to 5) -> last id of the watermark's tokenizer, or -1."""

    WINDOW = 5

    def __init__(self, model_tokenizer, watermark_tokenizer):
        self.model_tokenizer, self.watermark_tokenizer = model_tokenizer, watermark_tokenizer

    def __call__(self, ids) -> int:
        converted = self.watermark_tokenizer.encode(
            self.model_tokenizer.decode(list(ids)[-self.WINDOW :])
        )
        return int(converted[-1]) if len(converted) else -1
