"""Questions and answers: sentences that people rated, digits as words, GLUE and SuperGLUE."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppo_nlu import prompts
from ppo_nlu.config import Config
from ppo_nlu.prompts import CLOSE, Task
from shared import runs
from shared.protocol import BadInput

if TYPE_CHECKING:
    from shared.glue import Split


@dataclass(frozen=True)
class Item:
    """One question. group, value: answers to one question belong together (evaluate.py)."""

    id: int
    fields: dict[str, str]
    label: float
    group: int = -1
    value: float = 0.0
    task: str = ""  # of a mixture


@dataclass(frozen=True)
class Data:
    """The items of a task. start: what a policy trained in the run is made from. everything: all
    other parts, whatever the limits of the run."""

    task: Task
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    start: list[Item] = field(default_factory=list)
    everything: list[Item] = field(default_factory=list)

    def ids(self) -> dict[str, list[int]]:
        """Which items are in which part, for the record."""
        parts = {name: getattr(self, name) for name in ("train", "validation", "test", "start")}
        return {name: sorted({x.id for x in part}) for name, part in parts.items() if part}


def load(config: Config) -> Data:
    """The items of the run's task, or of its mixture. Arms of a seed draw the same."""
    names = config.mixture or (config.task,)
    tasks = [load_task(name, config) for name in names]
    if config.mixture:
        least = 30_000 if config.scale == "paper" else 0
        items = mixed(tasks, least)
    else:
        (items,) = tasks
    everything = [*items.train, *items.validation, *items.test]
    return replace(items, test=items.test[: config.test_limit or None], everything=everything)


def load_task(name: str, config: Config) -> Data:
    """The data of task `name`, for this run's seed and scale."""
    generator = runs.stream(config.seed, "split")
    if name in RATED:
        data = rated(name, generator, config.train_limit)
    elif name == "digits":
        data = digits(generator)
    else:
        data = benchmark(name, generator, config)
    train = data.train[: config.train_limit or None]
    checked(name, data.task, train, data.test)
    return replace(data, train=train)


