"""An encoder as a language model: MiniLM answers questions about real text on a CPU (exhibit)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ppo_nlu.prompts import CLOSE, OPEN


class PrefixLM(nn.Module):
    """Prompt tokens see each other, answer tokens see the prompt and what precedes them.

    The prompt ends at the last opened tag, which can never be generated. Output words are tied to
    the input embeddings through one fresh linear map. There is no cache: an encoder layer has
    nowhere to put it."""

    caches = False
    lora_targets = ("query", "value")

    def __init__(self, encoder: Any, open_id: int):
        super().__init__()
        self.encoder, self.open_id, self.config = encoder, open_id, encoder.config
        width = self.config.hidden_size
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> SimpleNamespace:
        """Like a causal model: `.logits` of the last columns, `.hidden_states[-1]` of all."""
        L, device = input_ids.shape[1], input_ids.device
        column = torch.arange(L, device=device)
        opened = torch.where(input_ids == self.open_id, column, -1).amax(1, keepdim=True)
        prompt = column <= opened  # (B, L)
        sees = (column[:, None] >= column) | prompt[:, None, :]  # (B, L, L)
        itself = torch.eye(L, dtype=torch.bool, device=device)
        sees = sees & attention_mask[:, None, :].bool() | itself
        bias = torch.zeros(sees.shape, device=device)
        bias = bias.masked_fill(~sees, torch.finfo(torch.float32).min)
        h = self.encoder(
            input_ids=input_ids, attention_mask=bias[:, None], position_ids=position_ids
        ).last_hidden_state
        words = self.encoder.get_input_embeddings().weight
        logits = self.transform(h[:, -logits_to_keep:]) @ words.T
        logits[..., self.open_id] = -1e9
        return SimpleNamespace(logits=logits, hidden_states=(h,), past_key_values=None)

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, folder / "prefix.safetensors")


def minilm(folder: Path | None = None) -> tuple[PrefixLM, Any]:
    """(prefix model, tokenizer); the tags and the end of the text become words of their own.
    Weights of `folder`."""
    from shared import bundled, pretrained

    encoder, tokenizer = bundled.minilm()
    tokenizer.add_tokens([OPEN, CLOSE, "[end]"])
    tokenizer.eos_token = "[end]"
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    opening = tokenizer.get_vocab()[OPEN]
    lm = PrefixLM(encoder, opening)
    if folder:
        pretrained.load_state(lm, folder / "prefix.safetensors")
    return lm, tokenizer
