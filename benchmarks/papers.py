"""What a paper says of itself in `<dir>/paper.yaml`: the judge's only source for it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from benchmarks import PAPERS, ROOT
from shared.protocol import Document, load_yaml, read_as, unknown

Ratio = Annotated[float, Field(gt=0)]  # of one step to a plain step on the same kind of work


class Question(Document):
    """A reader's question; a "supported" of the claim answers it with yes.

    With `control` the question is whether the method beats that control of the claim.
    """

    ask: str = Field(pattern=r"\?$")
    claim: str
    control: str | None = None
    unit: str | None = None  # of the number, where its metric's name is a name of code


class Bound(Document):
    """What one step or cycle costs, in plain steps on the same kind of work; good to 5 to 7 %.

    `row`, `same_work` and `over` name rows of the measurements of `benchmarks/methods/<dir>.py`.
    """

    work: str
    row: str
    # The step done the official way by this repository's code, measured beside ours.
    same_work: str | None = None
    # What the official code does on top of that.
    lacks: str | None = None
    # The row that was the plain step of the bound, where it is not ours.
    over: str | None = None
    # The official algorithm, by our own measurement: its engine, layers or trainer where they still
    # run, else its sequence of passes; torch 2.13 on one thread of an AMD EPYC, CPU seconds.
    official: Ratio | None = None
    # Our minimal loop for the estimator that this repository takes by default, measured there.
    reached: Ratio | None = None
    # The fewest passes that give that estimator, counted (a full backward costs two forwards).
    floor: Ratio

    @property
    def limit(self) -> float:
        """What our minimal loop reached, or the floor where none was measured."""
        return self.reached or self.floor


class Paper(Document):
    order: int = Field(ge=1)  # place in the overview
    title: str
    authors: list[str] = Field(min_length=1)
    venue: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")
    repository: str | None = Field(default=None, pattern=r"^https://")  # the official one
    line: str  # the idea in one sentence
    questions: list[Question] = Field(min_length=1)
    # what a metric measures, in words, where its name does not say it; for a statistic, in place of
    # the first line of its function
    metrics: dict[str, str] = Field(default_factory=dict)
    # task -> bundled data that its items' ids are rows of: digits, or ratings/<domain>
    items: dict[str, str] = Field(default_factory=dict)
    # most waits of the host for a GPU in a step of training, see benchmarks/methods/launches.py
    waits: int | None = Field(default=None, ge=0)
    bounds: list[Bound] = Field(
        default_factory=list
    )  # of its step cost, measured by `benchmarks/methods/<dir>.py`


def read(directory: Path) -> Paper:
    """`directory`/paper.yaml; BadInput names a wrong key with the nearest one, or a wrong value."""
    name = f"{directory.name}/paper.yaml"
    return read_as(Paper, load_yaml(directory / "paper.yaml", name), name)


@cache
def paper(name: str) -> Paper:
    """The paper of this checkout whose directory has this name."""
    if name not in PAPERS:
        raise unknown(name, PAPERS, "papers")
    return read(ROOT / name)
