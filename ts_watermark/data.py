"""Texts, vocabularies, prompts.

A prompt is a text without its last T tokens, and those T tokens are its human continuation. Sources: the bundled
documentation corpus (`cpu`), English prose from REPRO_DATA or that corpus (`gpu`), C4 real-news-like (`paper`).
`sample` writes invented texts in C4's own layout, for rehearsals.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared import bundled, sources
from shared.protocol import BadInput

C4, C4_HUB = "c4/realnewslike", sources.Hub("allenai/c4", "realnewslike")
KNOWN_SHARE = (
    0.5  # a text with fewer of its word pieces in the vocabulary is in another language or script
)


# ---- vocabularies ----------------------------------------------------------------------------------------------


class Codec:
    """Text <-> the ids a language model sees, without special tokens.

    keep: (V,) ids of the tokenizer that form a smaller vocabulary (id v here = keep[v] there), others are dropped.
    """

    def __init__(self, tokenizer, keep: torch.Tensor | None = None):
        self.tokenizer, self.keep = tokenizer, keep
        self.bos = tokenizer.bos_token_id if keep is None else None
        if keep is not None:
            self.own = torch.full((len(tokenizer),), -1, dtype=torch.long)
            self.own[keep] = torch.arange(len(keep))

    def __len__(self) -> int:
        return len(self.tokenizer) if self.keep is None else len(self.keep)

    def encode(self, text: str) -> list[int]:
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        rows = (
            self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            if texts
            else []
        )
        if self.keep is None:
            return rows
        own = self.own.tolist()
        return [[own[i] for i in row if own[i] >= 0] for row in rows]

    def known_share(self, text: str) -> float:
        """Share of the text's word pieces that this vocabulary has."""
        pieces = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        known = [i for i in pieces if i != unknown and (self.keep is None or self.own[i] >= 0)]
        return len(known) / max(1, len(pieces))

    def decode(self, ids) -> str:
        return self.decode_all([ids])[0]

    def decode_all(self, rows) -> list[str]:
        rows = [np.asarray(r, dtype=np.int64) for r in rows]
        if self.keep is not None:
            rows = [self.keep.numpy()[r] for r in rows]
        return self.tokenizer.batch_decode([r.tolist() for r in rows], skip_special_tokens=True)

    def pieces(self, ids) -> list[str]:
        """Printable text of each token."""
        there = np.asarray(ids) if self.keep is None else self.keep.numpy()[np.asarray(ids)]
        words = self.tokenizer.convert_ids_to_tokens(there.tolist())
        if any(
            w.startswith(("Ġ", "▁")) for w in words
        ):  # byte-level or sentence pieces mark the space
            return [w.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n") for w in words]
        return [w.removeprefix("##") if w.startswith("##") else f" {w}" for w in words]

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        if self.keep is not None:
            (Path(folder) / "keep.json").write_text(json.dumps(self.keep.tolist()))


def load_codec(folder: str | Path) -> Codec:
    """A codec from a folder that `Codec.save` wrote, or any tokenizer folder of transformers."""
    from transformers import AutoTokenizer

    keep = Path(folder) / "keep.json"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Codec(tokenizer, torch.tensor(json.loads(keep.read_text())) if keep.is_file() else None)


def frequent_pieces(tokenizer, texts: list[str], size: int) -> torch.Tensor:
    """The `size` most frequent word pieces of the texts, and the separator, which ends a document. (size,)"""
    counts = np.zeros(len(tokenizer), np.int64)
    for start in range(0, len(texts), 4096):
        for row in tokenizer(texts[start : start + 4096], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]:
            np.add.at(counts, row, 1)
    counts[tokenizer.all_special_ids] = -1
    counts[tokenizer.sep_token_id] = counts.max() + 1
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:size]))


# ---- prompts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passages:
    """Items cut into prompt and human continuation. ids: (n,) names; prompts: ragged lists; human: n lists of T."""

    ids: list[str]
    prompts: list[list[int]]
    human: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> Passages:
        return Passages(self.ids[rows], self.prompts[rows], self.human[rows])


