"""An arm of the comparison: its watermarks, one per strength, and what is measured on their texts.

Every measurement reads a batch of texts (B, T) and returns one number per text for each of its
columns; `evaluate.py` turns the columns into metrics and statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from shared import pretrained, runs
from ts_watermark import attacks, baselines, checkpoints, data, evaluate, models
from ts_watermark.config import Config
from ts_watermark.data import Passages
from ts_watermark.detect import Detector
from ts_watermark.models import Base
from ts_watermark.synthid import SynthID
from ts_watermark.watermark import (
    ConvertedLogitsProcessor,
    Converter,
    Watermark,
    WatermarkLogitsProcessor,
)

Columns = dict[str, np.ndarray]


def init_values(name: str) -> tuple[float, float]:
    """gamma and delta of a strength's name."""
    gamma, delta = map(float, name.split("_"))
    return gamma, delta


def hash_key(config: Config, batch: int = 0) -> int:
    """The key of a batch of prompts."""
    if not config.keys:
        return config.key
    return config.key + 2 * (config.seed * config.keys + batch % config.keys)


# --- the watermarks of an arm ---------------------------------------------------------------------


@dataclass(eq=False)  # hashed by identity, for the caches
class Arm:
    """What all strengths share. watermarks: by strength, under the key of the first batch.
    converter: where another vocabulary steers the lists (LLaMA).
    sweet_threshold: entropy above which SWEET acts, None for the others. plain: the unwatermarked
    texts (n, T) and their embeddings (n, d_out)."""

    config: Config
    base: Base
    test: Passages
    watermarks: Mapping[str, Watermark | SynthID]
    converter: Converter | None
    sweet_threshold: float | None
    plain: tuple[Tensor, Tensor]

    def detector(self, name: str, batch: int) -> Detector | SynthID:
        return self._detector(name, hash_key(self.config, batch))

    @functools.lru_cache(maxsize=1)  # noqa: B019  a strength's batches follow each other
    def _detector(self, name: str, key: int) -> Detector | SynthID:
        watermark = self.watermarks[name]
        if isinstance(watermark, SynthID):
            return replace(watermark, key=key)
        return Detector(replace(watermark, key=key), self.base.codec, self.converter)

    def processor(self, name: str, batch: int) -> LogitsProcessor:
        watermark, key = self.watermarks[name], hash_key(self.config, batch)
        if isinstance(watermark, SynthID):
            return replace(watermark, key=key).processor(self.base.model.device)
        return self._with_lists(name, key)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _with_lists(self, name: str, key: int) -> WatermarkLogitsProcessor:
        watermark, device = self.watermarks[name], self.base.model.device
        assert isinstance(watermark, Watermark)
        watermark = replace(watermark, key=key)
        if self.sweet_threshold is not None:
            return baselines.SweetLogitsProcessor(watermark, self.sweet_threshold, device)
        if self.converter is not None:
            return ConvertedLogitsProcessor(watermark, self.converter, device)
        return WatermarkLogitsProcessor(watermark, device)


def prepare(config: Config, base: Base, plain: tuple[Tensor, Tensor]) -> Arm:
    """The arm's watermarks, and what they are measured with."""
    vocab_size = base.model.config.vocab_size
    test = data.load_passages(config, "test")
    converter, P = None, vocab_size
    if config.steering:  # another vocabulary's ids choose the lists
        steering = data.load_codec(models.named(config.steering, Path(config.uses["base"])))
        converter, P = Converter(base.codec, steering), len(steering)
    if config.family == "unigram":
        converter = baselines.OneList()
    threshold = mean_entropy(config, base) if config.family == "sweet" else None
    watermarks = family(config, base, vocab_size, P)
    return Arm(config, base, test, watermarks, converter, threshold, plain)


def family(
    config: Config, base: Base, vocab_size: int, P: int
) -> Mapping[str, Watermark | SynthID]:
    """Name -> watermark, one per point of the arm's frontier. P: number of previous tokens."""
    key = hash_key(config)
    if config.family == "synthid":
        return {name: SynthID(int(init_values(name)[1]), key) for name in config.strengths}
    settings: Any = {"vocab_size": vocab_size, "key": key, "size_rounding": config.size_rounding}
    if config.family == "unigram":
        return {n: baselines.unigram(*init_values(n), **settings) for n in config.strengths}
    if config.family in ("kgw", "sweet"):
        settings["previous_size"] = P
        return {n: baselines.kgw(*init_values(n), **settings) for n in config.strengths}
    if config.family == "official":
        return checkpoints.watermarks(config, base, vocab_size, key)
    source = Path(next(d for arm, d in config.uses.items() if arm != "base"))
    folders = sorted((source / ("start" if config.family == "start" else "export")).iterdir())
    trained = {f.name: replace(Watermark.load(f), vocab_size=vocab_size) for f in folders}
    if config.family == "permuted":
        draw = functools.partial(runs.stream, config.seed, "permutation")
        return {name: baselines.permuted(w, draw()) for name, w in trained.items()}
    if config.family == "matched":
        means = {n: (w.about["mean_gamma"], w.about["mean_delta"]) for n, w in trained.items()}
        return {n: baselines.constant_like(w, *means[n]) for n, w in trained.items()}
    return trained


