"""Text tasks: movie sentences, GLUE, and RCT, AGNews and IMDB, the sets of task-adaptive
pretraining.

Every task has labelled items, cut into D_tr and D_val by the seed, and test items that are the same
for all seeds. D_u, the unlabelled texts, are the labelled items' own texts (both sentences of a
pair as texts of their own), never test texts; the movie task, with few labels, has more of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared import bundled, glue, protocol, runs, sources, tables
from shared.sources import Split

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
METRIC = {"cola": "matthews", "stsb": "pearson"}  # the official code; accuracy everywhere else
LABEL = {"rct": ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")}
TAP = {  # task -> folder of REPRO_DATA, hub id, published validation set, number of classes
    "rct": ("tap/rct", "armanc/pubmed-rct20k", "dev", 5),
    "agnews": ("tap/agnews", "fancyzhx/ag_news", "", 4),
    "imdb": ("tap/imdb", "stanfordnlp/imdb", "", 2),
}
TASKS = ("movie", *GLUE, *TAP)


@dataclass(frozen=True)
class Task:
    """labelled: all of D_tr and D_val. inner, validation: its rows that are D_tr, D_val. spare:
    items that no level sees, for choices between settings. more: texts without labels, of D_u only.
    Only the movie task has these two. outputs: classes; 1 for a regression."""

    name: str
    metric: str
    outputs: int
    labelled: Split
    inner: np.ndarray
    validation: np.ndarray
    test: Split
    spare: Split | None = None
    more: Split | None = None

    @property
    def unlabelled(self) -> tuple[np.ndarray, list[str]]:
        """(item id of each text, texts) of D_u."""
        of_u = [self.labelled, *([self.more] if self.more else [])]
        items = [pair for part in of_u for pair in zip(part.ids, part.texts)]
        pairs = [(i, sentence) for i, text in items for sentence in sentences(text)]
        return np.array([i for i, _ in pairs]), [sentence for _, sentence in pairs]

    @property
    def items(self) -> dict[str, np.ndarray]:
        """Item ids of each part, for the record, where the spare items are called held."""
        ids = self.labelled.ids
        items = {"train": ids[self.inner], "validation": ids[self.validation]}
        items["test"] = self.test.ids
        return items if self.spare is None else items | {"held": self.spare.ids}


def sentences(text: str | Sequence[str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def read(name: str, seed: int, share: float, labels: int = 100, texts: int = 600) -> Task:
    """The task with its levels drawn by the seed. GLUE's dev sets are the test sets.

    share: of the labelled items that Level II sees (D_tr), where no validation set is published.
    labels, texts: labelled sentences and all of D_u, for the movie task. Raises BadInput for an
    unknown task or an empty part."""
    published, spare, more = None, None, None
    if name == "movie":
        movie = bundled.ratings("movie", runs.stream(seed, "items"), labels, binary=True)
        labelled, test, spare, outputs = movie.train, movie.test, movie.validation, 2
        more = _others(labelled, texts - labels, seed)
    elif name in GLUE:
        labelled, test, outputs = _glue(name)
    elif name in TAP:
        labelled, published, test, outputs = _tap(name)
    else:
        raise protocol.unknown(name, TASKS, "task")
    if len(labelled) == 0 or len(test) == 0:
        sizes = f"{len(labelled)} labelled and {len(test)} test items"
        raise runs.BadInput(f"task '{name}' has {sizes}; both must be at least 1")
    if published is None:
        shares = (share, 1 - share)
        inner, outer = glue.level_split(labelled.labels, shares, runs.stream(seed, "levels"))
    else:
        inner, outer = np.setdiff1d(np.arange(len(labelled)), published), published
    metric = METRIC.get(name, "accuracy")
    return Task(name, metric, outputs, labelled, inner, outer, test, spare, more)


def _others(labelled: Split, n: int, seed: int) -> Split:
    """n movie sentences outside `labelled` and outside the fixed test and validation items."""
    pool = bundled.ratings("movie").train
    rows = np.flatnonzero(~np.isin(pool.ids, labelled.ids))
    if not 0 < n <= len(rows):
        limit = f"give the labelled ones and 1 to {len(rows)} more"
        raise runs.BadInput(f"unlabelled = {n + len(labelled)} sentences: {limit}")
    order = torch.randperm(len(rows), generator=runs.stream(seed, "unlabelled items")).numpy()
    return rows_of(pool, rows[order[:n]])


def rows_of(split: Split, rows: np.ndarray) -> Split:
    return Split(split.ids[rows], [split.texts[i] for i in rows], split.labels[rows])


def joined(parts: Sequence[Split]) -> Split:
    """Parts of one task as one, ids numbered on."""
    first = np.cumsum([0, *(len(p) for p in parts)])
    ids = np.concatenate([p.ids + f for p, f in zip(parts, first)])
    labels = np.concatenate([p.labels for p in parts])
    return Split(ids, [text for p in parts for text in p.texts], labels)


def _glue(name: str) -> tuple[Split, Split, int]:
    """Training set, dev set as test set, outputs. MNLI's dev sets are pooled (README, row 20)."""
    names = ["train", "validation"] + (["validation_mismatched"] if name == "mnli" else [])
    parts = glue.load(name, names)
    everything, n = joined([parts[p] for p in names]), len(parts["train"])
    rows = np.arange(len(everything))
    outputs = len(glue.spec(name).labels) or 1
    return rows_of(everything, rows[:n]), rows_of(everything, rows[n:]), outputs


