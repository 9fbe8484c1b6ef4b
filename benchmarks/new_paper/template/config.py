"""What a run of example_paper can be told; the text above a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig


@dataclass(frozen=True)
class Data:
    """Which rows and columns each level sees."""

    # rows that train the weights
    train_rows: int = 80
    # rows on which the decays are learned; what is left of the 442 is the test set
    validation_rows: int = 80
    # columns of noise beside the ten that were measured
    noise_columns: int = 30


@dataclass(frozen=True)
class Search:
    """How the weight decays are found."""

    # learned; fixed: left at their start; permuted: learned, then put on the wrong columns
    decays: Literal["learned", "fixed", "permuted"] = "learned"
    # steps of both levels
    search_steps: int = 150
    # Adam's rate for lam
    upper_lr: float = 0.05
    # every lam at the start: a decay of 0.05
    start: float = -3.0


@dataclass(frozen=True)
class Training:
    """How the weights are trained, in the search and anew under the decays that it found."""

    # gradient steps from zero under the final decays
    steps: int = 150
    # rate of gradient descent
    lr: float = 0.1


@dataclass(frozen=True)
class Config(RunConfig, Data, Search, Training):
    def __post_init__(self) -> None:
        if self.train_rows < 1 or self.validation_rows < 1:
            raise BadInput(
                f"train_rows = {self.train_rows}, validation_rows = {self.validation_rows}: "
                "each level needs at least one row"
            )
