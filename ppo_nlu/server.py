"""Files that the evaluation servers of GLUE and SuperGLUE take: the labels of the test parts are
theirs alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ppo_nlu.data import Item, items_of
from ppo_nlu.prompts import Task
from shared import glue, sources

# task -> the name that the server wants; MNLI's mismatched rows, MultiRC and ReCoRD (answers nested
# by question) are not written
FILES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI-m",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "wic": "WiC",
    "wsc": "WSC",
}
NAMED = ("mnli", "qnli", "rte", "cb")  # labels by name; others by number, truth values in JSON


def test_items(task: str) -> list[Item]:
    """The unlabelled rows of a task's test part; none where the part is not there."""
    if task not in FILES:
        return []
    try:
        return items_of(task, glue.load(task, ("test",))["test"])
    except sources.MissingInput:
        return []


def write(folder: Path, task: Task, answers: Iterable[float]) -> Path:
    """`<name>.tsv` (SuperGLUE: `.jsonl`) with an answer a row, in the order of the test part."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_label(task, answer) for answer in answers]
    if task.name in glue.GLUE:
        path = folder / f"{FILES[task.name]}.tsv"
        lines = ["index\tprediction", *(f"{i}\t{label}" for i, label in enumerate(rows))]
    else:
        path = folder / f"{FILES[task.name]}.jsonl"
        lines = [json.dumps({"idx": i, "label": label}) for i, label in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _label(task: Task, answer: float) -> str | int | float:
    if task.number:
        return round(answer, 3)
    names = glue.spec(task.name).labels
    if task.name in NAMED:
        return names[int(answer)]
    return names[int(answer)].lower() if names == ("False", "True") else int(answer)
