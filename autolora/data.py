"""Tasks: what is read, how it is split between the two levels, and how batches are made.

classification, regression   GLUE (`shared/glue.py`), the bundled documentation task
tagging                      token TAB tag files (`bioner/NCBI-disease-IOB`, ...), BioNLP 2004 (`tner/bionlp2004`)
generation                   E2E data-to-text, `meaning representation||text` lines
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolora import models
from shared import bundled, glue, runs, sources
from shared.runs import BadInput

TAGGING = {
    "ncbi": "bioner/NCBI-disease-IOB",
    "bc5cdr": "bioner/BC5CDR-IOB",
    "bc2gm": "bioner/BC2GM-IOB",
    "bionlp2004": "bionlp2004",
}
GENERATION = {"e2e": "nlg/e2e"}
GLUE = {
    "cola": "matthews", "sst2": "accuracy", "mrpc": "accuracy", "stsb": "pearson", "qqp": "accuracy",
    "mnli": "accuracy", "qnli": "accuracy", "rte": "accuracy", "wnli": "accuracy",
}  # fmt: skip
TASKS = ("documentation", *glue.GLUE, *TAGGING, *GENERATION)


@dataclass(frozen=True)
class Part:
    """One part of a task: `texts` are strings, pairs of strings, lists of words (tagging) or meaning representations
    (generation); `labels` numbers, lists of tags (tagging) or lists of reference texts (generation)."""

    ids: np.ndarray
    texts: list[Any]
    labels: Any
    parts: np.ndarray | None = None  # MNLI: matched 0, mismatched 1

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: np.ndarray) -> Part:
        labels = (
            self.labels[chosen]
            if isinstance(self.labels, np.ndarray)
            else [self.labels[i] for i in chosen]
        )
        parts = None if self.parts is None else self.parts[chosen]
        return Part(self.ids[chosen], [self.texts[i] for i in chosen], labels, parts)


@dataclass(frozen=True)
class Task:
    name: str
    kind: str  # classification, regression, tagging, generation
    headline: str  # metric called `score`
    labels: tuple[str, ...]
    train: Part
    test: Part
    validation: Part | None = (
        None  # held-out items beside the training set, where the task has them
    )

    @property
    def outputs(self) -> int:
        return 1 if self.kind == "regression" else len(self.labels)


def read(name: str, stream: torch.Generator, per_class: int = 30, train_items: int = 0) -> Task:
    """The task; `stream` draws the training items of `documentation`, and `train_items` of the others if above 0.

    Official dev sets are the test sets of GLUE; tagging and generation have real test sets."""
    if name == "documentation":
        found = bundled.documentation(stream, per_class)
        parts = [
            Part(p.ids, p.texts, p.labels) for p in (found.train, found.test, found.validation)
        ]
        task = Task(name, "classification", "accuracy", tuple(found.labels), *parts)
    elif name == "tiny":
        task = _tiny()
    elif name in glue.GLUE:
        task = _glue(name)
    elif name in TAGGING:
        task = _tagging(name)
    elif name in GENERATION:
        task = _generation(name)
    else:
        raise BadInput(f"unknown task '{name}'; one of: {', '.join(TASKS)}")
    if train_items and train_items < len(task.train) and name != "documentation":
        chosen = (
            torch.randperm(len(task.train), generator=stream)[:train_items].sort().values.numpy()
        )
        task = replace(task, train=task.train.rows(chosen))
    for part, items in (("training", task.train), ("test", task.test)):
        if not len(items):
            raise BadInput(f"task '{name}': the {part} set is empty")
    return task


def _glue(name: str) -> Task:
    """Training set, and the official dev set as test set (GLUE's own test labels are not public).

    MNLI: both dev sets; `parts` tells matched (0) from mismatched (1) (row 11)."""
    spec = glue.spec(name)
    held_out = ["validation", "validation_mismatched"] if name == "mnli" else ["validation"]
    found = glue.load(name, ["train", *held_out])
    train = found["train"]
    dev = [found[part] for part in held_out]
    labels = np.concatenate([part.labels for part in dev])
    sizes = [len(part) for part in dev]
    ids = len(train) + np.arange(sum(sizes))  # ids of a task are unique over its parts
    parts = np.repeat(np.arange(len(dev)), sizes) if name == "mnli" else None
    texts = [text for part in dev for text in part.texts]
    kind = "classification" if spec.labels else "regression"
    return Task(
        name,
        kind,
        spec.metrics[0],
        spec.labels,
        Part(train.ids, train.texts, train.labels),
        Part(ids, texts, labels, parts),
    )


# --- tagging -------------------------------------------------------------------------------------------------------

BIONLP_TAGS = ("O", "B-DNA", "I-DNA", "B-protein", "I-protein", "B-cell_type", "I-cell_type", "B-cell_line", "I-cell_line",
               "B-RNA", "I-RNA")  # fmt: skip


def _tagging(name: str) -> Task:
    """Training set and test set; the development set is left alone (the official code reports the test set)."""
    folder = TAGGING[name]
    if name == "bionlp2004":
        read_part = lambda part: _bionlp(folder, part)  # noqa: E731
    else:
        root = sources.find_data(folder)
        read_part = lambda part: read_iob(Path(root) / f"{part}.tsv")  # noqa: E731
    sentences = {part: read_part(part) for part in ("train", "test")}
    tags = (
        BIONLP_TAGS
        if name == "bionlp2004"
        else sorted({t for _, ts in sentences["train"] for t in ts}, key=_tag_order)
    )
    number = {tag: i for i, tag in enumerate(tags)}
    parts, first = [], 0
    for part, rows in sentences.items():
        for words, labels in rows:
            if strange := set(labels) - set(number):
                raise BadInput(
                    f"task '{name}', {part} set: tag {sorted(strange)[0]!r} near {words[:5]} is not in the training set"
                )
        ids = np.arange(first, first + len(rows))
        first += len(rows)
        parts.append(
            Part(
                ids,
                [words for words, _ in rows],
                [[number[t] for t in labels] for _, labels in rows],
            )
        )
    return Task(name, "tagging", "f1", tuple(tags), *parts)


def _tag_order(tag: str) -> tuple[bool, str, str]:
    return (tag != "O", tag[2:], tag[:1])


def read_iob(path: Path) -> list[tuple[list[str], list[str]]]:
    """Sentences (words, tags) of a file of `token TAB tag` lines with a blank line between sentences."""
    if not path.exists():
        raise sources.MissingInput(
            f"{path} is missing; layout: train.tsv, devel.tsv, test.tsv with token TAB tag lines"
        )
    sources.note(f"{path.parent.name}/{path.name}", path)
    sentences: list[tuple[list[str], list[str]]] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*path.read_text("utf-8").split("\n"), ""], 1):
        if not line.strip():
            if words:
                sentences.append((words, tags))
                words, tags = [], []
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != 2 or not (fields[1] == "O" or fields[1][:2] in ("B-", "I-")):
            raise BadInput(
                f"{path}, line {number}: expected 'token TAB O|B-type|I-type', got {line[:60]!r}"
            )
        words.append(fields[0])
        tags.append(fields[1])
    return sentences


def _bionlp(folder: str, part: str) -> list[tuple[list[str], list[str]]]:
    """BioNLP 2004 from `dataset/<part>.json` of the folder, the hub's cache, or the hub."""
    found = sources.find_data(folder, "tner/bionlp2004")
    if isinstance(found, sources.Hub):
        import huggingface_hub

        try:
            path = Path(
                huggingface_hub.hf_hub_download(
                    found.id, f"dataset/{part}.json", repo_type="dataset"
                )
            )
        except Exception as error:
            raise sources.MissingInput(
                f"{found.id}/dataset/{part}.json is neither cached nor to be had: {error}"
            ) from error
    else:
        path = found / "dataset" / f"{part}.json"
    sources.note(f"bionlp2004/{part}.json", path)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [(row["tokens"], [BIONLP_TAGS[tag] for tag in row["tags"]]) for row in rows]


# --- data to text ----------------------------------------------------------------------------------------------------


def _generation(name: str) -> Task:
    """One training item per line, one test item per meaning representation with all its references."""
    found = sources.find_data(GENERATION[name], "tuetschek/e2e_nlg")
    lines = {part: _e2e_lines(found, part) for part in ("train", "test")}
    test: dict[str, list[str]] = {}
    for meaning, text in lines["test"]:
        test.setdefault(meaning, []).append(text)
    seen = len(lines["train"])
    train = Part(np.arange(seen), [m for m, _ in lines["train"]], [[t] for _, t in lines["train"]])
    return Task(
        name,
        "generation",
        "bleu",
        (),
        train,
        Part(np.arange(seen, seen + len(test)), list(test), list(test.values())),
    )


def _e2e_lines(found: Path | sources.Hub, part: str) -> list[tuple[str, str]]:
    if isinstance(found, sources.Hub):
        rows = sources.load_hub(found, "nlg/e2e", part)
        return [(_linear(row["meaning_representation"]), row["human_reference"]) for row in rows]
    path = found / f"{part}.txt"
    if not path.exists():
        raise sources.MissingInput(
            f"{path} is missing; layout: train.txt, valid.txt, test.txt, a line `meaning representation||text`"
        )
    sources.note(f"e2e/{part}.txt", path)
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        meaning, bars, text = line.partition("||")
        if not bars:
            raise BadInput(
                f"{path}, line {number}: expected 'meaning representation||text', got {line[:60]!r}"
            )
        pairs.append((meaning.strip(), text.strip()))
    return pairs


def _linear(meaning: str) -> str:
    """`name[Aromi], area[riverside]` of the hub as `name : Aromi | area : riverside` of the text files."""
    return " | ".join(slot.strip().rstrip("]").replace("[", " : ") for slot in meaning.split("],"))


# --- the two levels --------------------------------------------------------------------------------------------------


def levels(task: Task, share: float, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of D_tr and D_val, a split of the training set: stratified by label (by quantile for regression).

    In generation, items with one meaning representation stay together, or D_val would be learned by heart."""
    if not 0 < share < 1:
        raise BadInput(
            f"level_split = {share} must lie in (0, 1): the share of the training set that the inner level sees"
        )
    n = len(task.train)
    if task.kind == "generation":
        group = np.unique(task.train.texts, return_inverse=True)[1]
    else:
        group = np.arange(n)
    strata = (
        task.train.labels
        if isinstance(task.train.labels, np.ndarray)
        else np.zeros(group.max() + 1, dtype=np.int64)
    )
    try:
        inner, held = glue.level_split(strata, (share, 1 - share), generator)
    except ValueError as error:
        raise BadInput(
            f"{n} training items at level_split = {share} leave D_tr or D_val empty: {error}"
        ) from error
    return np.flatnonzero(np.isin(group, inner)), np.flatnonzero(np.isin(group, held))


# --- from text to batches --------------------------------------------------------------------------------------------


@dataclass
class Encoded:
    """A part ready for the network. Either token `columns` (padded per batch) or cached states `hidden`."""

    ids: np.ndarray
    labels: Any  # (n,) array; lists of tags per token; or token lists with -100 (generation)
    columns: dict[str, list[list[int]]] = field(default_factory=dict)
    hidden: Tensor | None = None  # (n, seq, width)
    mask: Tensor | None = None  # (n, seq) bool
    pads: dict[str, int] = field(default_factory=dict)
    pad_to: int = (
        0  # 0: to the longest of the batch (row 18: the official search pads everything to 512)
    )

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """(network inputs, labels) of these rows; labels are padded with -100 where they are per token."""
        if self.hidden is not None and self.mask is not None:
            mask = self.mask[rows]
            longest = int(mask.sum(1).max())
            inputs = {"hidden": self.hidden[rows][:, :longest], "attention_mask": mask[:, :longest]}
        else:
            inputs = {
                name: self._padded([values[i] for i in rows], self.pads[name])
                for name, values in self.columns.items()
            }
        if isinstance(self.labels, np.ndarray):
            labels = torch.from_numpy(self.labels[rows])
        else:
            labels = self._padded([self.labels[i] for i in rows], -100)
        return {name: t.to(device) for name, t in inputs.items()}, labels.to(device)

    def _padded(self, rows: list[list[int]], value: int) -> Tensor:
        longest = max(max(map(len, rows)), self.pad_to)
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def encode(
    task: Task,
    part: Part,
    network: models.Network,
    max_length: int,
    upper_blocks: int,
    pad_to: int = 0,
) -> Encoded:
    """Tokens of a part, truncated to `max_length`; for the upper blocks alone, the states below them (cached)."""
    tokenizer = network.tokenizer
    pads = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    if upper_blocks:
        return _cached_states(task, part, tokenizer, max_length, upper_blocks)
    if task.kind == "tagging":
        columns, labels = _align(part, tokenizer, max_length)
    elif task.kind == "generation":
        columns, labels = _continue(part, tokenizer, max_length)
    else:
        pairs = [[t] if isinstance(t, str) else list(t) for t in part.texts]
        fields = [list(column) for column in zip(*pairs, strict=True)]
        columns = dict(tokenizer(*fields, truncation=True, max_length=max_length))
        labels = part.labels.astype(np.float32 if task.kind == "regression" else np.int64)
    return Encoded(part.ids, labels, columns, pads=pads, pad_to=pad_to)


def _align(part: Part, tokenizer: Any, max_length: int) -> tuple[dict[str, Any], list[list[int]]]:
    """The first piece of a word carries its tag, the others and special tokens -100."""
    tokens = tokenizer(part.texts, is_split_into_words=True, truncation=True, max_length=max_length)
    labels = []
    for row, tags in enumerate(part.labels):
        words = tokens.word_ids(row)
        labels.append(
            [
                -100 if w is None or w == before else tags[w]
                for before, w in zip([None, *words], words)
            ]
        )
    return dict(tokens), labels


def _continue(
    part: Part, tokenizer: Any, max_length: int
) -> tuple[dict[str, Any], list[list[int]]]:
    """Meaning representation, end-of-text, reference, end-of-text; the loss is on reference and its end."""
    end = tokenizer.eos_token_id
    ids, labels = [], []
    for meaning, references in zip(part.texts, part.labels):
        prompt = [*tokenizer(meaning)["input_ids"], end]
        answer = [*tokenizer(" " + references[0])["input_ids"], end]
        ids.append((prompt + answer)[:max_length])
        labels.append(([-100] * len(prompt) + answer)[:max_length])
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}, labels


def _cached_states(
    task: Task, part: Part, tokenizer: Any, max_length: int, upper_blocks: int
) -> Encoded:
    """States of the frozen lower blocks in evaluation mode: computed once per text set, kept under .cache/."""
    if task.kind != "classification":
        raise BadInput(
            f"upper_blocks = {upper_blocks} is offered for classification only, not for {task.kind}"
        )
    digest = hashlib.sha256("\x1f".join(part.texts).encode()).hexdigest()

    def make() -> dict[str, Tensor]:
        tokens = dict(
            tokenizer(
                part.texts,
                truncation=True,
                max_length=max_length,
                padding="max_length",
                return_tensors="pt",
            )
        )
        encoder = bundled.minilm()[0]
        blocks = encoder.config.num_hidden_layers - upper_blocks
        return {
            "hidden": models.lower_states(encoder, tokens, blocks),
            "mask": tokens["attention_mask"].bool(),
        }

    states = runs.cached(
        ("autolora lower states", bundled.MINILM_SHA256, digest, max_length, upper_blocks), make
    )
    return Encoded(part.ids, part.labels, hidden=states["hidden"], mask=states["mask"])


# --- sample rows in each source's own layout, for rehearsals and tests -------------------------------------------------


def sample_files(name: str, n: int, stream: torch.Generator) -> dict[str, str]:
    """Invented rows of a tagging or generation task: file name below `REPRO_DATA` -> content."""

    def pick(*options: str) -> str:
        return options[int(torch.randint(len(options), (1,), generator=stream))]

    def e2e() -> str:
        name, area = pick("Aromi", "Zizzi", "Cotto"), pick("riverside", "city centre")
        return f"name : {name} | area : {area}||{name} is a place in the {area} .\n"

    def iob() -> str:
        return f"The\tO\n{pick('BRCA1', 'APC')}\tB-Disease\ngene\tI-Disease\n{pick('acts', 'binds')}\tO\n.\tO\n\n"

    def bionlp() -> str:
        words = ["The", pick("NF-kB", "IL-2"), "gene", pick("acts", "binds"), "."]
        return json.dumps({"tokens": words, "tags": [0, 1, 2, 0, 0]}) + "\n"

    if name in GENERATION:
        files, row = [f"nlg/e2e/{part}.txt" for part in ("train", "valid", "test")], e2e
    elif name == "bionlp2004":
        files, row = (
            [f"bionlp2004/dataset/{part}.json" for part in ("train", "valid", "test")],
            bionlp,
        )
    else:
        files, row = [f"{TAGGING[name]}/{part}.tsv" for part in ("train", "devel", "test")], iob
    return {file: "".join(row() for _ in range(n)) for file in files}


def _tiny() -> Task:
    """160 invented sentences about two subjects, for `--tiny`: nothing is read, nothing is learned about the method."""
    subjects = [("engine", "wheel", "road", "driver"), ("soup", "bread", "oven", "cook")]
    tails = (
        "was seen again",
        "is not what it was",
        "came too late",
        "pleased nobody",
        "needs some rest",
    )
    texts, labels = [], []
    for label, words in enumerate(subjects):
        for first in words:
            for second in words:
                for tail in tails:
                    texts.append(f"The {first} of the {second} {tail}.")
                    labels.append(label)
    order = torch.randperm(len(texts), generator=runs.stream(0, "tiny")).numpy()
    whole = Part(np.arange(len(texts)), texts, np.array(labels))
    return Task(
        "tiny",
        "classification",
        "accuracy",
        ("car", "food"),
        whole.rows(order[:100]),
        whole.rows(order[100:]),
    )
