"""Questions and their answers: digits as grey-level words, the documentation task, GLUE and SuperGLUE."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ppo_nlu import prompts
from ppo_nlu.prompts import CLOSE, Task

TEST, VALIDATION, START = 397, 300, 300  # digits: sizes of the specification; the rest (800) trains


@dataclass(frozen=True)
class Item:
    """One question.  group, value: answers to one question belong together (MultiRC, ReCoRD; see evaluate.py)."""

    id: int
    fields: dict[str, str]
    label: float
    group: int = -1
    value: float = 0.0
    task: str = ""  # of a mixture


@dataclass(frozen=True)
class Data:
    task: Task
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    start: list[Item] = field(
        default_factory=list
    )  # what the starting policy of a run was made from


def load(
    name: str,
    generator: torch.Generator,
    noise: torch.Generator,
    flip: float = 0.0,
    limit: int = 0,
    sample: bool = False,
    start: bool = True,
) -> Data:
    """The data of task `name`.  Training labels are flipped with probability `flip`; `limit` > 0 cuts the training
    part; `sample`: made-up rows, for rehearsals."""
    if name.startswith("digits"):
        data = digits(generator)
    elif name == "documentation":
        data = documentation(generator)
    else:
        data = benchmark(name, generator, sample, start)
    train = data.train[:limit] if limit else data.train
    checked(name, data.task, train, data.test)
    return replace(data, train=flipped(data.task, train, flip, noise))


def checked(name: str, task: Task, train: list[Item], test: list[Item]) -> None:
    """Refuse an empty part and a label outside the answer set."""
    if not train or not test:
        raise ValueError(
            f"{name}: {len(train)} training and {len(test)} test items; both parts must hold some items"
        )
    for item in [*train, *test]:
        task.label(item.label)


def task_of(item: Item, default: Task) -> Task:
    return prompts.task(item.task) if item.task else default


def mixed(parts: list[Data], generator: torch.Generator, least: int = 0) -> Data:
    """Several tasks as one; each is repeated until it has `least` training rows (the official code: 30,000).

    Validation and test items are those of the first task: a mixture only trains."""
    start, train = [], []
    for number, part in enumerate(parts):
        tag = lambda x, t=part.task.name, n=number: replace(x, task=t, id=x.id + n * 1_000_000_000)  # noqa: E731
        rows = [tag(x) for x in part.train]
        train += rows * max(1, -(-least // len(rows)))
        start += [tag(x) for x in part.start]
    order = torch.randperm(len(start), generator=generator).tolist()
    return replace(parts[0], train=train, start=[start[i] for i in order])


def flipped(task: Task, items: list[Item], share: float, generator: torch.Generator) -> list[Item]:
    """Each label becomes another one, drawn uniformly, with probability `share`."""
    if share == 0:
        return items
    if task.number:
        raise ValueError(f"{task.name}: flip = {share} needs a fixed set of answers, not a number")
    hit = torch.rand(len(items), generator=generator) < share
    other = torch.randint(1, len(task.words), (len(items),), generator=generator).tolist()
    n = len(task.words)
    return [
        replace(x, label=(int(x.label) + o) % n) if h else x
        for x, h, o in zip(items, hit.tolist(), other)
    ]


# --- digits -----------------------------------------------------------------------------------------------------------


def digits(generator: torch.Generator) -> Data:
    """ "Is this digit at least five?"  Each 8 x 8 image becomes 16 words: means of 2 x 2 blocks in 16 grey levels.

    The test items are the same for every seed; the seed cuts the rest into start, validation and training."""
    from shared import bundled

    images, digit = bundled.digits()
    blocks = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    level = np.minimum(blocks * 16, 15).astype(int)
    items = [
        Item(i, {"pixels": " ".join(f"g{v}" for v in row)}, int(d >= 5))
        for i, (row, d) in enumerate(zip(level, digit))
    ]
    fixed = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    test, rest = fixed[:TEST], torch.tensor(sorted(fixed[TEST:]))
    rest = rest[torch.randperm(len(rest), generator=generator)].tolist()
    pick = lambda rows: [items[i] for i in rows]  # noqa: E731
    return Data(prompts.task("digits"), pick(rest[VALIDATION + START :]), pick(rest[:VALIDATION]), pick(test),
                pick(rest[VALIDATION : VALIDATION + START]))  # fmt: skip


def half_knowing(
    task: Task, items: list[Item], right: float, malformed: float, generator: torch.Generator
) -> list[str]:
    """Answers of a teacher who half knows: `malformed` of them break the format, `right` of the others are right.

    A policy trained on these has heard of format and task, like a chat model: what every arm starts from."""
    texts, default = [], task
    for item in items:
        task = task_of(item, default)
        n = len(task.words)
        u, v, w = torch.rand(3, generator=generator).tolist()
        if u < malformed:
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


# --- documentation ----------------------------------------------------------------------------------------------------


def documentation(generator: torch.Generator, per_class: int = 100, characters: int = 160) -> Data:
    """Which subpackage does a text document?  1,000 training texts; answers are the subpackages' last names."""
    from shared import bundled

    found = bundled.documentation(generator, per_class + 20)
    words = tuple(label.split(".")[-1].capitalize() for label in found.labels)
    if len(set(words)) < len(words):
        raise ValueError(f"documentation: answer words are not distinct: {words}")
    task = Task("documentation", "", (("text", ""),), words, plain=True)
    items = [
        [
            Item(int(i), {"text": text[:characters]}, int(y))
            for i, text, y in zip(part.ids, part.texts, part.labels)
        ]
        for part in (found.train, found.validation, found.test)
    ]
    cut = 20 * len(words)  # train is ordered rank first, class second: the first rows are balanced
    return Data(task, items[0][cut:], items[1], items[2], items[0][:cut])


