"""Tables of ground truth that answer for a cell: NAS-Bench-201's, and the digits test bed's."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared import runs, sources
from shared.tables import checked, comma_separated, no_column

from . import baselines, nasbench
from .config import Config
from .data import DIGITS_TEST, Problem

DIGITS_TABLE = Path(__file__).resolve().parent / "results" / "digits_cells.csv"


@dataclass(frozen=True)
class Table:
    """Ground truth of every cell of a space. columns: name -> (cells,) accuracy in [0, 1]; the
    first is the score. correct: (cells, test items) mean over the trainings of a cell, or None."""

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

    def correlation(self, alpha: Tensor, nodes: int, exclude_none: bool) -> float:
        """Spearman's rank correlation, over the cells that may be derived, between what alpha
        (edges, operations) says of a cell, the sum of its logits, and its score here.

        It says how well a search orders all cells, where the best one alone says how well it ends:
        no ceiling, and no luck with a single cell."""
        from scipy import stats  # half a second

        names = nasbench.all_cells(nodes, exclude_none)
        rows = [[nasbench.OPERATIONS.index(op) for op in nasbench.from_string(c)] for c in names]
        said = alpha.detach().cpu()[torch.arange(alpha.shape[0]), torch.tensor(rows)].sum(1)
        return float(stats.spearmanr(said.numpy(), self.score[[self.number(c) for c in names]])[0])


NASBENCH_CELLS = 5**6
NASBENCH_COLUMNS = {
    "cifar10": "cifar10_test_200ep",
    "cifar100": "cifar100_test_200ep",
    "imagenet16": "imagenet16_120_test_200ep",
}


def nasbench_table(path: Path | None = None) -> Table:
    """`REPRO_DATA/nasbench201.csv.gz`: 200-epoch test accuracy of 15,625 cells (mean of trials)."""
    source = path or sources.find_data("nasbench201.csv.gz")
    assert isinstance(source, Path)  # no hub has this file
    cells: dict[str, int] = {}
    columns: dict[str, list[float]] = {name: [] for name in NASBENCH_COLUMNS}
    for at, row in comma_separated(checked(source, "nasbench201.csv.gz")):
        if lacking := [c for c in ("arch", *NASBENCH_COLUMNS.values()) if c not in row]:
            raise no_column(at, lacking[0], row)
        try:
            nasbench.from_string(row["arch"])
            if row["arch"] in cells:
                raise ValueError("the cell was there before")
            for name, column in NASBENCH_COLUMNS.items():
                if not 0 <= float(row[column]) <= 100:
                    raise ValueError(f"{column} {row[column]}, expected 0 to 100 per cent")
                columns[name].append(float(row[column]))
        except ValueError as error:
            raise runs.BadInput(f"{at}: {error}. Remedy: make the table again") from error
        cells[row["arch"]] = len(cells)
    if len(cells) != NASBENCH_CELLS:
        what = f"{len(cells):,} cells, expected {NASBENCH_CELLS:,}"
        raise runs.BadInput(f"{source}: {what}. Remedy: make the table again")
    return Table(cells, {name: np.array(values) / 100 for name, values in columns.items()})


def digits_rows(path: Path = DIGITS_TABLE) -> dict[tuple[str, int], np.ndarray]:
    """(cell, training seed) -> which of the 897 test images it classifies correctly (bool)."""
    if not path.exists():
        return {}
    rows = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            packed = np.frombuffer(bytes.fromhex(row["correct"]), np.uint8)
            bits = np.unpackbits(packed)[:DIGITS_TEST].astype(bool)
            if abs(bits.mean() - float(row["accuracy"])) > 1e-6:
                training = f"{path}: {row['cell']} seed {row['seed']}"
                raise runs.BadInput(f"{training}: accuracy and bits disagree; make the table again")
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
            f"{path}: {len(missing)} of {len(cells) * max(1, len(seeds))} trainings are missing,"
            f" first {missing[0]}; remedy: python -m dasgm.truth_table"
        )
    sources.note("dasgm/results/digits_cells.csv", path)
    correct = np.stack([np.mean([rows[c, s] for s in seeds], axis=0) for c in cells])
    return Table({c: i for i, c in enumerate(cells)}, {"accuracy": correct.mean(1)}, correct)


def look_up(
    config: Config, problem: Problem, cell: str, early: str | None, alpha: Tensor | None
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Numbers of the cells that count, and predictions of one cell, or for `random` of 1,000 draws.

    digits: one row per test image, `correct` of `_trials` trainings. NAS-Bench-201 has no images:
    one row. early: the early-stopped cell. alpha: what the search ended with; None: nothing was
    searched, and the order of the cells is a random one, which correlates by 0 in the mean."""
    table = digits_table() if problem.name == "digits" else nasbench_table()
    numbers = [table.number(cell)]
    if config.job == "random":
        allowed = [table.number(c) for c in nasbench.all_cells(config.nodes, config.exclude_none)]
        numbers = baselines.random_cells(allowed, 1000, runs.stream(config.seed, "random cells"))
    names, cells = list(table.cells), np.array(numbers)
    predictions = {
        "_percentile": np.array(table.percentile(cells)),
        "_regret": np.array(table.score.max() - table.score[cells].mean()),
        "_early": np.array(table.score[table.number(early) if early else cells].mean()),
        "_correlation": np.array(
            0.0 if alpha is None else table.correlation(alpha, config.nodes, config.exclude_none)
        ),
        "_skips": np.array(np.mean([nasbench.skips(names[n]) for n in numbers])),
    }
    if table.correct is None:
        columns = {f"_accuracy_{k}": np.array(v[cells].mean()) for k, v in table.columns.items()}
        return numbers, {"id": np.array([0]), **columns, **predictions}
    # thirds of three trainings, summed over the draws, are whole numbers: stored as such
    trials = len({seed for _, seed in digits_rows()}) * len(cells)
    correct = np.rint(table.correct[cells].sum(0) * trials / len(cells)).astype(np.int64)
    per_image = {"id": problem.test.ids.numpy(), "correct": correct, "_trials": np.array(trials)}
    return numbers, {**per_image, **predictions}
