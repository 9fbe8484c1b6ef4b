"""GLUE (nine tasks) and SuperGLUE (eight): loaders, metrics, level splits, samples for rehearsals.

`load("rte")` reads, in this order, the original TSV (SuperGLUE: JSON-lines) folder or the hub's
parquet files below REPRO_DATA, then the hub. All of them give the same `Split`s: texts as tuples,
labels in the hub's order.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import sources, tables
from shared.protocol import BadInput
from shared.sources import Hub, Split
from shared.tables import Row


@dataclass(frozen=True)
class Spec:
    """One task. `tsv` and `hub` name the columns of (texts..., label) in the two layouts."""

    folder: str
    hub_id: str
    config: str
    tsv: tuple[str, ...]
    hub: tuple[str, ...]
    labels: tuple[str, ...]  # () for regression
    metrics: tuple[str, ...]  # the first one is the score


def _spec(folder: str, texts: str, labels: str, metrics: str, tsv: tuple[str, ...] = ()) -> Spec:
    """`tsv`: the columns of GLUE's files where they are not the hub's; SuperGLUE has no TSV."""
    suite, name = folder.split("/")
    hub = (*texts.split(), "label")
    if suite == "glue":
        hub_id, tsv = "nyu-mll/glue", tsv or hub
    else:
        hub_id = "aps/super_glue"
    config = name.replace("-", "").lower()
    return Spec(folder, hub_id, config, tsv, hub, tuple(labels.split()), tuple(metrics.split()))


_PAIR = "sentence1 sentence2"
_CLAIM = "premise hypothesis"
_ENTAILS = "entailment not_entailment"
_FALSE_TRUE = "False True"
# fmt: off
SPECS = {
    "cola": _spec("glue/CoLA", "sentence", "unacceptable acceptable", "matthews", ("3", "1")),
    "sst2": _spec("glue/SST-2", "sentence", "negative positive", "accuracy"),
    "mrpc": _spec("glue/MRPC", _PAIR, "not_equivalent equivalent", "accuracy f1",
                  ("#1 String", "#2 String", "Quality")),
    "stsb": _spec("glue/STS-B", _PAIR, "", "pearson spearman", ("sentence1", "sentence2", "score")),
    "qqp": _spec("glue/QQP", "question1 question2", "not_duplicate duplicate", "accuracy f1",
                 ("question1", "question2", "is_duplicate")),
    "mnli": _spec("glue/MNLI", _CLAIM, "entailment neutral contradiction", "accuracy",
                  ("sentence1", "sentence2", "gold_label")),
    "qnli": _spec("glue/QNLI", "question sentence", _ENTAILS, "accuracy"),
    "rte": _spec("glue/RTE", _PAIR, _ENTAILS, "accuracy"),
    "wnli": _spec("glue/WNLI", _PAIR, "not_entailment entailment", "accuracy"),
    "boolq": _spec("super_glue/BoolQ", "question passage", _FALSE_TRUE, "accuracy"),
    "cb": _spec("super_glue/CB", _CLAIM, "entailment contradiction neutral", "accuracy f1_macro"),
    "copa": _spec("super_glue/COPA", "premise question choice1 choice2", "choice1 choice2",
                  "accuracy"),
    "multirc": _spec("super_glue/MultiRC", "paragraph question answer", _FALSE_TRUE,
                     "f1 exact_match"),
    "record": _spec("super_glue/ReCoRD", "passage query entity", _FALSE_TRUE, "f1 exact_match"),
    "super_rte": _spec("super_glue/RTE", _CLAIM, _ENTAILS, "accuracy"),
    "wic": _spec("super_glue/WiC", "word sentence1 sentence2", _FALSE_TRUE, "accuracy"),
    "wsc": _spec("super_glue/WSC", "text span1_text span2_text", _FALSE_TRUE, "accuracy"),
}
# fmt: on
# MRPC as its authors publish it, and GLUE's list of the rows of its training file that are dev
_PARAPHRASES = {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}
_DEV_IDS = "dev_ids.tsv"
GLUE = tuple(SPECS)[:9]
SUPER_GLUE = tuple(SPECS)[9:]

Rows = Iterable[tuple[str, Row]]  # (file and number of the row, row)


def spec(task: str) -> Spec:
    """Raises BadInput for an unknown task, with the list of tasks."""
    if task not in SPECS:
        raise BadInput(f"unknown task '{task}'; tasks: {', '.join(SPECS)}")
    return SPECS[task]


# --- loading -------------------------------------------------------------------------------------


def load(
    task: str, parts: Sequence[str] = ("train", "validation"), folder: str = ""
) -> dict[str, Split]:
    """Parts of a task: `train`, `validation` (MNLI: also `validation_mismatched`), `test`.

    ids are row numbers. The test parts have no labels: theirs are -1 (nan for regression).
    `folder` replaces the usual folder of REPRO_DATA.
    Raises MissingInput where nothing is to be had, BadInput with file and row for bad data.
    """
    s = spec(task)
    source = sources.find_data(folder or s.folder, Hub(s.hub_id, s.config))
    return {part: _load_part(task, part, source) for part in parts}


def _load_part(task: str, part: str, source: Path | Hub) -> Split:
    s = spec(task)
    if isinstance(source, Hub):
        where = f"{source.id}/{s.config}, part {part}"
        data = sources.load_hub(source, s.folder, _hub_part(task, part))
        rows: Rows = ((f"{where} row {number}", row) for number, row in enumerate(data))
        return _split(task, rows, s.hub, part, where)
    files = _files(task, part, source)
    for path in files:
        tables.checked(path, f"{s.folder}/{path.relative_to(source).as_posix()}")
    columns = s.hub
    if files[0].suffix in (".tsv", ".txt"):
        if not s.tsv:
            remedy = "Remedy: give it in one of these formats"
            raise BadInput(f"{files[0]}: {task} is read from JSON lines or parquet. {remedy}")
        rows, columns = _tsv_rows(files[0], s, part), s.tsv
        if files[0].name == _PARAPHRASES["train"]:
            rows = _part_of_paraphrases(rows, part, files[1])
    elif files[0].suffix == ".jsonl":
        rows = _json_rows(files[0], task)
    else:
        rows = (row for path in files for row in tables.columnar(path))
    return _split(task, rows, columns, part, str(files[0]))


def _files(task: str, part: str, folder: Path) -> list[Path]:
    """The file or the shards of a part; MRPC as Microsoft publishes it needs GLUE's list, too."""
    stem, suite = _stem(task, part), spec(task).folder
    originals = [folder / f"{stem}{suffix}" for suffix in (".tsv", ".jsonl")]
    if original := sources.first(originals):
        return [original]
    if files := tables.shards(folder, _hub_part(task, part)):
        return files
    paraphrases = folder / _PARAPHRASES["test" if part == "test" else "train"]
    if task != "mrpc" or not paraphrases.exists():
        entries = ", ".join(entry.name for entry in tables.visible(folder)) or "nothing"
        raise sources.MissingInput(
            f"{task}: no file for part '{part}' in {folder} (there: {entries})\n"
            f"  remedy:  {suite} needs {stem}.tsv, .jsonl or .parquet; see the table of layouts"
        )
    ids = folder / _DEV_IDS
    if part != "test" and not ids.exists():
        raise sources.MissingInput(
            f"{task}: {paraphrases} holds the rows of train and dev together\n"
            f"  remedy:  {ids} says which are dev: a line is `#1 ID` TAB `#2 ID`\n"
            f"  fetch:   curl -L https://dl.fbaipublicfiles.com/glue/data/mrpc_dev_ids.tsv -o {ids}"
        )
    return [paraphrases] if part == "test" else [paraphrases, ids]


