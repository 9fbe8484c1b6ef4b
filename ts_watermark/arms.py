"""An arm: a family of watermarks, one per strength; generate with each, attack, detect, compare meanings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from shared import protocol, runs
from ts_watermark import attacks, baselines, data, evaluate, models
from ts_watermark.detect import Detector
from ts_watermark.generate import encoded, generate, hash_key, judged, passages_of
from ts_watermark.watermark import (
    ConvertedLogitsProcessor,
    Converter,
    Watermark,
    WatermarkLogitsProcessor,
)


def init_values(name: str) -> tuple[float, float]:
    gamma, delta = map(float, name.split("_"))
    return gamma, delta


def steering_codec(config) -> data.Codec | None:
    """The tokenizer whose ids choose the lists, where it is not the language model's own (LLaMA: OPT's)."""
    base = Path(config.uses["base"])
    return data.load_codec(models.hub_folder(config.steering, base)) if config.steering else None


def family(config, vocab_size: int) -> dict[str, Watermark]:
    """Name -> watermark, one per point of the arm's frontier."""
    settings = {"key": hash_key(config), "size_rounding": config.size_rounding}
    if config.family in ("kgw", "sweet"):
        steering = steering_codec(config)
        settings["previous_size"] = len(steering) if steering else vocab_size
        return {n: baselines.kgw(*init_values(n), vocab_size, **settings) for n in config.strengths}
    source = Path(next(d for arm, d in config.uses.items() if arm != "base"))
    folders = sorted((source / ("start" if config.family == "start" else "export")).iterdir())
    found = {f.name: replace(Watermark.load(f), vocab_size=vocab_size) for f in folders}
    if config.family == "permuted":
        found = {
            n: baselines.permuted(w, runs.stream(config.seed, "permutation"))
            for n, w in found.items()
        }
    if config.family == "matched":
        found = {
            n: baselines.constant_like(w, w.about["mean_gamma"], w.about["mean_delta"])
            for n, w in found.items()
        }
    return found


def evaluate_arm(config, run: runs.Run, device) -> None:
    """Generate with every watermark of the arm, attack, detect on the re-tokenised text, compare meanings."""
    base = models.load(config, Path(config.uses["base"]), device)
    test, null = passages_of(config, "test"), passages_of(config, "null")
    run.splits(test=test.ids, **({"null": null.ids} if len(null) else {}))
    vocab_size = base.model.config.vocab_size
    steering = steering_codec(config)
    converter = Converter(base.codec, steering) if steering else None
    plain_text, plain = reference_texts(config, base, test, device)
    watermarks = family(config, vocab_size)
    threshold = mean_entropy(config, base) if config.family == "sweet" else None
    columns: dict[str, list[np.ndarray]] = {}
    start, saved = 0, run.resume()
    if saved:
        start = saved["step"]
        columns = {k: [c.numpy() for c in v] for k, v in saved["columns"].items()}

    def save() -> dict:
        return {
            "columns": {
                k: [torch.from_numpy(np.ascontiguousarray(c)) for c in v]
                for k, v in columns.items()
            }
        }

    names = list(watermarks)
    for step in run.steps(start, len(names), save, name="strengths"):
        watermark = watermarks[names[step]]
        processor = (
            baselines.SweetLogitsProcessor(watermark, threshold, device) if threshold is not None
            else ConvertedLogitsProcessor(watermark, converter, device) if converter
            else WatermarkLogitsProcessor(watermark, device)
        )  # fmt: skip
        texts = generate(config, base, test.prompts, processor)
        own = encoded(config, base, test.prompts, texts)
        found = scores_of(config, base, watermark, converter, threshold, test, null, texts)
        found["cosine"] = torch.cosine_similarity(own, plain).double().cpu().numpy()
        found["same_tokens"] = (texts == plain_text).double().mean(1).numpy()
        for key, column in found.items():
            columns.setdefault(key, []).append(column)
    stacked = {k: np.stack(v, axis=1).astype(np.float32) for k, v in columns.items()}
    passes = config.test_prompts * len(names) if config.family == "sweet" else 0
    predictions = {
        "id": np.array(test.ids),
        "_strengths": np.array(names),
        "_detection_model_passes": np.array(passes),
        **stacked,
    }
    run.predictions(**predictions)
    run.gate(
        "exact-length",
        bool((stacked["length"] == config.new_tokens).all()),
        f"every text has {config.new_tokens} new tokens",
    )
    run.finish(
        metrics=evaluate.score(predictions),
        state=[w.delta for w in watermarks.values()] + [torch.tensor([config.seed])],
    )