def _tap(name: str) -> tuple[Split, np.ndarray | None, Split, int]:
    """(labelled, rows of a published validation set or None, test, classes)."""
    folder, hub, dev, classes = TAP[name]
    source = sources.find_data(folder, hub)
    parts = {p: _tap_part(name, source, p) for p in ("train", *([dev] if dev else []), "test")}
    everything = joined(list(parts.values()))
    n, m = len(parts["train"]), len(parts[dev]) if dev else 0
    rows = np.arange(len(everything))
    published = rows[n : n + m] if m else None
    labelled, test = rows_of(everything, rows[: n + m]), rows_of(everything, rows[n + m :])
    return labelled, published, test, classes


def _tap_part(name: str, source: Path | sources.Hub, part: str) -> Split:
    folder, _, _, classes = TAP[name]
    rows: Iterable[tuple[str, tables.Row]]
    if isinstance(source, sources.Hub):
        data = sources.load_hub(source, folder, _hub_name(part))
        where = f"{source.id}, part {part}"
        rows = ((f"{where} row {number}", row) for number, row in enumerate(data))
    else:
        files = _tap_files(source, part)
        for path in files:
            tables.checked(path, f"{folder}/{path.relative_to(source).as_posix()}")
        where, rows = str(files[0]), (row for path in files for row in tables.records(path))
    names, texts, labels = LABEL.get(name, ()), [], []
    for at, row in rows:
        texts.append(tables.text_in(row, "text", at).strip())
        if "label" not in row:
            raise tables.no_column(at, "label", row)
        label = str(row["label"])
        label = str(names.index(label.upper())) if label.upper() in names else label
        if label not in map(str, range(classes)):
            limit = f"is not one of the {classes} classes"
            remedy = f"Remedy: {', '.join(names) or 'numbers'} from 0 to {classes - 1}"
            raise runs.BadInput(f"{at}: label {row['label']!r} {limit}. {remedy}")
        labels.append(int(label))
    if not texts:
        raise runs.BadInput(f"{where}: no rows of part '{part}'. Remedy: fetch it again")
    return Split(np.arange(len(texts)), texts, np.array(labels, dtype=np.int64))


def _hub_name(part: str) -> str:
    return "validation" if part == "dev" else part


def _tap_files(directory: Path, part: str) -> list[Path]:
    """Our layout, one JSON object a line, or the hub's parquet files."""
    path = sources.first([directory / f"{part}.jsonl"])
    files = [path] if path else tables.shards(directory, _hub_name(part))
    if not files:
        expected = f"{part}.jsonl (a line: text, label) and no {_hub_name(part)}*.parquet"
        raise sources.MissingInput(f"{directory} has no {expected}\n  remedy:  fetch it again")
    return files


def sample(root: Path, name: str, n: int, stream: torch.Generator) -> None:
    """Made-up rows of a TAP set in its own layout, for rehearsals."""
    folder, _, dev, classes = TAP[name]
    texts = glue.sample("sst2", 3 * n, stream).texts
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(("train", *([dev] if dev else []), "test")):
        lines = [json.dumps({"text": texts[i * n + k][0], "label": k % classes}) for k in range(n)]
        (root / folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