def rows_of_steps(n: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """(steps, batch) rows of n: shuffled epochs one after the other, drawn from one generator.

    What an epoch leaves over (1 to batch - 1 rows) is left out of it; the official trainer stops
    with an error when 1 to 8 rows remain (D19)."""
    if n < batch:
        what = f"{n} training items do not fill one batch of {batch}"
        raise BadInput(f"{what}; set --batch {n} or give more data")
    per = n // batch
    epochs = [
        torch.randperm(n, generator=generator)[: per * batch].view(per, batch)
        for _ in range(-(-steps // per))
    ]
    return torch.cat(epochs)[:steps]


def checked(name: str, task: Task, train: list[Item], test: list[Item]) -> None:
    """Refuse an empty part and a label outside the answer set."""
    if not train or not test:
        sizes = f"{len(train)} training and {len(test)} test items"
        raise BadInput(f"{name}: {sizes}; both parts must hold some items")
    for item in [*train, *test]:
        task.label(item.label)


def task_of(item: Item, default: Task) -> Task:
    return prompts.task(item.task) if item.task else default


def mixed(parts: list[Data], least: int = 0) -> Data:
    """Several tasks as one; each is repeated until it has `least` training rows (the official code:
    30,000).

    Validation and test items are those of the first task: a mixture only trains."""
    train: list[Item] = []
    for number, part in enumerate(parts):
        shift, name = number * 1_000_000_000, part.task.name
        rows = [replace(x, task=name, id=x.id + shift) for x in part.train]
        train += rows * max(1, -(-least // len(rows)))
    return replace(parts[0], train=train)


# --- sentences that people rated ------------------------------------------------------------------

# task: domain, whether a sign is asked for, and the sizes of the training and test parts
RATED = {"movie": ("movie", True, 400, 400), "rating": ("tweets", False, 1920, 600)}
RATED_VALIDATION = 100


def rated(name: str, generator: torch.Generator, limit: int = 0) -> Data:
    """movie: is a sentence of a review negative or positive? rating: how positive is a message,
    from 0 to 5 (the mean of 20 people's ratings, -3 and less to 3 and more)?

    Which items train, `limit` of them if it is not 0, is the same for all seeds, so that prompts
    are computed once; the order is the seed's, in which training and validation items are taken."""
    from shared import bundled

    domain, binary, train, test = RATED[name]
    train = min(train, limit + limit % 2) if limit else train  # as many of either sign
    source = bundled.ratings(domain, runs.stream(0, "pool"), train, binary)

    def drawn(part: Split, size: int) -> list[Item]:
        order = torch.randperm(size, generator=generator).tolist()
        return [_rated_item(part, i, binary) for i in order]

    fixed = [_rated_item(source.test, i, binary) for i in range(test)]
    training = drawn(source.train, train)
    return Data(prompts.task(name), training, drawn(source.validation, RATED_VALIDATION), fixed)


def _rated_item(part: Split, i: int, binary: bool) -> Item:
    y = part.labels[i]
    label = int(y) if binary else float(np.clip(2.5 + y * 5 / 6, 0, 5))
    return Item(int(part.ids[i]), {"sentence": part.texts[i]}, label)


# --- digits ---------------------------------------------------------------------------------------

TEST, VALIDATION, START = 397, 300, 300  # the rest (800) trains; docs/papers/ppo_nlu.md, section 9


def digits(generator: torch.Generator) -> Data:
    """ "Is this digit at least five?" Each 8 x 8 image becomes 16 words: means of 2 x 2 blocks in
    16 grey levels.

    The test items are the same for every seed; the seed cuts the rest into start, validation and
    training."""
    from shared import bundled

    images, digit = bundled.digits()
    blocks = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    level = np.minimum(blocks * 16, 15).astype(int)
    items = [
        Item(i, {"pixels": " ".join(f"g{v}" for v in row)}, int(d >= 5))
        for i, (row, d) in enumerate(zip(level, digit))
    ]
    fixed = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    test, others = fixed[:TEST], sorted(fixed[TEST:])
    rest = [others[i] for i in torch.randperm(len(others), generator=generator).tolist()]

    def pick(rows: list[int]) -> list[Item]:
        return [items[i] for i in rows]

    start = rest[VALIDATION : VALIDATION + START]
    train = rest[VALIDATION + START :]
    task = prompts.task("digits")
    return Data(task, pick(train), pick(rest[:VALIDATION]), pick(test), pick(start))


MALFORMED = 0.15


def half_knowing(
    task: Task, items: list[Item], right: float, generator: torch.Generator
) -> list[str]:
    """A teacher who half knows: 15 % of answers break the format, `right` of the others are right.

    A policy trained on these has heard of format and task, like a chat model: what every arm starts
    from."""
    texts, n = [], len(task.words)
    for item in items:
        u, v, w = torch.rand(3, generator=generator).tolist()
        if u < MALFORMED:
            both = " ".join(task.words[:2]) or "2 3"
            broken = [
                f" Maybe {CLOSE}",
                f" Both {CLOSE}",
                f" {task.word(item.label)}",
                f" {both} {CLOSE}",
            ]
            texts.append(broken[int(v * len(broken))])
        elif v < right:
            texts.append(prompts.target(task, item.label))
        else:
            wrong = 5 * w if task.number else (int(item.label) + 1 + int(w * (n - 1))) % n
            texts.append(prompts.target(task, wrong))
    return texts


# --- GLUE and SuperGLUE ---------------------------------------------------------------------------

HELD_OUT = 0.1  # of the training file, for choosing rates; the development set is only reported on
_RENAMED = {
    "question1": "sentence1",
    "question2": "sentence2",
    "paragraph": "passage",
    "span1_text": "noun",
    "span2_text": "pronoun",
}


def benchmark(name: str, generator: torch.Generator, config: Config) -> Data:
    """Training file -> validation and training items; the development set is the test set (labels
    of the benchmarks' own test sets are not public: server.py). Rehearsals: made-up rows in the
    task's own layout."""
    from shared import glue

    task, rehearsal = prompts.task(name), config.scale == "rehearsal"
    parts: tuple[str, ...] = ("train", "validation")
    if name == "mnli":
        parts = (*parts, "validation_mismatched")
    with made_up(name) if rehearsal else contextlib.nullcontext():
        splits = glue.load(name, parts)
    files = [items_of(name, splits[part], shift) for shift, part in enumerate(parts)]
    train = _record_pairs(files[0], generator) if name == "record" else files[0]
    if name == "mnli":  # both development sets: rows of group 0 and 1
        files[1:] = [[replace(x, group=g) for g, file in enumerate(files[1:]) for x in file]]
    order = torch.randperm(len(train), generator=generator).tolist()
    cut = max(1, min(1000, int(HELD_OUT * len(train))))
    start = 0 if config.from_hub else cut  # rows that a policy trained in the run is made from
    if len(order) <= cut + start:
        few = f"{len(train)} training rows are too few"
        raise BadInput(f"{name}: {few} to hold out {cut} for validation and {start} to start")
    shuffled = [train[i] for i in order]
    begin = cut + start
    return Data(task, shuffled[begin:], shuffled[:cut], files[1], shuffled[cut:begin])


def items_of(name: str, split: Split, file: int = 0) -> list[Item]:
    """Rows of a benchmark's file under the names of `prompts.TASKS`; file: number of the file."""
    from shared import glue

    keys = glue.spec(name).hub[:-1]
    items = []
    for row, (i, text, label) in enumerate(zip(split.ids, split.texts, split.labels)):
        values = dict(zip(keys, text))
        fields = {_RENAMED.get(key, key): value for key, value in values.items()}
        if name == "super_rte":
            fields = {"sentence1": values["premise"], "sentence2": values["hypothesis"]}
        elif name == "boolq":
            fields["question"] += "?"
        elif name == "record":
            fields["passage"] = values["passage"].split("@highlight")[0].strip()
            fields["query"] = values["query"].replace("@placeholder", values["entity"])
        group = int(split.groups[row]) if split.groups is not None else -1
        value = float(split.values[row]) if split.values is not None else 0.0
        y = float(label) if name == "stsb" else int(label)
        items.append(Item(int(i) + file * 10_000_000, fields, y, group, value))
    return items


def _record_pairs(items: list[Item], generator: torch.Generator) -> list[Item]:
    """ReCoRD trains on two candidates per query: a random right one and a random wrong one."""
    of_query: dict[int, list[Item]] = {}
    for item in items:
        of_query.setdefault(item.group, []).append(item)
    chosen = []
    for candidates in of_query.values():
        for label in (1, 0):
            some = [x for x in candidates if x.label == label]
            if some:
                chosen.append(some[int(torch.randint(len(some), (), generator=generator))])
    return chosen


@contextlib.contextmanager
def made_up(name: str, rows: int = 64) -> Iterator[None]:
    """Within the block the loader finds made-up rows of this task, in the task's own layout."""
    from shared import glue, sources

    with tempfile.TemporaryDirectory() as folder:
        glue.write_sample(Path(folder), name, rows, runs.stream(0, "rehearsal", name))
        with sources.pointed_at(REPRO_DATA=folder):
            yield
