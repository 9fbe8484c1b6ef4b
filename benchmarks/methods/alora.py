"""Cost of a training step with cached prompts (shared/alora.py) over one without, and of caching.

    python -m benchmarks.methods.alora [--rounds 3] [--json FILE]

A decoder of SmolLM2-135M's shape with random weights; adapter of rank 16 on query and value of the
last 12 of its 30 layers; 16 prompts of 60 to 75 tokens, opened by 4. The plain step is that of the
same adapter over the whole texts, with logits of the answers' columns alone. An answer of two
tokens is met for the first time, or "again": then nothing is computed below the adapted layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import peft
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.methods import cost
from shared import sources
from shared.alora import PromptCache

OPENING = [1, 520, 9531, 198]  # <|im_start|>assistant, end of line
ROWS = range(16)
VOCABULARY = 49_152


def model() -> peft.PeftModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    adapter = peft.LoraConfig(
        r=16,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(18, 30)),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=OPENING,
    )
    lm = peft.get_peft_model(transformers.LlamaForCausalLM(config), adapter)
    assert isinstance(lm, peft.PeftModel)
    return lm.eval()


def steps() -> tuple[dict[str, cost.Step], float]:
    """(name -> one step, seconds to cache a prompt)."""
    lm = model()
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-6)
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randint(10, VOCABULARY, (56 + i,), generator=draw).tolist() for i in ROWS]
    prompts = [text + OPENING for text in texts]
    answers = torch.randint(10, VOCABULARY, (len(ROWS), 2), generator=draw)
    caches: list[PromptCache] = []
    seconds = cost.seconds(lambda: caches.append(PromptCache(lm, prompts)))
    cache = caches[0]

    def learn(logits: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()

    def plain() -> None:
        widest = max(map(len, prompts))
        gaps = [widest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * gap + p for gap, p in zip(gaps, prompts)])
        ids = torch.cat([ids, answers], 1)
        mask = (torch.arange(ids.shape[1]) >= torch.tensor(gaps)[:, None]).long()
        logits = lm(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=3).logits
        learn(logits[:, :-1], answers)

    def cached(length: int, again: bool) -> None:
        if not again:
            cache.remembered.clear()
        chosen: Sequence[list[int]] = answers[:, :length].tolist()
        learn(cache.logits(ROWS, chosen), answers[:, :length])

    return {
        "plain": plain,
        "cached, one token": lambda: cached(1, again=True),
        "cached, two tokens": lambda: cached(2, again=False),
        "cached, two tokens again": lambda: cached(2, again=True),
        "cached, four tokens written": lambda: cache.generate(ROWS, 4, []),
    }, seconds / len(ROWS)


def main() -> None:
    asked = cost.parser(__doc__, rounds=3).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, sources.pointed_at(REPRO_CACHE=folder):
        todo, per_prompt = steps()
        rows = cost.measure(todo.pop("plain"), todo, asked.rounds)
    cost.show("alora: 16 prompts of 60 to 75 tokens; plain: a step over the whole texts", rows)
    print(f"  to cache a prompt: {per_prompt:.2f} s")
    cost.write(asked.json, "alora", rows, device="cpu", rounds=asked.rounds, per_prompt=per_prompt)


if __name__ == "__main__":
    main()
