"""A policy whose prompts were computed once: an activated LoRA on `shared/alora.py`.

The adapter acts from the tokens that open the answer, so what the model keeps of a prompt is that
of the frozen model whatever is trained: all arms and seeds share it, and a pass touches the opening
and the answer, in the adapted layers and above.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppo_nlu.policy import Policy, Rollout, Tokenizer, base_of
from shared import door
from shared.alora import PromptCache

if TYPE_CHECKING:
    from transformers import DynamicCache


class Batchwise(PromptCache):
    """As `PromptCache`; keys and values of the last batch stay in memory, for PPO passes over the
    same prompts five times (reference, four steps).

    Sampling asks in another order of rows and fills anew."""

    def __init__(self, lm: nn.Module, prompts: Sequence[Sequence[int]]):
        self.last: dict[tuple[range, int], tuple[list[int], DynamicCache]] = {}
        super().__init__(lm, prompts)  # type: ignore[arg-type]

    def _filled(self, rows: Sequence[int], layers: range, cut: int) -> DynamicCache:
        from transformers import DynamicCache

        if self.last.get((layers, cut), ([],))[0] != list(rows):
            self.last[layers, cut] = list(rows), super()._filled(rows, layers, cut)
        kept: Any = self.last[layers, cut][1]  # layers of several kinds to the type checker
        copied = DynamicCache()  # a pass appends to what it is given
        for number, layer in enumerate(kept.layers):
            copied.update(layer.keys, layer.values, number)
        return copied


class CachedPolicy(Policy):
    """As `Policy`, for questions of one column: the row of their prompt among `prompts`."""

    def __init__(self, lm: nn.Module, prompts: Sequence[Sequence[int]]):
        super().__init__(lm)
        self.prompts = Batchwise(lm, prompts)
        self.entering = torch.empty(0)
        self.begun: list[Tensor] = []
        base_of(lm).get_output_embeddings().register_forward_pre_hook(self._note)  # type: ignore

    def _note(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.entering = inputs[0]

    def begin_with(self, file: Path) -> None:
        """The adapter of another run is where this one begins, and the reference."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        door.tensors(file)
        set_peft_model_state_dict(self.lm, load_file(file))
        self.begun = [p.detach().clone() for p in self._adapter()]

    def _adapter(self) -> list[Tensor]:
        return [p for name, p in self.lm.named_parameters() if "lora_" in name]

    @contextlib.contextmanager
    def _as_begun(self) -> Iterator[None]:
        """Within the block the policy is the reference."""
        if not self.begun:
            with self.lm.disable_adapter():
                yield
            return
        now = [p.data for p in self._adapter()]
        try:
            for p, begun in zip(self._adapter(), self.begun, strict=True):
                p.data = begun
            yield
        finally:
            for p, data in zip(self._adapter(), now, strict=True):
                p.data = data

    def forward(
        self, ids: Tensor, mask: Tensor, T: int, reference: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of `Policy`; ids, mask: (B, 1 + T), the first column a row of `prompts`."""
        lengths = mask[:, 1:].sum(1).tolist()
        answers = [row[1 : 1 + n] for row, n in zip(ids.tolist(), lengths)]
        with self._as_begun() if reference else contextlib.nullcontext():
            logits = self.prompts.logits(ids[:, 0].tolist(), answers)
        return self.judged(logits, self.entering, ids[:, 1 : 1 + T])

    def answers(
        self,
        tokenizer: Tokenizer,
        questions: Sequence[Sequence[int]],
        max_new: int,
        uniforms: Tensor | None = None,
        stop: str | None = None,
        temperature: float = 1.0,
    ) -> Rollout:
        """Answers at temperature 1 to questions, each one number; the end of the text ends one."""
        rows = [row for (row,) in questions]
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        answers = self.prompts.generate(rows, max_new, [eos], uniforms)
        T = max(map(len, answers))
        columns = [[row, *a, *[pad] * (T - len(a))] for row, a in zip(rows, answers)]
        device = self.value.weight.device
        ids = torch.tensor(columns, device=device)
        lengths = torch.tensor([len(a) for a in answers], device=device)
        mask = (torch.arange(T + 1, device=device) <= lengths[:, None]).long()
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return Rollout(ids, mask, lengths, texts)