def _part_of_paraphrases(rows: Rows, part: str, listed: Path) -> Rows:
    """The rows of `train` that GLUE's list does not name, or of `validation` that it does."""
    dev = {tuple(fields[:2]) for _, fields in tables.tab_separated(listed)}
    for at, row in rows:
        if lacking := {"#1 ID", "#2 ID"} - row.keys():
            raise tables.no_column(at, min(lacking), row)
        if ((row["#1 ID"], row["#2 ID"]) in dev) == (part == "validation"):
            yield at, row


def _hub_part(task: str, part: str) -> str:
    return f"{part}_matched" if task == "mnli" and part in ("validation", "test") else part


def _stem(task: str, part: str) -> str:
    """Name of the original file."""
    return _hub_part(task, part).replace("validation", "val" if task in SUPER_GLUE else "dev")


def _tsv_rows(path: Path, s: Spec, part: str) -> Rows:
    """Rows of a GLUE file. CoLA has no header line (except in its test file): "0", "1", ..."""
    columns: list[str] = []
    if s.config == "cola" and part != "test":
        columns = ["0", "1", "2", "3"]
    broken = 0
    for at, fields in tables.tab_separated(path):
        if not columns:
            names = tables.header(at, fields)
            columns = ["3" if s.config == "cola" and name == "sentence" else name for name in names]
        elif len(fields) == len(columns):
            yield at, dict(zip(columns, fields))
        elif s.config == "qqp":
            broken += 1  # a few rows of QQP are broken as published; everybody leaves them out
        else:
            raise tables.wrong_width(at, fields, columns)
    if broken:
        tables.say_once(f"note: {broken} broken rows of {path} are left out")


