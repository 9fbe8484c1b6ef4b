"""Text tasks: the documentation task, GLUE, and the task-adaptive-pretraining sets RCT, AGNews and IMDB.

Every task has labelled items, cut into D_tr and D_val by the seed, and test items that are the same for all seeds. D_u, the
unlabelled texts, are the labelled items' own texts (both sentences of a pair as texts of their own), never test texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import bundled, glue, runs, sources
from shared.sources import Split

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
METRIC = {"cola": "matthews", "stsb": "pearson"}  # the official code; accuracy everywhere else
LABEL = {"rct": ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")}
TAP = {  # task -> folder of REPRO_DATA, hub id, file of a validation set of its own, number of classes
    "rct": ("tap/rct", "armanc/pubmed-rct20k", "dev", 5),
    "agnews": ("tap/agnews", "fancyzhx/ag_news", "", 4),
    "imdb": ("tap/imdb", "stanfordnlp/imdb", "", 2),
}
TASKS = ("documentation", *GLUE, *TAP)


@dataclass(frozen=True)
class Task:
    """`labelled`: all of D_tr and D_val; `validation`: rows of labelled that are D_val; `held`: items that no level sees,
    for choices between settings (the documentation task alone has them)."""

    name: str
    metric: str
    outputs: int  # classes; 1 for a regression
    labelled: Split
    inner: np.ndarray
    validation: np.ndarray
    test: Split
    held: Split | None = None

    @property
    def unlabelled(self) -> tuple[np.ndarray, list[str]]:
        """(item id of each text, texts) of D_u."""
        pairs = [
            (i, t)
            for i, text in zip(self.labelled.ids, self.labelled.texts)
            for t in _sentences(text)
        ]
        return np.array([i for i, _ in pairs]), [t for _, t in pairs]


def _sentences(text: Any) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def read(name: str, seed: int, per_class: int, share: float, train_items: int = 0) -> Task:
    """The task with its levels drawn by the seed. share: of the labelled items that Level II sees (D_tr).

    train_items: keep so many of the training file's items, drawn by the seed; 0 for all. GLUE's dev sets are the test sets."""
    if not 0 < share < 1:
        raise runs.BadInput(
            f"level_split = {share} must lie in (0, 1): D_tr's share of the labelled items"
        )
    stream = runs.stream(seed, "items")
    own: np.ndarray | None = None
    held = None
    if name == "documentation":
        found = bundled.documentation(stream, per_class)
        labelled, test, held, outputs = found.train, found.test, found.validation, len(found.labels)
    elif name in GLUE:
        labelled, test, outputs = _glue(name)
    elif name in TAP:
        labelled, own, test, outputs = _tap(name)
    else:
        raise runs.BadInput(f"unknown task '{name}'; one of: {', '.join(TASKS)}, or a molecule set")
    if len(labelled) == 0 or len(test) == 0:
        raise runs.BadInput(
            f"task '{name}' has {len(labelled)} labelled and {len(test)} test items"
        )
    if train_items and train_items < len(labelled) and name != "documentation":
        kept = torch.randperm(len(labelled), generator=stream)[:train_items].sort().values.numpy()
        labelled = rows(labelled, kept)
        own = None if own is None else np.flatnonzero(np.isin(kept, own))
    if own is None or len(own) == 0:
        inner, outer = glue.level_split(
            labelled.labels, (share, 1 - share), runs.stream(seed, "levels")
        )
    else:
        inner, outer = np.setdiff1d(np.arange(len(labelled)), own), own
    return Task(name, METRIC.get(name, "accuracy"), outputs, labelled, inner, outer, test, held)


def rows(split: Split, chosen: np.ndarray) -> Split:
    return Split(split.ids[chosen], [split.texts[i] for i in chosen], split.labels[chosen])


def join(parts: list[Split]) -> Split:
    """Parts of one task as one, ids numbered on."""
    first = np.cumsum([0, *(len(p) for p in parts)])
    return Split(
        np.concatenate([p.ids + f for p, f in zip(parts, first)]),
        [t for p in parts for t in p.texts],
        np.concatenate([p.labels for p in parts]),
    )


def _glue(name: str) -> tuple[Split, Split, int]:
    """Training set, and the dev set as test set; MNLI's two dev sets are pooled (README, row 20)."""
    parts = ["train", "validation"] + (["validation_mismatched"] if name == "mnli" else [])
    found = glue.load(name, parts)
    everything = join([found[p] for p in parts])
    n = len(found["train"])
    order = np.arange(len(everything))
    return (
        rows(everything, order[:n]),
        rows(everything, order[n:]),
        len(glue.spec(name).labels) or 1,
    )


