"""Molecules: the MoleculeNet files, RDKit's drawings, scaffold splits and clusters of fingerprints.

RDKit is optional. Everything asked of it stands in `Chemistry`; without it a run ends with the line
that installs it, and a rehearsal goes on with made-up drawings (`rehearsal.py`), for it tries the
machinery and scores nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from shared import protocol, runs, sources, tables

INSTALL = "pip install rdkit==2026.9.1"
Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Set:
    """One file of MoleculeNet, gzip or not. labels: columns, or () for all but the SMILES."""

    file: str
    smiles: str
    labels: tuple[str, ...]
    kind: Kind  # classification: 0, 1 or missing


TOX21 = (
    *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
    *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
)
SOLUBILITY = "measured log solubility in mols per litre"
OTHER_NAMES = {"BBBP": "p_np"}  # column -> its name in DeepChem's own file
SETS = {
    "bbbp": Set("BBBP.csv", "smiles", ("BBBP",), "classification"),
    "bace": Set("bace.csv", "mol", ("Class",), "classification"),
    "clintox": Set("clintox.csv", "smiles", ("FDA_APPROVED", "CT_TOX"), "classification"),
    "sider": Set("sider.csv", "smiles", (), "classification"),
    "tox21": Set("tox21.csv", "smiles", TOX21, "classification"),
    "esol": Set("delaney-processed.csv", "smiles", (SOLUBILITY,), "regression"),
    "lipophilicity": Set("Lipophilicity.csv", "smiles", ("exp",), "regression"),
    "freesolv": Set("SAMPL.csv", "smiles", ("expt",), "regression"),
}


@dataclass(frozen=True)
class Chemistry:
    """What is asked of a chemistry package. A SMILES that it rejects has no canonical form."""

    name: str
    canonical: Callable[[str], str | None]
    scaffold: Callable[[str], str]  # Bemis-Murcko, with chirality; of a canonical SMILES
    drawing: Callable[[str, int], np.ndarray]  # (size, size, 3) uint8
    fingerprint: Callable[[str], np.ndarray]  # (bits,) float32


def rdkit() -> Chemistry:
    """RDKit's own; MissingInput with the install line if it is not there."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import Draw, MACCSkeys
        from rdkit.Chem.Scaffolds import MurckoScaffold
    except ImportError as error:
        raise sources.MissingInput(
            f"molecules are drawn by RDKit, which is not installed in this Python ({error})\n"
            f"  fetch:   {INSTALL}    (BSD-3-Clause, about 160 MB; language tasks do without it)"
        ) from error
    RDLogger.DisableLog("rdApp.*")  # `read` counts what it rejects and says so

    def canonical(smiles: str) -> str | None:
        molecule = Chem.MolFromSmiles(smiles)
        empty = molecule is None or molecule.GetNumAtoms() == 0
        return None if empty else Chem.MolToSmiles(molecule)

    def scaffold(smiles: str) -> str:
        return str(MurckoScaffold.MurckoScaffoldSmiles(smiles=smiles, includeChirality=True))

    def drawing(smiles: str, size: int) -> np.ndarray:
        picture = Draw.MolToImage(Chem.MolFromSmiles(smiles), size=(size, size))
        return np.asarray(picture.convert("RGB"))

    def fingerprint(smiles: str) -> np.ndarray:
        return np.array(list(MACCSkeys.GenMACCSKeys(Chem.MolFromSmiles(smiles))), dtype=np.float32)

    return Chemistry("rdkit", canonical, scaffold, drawing, fingerprint)


# --------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Molecules:
    """Rows that the chemistry package accepts. ids: row numbers in the file, labels: (n, tasks)
    float32, NaN = missing."""

    name: str
    kind: Kind
    ids: np.ndarray
    smiles: list[str]  # canonical
    labels: np.ndarray
    rejected: int  # rows dropped because no molecule could be read from them


