"""Cost of token-specific watermarking: inside generate(), at detection, and of one training step.

    python -m benchmarks.methods.ts_watermark [--rounds 5] [--steps 60] [--big] [--json FILE]

One thread, CPU seconds. Aims: a warm processor at batch 16 takes at most 2 % of a decoding step of
a model of SmolLM2's shape (`--big`); the detector scores 10,000 texts of 200 tokens in a minute; a
training step takes at most 2.5 x cached plain decoding of the same batch, and running the prefix
again for each token (official) at least 14 x that step. Rows of a training step:

    plain       cached greedy decoding, no watermark
    kept        a training step with its unwatermarked references at hand
    ours        with its share of them: a pass of 32 prompts serves 4 batches, in two epochs
    anew        with a reference made in each step
    official    the prefix run again for each token, its reference included
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import cost
from ts_watermark import hashing, method, official
from ts_watermark.config import Config
from ts_watermark.detect import Detector
from ts_watermark.watermark import Watermark, WatermarkLogitsProcessor

SMOLLM2_V = 49_152
BATCHES_A_REFERENCE = 8  # 4 batches of 8 share a pass of 32 prompts, and use it in both epochs


def opt(vocab_size: int, d: int, layers: int, heads: int) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    size: Any = {"hidden_size": d, "word_embed_proj_dim": d, "num_hidden_layers": layers}
    size |= {"ffn_dim": 4 * d, "num_attention_heads": heads, "max_position_embeddings": 512}
    tokens: Any = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    config = OPTConfig(vocab_size=vocab_size, dropout=0.0, **size, **tokens)
    return OPTForCausalLM(config).eval().requires_grad_(False)


def watermark_of(vocab_size: int) -> Watermark:
    g = torch.Generator().manual_seed(0)
    gamma = 0.2 + 0.1 * torch.rand(vocab_size, generator=g)
    return Watermark(gamma, 1.5 + torch.rand(vocab_size, generator=g), vocab_size)


def milliseconds(work: cost.Step, units: int, rounds: int) -> float:
    """Median over rounds of a call, for one of its `units`."""
    return 1e3 / units * statistics.median(cost.seconds(work) for _ in range(rounds))


def embedding(vocab_size: int, batch: int, rounds: int) -> dict[str, float]:
    """ms a step of the processor: cold (no list in the cache), and warm (every list)."""
    processor = WatermarkLogitsProcessor(watermark_of(vocab_size))
    scores, g = torch.randn(batch, vocab_size), torch.Generator().manual_seed(0)
    steps = [torch.randint(1000, (batch, 20), generator=g) for _ in range(20)]

    def work() -> None:
        for ids in steps:
            processor(ids, scores)

    name = f"generate, V={vocab_size}, batch {batch}"
    cold = milliseconds(work, 20, 1)
    return {f"{name}, cold": cold, f"{name}, warm": milliseconds(work, 20, rounds)}


def model_step(batch: int, rounds: int) -> float:
    """ms a decoding step of a random model of SmolLM2-135M's shape with a cache of 64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size: Any = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads: Any = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=SMOLLM2_V, max_position_embeddings=512, **size, **heads)
    model: Any = LlamaForCausalLM(config).eval()
    ids, mask = torch.randint(SMOLLM2_V, (batch, 64)), torch.ones(batch, 65, dtype=torch.long)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values

        def step() -> None:
            model(ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True)
            cache.crop(-1)

        step()
        return milliseconds(step, 1, rounds)


def detection(rounds: int) -> dict[str, float]:
    """ms a token, 200-token texts at V = 50,272 (the official detector: 0.33), and ms a text."""
    g = torch.Generator().manual_seed(0)
    texts = [torch.randint(2000, (200,), generator=g).tolist() for _ in range(100)]
    few, watermark = texts[:3], watermark_of(50_272)
    detector = Detector(watermark)
    rows = {
        "z_score, a token": milliseconds(lambda: hashing.z_scores(few, [0.25] * 3, 50_272), 600, 1),
        "detector, cold, a token": milliseconds(lambda: detector.z_all(few), 600, 1),
        "detector, warm, a token": milliseconds(lambda: detector.z_all(few), 600, rounds),
    }
    detector.p_all(texts)
    rows["exact p of many, warm, a text"] = milliseconds(lambda: detector.p_all(texts), 100, rounds)
    alone = milliseconds(lambda: [detector.score(text) for text in texts], 100, rounds)
    return rows | {"score, warm, a text": alone}