def _json_rows(path: Path, task: str) -> Rows:
    """SuperGLUE's JSON lines, nested ones taken apart into the hub's flat rows."""
    for at, nested in tables.json_lines(path):
        try:
            flat = list(_flatten(nested, task))
        except (KeyError, TypeError, AttributeError) as error:
            remedy = "Remedy: fetch the file again"
            raise BadInput(f"{at}: no {error} where {task} should have it. {remedy}") from error
        yield from ((at, row) for row in flat)


def _flatten(row: Row, task: str) -> Iterator[Row]:
    if task == "multirc" and "passage" in row:
        for question in row["passage"]["questions"]:
            for answer in question["answers"]:
                index = {"question": question["idx"], "answer": answer["idx"]}
                labelled = {"label": answer["label"]} if "label" in answer else {}
                yield {
                    "paragraph": row["passage"]["text"],
                    "question": question["question"],
                    "answer": answer["text"],
                    "idx": {"paragraph": row["idx"], **index},
                    **labelled,
                }
    elif task == "record" and "qas" in row:
        text = row["passage"]["text"]
        spans = [text[e["start"] : e["end"] + 1] for e in row["passage"]["entities"]]
        shared = {"passage": text, "entities": list(dict.fromkeys(spans))}
        for question in row["qas"]:
            answers = [answer["text"] for answer in question.get("answers", [])]
            yield {**shared, "query": question["query"], "answers": answers}
    elif task == "wsc" and "target" in row:
        yield {**row, **row["target"]}
    else:
        yield row


def _split(task: str, rows: Rows, columns: tuple[str, ...], part: str, where: str) -> Split:
    """Checked rows -> Split. Errors name the file and the row."""
    if task == "record":
        rows = _candidates(rows)
    s, (*text_columns, label_column) = spec(task), columns
    required = text_columns if part == "test" else columns
    texts, labels, groups, values = [], [], [], []
    question_numbers: dict[tuple[Any, Any], int] = {}
    for at, row in rows:
        if missing := [name for name in required if name not in row]:
            raise tables.no_column(at, missing[0], row)
        if task == "qqp" and not all(row[name] for name in text_columns):
            continue  # two questions of QQP are empty
        texts.append(tuple(tables.text_in(row, name, at).strip() for name in text_columns))
        labels.append(_label(s, row.get(label_column), part, at))
        if task in ("multirc", "record"):
            question = _question(row.get("idx"), at)
            groups.append(question_numbers.setdefault(question, len(question_numbers)))
            values.append(float(row.get("value", math.nan)))
    if not texts:
        raise BadInput(f"{where}: no rows of part '{part}'. Remedy: fetch the file again")
    return Split(
        np.arange(len(texts), dtype=np.int64),
        texts,
        np.array(labels, dtype=np.int64 if s.labels else np.float64),
        np.array(groups, dtype=np.int64) if task in ("multirc", "record") else None,
        np.array(values) if task == "record" else None,
    )


def _question(index: object, at: str) -> tuple[Any, Any]:
    """Numbers of passage and question from the column `idx`."""
    place = index if isinstance(index, dict) else {}
    passage = place.get("passage", place.get("paragraph"))
    numbers = (passage, place.get("question", place.get("query")))
    if not all(type(number) is int for number in numbers):
        what = f"column 'idx' holds {str(index)[:60]}"
        raise BadInput(f"{at}: {what}. Remedy: it holds the numbers of paragraph and question")
    return numbers