def mean_entropy(config: Config, base: Base) -> float:
    """SWEET's threshold: mean entropy of human text, of validation texts (2.33 for OPT-1.3B)."""
    if config.model == "facebook/opt-1.3b":
        return baselines.SWEET_ENTROPY
    human = data.load_passages(config, "validation")
    return float(torch.cat(baselines.entropies(base.model, human.prompts, human.human)).nanmean())


# --- measurements ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Texts (B, T) that one strength wrote for the test items `rows`, batch `number` of them."""

    texts: Tensor
    rows: slice
    strength: str
    number: int
    draws: dict[str, torch.Generator]  # of each attack, from one batch of a strength to the next

    def ids(self) -> list[list[int]]:
        return [text.tolist() for text in self.texts]


Measurement = Callable[[Arm, Batch], Columns]


def measurements(config: Config) -> dict[str, Measurement]:
    """What is measured in an arm, by name; attacks are not run against SWEET and SynthID."""
    measured: dict[str, Measurement] = {
        "similarity": similarity,
        "fluency": fluency,
        "detection": detection,
        "values": values,
    }
    for name in attacked_by(config):
        measured[name] = functools.partial(attacked, name)
    return measured


def attacked_by(config: Config) -> tuple[str, ...]:
    return () if config.family in ("sweet", "synthid") else config.attacks


def similarity(arm: Arm, batch: Batch) -> Columns:
    """To the unwatermarked text of the same prompt and sampling noise."""
    texts, embeddings = (part[batch.rows] for part in arm.plain)
    watermarked = models.encoded(arm.base, arm.test.prompts[batch.rows], batch.texts)
    cosine = torch.cosine_similarity(watermarked, embeddings).double().cpu().numpy()
    return {"cosine": cosine, "same_tokens": (batch.texts == texts).double().mean(1).numpy()}


def fluency(arm: Arm, batch: Batch) -> Columns:
    """Negative log-likelihood under the judge."""
    return {"nll": models.judged(arm.base, arm.test.prompts[batch.rows], batch.texts)}


def detection(arm: Arm, batch: Batch) -> Columns:
    """z of the texts, decoded and tokenised again and of the human continuations."""
    detector, codec = arm.detector(batch.strength, batch.number), arm.base.codec
    rows, human = codec.encode_all(codec.decode_all(batch.ids())), arm.test[batch.rows]
    columns = {
        "roundtrip": np.array([a == b for a, b in zip(rows, batch.ids())], dtype=float),
        "length": np.array([len(text) for text in batch.texts], dtype=float),
    }
    if arm.sweet_threshold is None:
        columns |= {"z": detector.z_all(rows), "z_human": detector.z_all(human.human)}
        share = arm.config.seen_share
        columns["evidence"] = detector.evidence_all(
            [row[: round(share * len(row))] for row in rows]
        )
    else:  # only uncertain positions count; `blind` computes entropies without the prompt
        assert isinstance(detector, Detector)
        none: list[list[int]] = [[]] * len(rows)
        for key, texts, prompts in [
            ("z", rows, human.prompts),
            ("z_human", human.human, human.prompts),
            ("z_blind", rows, none),
            ("z_blind_human", human.human, none),
        ]:
            entropies = baselines.entropies(arm.base.model, prompts, texts)
            uncertain = [(e > arm.sweet_threshold).numpy() for e in entropies]
            columns[key] = detector.z_all(texts, uncertain)
            if not key.endswith("human"):
                columns[key.replace("z", "evidence")] = detector.evidence_all(texts, uncertain)
    return columns


