"""Tasks: what is read, and how its training set is split between the two levels.

classification, regression   GLUE (`shared/glue.py`), the bundled movie sentences
tagging, generation          `corpora.py`
planted                      `planted.py`
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from autolora import corpora
from shared import bundled, glue, runs
from shared.runs import BadInput

TASKS = ("planted", "planted_rules", "movie", *glue.GLUE, *corpora.TAGGING, *corpora.GENERATION)
LARGE = "_large"  # ending of a task of GLUE whose network is RoBERTa-large

Kind = Literal["classification", "regression", "tagging", "generation", "planted"]


@dataclass(frozen=True)
class Part:
    """The items of one part of a task.

    texts: strings, pairs of strings, lists of words (tagging), meaning representations
        (generation), input vectors (planted)
    labels: (n,) numbers, lists of tag numbers (tagging), lists of reference texts (generation), or
        output vectors, (n, d) (planted)
    """

    ids: np.ndarray
    texts: list[Any]
    labels: np.ndarray | list[Any]
    parts: np.ndarray | None = None  # MNLI: matched 0, mismatched 1

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: np.ndarray) -> Part:
        labels = self.labels
        labels = labels[chosen] if isinstance(labels, np.ndarray) else [labels[i] for i in chosen]
        parts = None if self.parts is None else self.parts[chosen]
        return Part(self.ids[chosen], [self.texts[i] for i in chosen], labels, parts)


@dataclass(frozen=True)
class Task:
    """A task. Ids of items are unique over its parts."""

    name: str
    kind: Kind
    headline: str  # metric called `score`
    labels: tuple[str, ...]
    train: Part
    test: Part
    validation: Part | None = None  # items beside the training set, where the task has them
    true_ranks: tuple[int, ...] = ()  # of the maps in depth order, where they are planted

    @property
    def outputs(self) -> int:
        return 1 if self.kind == "regression" else len(self.labels)


def read(name: str, stream: torch.Generator, train_items: int = 0) -> Task:
    """The task; `stream` draws `train_items` training items, 0 for all.

    Official dev sets are the test sets of GLUE; tagging and generation have real test sets. The
    planted task comes with its network, from `planted.problem`."""
    if name == "movie":
        return _movie(stream, train_items)
    if name == "tiny":
        task = _tiny()
    elif name.removesuffix(LARGE) in glue.GLUE:
        task = _glue(name.removesuffix(LARGE))
    elif name in corpora.TAGGING:
        task = _tagging(name)
    elif name in corpora.GENERATION:
        task = _generation(name)
    else:
        raise BadInput(f"unknown task '{name}'; one of: {', '.join(TASKS)}")
    if 0 < train_items < len(task.train):
        chosen = torch.randperm(len(task.train), generator=stream)[:train_items].sort().values
        task = replace(task, train=task.train.rows(chosen.numpy()))
    for part, items in (("training", task.train), ("test", task.test)):
        if not len(items):
            raise BadInput(f"task '{name}': the {part} set is empty; put its items into the file")
    return task


def _movie(stream: torch.Generator, train_items: int) -> Task:
    task = bundled.ratings("movie", stream, train_items or 300, binary=True)
    splits = task.train, task.test, task.validation
    train, test, validation = (Part(p.ids, p.texts, p.labels) for p in splits)
    return Task("movie", "classification", "accuracy", task.labels, train, test, validation)


def _glue(name: str) -> Task:
    """Training set, and the official dev set as test set (GLUE's own test labels are not public).

    MNLI: both dev sets; `parts` tells matched (0) from mismatched (1)."""
    spec = glue.spec(name)
    dev_names = ["validation", "validation_mismatched"] if name == "mnli" else ["validation"]
    splits = glue.load(name, ["train", *dev_names])
    train, dev = splits["train"], [splits[part] for part in dev_names]
    sizes = [len(part) for part in dev]
    test = Part(
        len(train) + np.arange(sum(sizes)),
        [text for part in dev for text in part.texts],
        np.concatenate([part.labels for part in dev]),
        np.repeat(np.arange(len(dev)), sizes) if name == "mnli" else None,
    )
    kind: Kind = "classification" if spec.labels else "regression"
    rows = Part(train.ids, train.texts, train.labels)
    # the paper scores STS-B by Spearman's correlation
    headline = "spearman" if name == "stsb" else spec.metrics[0]
    return Task(name, kind, headline, spec.labels, rows, test)


def _tagging(name: str) -> Task:
    """Training set and test set; the development set is left alone (official: the test set)."""
    sentences = {part: corpora.sentences(name, part) for part in ("train", "test")}
    if name == "bionlp2004":
        tags = list(corpora.BIONLP_TAGS)
    else:
        in_train = {tag for sentence in sentences["train"] for tag in sentence.tags}
        tags = sorted(in_train, key=lambda tag: (tag != "O", tag[2:], tag[:1]))
    number = {tag: i for i, tag in enumerate(tags)}
    parts, first = [], 0
    for rows in sentences.values():
        for sentence in rows:
            if strange := sorted(set(sentence.tags) - set(number)):
                where = f"{sentence.at}: tag {strange[0]!r} of this sentence is not in the training"
                raise BadInput(f"{where} set. Remedy: use one of {', '.join(tags)}")
        ids = np.arange(first, first + len(rows))
        first += len(rows)
        labels_of = [[number[tag] for tag in sentence.tags] for sentence in rows]
        parts.append(Part(ids, [sentence.words for sentence in rows], labels_of))
    return Task(name, "tagging", "f1", tuple(tags), parts[0], parts[1])


def _generation(name: str) -> Task:
    """One training item per line, one test item per meaning representation with its references."""
    train = corpora.pairs(name, "train")
    references: dict[str, list[str]] = {}
    for meaning, text in corpora.pairs(name, "test"):
        references.setdefault(meaning, []).append(text)
    n, n_test = len(train), len(references)
    rows = Part(np.arange(n), [meaning for meaning, _ in train], [[text] for _, text in train])
    test = Part(np.arange(n, n + n_test), list(references), list(references.values()))
    return Task(name, "generation", "bleu", (), rows, test)


def _tiny() -> Task:
    """160 made-up sentences about two subjects, for `--tiny`: nothing is read."""
    subjects = [("engine", "wheel", "road", "driver"), ("soup", "bread", "oven", "cook")]
    tails = ["was seen again", "is not what it was", "came too late", "pleased nobody"]
    tails.append("needs some rest")
    items = [
        (f"The {first} of the {second} {tail}.", label)
        for label, words in enumerate(subjects)
        for first, second, tail in itertools.product(words, words, tails)
    ]
    order = torch.randperm(len(items), generator=runs.stream(0, "tiny")).numpy()
    texts, labels = zip(*items)
    whole = Part(np.arange(len(items)), list(texts), np.array(labels))
    parts = whole.rows(order[:100]), whole.rows(order[100:])
    return Task("tiny", "classification", "accuracy", ("car", "food"), *parts)


# --- the two levels ------------------------------------------------------------------------------


def levels(task: Task, share: float, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of D_tr and D_val: a split of the training set, stratified by label (or its quantile).

    In generation, items with one meaning representation stay together, or D_val would be learned by
    heart. Raises BadInput where a level would be empty."""
    n = len(task.train)
    group = np.arange(n)
    if task.kind == "generation":
        group = np.unique(task.train.texts, return_inverse=True)[1]
    strata = task.train.labels
    if not isinstance(strata, np.ndarray) or strata.ndim > 1:
        strata = np.zeros(group.max() + 1, dtype=np.int64)
    try:
        inner, outer = glue.level_split(strata, (share, 1 - share), generator)
    except ValueError as error:
        empty = f"{n} training items at level_split = {share} leave D_tr or D_val empty"
        raise BadInput(f"{empty}: {error}") from error
    return np.flatnonzero(np.isin(group, inner)), np.flatnonzero(np.isin(group, outer))