def _candidates(rows: Rows) -> Rows:
    """ReCoRD: one row per candidate entity, labelled by exact match.

    `value` is its token F1 against the answers.
    """
    for question, (at, row) in enumerate(rows):
        if lacking := [x for x in ("passage", "query", "entities", "answers") if x not in row]:
            raise tables.no_column(at, lacking[0], row)
        for name in ("entities", "answers"):
            if not isinstance(row[name], list) or not all(isinstance(x, str) for x in row[name]):
                what = f"column '{name}' holds {str(row[name])[:60]}, not a list of texts"
                raise BadInput(f"{at}: {what}. Remedy: fetch the file again")
        if not row["entities"] or not all(row["entities"]):
            what = f"candidates {str(row['entities'])[:60]} are not texts of the passage"
            raise BadInput(f"{at}: {what}. Remedy: fetch the file again")
        for entity in row["entities"]:
            # without answers (test part) no label
            matches = [normalise(entity) == normalise(answer) for answer in row["answers"]]
            overlaps = [token_f1(entity, answer) for answer in row["answers"]]
            candidate = {
                "passage": row["passage"],
                "query": row["query"],
                "entity": entity,
                "label": any(matches) if matches else -1,
                "idx": {"passage": 0, "query": question},
                "value": max(overlaps, default=math.nan),
            }
            yield at, candidate


def _label(s: Spec, value: object, part: str, at: str) -> float:
    """Number of the class (regression: the value) from a name, a number, or a truth value."""
    name = str(value).strip()
    unlabelled = value in (None, "") or (s.labels and str(value) == "-1")
    if unlabelled and part == "test":
        return -1 if s.labels else math.nan
    if not s.labels:
        try:
            number = float(name)
        except ValueError:
            number = math.nan
        if part == "test" and number == -1:
            return math.nan
        if not 0 <= number <= 5:
            raise BadInput(
                f"{at}: score {value!r} is not a number from 0 to 5. Remedy: are columns swapped?"
            )
        return number
    if name in s.labels:
        return s.labels.index(name)
    if s.labels == ("False", "True") and name.lower() in ("false", "true"):
        return int(name.lower() == "true")
    if name in map(str, range(len(s.labels))):
        return int(name)
    allowed = f"{', '.join(s.labels)} or {', '.join(map(str, range(len(s.labels))))}"
    remedy = "unlabelled rows belong into the test part" if unlabelled else "are columns swapped?"
    raise BadInput(f"{at}: label {name[:60]!r} is not one of {allowed}. Remedy: {remedy}")


# --- metrics (pure numpy: they are called thousands of times on resampled rows) ------------------


def accuracy(label: np.ndarray, prediction: np.ndarray) -> float:
    return float(np.mean(label == prediction))


def f1(label: np.ndarray, prediction: np.ndarray, positive: int = 1) -> float:
    """F1 of one class; 0 where it neither occurs nor is predicted."""
    hits = np.sum((label == positive) & (prediction == positive))
    total = np.sum(label == positive) + np.sum(prediction == positive)
    return float(2 * hits / total) if total else 0.0


def f1_macro(label: np.ndarray, prediction: np.ndarray) -> float:
    """Mean F1 over the classes that occur or are predicted."""
    return float(np.mean([f1(label, prediction, c) for c in np.union1d(label, prediction)]))


def matthews(label: np.ndarray, prediction: np.ndarray) -> float:
    """Matthews correlation for any number of classes; 0 if either side is constant."""
    classes, codes = np.unique(np.concatenate([label, prediction]), return_inverse=True)
    n, k = len(label), len(classes)
    table = np.bincount(codes[:n] * k + codes[n:], minlength=k * k).reshape(k, k).astype(np.float64)
    true, predicted = table.sum(1), table.sum(0)
    spread = (n * n - true @ true) * (n * n - predicted @ predicted)
    if spread <= 0:
        return 0.0
    return float((n * np.trace(table) - true @ predicted) / math.sqrt(spread))


def pearson(label: np.ndarray, prediction: np.ndarray) -> float:
    """Correlation; 0 if either side is constant (a collapsed model has learned nothing)."""
    x, y = label - np.mean(label), prediction - np.mean(prediction)
    scale = math.sqrt(float(x @ x) * float(y @ y))
    constant = np.ptp(label) == 0 or np.ptp(prediction) == 0
    return 0.0 if constant or scale == 0 else float(x @ y) / scale


