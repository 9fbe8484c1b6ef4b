"""What is done to a watermarked text before detection. Pure functions of (text, generator)."""

from __future__ import annotations

import itertools

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def copy_paste(text: str, prompt: str, pieces: int, generator: torch.Generator) -> str:
    """Insert the text into its own prompt, in `pieces` equal parts by words, at uniform places."""
    host, words = prompt.split(), text.split()
    bounds = [round(k * len(words) / pieces) for k in range(pieces + 1)]
    parts = [words[a:b] for a, b in itertools.pairwise(bounds)]
    places = sorted(torch.randint(len(host) + 1, (pieces,), generator=generator).tolist())
    result, done = [], 0
    for place, part in zip(places, parts):
        result += host[done:place] + part
        done = place
    return " ".join(result + host[done:])


def delete(ids: list[int], share: float, generator: torch.Generator) -> list[int]:
    """Drop each token with probability `share`. With `substitute` it stands in for paraphrasing."""
    stays = torch.rand(len(ids), generator=generator) >= share
    return [token for token, stay in zip(ids, stays.tolist()) if stay]


def substitute(
    ids: list[int], share: float, frequencies: torch.Tensor, generator: torch.Generator
) -> list[int]:
    """Replace each token with probability `share` by one drawn from the unigram `frequencies`."""
    hit = torch.rand(len(ids), generator=generator) < share
    other = torch.multinomial(frequencies.float(), len(ids), replacement=True, generator=generator)
    return [int(new) if is_hit else old for old, new, is_hit in zip(ids, other, hit.tolist())]


class Dipper:
    """The paraphraser of Krishna et al. (T5-XXL, 11 B), at `paper` only.

    lexical, order: diversity from 0 to 100 (paper: 40 and 100). Reads the text three sentences at a
    time, with what it has written so far as context.
    """

    HUB = "kalpeshk2011/dipper-paraphraser-xxl"
    TOKENIZER = "google/t5-v1_1-xxl"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        lexical: int = 40,
        order: int = 100,
        sentences: int = 3,
    ):
        self.model, self.tokenizer, self.sentences = model, tokenizer, sentences
        # it was trained on 100 - diversity
        self.control = f"lexical = {100 - lexical}, order = {100 - order}"

    @torch.no_grad()
    def __call__(self, text: str, prompt: str, max_length: int = 512) -> str:
        sentences = [s.strip() + "." for s in text.split(".") if s.strip()]
        context, written = " ".join(prompt.split()), ""
        for start in range(0, len(sentences), self.sentences):
            part = " ".join(sentences[start : start + self.sentences])
            query = f"{self.control} {context} <sent> {part} </sent>"
            batch = self.tokenizer(
                [query], return_tensors="pt", truncation=True, max_length=max_length
            ).to(self.model.device)
            out = self.model.generate(  # type: ignore[operator]
                **batch, do_sample=True, top_p=0.75, top_k=None, max_length=max_length
            )
            paraphrase = self.tokenizer.batch_decode(out, skip_special_tokens=True)[0]
            context, written = f"{context} {paraphrase}", f"{written} {paraphrase}"
        return written.strip()
