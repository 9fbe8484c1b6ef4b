"""Activated LoRA with prompts computed once: training touches only the tokens of the answer.

An activated LoRA (arXiv 2504.12397, `peft.LoraConfig(alora_invocation_tokens=...)`) acts from the
tokens that open the answer, so what the model keeps of a prompt never changes while the adapter is
trained. `PromptCache` computes keys and values of every prompt once, into files that all arms and
seeds share, and does the rest with peft's own model. They are 16-bit integers with a scale for each
vector: fp16 of the same size is nine times less exact (0.015 of a logit on SmolLM2). docs/alora.md
has an example.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from shared import inputs, package_data, runs

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import DynamicCache

BATCH = 16  # prompts in one pass while the cache is made


class PromptCache:
    """Prompts of one model, by their row: logits and answers of any of them, as if uncached.

    lm: a causal model of transformers under peft with an activated LoRA, anything else frozen.
    prompts: token ids; each ends in the invocation tokens, as a chat template does with
    `add_generation_prompt=True`. Raises ValueError for a prompt that does not, for an adapter of
    another kind, and for weights outside the adapter that are trained.
    """

    def __init__(self, lm: PeftModel, prompts: Sequence[Sequence[int]]):
        self.lm, self.prompts = lm, [list(prompt) for prompt in prompts]
        base: Any = lm.get_base_model()  # Any: peft types it as a tensor or module
        self.decoder: nn.Module = base.base_model
        self.layers = _layers(self.decoder, base.config.num_hidden_layers)
        self.opening = _invocation(lm)
        self.first = _first_adapted(self.layers)  # layers below see no adapter
        head = base.get_output_embeddings()
        if _contiguous not in head._forward_pre_hooks.values():
            # a slice of columns would be multiplied item by item: eight times slower on a CPU
            head.register_forward_pre_hook(_contiguous)
        for row, prompt in enumerate(self.prompts):
            if prompt[-len(self.opening) :] != self.opening or len(prompt) == len(self.opening):
                end = f"it must end in the invocation tokens {self.opening} after others"
                raise ValueError(f"prompt {row}: {end}; it ends in {prompt[-8:]}")
        self.starts = np.cumsum([0, *map(len, self.prompts)])
        folder = self._folder(base)
        with package_data.locked(folder.parent):
            if not folder.exists():
                self._fill(folder)
        self.kv = np.load(folder / "kv.npy", mmap_mode="r")  # (tokens, layers, 2, heads, width)
        self.scale = np.load(folder / "scale.npy", mmap_mode="r")  # (tokens, layers, 2, heads, 1)
        self.entering = np.load(folder / "states.npy", mmap_mode="r")  # (prompts, opening, hidden)
        self.remembered: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def logits(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> Tensor:
        """(B, T, V): column t speaks about token t of each answer, given the ones before it.

        T is the longest answer; what follows the end of a shorter one is noise. Differentiable.
        """
        ids, mask = self._padded([answer[:-1] for answer in answers])
        states = self._opening_states(rows)
        if ids.shape[1] and self.first:
            states = torch.cat([states, self._answer_states(rows, answers)], 1)
        return self._above(self._cache(rows), rows, states, ids, mask)[0]

    @torch.no_grad()
    def generate(
        self, rows: Sequence[int], most: int, stop: Sequence[int], uniforms: Tensor | None = None
    ) -> list[list[int]]:
        """An answer to each prompt: at most `most` tokens, up to and with the first of `stop`.

        Greedy, or with uniforms (B, most) in [0, 1) drawn at temperature 1: equal numbers, equal
        answers.
        """
        nothing = self._padded([[] for _ in rows])
        logits, cache = self._above(self._cache(rows), rows, self._opening_states(rows), *nothing)
        below = self._below_cache(rows)  # the layers above hold the opening by now
        cache.layers[: self.first] = below.layers
        mask, position = self._place(rows, most, opened=True)
        answers: list[list[int]] = [[] for _ in rows]
        for t in range(most):
            token = _chosen(logits[:, -1], uniforms[:, t] if uniforms is not None else None)
            for answer, number in zip(answers, token.tolist()):
                if not answer or answer[-1] not in stop:
                    answer.append(number)
            if t + 1 == most or all(answer[-1] in stop for answer in answers):
                break
            mask = nn.functional.pad(mask, (0, 1), value=1)
            logits = self.lm(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=position[:, t : t + 1],
                past_key_values=cache,
                alora_offsets=[1] * len(rows),
            ).logits
        return answers

    # --- one pass below and above the first adapted layer -----------------------------------------

    def _above(
        self, cache: DynamicCache, rows: Sequence[int], states: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, DynamicCache]:
        """Logits from the last column of the opening on, and the cache, which holds them then."""
        opening = torch.tensor([self.opening] * len(rows), device=ids.device)
        columns = opening.shape[1] + ids.shape[1]
        before, position = self._place(rows, columns, opened=False)
        given = _Given(states)
        with self._instead(range(self.first), given):
            out = self.lm(
                input_ids=torch.cat([opening, ids], 1),
                attention_mask=torch.cat([before, torch.ones_like(opening), mask], 1),
                position_ids=position,
                past_key_values=cache,
                alora_offsets=[columns] * len(rows),
                logits_to_keep=1 + ids.shape[1],
            )
        return out.logits, cache

    def _answer_states(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> Tensor:
        """States (B, T - 1, hidden) of all but the last tokens, entering the first adapted layer.

        Remembered: an answer met again costs nothing below."""
        asked = [(row, tuple(answer[:-1])) for row, answer in zip(rows, answers)]
        new = [key for key in dict.fromkeys(asked) if key not in self.remembered]
        if new:
            ids, mask = self._padded([tokens for _, tokens in new])
            states = self._below([row for row, _ in new], ids, mask)
            self.remembered |= {key: states[i, : len(key[1])] for i, key in enumerate(new)}
        return nn.utils.rnn.pad_sequence([self.remembered[key] for key in asked], batch_first=True)

    @torch.no_grad()
    def _below(self, rows: Sequence[int], ids: Tensor, mask: Tensor) -> Tensor:
        """States (B, T, hidden) of the ids as they enter the first adapted layer."""
        before, position = self._place(rows, ids.shape[1], opened=True)
        record = _Given(None)
        with self._instead(range(self.first, len(self.layers)), record):
            self.decoder(
                input_ids=ids,
                attention_mask=torch.cat([before, mask], 1),
                position_ids=position,
                past_key_values=self._below_cache(rows),
            )
        assert record.states is not None
        return record.states

    @contextlib.contextmanager
    def _instead(self, places: range, other: _Given) -> Iterator[None]:
        """Within the block `other` stands in the places of these layers."""
        layers = list(self.layers)
        try:
            for place in places:
                self.layers[place] = other
            yield
        finally:
            for place in places:
                self.layers[place] = layers[place]

    # --- what is kept -----------------------------------------------------------------------------

    def _padded(self, lists: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """ids and mask (B, longest), padded on the right."""
        widest = max(map(len, lists))
        ids = torch.tensor([[*row, *[0] * (widest - len(row))] for row in lists], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in lists])
        mask = torch.arange(widest) < lengths[:, None]
        return ids.to(self.lm.device), mask.long().to(self.lm.device)

    def _place(self, rows: Sequence[int], n: int, opened: bool) -> tuple[Tensor, Tensor]:
        """Mask of the cached columns (padded on the left) and positions (B, n) of what follows."""
        cut = 0 if opened else len(self.opening)
        lengths = torch.tensor([len(self.prompts[row]) - cut for row in rows])
        widest = int(lengths.max())
        mask = torch.arange(widest) >= widest - lengths[:, None]
        position = lengths[:, None] + torch.arange(n)
        return mask.long().to(self.lm.device), position.to(self.lm.device)

    def _opening_states(self, rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.entering[list(rows)]).to(self.lm.device, self.lm.dtype)

    def _cache(self, rows: Sequence[int]) -> DynamicCache:
        """Keys and values of the prompts without opening, in the adapted layers and above."""
        return self._filled(rows, range(self.first, len(self.layers)), len(self.opening))

    def _below_cache(self, rows: Sequence[int]) -> DynamicCache:
        """Keys and values of the prompts with opening, in the layers below."""
        return self._filled(rows, range(self.first), 0)

    def _filled(self, rows: Sequence[int], layers: range, cut: int) -> DynamicCache:
        from transformers import DynamicCache

        lengths = [len(self.prompts[row]) - cut for row in rows]
        widest, (_, _, _, heads, width) = max(lengths), self.kv.shape
        kv = np.zeros((len(rows), widest, len(layers), 2, heads, width), dtype=np.float32)
        for number, (row, length) in enumerate(zip(rows, lengths)):
            tokens = slice(self.starts[row], self.starts[row] + length)
            part = (tokens, slice(layers.start, layers.stop))
            np.multiply(self.kv[part], self.scale[part], out=kv[number, widest - length :])
        whole = torch.from_numpy(kv).to(self.lm.device, self.lm.dtype).permute(2, 3, 0, 4, 1, 5)
        cache = DynamicCache()
        # a layer that is not run has the length of the others: masks are made from the first
        empty = whole.new_zeros(len(rows), 1, widest, 1)
        for layer in range(layers.stop):
            keys, values = whole[layer - layers.start] if layer in layers else (empty, empty)
            cache.update(keys, values, layer)
        return cache

    # --- making it --------------------------------------------------------------------------------

    def _folder(self, base: Any) -> Path:
        """Named by all that determines the content."""
        weights = {n: p for n, p in base.named_parameters() if "lora_" not in n}
        config = {k: v for k, v in base.config.to_dict().items() if not k.startswith("_")}
        config.pop("transformers_version", None)
        key = (
            runs.state_sha256(weights.values()),
            json.dumps(config, sort_keys=True, default=str),
            self.prompts,
            len(self.opening),
            self.first,
            inspect.getsource(sys.modules[__name__]),
        )
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        return inputs.cache_root() / "alora" / name

    @torch.no_grad()
    def _fill(self, folder: Path) -> None:
        """Write the folder (all or nothing), shortest prompts first."""
        begun, n = time.monotonic(), len(self.prompts)
        made = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        order = sorted(range(n), key=lambda row: len(self.prompts[row]))
        for done in range(0, n, BATCH):
            rows = order[done : done + BATCH]
            states, kv = self._prompt_pass([self.prompts[row] for row in rows])
            if done == 0:
                shape = (int(self.starts[-1]), *kv.shape[2:])
                whole = _new(made / "kv.npy", shape, np.int16)
                scales = _new(made / "scale.npy", (*shape[:-1], 1), np.float32)
                opening = (n, len(self.opening), states.shape[-1])
                entering = _new(made / "states.npy", opening, np.float32)
            for number, row in enumerate(rows):
                length = len(self.prompts[row])
                tokens = slice(self.starts[row], self.starts[row + 1])
                whole[tokens], scales[tokens] = _rounded(kv[number, :length])
                entering[row] = states[number, length - len(self.opening) : length]
            if done % (25 * BATCH) == 0:
                size = f"{whole.nbytes / 1e6:.0f} MB" if done == 0 else f"{done + len(rows)} done"
                print(f"caching {n} prompts ({size})", flush=True)
        for file in (whole, scales, entering):
            file.flush()
        os.rename(made, folder)
        print(f"cached {n} prompts in {time.monotonic() - begun:.0f} s: {folder}", flush=True)

    def _prompt_pass(self, prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """States (B, T, hidden) that enter the first adapted layer, and keys and values.

        The latter (B, T, layers, 2, heads, width); without the adapter, padded on the right."""
        ids, mask = self._padded(prompts)
        with self.lm.disable_adapter():
            out = self.decoder(
                input_ids=ids, attention_mask=mask, use_cache=True, output_hidden_states=True
            )
        pairs = [torch.stack([layer.keys, layer.values]) for layer in out.past_key_values.layers]
        kv = torch.stack(pairs).permute(2, 4, 0, 1, 3, 5)
        return out.hidden_states[self.first].float().cpu().numpy(), kv.float().cpu().numpy()


def _rounded(kv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (..., width) as int16 and their scales (..., 1): kv = int16 * scale."""
    scale = np.maximum(np.abs(kv).max(-1, keepdims=True) / 32767, np.float32(1e-30))
    return np.round(kv / scale).astype(np.int16), scale