def _tap(name: str) -> tuple[Split, np.ndarray | None, Split, int]:
    """(labelled, rows of a published validation set or None, test, classes)."""
    folder, hub, dev, classes = TAP[name]
    found = sources.find_data(folder, hub)
    parts = {p: _tap_part(name, found, p) for p in ("train", *([dev] if dev else []), "test")}
    everything = join(list(parts.values()))
    n, m = len(parts["train"]), len(parts[dev]) if dev else 0
    order = np.arange(len(everything))
    own = order[n : n + m] if dev else None
    return rows(everything, order[: n + m]), own, rows(everything, order[n + m :]), classes


def _tap_part(name: str, found: Path | sources.Hub, part: str) -> Split:
    folder, _, _, classes = TAP[name]
    if isinstance(found, sources.Hub):
        where, values = (
            f"{found.id}, part {part}",
            list(sources.load_hub(found, folder, "validation" if part == "dev" else part)),
        )
    else:
        where, values = _tap_rows(found, folder, part)
    texts, labels = [], []
    for number, row in enumerate(values, 1):
        if "text" not in row or "label" not in row:
            raise runs.BadInput(f"{where} row {number}: {sorted(row)} lacks 'text' or 'label'")
        label = row["label"]
        known = LABEL.get(name, ())
        label = known.index(str(label).upper()) if str(label).upper() in known else label
        if not str(label).isdecimal() or not 0 <= int(label) < classes:
            raise runs.BadInput(
                f"{where} row {number}: label {row['label']!r} is not one of the {classes} classes"
            )
        texts.append(str(row["text"]).strip())
        labels.append(int(label))
    return Split(np.arange(len(texts)), texts, np.array(labels, dtype=np.int64))


def _tap_rows(found: Path, folder: str, part: str) -> tuple[str, list[dict[str, Any]]]:
    path = found / f"{part}.jsonl"
    if path.exists():
        sources.note(f"{folder}/{path.name}", path)
        lines = path.read_text("utf-8").splitlines()
        try:
            return str(path), [json.loads(line) for line in lines if line.strip()]
        except json.JSONDecodeError as error:
            raise runs.BadInput(f"{path}: not JSON lines ({error}); fetch it again") from error
    name = "validation" if part == "dev" else part
    shards = sorted(p for p in found.rglob("*.parquet") if p.name.startswith(name))
    if not shards:
        raise sources.MissingInput(
            f"{found} has no {part}.jsonl (a line: text, label) and no {name}*.parquet"
        )
    import pyarrow.parquet as parquet

    for shard in shards:
        sources.note(f"{folder}/{shard.name}", shard)
    return str(found), [row for shard in shards for row in parquet.read_table(shard).to_pylist()]


def sample(root: Path, name: str, n: int, stream: torch.Generator) -> None:
    """Made-up rows of a TAP set in its own layout, for rehearsals."""
    folder, _, dev, classes = TAP[name]
    made = glue.sample("sst2", 3 * n, stream).texts
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(("train", *([dev] if dev else []), "test")):
        lines = [json.dumps({"text": made[i * n + k][0], "label": k % classes}) for k in range(n)]
        (root / folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