def reference_texts(
    config, base: models.Base, test: data.Passages, device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The unwatermarked texts (n, T) of this seed and their embeddings (n, d_out); made once for all arms."""

    def make() -> list[torch.Tensor]:
        texts = generate(config, base, test.prompts, None)
        return [texts, encoded(config, base, test.prompts, texts).cpu()]

    used = protocol.record_sha256(protocol.read_record(Path(config.uses["base"])) or {})
    key = ("unwatermarked", used, config.seed, config.new_tokens, config.top_k, config.greedy, config.eval_batch,
           config.model, config.encoder, config.context_tokens, config.precision, device.type)  # fmt: skip
    texts, embeddings = runs.cached(key, make)
    return texts, embeddings.to(device)


def mean_entropy(config, base: models.Base) -> float:
    """SWEET's threshold: the mean entropy of human text, on validation texts (2.33 for OPT-1.3B)."""
    if config.model == "facebook/opt-1.3b":
        return baselines.SWEET_ENTROPY
    human = passages_of(config, "validation")
    return float(torch.cat(baselines.entropies(base.model, human.prompts, human.human)).nanmean())


def scores_of(
    config, base, watermark, converter, threshold, test, null, texts
) -> dict[str, np.ndarray]:
    """One number per test item for each measurement of one watermark's texts (n, T)."""
    detector = Detector(watermark, base.codec, base.model.device, converter)
    decoded = base.codec.decode_all(texts.numpy())
    rows = base.codec.encode_all(decoded)
    own = [t.tolist() for t in texts]
    same = np.array([r == t for r, t in zip(rows, own)], dtype=float)
    found = {"z": detector.z_all(rows), "z_human": detector.z_all(test.human), "roundtrip": same,
             "length": np.array([len(t) for t in own], dtype=float), "nll": judged(config, base, test.prompts, texts)}  # fmt: skip
    if (
        threshold is not None
    ):  # SWEET: only uncertain positions count; `blind` computes entropies without the prompt
        none: list[list[int]] = [[]] * len(rows)
        for key, lists, prompts in [("z", rows, test.prompts), ("z_human", test.human, test.prompts),
                                    ("z_blind", rows, none), ("z_blind_human", test.human, none)]:  # fmt: skip
            values = baselines.entropies(base.model, prompts, lists)
            found[key] = detector.z_all(lists, [(e > threshold).numpy() for e in values])
    if len(null):
        per_item = detector.z_all(null.human).reshape(len(test), -1)
        found |= {f"z_null_{k}": per_item[:, k] for k in range(per_item.shape[1])}
    words = np.array([w.strip().lower() for w in base.codec.pieces(range(len(base.codec)))])
    if converter is None:
        delta = watermark.delta.double().numpy()
        for name, chosen in evaluate.WORD_CLASSES.items():
            member = np.zeros(len(delta), dtype=bool)
            member[: len(words)] = np.isin(words, sorted(chosen))
            hit = member[texts.numpy()]
            found[f"delta_sum_{name}"] = (delta[texts.numpy()] * hit).sum(1)
            found[f"count_{name}"] = hit.sum(1).astype(float)
        found["gamma_mean"] = watermark.gamma.double().numpy()[texts.numpy()].mean(1)
        found["delta_mean"] = delta[texts.numpy()].mean(1)
    for name in config.attacks if threshold is None else ():
        found |= attacked(config, base, detector, name, test, decoded, own)
    return {k: np.nan_to_num(v, nan=0.0) for k, v in found.items()}


def attacked(config, base, detector, name, test, decoded, own) -> dict[str, np.ndarray]:
    """z after an attack, and the human z that sets its threshold."""
    draws = runs.stream(config.seed, name)
    if name.startswith("copy_paste"):
        pieces = int(name.rsplit("_", 1)[1])
        window = config.window if pieces == 1 else round(0.3 * config.window)
        hosts = base.codec.decode_all(test.prompts)
        mixed = [attacks.copy_paste(t, h, pieces, draws) for t, h in zip(decoded, hosts)]
        largest = lambda rows: np.array([detector.score(r, window=window).z for r in rows])  # noqa: E731
        return {
            f"z_{name}": largest(base.codec.encode_all(mixed)),
            f"z_{name}_human": largest(base.codec.encode_all(hosts)),
        }
    if name == "dipper":
        return paraphrased(config, base, detector, test, decoded)
    kind, share = name.split("_")
    if kind == "delete":
        changed = [attacks.delete(t, float(share), draws) for t in own]
    else:
        frequencies = torch.bincount(
            torch.tensor(test.human).flatten(), minlength=base.model.config.vocab_size
        )
        changed = [attacks.substitute(t, float(share), frequencies, draws) for t in own]
    return {f"z_{name}": detector.z_all(base.codec.encode_all(base.codec.decode_all(changed)))}


def paraphrased(config, base, detector, test, decoded) -> dict[str, np.ndarray]:
    """Dipper: z of the paraphrase and its similarity to the unwatermarked text (cut at 500 tokens)."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tiny = config.model.startswith("tiny:")
    names = ["tiny:dipper"] * 2 if tiny else [attacks.Dipper.HUB, attacks.Dipper.TOKENIZER]
    folder, words = (models.hub_folder(n, Path(config.uses["base"])) for n in names)
    model = models.frozen(AutoModelForSeq2SeqLM.from_pretrained(folder), base.model.device,
                          torch.float32 if tiny else torch.bfloat16)  # fmt: skip
    dipper = attacks.Dipper(model, AutoTokenizer.from_pretrained(words))
    prompts = base.codec.decode_all(test.prompts)
    texts = []
    for i, (text, prompt) in enumerate(zip(decoded, prompts)):
        runs.seed_global(config.seed, "dipper", i)
        texts.append(dipper(text, prompt, max_length=24 if tiny else 512))
    rows = [r[:500] for r in base.codec.encode_all(texts)]
    found = {"z_dipper": detector.z_all(rows)}
    _plain_text, plain = reference_texts(config, base, test, base.model.device)
    own = [
        encoded(config, base, [p], [r])[0] if r else torch.zeros_like(plain[0])
        for p, r in zip(test.prompts, rows)
    ]
    found["cosine_dipper"] = torch.cosine_similarity(torch.stack(own), plain).double().cpu().numpy()
    return found