def spearman(label: np.ndarray, prediction: np.ndarray) -> float:
    return pearson(_ranks(label), _ranks(prediction))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def exact_match(label: np.ndarray, prediction: np.ndarray, groups: np.ndarray) -> float:
    """MultiRC: share of questions all of whose answers are judged rightly."""
    _, inverse = np.unique(groups, return_inverse=True)
    return float(np.mean(np.bincount(inverse, weights=label != prediction) == 0))


def best_candidate(groups: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """ReCoRD: row of the highest scored candidate of each question (the first one of equals)."""
    order = np.lexsort((np.arange(len(groups)), -prediction, groups))
    return order[np.unique(groups[order], return_index=True)[1]]


_METRICS = (accuracy, f1, f1_macro, matthews, pearson, spearman)
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {m.__name__: m for m in _METRICS}


def score(
    task: str,
    label: np.ndarray,
    prediction: np.ndarray,
    groups: np.ndarray | None = None,
    values: np.ndarray | None = None,
) -> dict[str, float]:
    """Metrics of a task in [-1, 1].

    label (n,); prediction (n,): classes, scores (STS-B), or one score per candidate (ReCoRD).
    groups, values: those of the Split, for MultiRC and ReCoRD. MNLI: groups 0 = matched and 1 =
    mismatched rows adds `accuracy_m` and `accuracy_mm`.
    """
    if len(label) == 0 or len(label) != len(prediction):
        raise ValueError(
            f"{task}: {len(prediction)} predictions for {len(label)} labels; "
            "both must be equal and not 0"
        )
    if task == "multirc":
        assert groups is not None, "multirc needs groups"
        return {"f1": f1(label, prediction), "exact_match": exact_match(label, prediction, groups)}
    if task == "record":
        assert groups is not None and values is not None, "record needs groups and values"
        best = best_candidate(groups, prediction)
        return {"f1": float(np.mean(values[best])), "exact_match": float(np.mean(label[best]))}
    result = {name: METRICS[name](label, prediction) for name in spec(task).metrics}
    if task == "mnli" and groups is not None:
        for name, group in (("accuracy_m", 0), ("accuracy_mm", 1)):
            rows = groups == group
            if np.any(rows):
                result[name] = accuracy(label[rows], prediction[rows])
    return result


def normalise(answer: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (as for SQuAD and ReCoRD)."""
    text = re.sub(r"[^\w\s]|_", "", answer.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, answer: str) -> float:
    """F1 over the words of two answers."""
    p, a = normalise(prediction).split(), normalise(answer).split()
    common = sum((Counter(p) & Counter(a)).values())
    return 2 * common / (len(p) + len(a)) if common else 0.0


# --- level splits --------------------------------------------------------------------------------


def level_split(
    labels: np.ndarray, fractions: Sequence[float], stream: torch.Generator
) -> list[np.ndarray]:
    """Rows of each level of a multi-level problem: disjoint, stratified, drawn by `stream`.

    labels (n,); real-valued ones (regression) are stratified by ten quantile bins. fractions sum to
    at most 1. Returns sorted int64 rows. Rows are dealt out in class order, so the size of a level
    is exact to one row and its share of each class to about one.
    Raises BadInput for fractions that cannot be meant, and for a level that would be empty.
    """
    n = len(labels)
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise BadInput(f"fractions={list(fractions)}: they must be positive and sum to at most 1")
    strata = np.asarray(labels)
    if strata.dtype.kind == "f":
        strata = np.searchsorted(np.quantile(strata, np.linspace(0.1, 0.9, 9)), strata, side="left")
    shuffled = torch.randperm(n, generator=stream).numpy()
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    # Position i of the class order belongs to the level that is furthest behind its share: a fixed
    # pattern without randomness of its own, so that all of it comes from `shuffled`.
    shares = np.array([*fractions, max(0.0, 1 - sum(fractions))])
    level = _deal(n, shares / shares.sum())
    rows = [np.sort(by_class[level == number]).astype(np.int64) for number in range(len(fractions))]
    for number, chosen in enumerate(rows):
        if len(chosen) == 0:
            raise BadInput(
                f"level {number} of {list(fractions)} is empty for {n} rows; "
                "use more rows or larger fractions"
            )
    return rows


def _deal(n: int, shares: np.ndarray) -> np.ndarray:
    """(n,) level of each position: each prefix holds every level in proportion to `shares`."""
    target, dealt = np.zeros(len(shares)), np.zeros(len(shares))
    level = np.empty(n, dtype=np.int64)
    for position in range(n):
        target += shares
        level[position] = np.argmax(target - dealt)
        dealt[level[position]] += 1
    return level


# --- samples for rehearsals ----------------------------------------------------------------------

_WORDS = (
    "the a this that small large old new red green river house train garden letter teacher dog "
    "child city market walks runs sees finds writes reads sells keeps opens closes never often "
    "today slowly with without under near"
)
_NUMBERED = ("sst2", "mrpc", "stsb", "qqp", "wnli")  # their TSV holds labels as numbers


def sample(task: str, n: int, stream: torch.Generator) -> Split:
    """`n` made-up rows with every label in turn, for rehearsals and tests; they mean nothing."""
    s, words = spec(task), _WORDS.split()

    def sentence() -> str:
        length = int(torch.randint(5, 12, (), generator=stream))
        chosen = torch.randint(len(words), (length,), generator=stream).tolist()
        return " ".join(words[i] for i in chosen) + " ."

    texts = [tuple(sentence() for _ in s.hub[:-1]) for _ in range(n)]
    if s.labels:
        labels = np.arange(n, dtype=np.int64) % len(s.labels)
    else:
        labels = np.round(torch.rand(n, generator=stream, dtype=torch.float64).numpy() * 5, 3)
    return Split(np.arange(n, dtype=np.int64), texts, labels)


def write_sample(root: Path, task: str, n: int, stream: torch.Generator) -> Path:
    """Write made-up `train` and `validation` parts (MNLI: both) of `n` rows each.

    They lie below `root`, a folder for REPRO_DATA, in the task's own layout. Returns the task's
    folder.
    """
    s = spec(task)
    folder = Path(root) / s.folder
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["train", "validation"] + (["validation_mismatched"] if task == "mnli" else [])
    for part in parts:
        split = sample(task, n, stream)
        path = folder / f"{_stem(task, part)}{'.tsv' if s.tsv else '.jsonl'}"
        lines = _sample_tsv(s, split) if s.tsv else _sample_json(task, split)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _sample_tsv(s: Spec, split: Split) -> list[str]:
    if s.config == "cola":
        return [f"made\t{label}\t\t{text[0]}" for text, label in zip(split.texts, split.labels)]
    names = split.labels if s.config in _NUMBERED else [s.labels[label] for label in split.labels]
    rows = [[*text, str(name)] for text, name in zip(split.texts, names)]
    return ["\t".join(fields) for fields in [s.tsv, *rows]]


def _sample_json(task: str, split: Split) -> list[str]:
    rows = zip(split.texts, split.labels.tolist())
    return [json.dumps(_nested(task, i, text, label)) for i, (text, label) in enumerate(rows)]


def _nested(task: str, i: int, text: tuple[str, ...], label: int) -> Row:
    """One row in the layout of SuperGLUE's files."""
    if task == "multirc":  # two answers to each question, one right and one wrong
        right = {"text": text[2], "label": 1, "idx": 0}
        answers = [right, {"text": "nobody", "label": 0, "idx": 1}]
        questions = [{"question": text[1], "idx": i, "answers": answers}]
        return {"idx": i, "passage": {"text": text[0], "questions": questions}}
    if task == "record":  # the first two words are the candidates, the first one is right
        first, second = text[0].split()[:2]
        start, end = len(first) + 1, len(first) + len(second)
        right = {"start": 0, "end": len(first) - 1}
        question = {
            "query": text[1] + " @placeholder",
            "answers": [{**right, "text": first}],
            "idx": i,
        }
        entities = [right, {"start": start, "end": end}]
        return {"idx": i, "passage": {"text": text[0], "entities": entities}, "qas": [question]}
    s = spec(task)
    row: Row = dict(zip(s.hub[:-1], text)) | {"idx": i}
    if task == "copa":
        row["label"] = label
    else:
        row["label"] = bool(label) if s.labels == ("False", "True") else s.labels[label]
    if task == "wsc":
        spans = {name: row.pop(name) for name in ("span1_text", "span2_text")}
        row["target"] = {**spans, "span1_index": 0, "span2_index": 1}
    return row
