"""What is done to a watermarked text before detection. Pure functions of (text, generator)."""

from __future__ import annotations

import itertools

import torch


def copy_paste(text: str, prompt: str, pieces: int, generator: torch.Generator) -> str:
    """Insert the text into its own prompt, whole or in equal parts by words, at uniform random word positions."""
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
    keep = torch.rand(len(ids), generator=generator) >= share
    return [token for token, kept in zip(ids, keep.tolist()) if kept]


def substitute(
    ids: list[int], share: float, frequencies: torch.Tensor, generator: torch.Generator
) -> list[int]:
    """Replace each token with probability `share` by one drawn from the unigram `frequencies` (V,)."""
    hit = torch.rand(len(ids), generator=generator) < share
    other = torch.multinomial(frequencies.float(), len(ids), replacement=True, generator=generator)
    return [int(new) if hit_ else old for old, new, hit_ in zip(ids, other.tolist(), hit.tolist())]


class Dipper:
    """The paraphraser of Krishna et al. (T5-XXL, 11 B): lexical diversity 40, order diversity 100; `paper` only.

    Reads the text sentence by sentence, three at a time, with what it has written so far as context.
    """

    HUB = "kalpeshk2011/dipper-paraphraser-xxl"
    TOKENIZER = "google/t5-v1_1-xxl"

    def __init__(self, model, tokenizer, lexical: int = 40, order: int = 100, sentences: int = 3):
        self.model, self.tokenizer, self.sentences = model, tokenizer, sentences
        self.control = (
            f"lexical = {100 - lexical}, order = {100 - order}"  # it was trained on 100 - diversity
        )

    @torch.no_grad()
    def __call__(self, text: str, prompt: str, max_length: int = 512) -> str:
        sentences = [s.strip() + "." for s in text.split(".") if s.strip()]
        context, written = " ".join(prompt.split()), ""
        for start in range(0, len(sentences), self.sentences):
            part = " ".join(sentences[start : start + self.sentences])
            query = f"{self.control} {context} <sent> {part} </sent>"
            batch = self.tokenizer(
                [query], return_tensors="pt", truncation=True, max_length=max_length
            )
            out = self.model.generate(**batch.to(self.model.device), do_sample=True, top_p=0.75, top_k=None,
                                      max_length=max_length)  # fmt: skip
            paraphrase = self.tokenizer.batch_decode(out, skip_special_tokens=True)[0]
            context, written = f"{context} {paraphrase}", f"{written} {paraphrase}"
        return written.strip()
