"""Ground truth of the digits test bed: trains each of the 125 cells and writes dasgm/results/digits_cells.csv.

    python -m dasgm.truth_table               all cells, 3 training seeds each; about 6 CPU minutes; continues where it was
    python -m dasgm.truth_table --out FILE --epochs 1 --seeds 1       a quick look elsewhere

A row is one training: cell, seed, test accuracy, and which of the 897 test images it classifies correctly (bits in
hexadecimal), so that the judge can resample test items. Every cell of a seed sees the same batches in the same order.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from pathlib import Path

import numpy as np
import torch

from shared import runs

from . import nasbench
from .data import DIGITS_TABLE, Problem, digits_rows, load
from .retrain import Recipe, train_fully

# specification 9.1: 900 images, 12 epochs, batch 64, SGD 0.1 cosine, Nesterov; weight decay of NAS-Bench-201
RECIPE = Recipe(
    epochs=12,
    batch=64,
    lr=0.1,
    nesterov=True,
    weight_decay=5e-4,
    cutout=0,
    auxiliary=0.0,
    drop_path=0.0,
)
SEEDS = 3
DIGITS = {
    "channels": 8,
    "N": 1,
    "stages": 2,
    "nodes": 3,
    "classes": 10,
    "c_in": 1,
    "reduction": "conv",
}
HEAD = ["cell", "seed", "accuracy", "correct"]


def train_cell(cell: str, seed: int, problem: Problem, recipe: Recipe = RECIPE) -> np.ndarray:
    """Which test images (bool, 897) the cell classifies correctly after training on the other 900."""
    found = train_fully(lambda: nasbench.Network(cell, **DIGITS), recipe, problem, seed)
    return (found["label"] == found["prediction"]).numpy()


def write(path: Path, rows: dict[tuple[str, int], np.ndarray], epochs: int) -> None:
    """All rows in a fixed order, by one rename."""
    text = io.StringIO()
    text.write(
        f"# made by: python -m dasgm.truth_table ({epochs} epochs; recipe in truth_table.py; torch {torch.__version__})\n"
    )
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEAD)
    order = {cell: i for i, cell in enumerate(nasbench.all_cells(3))}
    for (cell, seed), bits in sorted(
        rows.items(), key=lambda item: (item[0][1], order[item[0][0]])
    ):
        table.writerow([cell, seed, f"{bits.mean():.6f}", np.packbits(bits).tobytes().hex()])
    runs.write_bytes(path, text.getvalue().encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DIGITS_TABLE)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings of each cell")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--cells", type=int, default=125, help="only the first so many cells")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(**{**vars(RECIPE), "epochs": options.epochs})
    rows = digits_rows(options.out)
    todo = [
        (c, s)
        for s in range(options.seeds)
        for c in nasbench.all_cells(3)[: options.cells]
        if (c, s) not in rows
    ]
    print(f"{len(rows)} trainings there, {len(todo)} to do", flush=True)
    problem = load(
        "digits", seed=0
    )  # the split does not matter: a derived cell is trained on both halves
    begun = time.process_time()
    for done, (cell, seed) in enumerate(todo, start=1):
        rows[cell, seed] = train_cell(cell, seed, problem, recipe)
        if done % 25 == 0 or done == len(todo):
            write(options.out, rows, options.epochs)
            print(f"{done}/{len(todo)}, {time.process_time() - begun:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
