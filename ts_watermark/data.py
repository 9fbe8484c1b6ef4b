"""Texts, vocabularies, prompts.

A prompt is a text without its last T tokens, and those T tokens are its human continuation.
Sources: the bundled documentation corpus and newspaper editorials (`cpu`), English prose from
REPRO_DATA or that corpus (`gpu`), C4 real-news-like (`paper`), invented texts in C4's layout
(`stand_ins.py`).
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from shared import bundled, package_data, pretrained, rated, sources, tables
from shared.protocol import BadInput
from ts_watermark.config import Config

C4, C4_HUB = "c4/realnewslike", sources.Hub("allenai/c4", "realnewslike")
KNOWN_SHARE = 0.5  # a text with fewer of its pieces in the vocabulary is in another language
TOKENIZED_AT_ONCE = 256  # texts


# --- vocabularies ---------------------------------------------------------------------------------


class Codec:
    """Text <-> the ids a language model sees, without special tokens.

    keep: (V,) ids of the tokenizer that form a smaller vocabulary (id v of the model is keep[v] of
    the tokenizer), others are dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep: torch.Tensor | None = None):
        self.tokenizer, self.keep = tokenizer, keep
        self.bos: int | None = tokenizer.bos_token_id if keep is None else None
        if keep is not None:
            self.number = torch.full((len(tokenizer),), -1, dtype=torch.long)
            self.number[keep] = torch.arange(len(keep))

    def __len__(self) -> int:
        return len(self.tokenizer) if self.keep is None else len(self.keep)

    def _pieces(self, texts: list[str]) -> list[list[int]]:
        """Ids of the tokenizer."""
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def encode(self, text: str) -> list[int]:
        return self.encode_all([text])[0]

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        rows = self._pieces(list(texts))
        if self.keep is None:
            return rows
        number = self.number.tolist()
        return [[number[i] for i in row if number[i] >= 0] for row in rows]

    def known_share(self, text: str) -> float:
        """Share of the text's word pieces that this vocabulary has."""
        pieces, unknown = self._pieces([text])[0], self.tokenizer.unk_token_id
        inside = [i for i in pieces if i != unknown and (self.keep is None or self.number[i] >= 0)]
        return len(inside) / max(1, len(pieces))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_all([ids])[0]

    def decode_all(self, rows: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        ids = [self._tokenizer_ids(row) for row in rows]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _tokenizer_ids(self, row: Sequence[int] | np.ndarray) -> list[int]:
        ids = np.asarray(row, dtype=np.int64)
        return (ids if self.keep is None else self.keep.numpy()[ids]).tolist()

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Printable text of each token."""
        words = self.tokenizer.convert_ids_to_tokens(self._tokenizer_ids(ids))
        if any(w.startswith(("Ġ", "▁")) for w in words):  # byte-level or sentence pieces: a space
            return [w.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n") for w in words]
        return [w.removeprefix("##") if w.startswith("##") else f" {w}" for w in words]

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        if self.keep is not None:
            (folder / "keep.json").write_text(json.dumps(self.keep.tolist()), "utf-8")


def load_codec(name: str | Path, rows: int = 0) -> Codec:
    """A codec from a folder (Path) that `Codec.save` wrote, or the tokenizer of a named model.

    rows: of the embedding that all its ids go into."""
    keep = name / "keep.json" if isinstance(name, Path) else None
    if keep is None or not keep.is_file():
        return Codec(pretrained.load_tokenizer(name, rows))
    tokenizer, ids = pretrained.load_tokenizer(name), tables.json_document(keep)
    whole = isinstance(ids, list) and all(type(i) is int and 0 <= i < len(tokenizer) for i in ids)
    if not whole or not ids or len(set(ids)) < len(ids):
        what = f"different ids of the tokenizer ({len(tokenizer)} pieces)"
        raise BadInput(f"{keep}: not a list of {what}. Remedy: take a fresh copy")
    return Codec(tokenizer, torch.tensor(ids))


def frequent_pieces(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], size: int
) -> torch.Tensor:
    """The `size` most frequent pieces of the texts, and the separator, which ends a document."""
    counts = np.zeros(len(tokenizer), np.int64)
    for start in range(0, len(texts), 4096):
        part = texts[start : start + 4096]
        for row in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            np.add.at(counts, row, 1)
    counts[tokenizer.all_special_ids] = -1
    counts[tokenizer.sep_token_id] = counts.max() + 1
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:size]))


# --- prompts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passages:
    """Items cut into prompt and human continuation.

    ids: n names; prompts: n ragged lists of token ids; human: n lists of T token ids."""

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


def cut(
    texts: Iterable[str],
    codec: Codec,
    tokens: int,
    min_prompt: int,
    max_prompt: int,
    limit: int,
    max_total: int = 0,
) -> tuple[Passages, set[str]]:
    """The first `limit` texts that pass the filter, as passages, and the names of all looked at.

    A text passes with at least min_prompt + tokens tokens (and at most max_total, if not 0); the
    prompt is what comes before its last `tokens` tokens, of which the last max_prompt are taken. Of
    texts that end alike only the first passes: the others would be the same item again.
    """
    passages, names, waiting = Passages([], [], []), set[str](), list[str]()
    endings = set[tuple[int, ...]]()

    def take() -> None:
        if not passages.ids:
            pretrained.check_texts(codec.tokenizer, waiting)
        for text, row in zip(waiting, codec.encode_all(waiting)):
            if len(passages) == limit:
                break
            names.add(name_of(text))
            fits = len(row) >= min_prompt + tokens and (not max_total or len(row) <= max_total)
            if fits and tuple(row[-tokens:]) not in endings:
                endings.add(tuple(row[-tokens:]))
                passages.ids.append(name_of(text))
                passages.prompts.append(row[:-tokens][-max_prompt:])
                passages.human.append(row[-tokens:])
        waiting.clear()

    for text in texts:
        waiting.append(text)
        if len(waiting) == TOKENIZED_AT_ONCE:
            take()
        if len(passages) == limit:
            break
    take()
    if len(passages) < limit:
        have = f"only {len(passages)} of {limit} texts have {min_prompt} + {tokens} tokens"
        remedy = "give more text, or ask for fewer prompts (train_prompts, test_prompts)"
        raise sources.MissingInput(f"{have}; {remedy}")
    return passages, names


@dataclass(frozen=True)
class Cut:
    """Passages of the generators' training, of the evaluation (all parts), and the texts left."""

    train: Passages
    evaluation: Passages
    left: list[str]

    def parts(self, config: Config) -> dict[str, Passages]:
        """train, validation and test."""
        v, t = config.validation_prompts, config.validation_prompts + config.test_prompts
        whole = self.evaluation
        return {"train": self.train, "validation": whole[:v], "test": whole[v:t]}


def cut_all(config: Config, codec: Codec, texts: list[str] | None, root: Path | None) -> Cut:
    """Cut the listed texts (evaluation first), or C4's two splits where `texts` is None.

    As in the paper, C4's texts have an upper limit of tokens, too."""
    n = config.validation_prompts + config.test_prompts
    of_evaluation = (config.new_tokens, config.min_prompt, config.max_prompt, n)
    of_training = (
        config.train_tokens,
        config.train_min_prompt,
        config.train_max_prompt,
        config.train_prompts,
    )
    if texts is None:
        longest = config.train_max_prompt + config.train_tokens
        train, _ = cut(c4("train", root), codec, *of_training, max_total=longest)
        longest = config.max_prompt + config.new_tokens
        evaluation, _ = cut(c4("validation", root), codec, *of_evaluation, max_total=longest)
        return Cut(train, evaluation, [])
    evaluation, used = cut(texts, codec, *of_evaluation)
    rest = [t for t in texts if name_of(t) not in used]
    train, used = cut(rest, codec, *of_training)
    return Cut(train, evaluation, [t for t in rest if name_of(t) not in used])


def save_passages(parts: dict[str, Passages], folder: Path) -> None:
    stored = {name: asdict(passages) for name, passages in parts.items()}
    (folder / "passages.json").write_text(json.dumps(stored), "utf-8")


def load_passages(config: Config, part: str) -> Passages:
    """A part of what stage `base` cut."""
    text = (Path(config.uses["base"]) / "passages.json").read_text("utf-8")
    return Passages(**json.loads(text)[part])


# --- corpora --------------------------------------------------------------------------------------


def corpus(name: str) -> list[str]:
    """Texts of a named corpus, in a random order that is one for all seeds."""
    read = {"documentation": bundled.documentation_texts, "editorials": editorials}
    return sorted(dict.fromkeys(read.get(name, bundled.english)()), key=name_of)


def editorials() -> list[str]:
    """498 newspaper editorials (New York Times) of about 180 words as running text.

    Their sentences are those that people rated (`bundled.ratings("nyt")`), in the order of the
    file, which is that of each editorial. MissingInput without the package."""
    path = package_data.path_of(rated.FILES["nyt"])
    sources.note(f"vaderSentiment {path.name}", path, "bundled")
    sentences: dict[str, list[str]] = {}
    for _, (name, _, sentence) in tables.tab_separated(path):  # 12_3: sentence 3 of editorial 12
        plain = html.unescape(html.unescape(sentence)).strip()  # the file has &amp;amp;
        sentences.setdefault(name.partition("_")[0], []).append(plain)
    return [" ".join(parts) for parts in sentences.values()]


def c4(part: str, root: Path | None = None) -> Iterator[str]:
    """Texts of C4 real-news-like in stored order; part: train or validation.

    From REPRO_DATA (`c4/realnewslike/c4-<part>.*.json.gz`, one object with `text` a line) or
    streamed from the hub.
    """
    place = root or sources.find_data(C4, C4_HUB)
    if isinstance(place, Path):
        pattern = f"c4-{part}.*.json.gz"
        files = tables.complete(p for p in tables.visible(place) if p.match(pattern))
        if not files:
            remedy = "remedy:  fetch them from allenai/c4"
            raise sources.MissingInput(f"{place} has no {pattern}\n  {remedy}")
        for file in files:
            for at, row in tables.json_lines(tables.checked(file, f"{C4}/{file.name}")):
                yield tables.text_in(row, "text", at)
        return
    for number, row in enumerate(sources.stream_hub(place, C4, part)):
        yield tables.text_in(row, "text", f"{place.id}, part {part} row {number}")