def _chosen(logits: Tensor, uniform: Tensor | None) -> Tensor:
    """(B,) the likeliest token, or the one at `uniform` of the distribution function."""
    if uniform is None:
        return logits.argmax(-1)
    below = logits.double().softmax(-1).cumsum(-1) <= uniform.to(logits.device)[:, None]
    return below.sum(-1).clamp(max=logits.shape[-1] - 1)


class _Given(nn.Module):
    """In the place of a layer: these states come out; without any, those that come in, noted."""

    def __init__(self, states: Tensor | None):
        super().__init__()
        self.states = states

    def forward(self, entering: Tensor, *rest: object, **options: object) -> Tensor:
        if self.states is None:
            self.states = entering
        return self.states


def _contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs[0].contiguous(), *inputs[1:]


def _new(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _layers(decoder: nn.Module, count: int) -> nn.ModuleList:
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(decoder).__name__} has no list of {count} layers")


def _invocation(lm: PeftModel) -> list[int]:
    tokens = getattr(lm.active_peft_config, "alora_invocation_tokens", None)
    if not tokens:
        raise ValueError("the adapter is no activated LoRA: give alora_invocation_tokens")
    trained = [n for n, p in lm.named_parameters() if p.requires_grad and "lora_" not in n]
    if trained:
        raise ValueError(f"{trained[0]} is trained, so prompts cannot be computed once")
    return list(tokens)


def _first_adapted(layers: nn.ModuleList) -> int:
    adapted = (
        number
        for number, layer in enumerate(layers)
        if any("lora_" in name for name, _ in layer.named_parameters())
    )
    return next(adapted)
