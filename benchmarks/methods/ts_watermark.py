"""Cost of token-specific watermarking: inside generate(), at detection, and of one training step.

    python -m benchmarks.methods.ts_watermark [--rounds 5] [--steps 60] [--big] [--json FILE]

One thread. Variants take turns in every round and are compared within it, so that a busy machine slows both; medians
of CPU seconds are printed. Targets: a warm processor at batch 8 costs at most 0.3 ms a step at V = 4,000 and at most
2 % of a step of a model of GPT-2's size (125 M) at V = 50,272; a training step costs at most 2.5 x cached plain decoding of the
same batch, and running the prefix again for each token (official) at least 14 x that step. A step of ours counts its share
of the unwatermarked references, which train.py makes once, 32 prompts at a time, for the paper's two epochs.
`--big` adds the 125 M model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.hypergradients.cell import peak
from shared import runs
from ts_watermark import hashing, method, official
from ts_watermark.detect import Detector
from ts_watermark.watermark import Watermark, WatermarkLogitsProcessor

WHAT = {
    "plain": "cached greedy decoding, no watermark",
    "ours": "a training step with its share of the references: a pass of 32 prompts serves 4 batches, twice",
    "kept": "the same without the references",
    "anew": "the same with a reference made in each step",
    "official": "a training step that runs the prefix again for each token, its reference included",
}


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - begun) / repeats


def opt(vocab_size: int, d: int, layers: int, heads: int) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(vocab_size=vocab_size, hidden_size=d, word_embed_proj_dim=d, num_hidden_layers=layers, ffn_dim=4 * d,
                       num_attention_heads=heads, max_position_embeddings=512, dropout=0.0, pad_token_id=0,
                       bos_token_id=None, eos_token_id=None)  # fmt: skip
    return OPTForCausalLM(config).eval().requires_grad_(False)


def watermark_of(vocab_size: int) -> Watermark:
    g = torch.Generator().manual_seed(0)
    return Watermark(
        0.2 + 0.1 * torch.rand(vocab_size, generator=g),
        1.5 + torch.rand(vocab_size, generator=g),
        vocab_size,
    )


def embedding(vocab_size: int, rounds: int) -> tuple[float, float]:
    """ms a step of the processor at batch 8: warm (every list in the cache), and cold (none)."""
    watermark = watermark_of(vocab_size)
    processor, scores = WatermarkLogitsProcessor(watermark), torch.randn(8, vocab_size)
    steps = [
        torch.randint(1000, (8, 20), generator=torch.Generator().manual_seed(s)) for s in range(20)
    ]
    cold = seconds(lambda: [processor(ids, scores) for ids in steps]) / 20
    warm = [seconds(lambda: [processor(ids, scores) for ids in steps]) / 20 for _ in range(rounds)]
    return 1e3 * statistics.median(warm), 1e3 * cold


def model_step(rounds: int) -> float:
    """ms a decoding step of a 125 M model at batch 8 with a cache of 64 tokens, V = 50,272."""
    model = opt(50_272, 768, 12, 12)
    ids = torch.randint(50_272, (8, 64))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        mask = torch.ones(8, 65, dtype=torch.long)

        def step() -> None:
            model(ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True)
            cache.crop(-1)

        step()
        return 1e3 * statistics.median(seconds(step) for _ in range(rounds))


def detection(rounds: int) -> tuple[float, float, float]:
    """ms a token at V = 50,272, 200-token texts: z_score (no cache), the detector cold, and warm."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(2000, (200,), generator=generator).tolist() for _ in range(3)]
    detector = Detector(watermark_of(50_272))
    pure = seconds(lambda: hashing.z_scores(texts, [0.25] * 3, 50_272)) / 600
    cold = seconds(lambda: detector.z_all(texts)) / 600
    warm = statistics.median(seconds(lambda: detector.z_all(texts)) / 600 for _ in range(rounds))
    return 1e3 * pure, 1e3 * cold, 1e3 * warm


