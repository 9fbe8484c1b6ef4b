"""Tables of ground truth that answer for a cell: the published NAS-Bench-201, and the digits test bed's own."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from shared import runs, sources

from . import nasbench
from .data import DIGITS_TEST

DIGITS_TABLE = Path(__file__).resolve().parent / "results" / "digits_cells.csv"


@dataclass(frozen=True)
class Table:
    """Ground truth of every cell of a space. columns: name -> (cells,) accuracy in [0, 1]; the first one is the score.

    correct: (cells, test items) mean correctness over the trainings of a cell, where the table has it, else None.
    """

    cells: dict[str, int]
    columns: dict[str, np.ndarray]
    correct: np.ndarray | None = None

    @property
    def score(self) -> np.ndarray:
        return next(iter(self.columns.values()))

    def number(self, cell: str) -> int:
        if cell not in self.cells:
            nasbench.from_string(cell)  # names a malformed operation
            raise KeyError(f"cell {cell!r} is not one of the {len(self.cells)} of the table")
        return self.cells[cell]

    def percentile(self, cells: int | np.ndarray) -> float:
        """Share of all cells that score less, ties counting half; in [0, 1]."""
        value = self.score[np.atleast_1d(cells)][:, None]
        return float(((self.score < value).mean(1) + 0.5 * (self.score == value).mean(1)).mean())


NASBENCH_COLUMNS = {"cifar10": "cifar10_test_200ep", "cifar100": "cifar100_test_200ep",
                    "imagenet16": "imagenet16_120_test_200ep"}  # fmt: skip


def nasbench_table(path: Path | None = None) -> Table:
    """`REPRO_DATA/nasbench201.csv.gz`: 200-epoch test accuracy, mean over the benchmark's trials, of 15,625 cells."""
    source = path or sources.find_data("nasbench201.csv.gz")
    assert isinstance(source, Path)  # no hub has this file
    sources.note("nasbench201.csv.gz", source)
    with gzip.open(source, "rt") as file:
        rows = list(csv.DictReader(file))
    cells: dict[str, int] = {}
    for number, row in enumerate(rows):
        try:
            nasbench.from_string(row["arch"])
            if row["arch"] in cells:
                raise ValueError("the cell was there before")
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{source} row {number + 1}: {error}. Remedy: make the table again"
            ) from error
        cells[row["arch"]] = number
    return Table(
        cells, {k: np.array([float(r[c]) for r in rows]) / 100 for k, c in NASBENCH_COLUMNS.items()}
    )


def digits_rows(path: Path = DIGITS_TABLE) -> dict[tuple[str, int], np.ndarray]:
    """(cell, training seed) -> which of the 897 test images the trained cell classifies correctly (bool)."""
    if not path.exists():
        return {}
    rows = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["correct"]), np.uint8))[
                :DIGITS_TEST
            ].astype(bool)
            if abs(bits.mean() - float(row["accuracy"])) > 1e-6:
                raise ValueError(
                    f"{path}: {row['cell']} seed {row['seed']}: accuracy and bits disagree; make the table again"
                )
            rows[row["cell"], int(row["seed"])] = bits
    return rows


def digits_table(path: Path = DIGITS_TABLE) -> Table:
    """The 125 cells; every cell needs the same training seeds."""
    rows = digits_rows(path)
    cells = nasbench.all_cells(3)
    seeds = sorted({seed for _, seed in rows})
    missing = [(c, s) for c in cells for s in seeds or [0] if (c, s) not in rows]
    if missing:
        raise runs.BadInput(
            f"{path}: {len(missing)} of {len(cells) * max(1, len(seeds))} trainings are missing, first {missing[0]}; "
            "remedy: python -m dasgm.truth_table"
        )
    sources.note("dasgm/results/digits_cells.csv", path)
    correct = np.stack([np.mean([rows[c, s] for s in seeds], axis=0) for c in cells])
    return Table({c: i for i, c in enumerate(cells)}, {"accuracy": correct.mean(1)}, correct)


def table(name: str) -> Table:
    return digits_table() if name == "digits" else nasbench_table()


def look_up(
    table: Table, ids: Tensor, numbers: list[int], early: int | None = None
) -> dict[str, np.ndarray]:
    """Predictions of one cell, or of several that are averaged (`random`). early: the early-stopped cell.

    digits: one row per test image (ids), `correct` of `_trials` trainings. NAS-Bench-201 has no images: one row."""
    cells = np.array(numbers)
    predictions = {
        "_percentile": np.array(table.percentile(cells)),
        "_regret": np.array(table.score.max() - table.score[cells].mean()),
        "_early": np.array(table.score[cells if early is None else early].mean()),
    }
    if table.correct is None:
        names = {f"_accuracy_{k}": np.array(v[cells].mean()) for k, v in table.columns.items()}
        return {"id": np.array([0]), **names, **predictions}
    # thirds of three trainings, summed over the draws, are whole numbers: stored as such
    trials = len({seed for _, seed in digits_rows()}) * len(cells)
    correct = np.rint(table.correct[cells].sum(0) * trials / len(cells)).astype(np.int64)
    return {"id": ids.numpy(), "correct": correct, "_trials": np.array(trials), **predictions}