def training(rounds: int, T: int) -> dict[str, cost.Row]:
    """Rows of one training step of T tokens."""
    from transformers import BertConfig, BertModel

    V, d = 2000, 256
    model = opt(V, d, 4, 4)
    size: Any = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 4 * d}
    encoder = BertModel(BertConfig(vocab_size=V, hidden_size=d, **size)).eval()
    encoder.requires_grad_(False)
    sim = encoder.get_input_embeddings().weight.detach()
    ids = torch.randint(V, (8, 90))
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    many = {name: value.repeat(4, 1) for name, value in prompt.items()}
    generators = method.Generators(d)
    adam = torch.optim.Adam(generators.parameters(), lr=1e-4)
    noise = torch.Generator().manual_seed(0)

    frozen = method.Frozen(model, encoder, sim, "mean")
    capped = functools.partial(method.mgda, cap=official.MGDA_CAP)
    config = Config(train_tokens=T)

    @torch.no_grad()
    def reference(of: dict[str, Tensor]) -> Tensor:
        return method.meaning(frozen, of, method.soft_decode(model, of, T, sim))

    def ours(aim: Tensor) -> None:
        def draw(shape: Any) -> Tensor:
            return method.logistic_noise(shape, noise)

        method.training_step(frozen, generators, adam, prompt, aim, draw, capped, config)

    def theirs() -> None:
        def draw(gamma: Tensor, shape: Any) -> Tensor:
            return official.two_class_gumbel_mask(gamma, shape, noise)

        with torch.no_grad():
            text = official.prefix_decode(model, prompt, T, sim)
            aim = method.meaning(frozen, prompt, text)
        text = official.prefix_decode(model, prompt, T, sim, generators, draw)
        loss_S = method.semantic_loss(method.meaning(frozen, prompt, text), aim)
        parameters = list(generators.parameters())
        gradient, _ = capped(method.detection_loss(text), loss_S, parameters)
        method.set_gradient(parameters, gradient)
        adam.step()

    def plain() -> None:
        length = {"max_new_tokens": T, "min_new_tokens": None}
        model.generate(**prompt, do_sample=False, pad_token_id=0, **length)

    at_hand = reference(prompt)
    kinds = {
        "kept": lambda: ours(at_hand),
        "anew": lambda: ours(reference(prompt)),
        "references": lambda: reference(many),
        "official": theirs,
    }
    rows = cost.measure(plain, kinds, rounds)
    made, step = rows.pop("references"), rows["kept"]
    share = ("ratio", "lowest", "highest", "seconds")  # the references are made before: no memory
    rows["ours"] = step | {k: round(step[k] + made[k] / BATCHES_A_REFERENCE, 5) for k in share}
    return rows


def main() -> None:
    options = cost.parser(__doc__, rounds=5)
    options.add_argument("--steps", type=int, default=60, help="T of the training step")
    options.add_argument(
        "--big", action="store_true", help="a model of SmolLM2's shape, too (0.6 GB)"
    )
    asked = options.parse_args()
    torch.set_num_threads(1)
    ms = embedding(4000, 8, asked.rounds) | embedding(SMOLLM2_V, 16, asked.rounds)
    ms |= detection(asked.rounds)
    if asked.big:
        ms["model step, SmolLM2's shape, batch 16"] = model_step(16, asked.rounds)
    print("milliseconds")
    for name, value in ms.items():
        print(f"  {name:40} {value:9.4f}")
    rows = training(asked.rounds, asked.steps)
    cost.show(f"ts_watermark: a training step, T = {asked.steps}, over cached decoding", rows)
    cost.write(asked.json, "ts_watermark", rows, rounds=asked.rounds, milliseconds=ms)


if __name__ == "__main__":
    main()