def training(rounds: int, T: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds of each round, and megabytes, of: plain cached greedy decoding; our step (its share of references included,
    none, all of them); the official loop."""
    model, V, d = opt(2000, 256, 4, 4), 2000, 256
    from transformers import BertConfig, BertModel

    encoder = BertModel(BertConfig(vocab_size=V, hidden_size=d, num_hidden_layers=4, num_attention_heads=4,
                                   intermediate_size=4 * d)).eval().requires_grad_(False)  # fmt: skip
    sim = encoder.get_input_embeddings().weight.detach()
    prompt = {
        "input_ids": torch.randint(V, (8, 90)),
        "attention_mask": torch.ones(8, 90, dtype=torch.long),
    }
    generators = method.Generators(d)
    adam = torch.optim.Adam(generators.parameters(), lr=1e-4)
    tail = sim[prompt["input_ids"][:, -5:]]
    sentence = lambda text: method.sentence_embedding(
        encoder, torch.cat([tail, text.sentence], dim=1)
    )  # noqa: E731
    with torch.no_grad():
        kept = sentence(method.soft_decode(model, prompt, T, sim))

    def learn(text: method.SoftText, reference: Tensor) -> None:
        loss_S = method.semantic_loss(sentence(text), reference)
        g_D, g_S = method.two_gradients(
            method.detection_loss(text), loss_S, generators.parameters()
        )
        lam = method.mgda_weight(g_D, g_S, official.MGDA_CAP)
        method.set_gradient(generators.parameters(), lam * g_D + (1 - lam) * g_S)
        adam.step()

    noise = torch.Generator().manual_seed(0)
    draw = lambda shape: method.logistic_noise(shape, noise, "cpu")  # noqa: E731

    def plain() -> None:
        model.generate(
            **prompt, do_sample=False, max_new_tokens=T, min_new_tokens=None, pad_token_id=0
        )

    many = {k: v.repeat(4, 1) for k, v in prompt.items()}
    tails = tail.repeat(4, 1, 1)

    @torch.no_grad()
    def references(prompts: dict[str, Tensor], its_tail: Tensor) -> Tensor:
        text = method.soft_decode(model, prompts, T, sim)
        return method.sentence_embedding(encoder, torch.cat([its_tail, text.sentence], dim=1))

    def ours(reference: Tensor | None) -> None:
        if reference is None:
            reference = references(prompt, tail)
        learn(method.soft_decode(model, prompt, T, sim, generators, draw), reference)

    def theirs() -> None:
        with torch.no_grad():
            reference = sentence(official.prefix_decode(model, prompt, T, sim))
        gumbel = lambda gamma, shape: official.two_class_gumbel_mask(gamma, shape, noise)  # noqa: E731
        learn(official.prefix_decode(model, prompt, T, sim, generators, gumbel), reference)

    work = {"plain": plain, "kept": lambda: ours(kept), "anew": lambda: ours(None),
            "references": lambda: references(many, tails), "official": theirs}  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in work}
    plain()
    for _ in range(rounds):
        for name, step in work.items():
            found[name].append(seconds(step))
    # 4 batches of 8 share a reference pass, and each is used in both epochs
    found["ours"] = [k + r / 8 for k, r in zip(found["kept"], found["references"])]
    megabytes = {name: peak(step, "cpu") for name, step in work.items()}
    megabytes["ours"] = megabytes["kept"]  # the references are made before, 32 prompts at a time
    return found, megabytes


def ratios(found: dict[str, list[float]], over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(found[over], found[under])]


def limits(
    ms: dict[str, float], rows: dict[str, dict[str, float]]
) -> list[tuple[str, float, str, float]]:
    """(figure, value, "<=" or ">=", limit) of everything that has a target."""
    found = [
        (
            "ms a step of generate(), V = 4,000, batch 8, warm",
            ms["generate, V=4000, warm"],
            "<=",
            0.3,
        )
    ]
    if "model step, 125 M" in ms:
        share = ms["generate, V=50272, warm"] / ms["model step, 125 M"]
        found.append(
            ("share of a step of a 125 M model, V = 50,272, batch 8, warm", share, "<=", 0.02)
        )
    return [
        *found,
        ("training step over plain cached decoding", rows["ours"]["ratio"], "<=", 2.5),
        (
            "prefix run again (official) over our training step",
            rows["official"]["over_ours"],
            ">=",
            14,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="T of the training step")
    parser.add_argument(
        "--big", action="store_true", help="measure the 125 M model too (0.5 GB, a minute)"
    )
    parser.add_argument("--json", default="", help="also write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)

    ms: dict[str, float] = {}
    for size in (4000, 50_272):
        ms[f"generate, V={size}, warm"], ms[f"generate, V={size}, cold"] = embedding(
            size, given.rounds
        )
    if given.big:
        ms["model step, 125 M"] = model_step(given.rounds)
    for name, value in zip(
        ("z_score", "detector, cold", "detector, warm"), detection(given.rounds)
    ):
        ms[f"{name}, a token"] = value
    print("milliseconds (the official detector: 0.33 a token)")
    for name, value in ms.items():
        print(f"  {name:28} {value:9.4f}")

    found, megabytes = training(given.rounds, given.steps)
    rows = {}
    for name in ("plain", "ours", "kept", "anew", "official"):
        times = ratios(found, name, "plain")
        rows[name] = {
            "ratio": statistics.median(times), "lowest": min(times), "highest": max(times),
            "seconds": statistics.median(found[name]), "over_ours": statistics.median(ratios(found, name, "ours")),
            "megabytes": round(megabytes[name], 1), "memory": round(megabytes[name] / megabytes["plain"], 2),
        }  # fmt: skip
    print(f"training step, T = {given.steps}: x plain cached decoding, CPU seconds, x ours, MB")
    for name, row in rows.items():
        print(
            f"  {name:10} {row['ratio']:7.2f} {row['seconds']:9.3f} {row['over_ours']:7.2f} {row['megabytes']:7.0f}   {WHAT[name]}"
        )

    print("targets")
    for what, value, sign, limit in limits(ms, rows):
        good = value <= limit if sign == "<=" else value >= limit
        print(f"  {what}: {value:.3f} ({sign} {limit}: {'ok' if good else 'MISSED'})")
    if given.json:
        here = runs.environment()
        result = {"machine": {"cpu": here["processor"], "system": here["system"]},
                  "versions": {"python": here["python"], **here["packages"]},
                  "command": " ".join(["python -m benchmarks.methods.ts_watermark", *sys.argv[1:]]),
                  "rows": rows, "milliseconds": ms}  # fmt: skip
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