# --- GLUE and SuperGLUE -------------------------------------------------------------------------------------------------

HELD_OUT = 0.1  # of the training file, for choosing rates; the development set is only reported on
_RENAMED = {
    "question1": "sentence1", "question2": "sentence2", "paragraph": "passage", "span1_text": "noun", "span2_text": "pronoun",
}  # fmt: skip


def benchmark(
    name: str, generator: torch.Generator, sample: bool = False, start: bool = True
) -> Data:
    """Training file -> start, validation and training items; the development set is the test set (labels of the
    benchmarks' own test sets are not public).  `sample`: made-up rows in the task's own layout."""
    from shared import glue, runs

    parts = (
        ("train", "validation", "validation_mismatched")
        if name == "mnli"
        else ("train", "validation")
    )
    with made_up(name) if sample else contextlib.nullcontext():
        found = glue.load(name, parts)
    task = prompts.task(name)
    files = [_items(name, found[part], shift) for shift, part in enumerate(parts)]
    train = _record_pairs(files[0], generator) if name == "record" else files[0]
    if name == "mnli":  # both development sets: rows of group 0 and 1
        files[1:] = [[replace(x, group=g) for g, file in enumerate(files[1:]) for x in file]]
    order = torch.randperm(len(train), generator=generator).tolist()
    cut = max(1, min(1000, int(HELD_OUT * len(train))))
    pick = lambda rows: [train[i] for i in rows]  # noqa: E731
    if len(order) <= 2 * cut:
        raise runs.BadInput(
            f"{name}: {len(train)} training rows are too few to hold out {cut} for validation and {cut} to start"
        )
    first = 2 * cut if start else cut  # a hub model needs no rows to start from
    return Data(task, pick(order[first:]), pick(order[:cut]), files[1], pick(order[cut:first]))


def _items(name: str, split, file: int) -> list[Item]:
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
        items.append(
            Item(
                int(i) + file * 10_000_000,
                fields,
                float(label) if name == "stsb" else int(label),
                group,
                value,
            )
        )
    return items


def _record_pairs(items: list[Item], generator: torch.Generator) -> list[Item]:
    """ReCoRD trains on two candidates per query: a random right one and a random wrong one."""
    queries: dict[int, list[Item]] = {}
    for item in items:
        queries.setdefault(item.group, []).append(item)
    chosen = []
    for candidates in queries.values():
        for label in (1, 0):
            some = [x for x in candidates if x.label == label]
            if some:
                chosen.append(some[int(torch.randint(len(some), (), generator=generator))])
    return chosen


@contextlib.contextmanager
def made_up(name: str, rows: int = 64) -> Iterator[None]:
    """Within the block the loader finds made-up rows of this task, in the task's own layout."""
    from shared import glue, runs, sources

    with tempfile.TemporaryDirectory() as folder:
        glue.write_sample(Path(folder), name, rows, runs.stream(0, "rehearsal", name))
        with sources.pointed_at(REPRO_DATA=folder):
            yield