def name_of(text: str) -> str:
    """An item's id: a hash of its text, so that it cannot depend on the order of a corpus."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cut(texts: Iterable[str], codec: Codec, tokens: int, min_prompt: int, max_prompt: int, limit: int,
        max_total: int = 0) -> tuple[Passages, set[str]]:  # fmt: skip
    """The first `limit` texts that pass the filter, as passages, and the names of all texts looked at.

    A text passes with at least min_prompt + tokens tokens (and at most max_total, if given); the prompt is what
    comes before its last `tokens` tokens, of which the last max_prompt are kept.
    """
    passages, seen, waiting = Passages([], [], []), set(), list[str]()

    def take() -> None:
        for text, row in zip(waiting, codec.encode_all(waiting)):
            if (
                len(row) < min_prompt + tokens
                or (max_total and len(row) > max_total)
                or len(passages) == limit
            ):
                continue
            passages.ids.append(name_of(text))
            passages.prompts.append(row[:-tokens][-max_prompt:])
            passages.human.append(row[-tokens:])
        waiting.clear()

    for text in texts:
        seen.add(name_of(text))
        waiting.append(text)
        if len(waiting) == 256:
            take()
        if len(passages) == limit:
            break
    take()
    if len(passages) < limit:
        raise sources.MissingInput(f"only {len(passages)} of {limit} texts have {min_prompt} + {tokens} tokens; "
                                   "give more text, or ask for fewer prompts (train_prompts, test_prompts)")  # fmt: skip
    return passages, seen


# ---- corpora -------------------------------------------------------------------------------------------------------


def corpus(name: str) -> list[str]:
    """Texts for a language model trained here, in an order that is random but the same for all seeds."""
    texts = bundled.documentation_texts() if name == "documentation" else bundled.english()
    return sorted(dict.fromkeys(texts), key=name_of)


def c4(part: str, root: Path | None = None) -> Iterator[str]:
    """Texts of C4 real-news-like in stored order; part: train or validation.

    From REPRO_DATA (`c4/realnewslike/c4-<part>.*.json.gz`, one object with `text` a line) or streamed from the hub.
    """
    place = root or sources.find_data(C4, C4_HUB)
    if isinstance(place, Path):
        files = sorted(place.glob(f"c4-{part}.*.json.gz"))
        if not files:
            raise sources.MissingInput(
                f"{place} has no c4-{part}.*.json.gz; fetch them from allenai/c4"
            )
        for file in files:
            sources.note(f"{C4}/{file.name}", file)
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        yield json.loads(line)["text"]
                    except (ValueError, KeyError, TypeError) as error:
                        raise BadInput(
                            f"{file}, line {number}: not a JSON object with 'text'"
                        ) from error
        return
    import datasets

    for row in datasets.load_dataset(place.id, place.config, split=part, streaming=True):
        yield row["text"]


SYLLABLES = ("ka", "lo", "mi", "ten", "ra", "vos", "du", "per", "sin", "ga", "bel", "or")


def sample(task: str, n: int, stream: torch.Generator, root: Path, words: int = 40) -> Path:
    """Write n invented news texts for each part in C4's layout under root; `c4(part, root)` reads them back.

    The words are invented, with the frequencies of Zipf's law, so that tokenizers and models have something to fit.
    """
    lexicon = [a + b for a in SYLLABLES for b in SYLLABLES] + [a + b + c for a in SYLLABLES[:5] for b in SYLLABLES
                                                              for c in SYLLABLES[:4]]  # fmt: skip
    weight = 1.0 / torch.arange(1, len(lexicon) + 1)
    for part in ("train", "validation"):
        folder = root / C4
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(
            folder / f"c4-{part}.00000-of-00001.json.gz", "wt", encoding="utf-8"
        ) as file:
            for i in range(n):
                chosen = torch.multinomial(
                    weight, words, replacement=True, generator=stream
                ).tolist()
                sentences = [
                    " ".join(lexicon[w] for w in chosen[k : k + 9]) for k in range(0, words, 9)
                ]
                text = ". ".join(s.capitalize() for s in sentences) + "."
                row = {
                    "text": text,
                    "timestamp": "2019-04-22T00:00:00Z",
                    "url": f"https://example.org/{task}/{i}",
                }
                file.write(json.dumps(row) + "\n")
    return root / C4
