"""Questions and answers: digits as grey-level words, documentation, GLUE and SuperGLUE."""

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
    """The items of a task; `start`: what the starting policy of a run is made from."""

    task: Task
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    start: list[Item] = field(default_factory=list)

    def ids(self) -> dict[str, list[int]]:
        """Which items are in which part, for the record."""
        parts = {name: getattr(self, name) for name in ("train", "validation", "test", "start")}
        return {name: sorted({x.id for x in part}) for name, part in parts.items() if part}


def load(config: Config) -> Data:
    """The items of the run's task, or of its mixture. Arms of a seed draw the same."""
    tasks = [
        load_task(
            name,
            runs.stream(config.seed, "split"),
            runs.stream(config.seed, "flip"),
            config.flip,
            config.train_limit,
            sample=config.scale == "rehearsal",
            start=not config.from_hub,
        )
        for name in config.mixture or (config.task,)
    ]
    if config.mixture:
        least = 30_000 if config.from_hub else 0
        items = mixed(tasks, runs.stream(config.seed, "mixture"), least)
    else:
        (items,) = tasks
    first = config.test_limit or None
    return replace(items, test=items.test[:first], validation=items.validation[:first])


def load_task(
    name: str,
    generator: torch.Generator,
    noise: torch.Generator,
    flip: float = 0.0,
    limit: int = 0,
    sample: bool = False,
    start: bool = True,
) -> Data:
    """The data of task `name`. Training labels are flipped with probability `flip`; `limit` > 0
    cuts the training part; `sample`: made-up rows, for rehearsals; `start`: set rows aside for a
    starting policy."""
    if name.startswith("digits"):
        data = digits(generator)
    elif name == "documentation":
        data = documentation(generator)
    else:
        data = benchmark(name, generator, sample, start)
    train = data.train[:limit] if limit else data.train
    checked(name, data.task, train, data.test)
    return replace(data, train=flipped(data.task, train, flip, noise))


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


def mixed(parts: list[Data], generator: torch.Generator, least: int = 0) -> Data:
    """Several tasks as one; each is repeated until it has `least` training rows (the official code:
    30,000).

    Validation and test items are those of the first task: a mixture only trains."""
    start: list[Item] = []
    train: list[Item] = []
    for number, part in enumerate(parts):
        shift, name = number * 1_000_000_000, part.task.name
        rows = [replace(x, task=name, id=x.id + shift) for x in part.train]
        train += rows * max(1, -(-least // len(rows)))
        start += [replace(x, task=name, id=x.id + shift) for x in part.start]
    order = torch.randperm(len(start), generator=generator).tolist()
    return replace(parts[0], train=train, start=[start[i] for i in order])


def flipped(task: Task, items: list[Item], share: float, generator: torch.Generator) -> list[Item]:
    """Each label becomes another one, drawn uniformly, with probability `share`."""
    if share == 0:
        return items
    if task.number:
        raise BadInput(f"{task.name}: flip = {share} needs a fixed set of answers, not a number")
    hit = torch.rand(len(items), generator=generator) < share
    other = torch.randint(1, len(task.words), (len(items),), generator=generator).tolist()
    n = len(task.words)
    return [
        replace(x, label=(int(x.label) + o) % n) if h else x
        for x, h, o in zip(items, hit.tolist(), other)
    ]


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
    texts, default = [], task
    for item in items:
        task = task_of(item, default)
        n = len(task.words)
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


# --- documentation --------------------------------------------------------------------------------


def documentation(generator: torch.Generator, per_class: int = 100, characters: int = 160) -> Data:
    """Which subpackage does a text document? Answers are the subpackages' last names."""
    from shared import bundled

    source = bundled.documentation(generator, per_class + 20)
    words = tuple(label.split(".")[-1].capitalize() for label in source.labels)
    if len(set(words)) < len(words):
        raise BadInput(f"documentation: answer words are not distinct: {words}")
    task = Task("documentation", "", (("text", ""),), words, plain=True)
    items = [
        [
            Item(int(i), {"text": text[:characters]}, int(y))
            for i, text, y in zip(part.ids, part.texts, part.labels)
        ]
        for part in (source.train, source.validation, source.test)
    ]
    cut = 20 * len(words)  # train is ordered rank first, class second: the first rows are balanced
    return Data(task, items[0][cut:], items[1], items[2], items[0][:cut])


# --- GLUE and SuperGLUE ---------------------------------------------------------------------------

HELD_OUT = 0.1  # of the training file, for choosing rates; the development set is only reported on
_RENAMED = {
    "question1": "sentence1",
    "question2": "sentence2",
    "paragraph": "passage",
    "span1_text": "noun",
    "span2_text": "pronoun",
}


def benchmark(
    name: str, generator: torch.Generator, sample: bool = False, start: bool = True
) -> Data:
    """Training file -> start, validation and training items; the development set is the test set
    (labels of the benchmarks' own test sets are not public).  `sample`: made-up rows in the task's
    own layout."""
    from shared import glue

    task = prompts.task(name)
    parts: tuple[str, ...] = ("train", "validation")
    if name == "mnli":
        parts = (*parts, "validation_mismatched")
    with made_up(name) if sample else contextlib.nullcontext():
        splits = glue.load(name, parts)
    files = [_items(name, splits[part], shift) for shift, part in enumerate(parts)]
    train = _record_pairs(files[0], generator) if name == "record" else files[0]
    if name == "mnli":  # both development sets: rows of group 0 and 1
        files[1:] = [[replace(x, group=g) for g, file in enumerate(files[1:]) for x in file]]
    order = torch.randperm(len(train), generator=generator).tolist()
    cut = max(1, min(1000, int(HELD_OUT * len(train))))
    if len(order) <= 2 * cut:
        few = f"{len(train)} training rows are too few"
        raise BadInput(f"{name}: {few} to hold out {cut} for validation and {cut} to start")
    first = 2 * cut if start else cut  # a hub model needs no rows to start from
    shuffled = [train[i] for i in order]
    return Data(task, shuffled[first:], shuffled[:cut], files[1], shuffled[cut:first])


def _items(name: str, split: Split, file: int) -> list[Item]:
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