def read(name: str, chemistry: Chemistry, say: Callable[[str], None] = print) -> Molecules:
    """One set from REPRO_DATA/molecules. Rows whose SMILES is rejected are counted, reported by
    `say` and dropped. Raises BadInput for columns, labels or a whole file that cannot be read."""
    if name not in SETS:
        raise protocol.unknown(name, SETS, "molecule set")
    spec = SETS[name]
    folder = sources.find_data("molecules")
    assert isinstance(folder, Path)
    path = sources.first([folder / spec.file, folder / f"{spec.file}.gz"])
    if not path:
        layout = f"the folder 'molecules' holds {spec.file} (see the layouts)"
        raise sources.MissingInput(f"{folder / spec.file} is missing; {layout}")
    rows = list(tables.comma_separated(tables.checked(path, f"molecules/{path.name}")))
    columns = _columns(path, spec, rows[0][1] if rows else {})
    ids, smiles, labels, rejected = [], [], [], []
    for number, (at, row) in enumerate(rows):
        canonical = chemistry.canonical(row[spec.smiles].strip())
        values_of_row = [_number(row[column], spec.kind, column, at) for column in columns]
        if canonical is None:
            rejected.append(number)
            continue
        ids.append(number)
        smiles.append(canonical)
        labels.append(values_of_row)
    if labels and np.isnan(labels).all():
        raise runs.BadInput(f"{path}: no row has a label. Remedy: fetch the file again")
    if rejected:
        what = f"{len(rejected)} of {len(rows)} rows hold no readable molecule and are dropped"
        say(f"{path.name}: {what}: rows {rejected}")
    if not smiles:
        what = f"a readable molecule in column '{spec.smiles}'"
        raise runs.BadInput(f"{path}: none of its {len(rows)} rows holds {what}")
    values = np.array(labels, dtype=np.float32)
    return Molecules(name, spec.kind, np.array(ids), smiles, values, len(rejected))


def _columns(path: Path, spec: Set, row: dict[str, str]) -> tuple[str, ...]:
    """The label columns as this file calls them."""
    labels = spec.labels or tuple(c for c in row if c and c != spec.smiles)
    named = tuple(c if c in row else OTHER_NAMES.get(c, c) for c in labels)
    if lacking := {spec.smiles, *named} - set(row):
        there = f"lacks the columns {sorted(lacking)}; it has {list(row)[:8]}"
        raise runs.BadInput(f"{path} {there}. Remedy: fetch the file again")
    return named


def _number(text: str, kind: Kind, column: str, at: str) -> float:
    """A label; of classes nothing and -1 are missing."""
    if kind == "classification" and text.strip() in ("", "-1", "-1.0"):
        return math.nan
    try:
        value = float(text)
    except ValueError as error:
        what = f"{at}, column '{column}': label {text!r} is not a number"
        raise runs.BadInput(f"{what}. Remedy: correct the row") from error
    if not math.isfinite(value) or (kind == "classification" and value not in (0, 1)):
        allowed = "0, 1 or nothing" if kind == "classification" else "a finite number"
        what = f"{at}, column '{column}': label {text!r}, expected {allowed}"
        raise runs.BadInput(f"{what}. Remedy: correct the row")
    return value


# ------------------------------------------------------------------------------ splits, clusters


def scaffold_split(
    scaffolds: Sequence[str], shares: tuple[float, float] = (0.8, 0.9)
) -> list[np.ndarray]:
    """[train, validation, test] rows (docs/papers/tapweight.md, section 6). Nothing is random.

    Groups of equal scaffold, large ones first (then by their first row, descending), go to train
    while they fit into 80 %, else to validation while both fit into 90 %, else to test."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, scaffold in enumerate(scaffolds):
        groups[scaffold].append(row)
    ordered = sorted(groups.values(), key=lambda rows: (len(rows), rows[0]), reverse=True)
    n = len(scaffolds)
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for rows in ordered:
        if len(train) + len(rows) <= shares[0] * n:
            train += rows
        elif len(train) + len(validation) + len(rows) <= shares[1] * n:
            validation += rows
        else:
            test += rows
    return [np.array(sorted(part), dtype=np.int64) for part in (train, validation, test)]


def drawings(smiles: Sequence[str], size: int, chemistry: Chemistry) -> torch.Tensor:
    """(n, 3, size, size) uint8, cached."""

    def make() -> torch.Tensor:
        pictures = np.stack([chemistry.drawing(s, size) for s in smiles])
        return torch.as_tensor(pictures).permute(0, 3, 1, 2).contiguous()

    return runs.cached(("tapweight drawings", chemistry.name, size, tuple(smiles)), make)


def clusters(smiles: Sequence[str], sizes: Sequence[int], chemistry: Chemistry) -> torch.Tensor:
    """(n, granularities) cluster numbers: k-means over fingerprints, one for each size. Cached."""

    def make() -> torch.Tensor:
        from sklearn.cluster import MiniBatchKMeans

        x = np.stack([chemistry.fingerprint(s) for s in smiles])
        columns = []
        for k in sizes:
            means = MiniBatchKMeans(min(k, len(x)), random_state=0, n_init=1, batch_size=2048)
            columns.append(torch.as_tensor(means.fit_predict(x).astype(np.int64)))
        return torch.stack(columns, 1)

    return runs.cached(("tapweight clusters", chemistry.name, tuple(sizes), tuple(smiles)), make)
