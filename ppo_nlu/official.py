"""Accidents of the official code, each selectable, none a default.  A student may skip this file.

Numbers (D..) are rows of the table of differences in ppo_nlu/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from ppo_nlu.prompts import CLOSE, Task

_KEYS = {"copa": ("one", "two")}  # any "one" inside the text counts, also that of "someone"


def _keys(task: Task) -> tuple[str, ...]:
    return _KEYS.get(task.name, task.words)


def parse_in_training(task: Task, text: str) -> float | None:
    """D10: the closing tag is demanded, then containment: case-sensitive, exactly one of the words
    anywhere."""
    return _contained(task, text.partition(CLOSE)[0].strip()) if CLOSE in text else None


def _contained(task: Task, content: str) -> float | None:
    if task.number:
        number = re.search(r"\d+\.\d+", content) or re.search(r"\d+", content)
        return float(number.group()) if number else None
    if task.name == "sst2":  # "Positive" is looked for first: both words count as Positive
        return 1 if "Positive" in content else 0 if "Negative" in content else None
    if task.name == "record":
        return 1 if re.search("[Yy]es", content) else 0 if re.search("[Nn]o", content) else None
    either = len(task.words) == 3  # entailment names count in both spellings
    hits = [
        i for i, w in enumerate(_keys(task)) if w in content or (either and w.lower() in content)
    ]
    return hits[0] if len(hits) == 1 else None


def parse_in_test(task: Task, text: str, generator: torch.Generator) -> float:
    """D9: without a closing tag the whole text is searched, the first word of a fixed order wins,
    and an answer that cannot be read becomes a random label."""
    content = text.partition(CLOSE)[0].strip()
    if task.number:
        number = _contained(task, content)
        if number is None:
            return 5 * float(torch.rand((), generator=generator))
        return min(max(number, 0.0), 5.0)
    first = ("Yes", "Positive", "True", "Same", "Entailment", "Option one")
    for i in sorted(range(len(task.words)), key=lambda i: task.words[i] not in first):
        word = _keys(task)[i]
        if word in content or (len(task.words) == 3 and word.lower() in content):
            return i
    return int(torch.randint(len(task.words), (), generator=generator))


def sft_target(task: Task, label: float) -> str:
    """D5: the faulty supervised targets: numbers where the prompt asks for words, and "No" for a
    negative review."""
    if task.name == "sst2" and label == 0:
        word = "No"
    elif task.name in ("copa", "wsc", "wic", "boolq", "multirc"):
        word = str(int(label))
    elif task.name == "cb":
        word = str({"Entailment": 1, "Contradiction": 2, "Neutral": 3}[task.word(label)])
    else:
        word = task.word(label)
    return f" {word} {CLOSE}"


def first_rows(labels: Sequence[float], shots: int) -> list[int]:
    """D12: the examples of a few-shot prompt are the first rows of the training file, whatever
    their labels."""
    return list(range(min(shots, len(labels))))


def answer_length(generator: torch.Generator, low: int = 12, high: int = 31) -> int:
    """The length limit is drawn anew for every group of prompts (ours is fixed)."""
    return int(torch.randint(low, high + 1, (), generator=generator))
