"""Questions and their answers: digits as grey-level words, the documentation task, GLUE and SuperGLUE."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ppo_nlu import prompts
from ppo_nlu.prompts import Task

TEST, VALIDATION, START = 397, 300, 300  # digits: sizes of the specification; the rest (800) trains


@dataclass(frozen=True)
class Item:
    """One question.  group, value: answers to one question belong together (MultiRC, ReCoRD; see evaluate.py)."""

    id: int
    fields: dict[str, str]
    label: float
    group: int = -1
    value: float = 0.0


@dataclass(frozen=True)
class Data:
    task: Task
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    start: list[Item] = field(default_factory=list)  # what the starting policy of a run was made from


def load(name: str, generator: torch.Generator, noise: torch.Generator, flip: float, limit: int = 0, sample: bool = False) -> Data:
    """The data of task `name`.  Training labels are flipped with probability `flip`; `limit` > 0 cuts the training part."""
    if name.startswith("digits"):
        data = digits(generator)
    elif name == "documentation":
        data = documentation(generator)
    else:
        data = benchmark(name, generator)
    train = data.train[:limit] if limit else data.train
    if not train or not data.test:
        raise ValueError(f"{name}: {len(train)} training and {len(data.test)} test items; both parts must hold some")
    for item in [*train, *data.validation, *data.test]:
        data.task.label(item.label)
    return replace(data, train=flipped(data.task, train, flip, noise))


def flipped(task: Task, items: list[Item], share: float, generator: torch.Generator) -> list[Item]:
    """Each label becomes another one, drawn uniformly, with probability `share`."""
    if share == 0:
        return items
    if task.number:
        raise ValueError(f"{task.name}: flip = {share} needs a fixed set of answers, not a number")
    hit = torch.rand(len(items), generator=generator) < share
    other = torch.randint(1, len(task.words), (len(items),), generator=generator).tolist()
    n = len(task.words)
    return [replace(x, label=(int(x.label) + o) % n) if h else x for x, h, o in zip(items, hit.tolist(), other)]


# --- digits -----------------------------------------------------------------------------------------------------------


def digits(generator: torch.Generator) -> Data:
    """"Is this digit at least five?"  Each 8 x 8 image becomes 16 words: means of 2 x 2 blocks in 16 grey levels.

    The test items are the same for every seed; the seed cuts the rest into start, validation and training."""
    from shared import bundled

    images, digit = bundled.digits()
    blocks = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    level = np.minimum(blocks * 16, 15).astype(int)
    items = [Item(i, {"pixels": " ".join(f"g{v}" for v in row)}, int(d >= 5)) for i, (row, d) in enumerate(zip(level, digit))]
    fixed = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    test, rest = fixed[:TEST], torch.tensor(sorted(fixed[TEST:]))
    rest = rest[torch.randperm(len(rest), generator=generator)].tolist()
    pick = lambda rows: [items[i] for i in rows]  # noqa: E731
    return Data(prompts.task("digits"), pick(rest[VALIDATION + START :]), pick(rest[:VALIDATION]), pick(test),
                pick(rest[VALIDATION : VALIDATION + START]))  # fmt: skip


def half_knowing(task: Task, items: list[Item], right: float, malformed: float, generator: torch.Generator) -> list[str]:
    """Answers of a teacher who half knows: `malformed` of them break the format, `right` of the others are right.

    A policy trained on these has heard of format and task, like a chat model: what every arm starts from."""
    texts = []
    for item in items:
        u, v = torch.rand(2, generator=generator).tolist()
        if u < malformed:
            broken = [f" Maybe {prompts.CLOSE}", f" Both {prompts.CLOSE}", f" {task.word(item.label)}", f" Yes No {prompts.CLOSE}"]
            texts.append(broken[int(v * len(broken))])
        else:
            label = int(item.label)
            texts.append(prompts.target(task, label if v < right else (label + 1) % len(task.words)))
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
        [Item(int(i), {"text": text[:characters]}, int(y)) for i, text, y in zip(part.ids, part.texts, part.labels)]
        for part in (found.train, found.validation, found.test)
    ]
    cut = 20 * len(words)  # train is ordered rank first, class second: the first rows are balanced
    return Data(task, items[0][cut:], items[1], items[2], items[0][:cut])