def values(arm: Arm, batch: Batch) -> Columns:
    """gamma and delta at the tokens of the texts, delta also by class of word."""
    watermark, ids, codec = arm.watermarks[batch.strength], batch.texts.numpy(), arm.base.codec
    if arm.converter is not None or isinstance(watermark, SynthID):
        return {}  # gamma and delta belong to another vocabulary, or there are none
    words = np.array([w.strip().lower() for w in codec.pieces(range(len(codec)))])
    gamma, delta = watermark.gamma.double().numpy(), watermark.delta.double().numpy()
    columns = {"gamma_mean": gamma[ids].mean(1), "delta_mean": delta[ids].mean(1)}
    for name, members in evaluate.WORD_CLASSES.items():
        member = np.zeros(len(delta), dtype=bool)
        member[: len(words)] = np.isin(words, sorted(members))
        columns[f"delta_sum_{name}"] = (delta[ids] * member[ids]).sum(1)
        columns[f"count_{name}"] = member[ids].sum(1).astype(float)
    return columns


def attacked(name: str, arm: Arm, batch: Batch) -> Columns:
    """z after an attack; for copy-paste also the human z that sets its threshold."""
    detector, codec = arm.detector(batch.strength, batch.number), arm.base.codec
    assert isinstance(detector, Detector)
    if batch.rows.start == 0:  # the same draws for every strength
        batch.draws[name].set_state(runs.stream(arm.config.seed, name).get_state())
    draws = batch.draws[name]
    if name.startswith("copy_paste"):
        pieces = int(name.removeprefix("copy_paste_"))
        window = arm.config.window if pieces == 1 else round(0.3 * arm.config.window)
        hosts = codec.decode_all(arm.test.prompts[batch.rows])
        texts = codec.decode_all(batch.ids())
        mixed = [attacks.copy_paste(t, h, pieces, draws) for t, h in zip(texts, hosts)]

        def largest_z(texts: list[str]) -> np.ndarray:
            return np.array([detector.score(r, window=window).z for r in codec.encode_all(texts)])

        return {f"z_{name}": largest_z(mixed), f"z_{name}_human": largest_z(hosts)}
    if name == "dipper":
        return paraphrased(arm, batch)
    kind, share = name.split("_")
    if kind == "delete":
        changed = [attacks.delete(text, float(share), draws) for text in batch.ids()]
    else:
        size = arm.base.model.config.vocab_size
        frequencies = torch.bincount(torch.tensor(arm.test.human).flatten(), minlength=size)
        changed = [
            attacks.substitute(text, float(share), frequencies, draws) for text in batch.ids()
        ]
    return {f"z_{name}": detector.z_all(codec.encode_all(codec.decode_all(changed)))}


def paraphrased(arm: Arm, batch: Batch) -> Columns:
    """Dipper: z of the paraphrase and its similarity to the unwatermarked text (cut at 500)."""
    config, base = arm.config, arm.base
    tiny = config.model.startswith("tiny:")
    dipper = load_dipper(Path(config.uses["base"]), base.model.device, tiny)
    ids, prompts = batch.ids(), arm.test.prompts[batch.rows]
    texts = []
    for i, (text, prompt) in enumerate(zip(base.codec.decode_all(ids), prompts)):
        runs.seed_global(config.seed, "dipper", batch.rows.start + i)
        texts.append(dipper(text, base.codec.decode(prompt), max_length=24 if tiny else 512))
    rows = [row[:500] for row in base.codec.encode_all(texts)]
    plain = arm.plain[1][batch.rows]
    embeddings = [
        models.encoded(base, [p], [row])[0] if row else torch.zeros_like(plain[0])
        for p, row in zip(prompts, rows)
    ]
    cosine = torch.cosine_similarity(torch.stack(embeddings), plain).double().cpu().numpy()
    return {
        "z_dipper": arm.detector(batch.strength, batch.number).z_all(rows),
        "cosine_dipper": cosine,
    }


@functools.cache
def load_dipper(stand_ins: Path, device: torch.device, tiny: bool) -> attacks.Dipper:
    from transformers import AutoModelForSeq2SeqLM

    names = ["tiny:dipper"] * 2 if tiny else [attacks.Dipper.HUB, attacks.Dipper.TOKENIZER]
    name, words = (models.named(name, stand_ins) for name in names)
    kind = pretrained.Kind("a T5", ("t5",), attacks.Dipper.HUB)
    model = pretrained.load_model(name, AutoModelForSeq2SeqLM, kind)
    tokenizer = pretrained.load_tokenizer(words, model.config.vocab_size)
    model = models.frozen(model, device, torch.float32 if tiny else torch.bfloat16)
    return attacks.Dipper(model, tokenizer)
