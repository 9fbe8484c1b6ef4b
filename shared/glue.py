"""GLUE (nine tasks) and SuperGLUE (eight): loaders, metrics, level splits, samples for rehearsals.

`load("rte")` reads, in this order, the original TSV (SuperGLUE: JSON-lines) folder or the hub's parquet files below
REPRO_DATA, then the hub. All of them give the same `Split`s: texts as tuples, labels in the hub's order.
"""

import csv
import io
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

from shared import sources
from shared.sources import Hub, Split


@dataclass(frozen=True)
class Spec:
    """One task. `tsv` and `hub` name the columns of (texts..., label) in the two layouts; `labels` is () for
    regression."""

    folder: str
    hub_id: str
    config: str
    tsv: tuple[str, ...]
    hub: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]  # the first one is the score


_TWO = ("sentence1", "sentence2", "label")
_ENTAILS = ("entailment", "not_entailment")
_FALSE_TRUE = ("False", "True")
_G, _S = "nyu-mll/glue", "aps/super_glue"
# fmt: off
SPECS = {
    "cola": Spec("glue/CoLA", _G, "cola", ("3", "1"), ("sentence", "label"), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": Spec("glue/SST-2", _G, "sst2", ("sentence", "label"), ("sentence", "label"), ("negative", "positive"), ("accuracy",)),
    "mrpc": Spec("glue/MRPC", _G, "mrpc", ("#1 String", "#2 String", "Quality"), _TWO, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": Spec("glue/STS-B", _G, "stsb", ("sentence1", "sentence2", "score"), _TWO, (), ("pearson", "spearman")),
    "qqp": Spec("glue/QQP", _G, "qqp", ("question1", "question2", "is_duplicate"), ("question1", "question2", "label"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": Spec("glue/MNLI", _G, "mnli", ("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
    "qnli": Spec("glue/QNLI", _G, "qnli", ("question", "sentence", "label"), ("question", "sentence", "label"), _ENTAILS, ("accuracy",)),
    "rte": Spec("glue/RTE", _G, "rte", _TWO, _TWO, _ENTAILS, ("accuracy",)),
    "wnli": Spec("glue/WNLI", _G, "wnli", _TWO, _TWO, ("not_entailment", "entailment"), ("accuracy",)),
    "boolq": Spec("super_glue/BoolQ", _S, "boolq", (), ("question", "passage", "label"), _FALSE_TRUE, ("accuracy",)),
    "cb": Spec("super_glue/CB", _S, "cb", (), ("premise", "hypothesis", "label"), ("entailment", "contradiction", "neutral"), ("accuracy", "f1_macro")),
    "copa": Spec("super_glue/COPA", _S, "copa", (), ("premise", "question", "choice1", "choice2", "label"), ("choice1", "choice2"), ("accuracy",)),
    "multirc": Spec("super_glue/MultiRC", _S, "multirc", (), ("paragraph", "question", "answer", "label"), _FALSE_TRUE, ("f1", "exact_match")),
    "record": Spec("super_glue/ReCoRD", _S, "record", (), ("passage", "query", "entity", "label"), _FALSE_TRUE, ("f1", "exact_match")),
    "super_rte": Spec("super_glue/RTE", _S, "rte", (), ("premise", "hypothesis", "label"), _ENTAILS, ("accuracy",)),
    "wic": Spec("super_glue/WiC", _S, "wic", (), ("word", "sentence1", "sentence2", "label"), _FALSE_TRUE, ("accuracy",)),
    "wsc": Spec("super_glue/WSC", _S, "wsc", (), ("text", "span1_text", "span2_text", "label"), _FALSE_TRUE, ("accuracy",)),
}
# fmt: on
GLUE = tuple(SPECS)[:9]
SUPER_GLUE = tuple(SPECS)[9:]

Rows = Iterator[tuple[int, dict[str, Any]]]  # (line number in the file, column -> value)


def spec(task: str) -> Spec:
    if task not in SPECS:
        raise ValueError(f"unknown task '{task}'; tasks: {', '.join(SPECS)}")
    return SPECS[task]


# --- loading -------------------------------------------------------------------------------------------------


def load(
    task: str, parts: Sequence[str] = ("train", "validation"), folder: str = ""
) -> dict[str, Split]:
    """Parts of a task: `train`, `validation` (MNLI: also `validation_mismatched`), `test`. ids are row numbers.

    The test parts of GLUE and SuperGLUE have no labels: theirs are -1 (nan for regression). `folder` replaces the
    usual folder of REPRO_DATA.
    """
    s = spec(task)
    found = sources.find_data(folder or s.folder, Hub(s.hub_id, s.config))
    return {part: _load_part(task, part, found) for part in parts}


def _load_part(task: str, part: str, found: Path | Hub) -> Split:
    s = spec(task)
    if isinstance(found, Hub):
        names = sources.load_hub(found, s.folder, _hub_part(task, part))
        return _split(task, enumerate(names), s.hub, part, f"{found.id}/{s.config}, part {part}")
    files = _files(task, part, found)
    if not files:
        there = ", ".join(sorted(entry.name for entry in found.iterdir())) or "nothing"
        raise sources.MissingInput(
            f"{task}: no file for part '{part}' in {found} (there: {there})\n"
            f"  remedy:  {s.folder} needs {_stem(task, part)}.tsv, .jsonl or .parquet; see the table of layouts"
        )
    for path in files:
        sources.note(f"{s.folder}/{path.relative_to(found).as_posix()}", path)
    where = str(files[0])
    if files[0].suffix == ".tsv":
        if not s.tsv:
            raise ValueError(f"{where}: {task} is read from JSON lines or parquet, not from TSV")
        return _split(task, _tsv_rows(files[0], s, part), s.tsv, part, where)
    if files[0].suffix == ".jsonl":
        return _split(task, _json_rows(files[0], task), s.hub, part, where)
    return _split(task, _table_rows(files), s.hub, part, where)


def _hub_part(task: str, part: str) -> str:
    return f"{part}_matched" if task == "mnli" and part in ("validation", "test") else part


def _stem(task: str, part: str) -> str:
    validation = "val" if task in SUPER_GLUE else "dev"
    if task == "mnli":
        return {
            "validation": "dev_matched",
            "validation_mismatched": "dev_mismatched",
            "test": "test_matched",
        }.get(part, part)
    return validation if part == "validation" else part


def _files(task: str, part: str, folder: Path) -> list[Path]:
    """The original file, else the hub's parquet shards, else a data set written by `save_to_disk`."""
    for suffix in (".tsv", ".jsonl"):
        path = folder / (_stem(task, part) + suffix)
        if path.exists():
            return [path]
    name = _hub_part(task, part)
    shards = sorted(
        p for p in folder.glob("*.parquet") if re.fullmatch(rf"{name}(-\d+-of-\d+)?", p.stem)
    )
    return shards or sorted((folder / name).glob("*.arrow"))


def _tsv_rows(path: Path, s: Spec, part: str) -> Rows:
    """Rows of a GLUE file. Quotes are plain characters; a byte-order mark is dropped; CoLA has no header line
    (except in its test file): its columns are called "0", "1", ..."""
    reader = csv.reader(
        io.StringIO(path.read_text("utf-8-sig"), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    columns: list[str] | None = None
    if s.config == "cola" and part != "test":
        columns = ["0", "1", "2", "3"]
    for row in reader:
        if columns is None:
            columns = ["3" if s.config == "cola" and name == "sentence" else name for name in row]
        elif s.config == "qqp" and len(row) != len(columns):
            continue  # a few rows of QQP are broken in the published files; everybody leaves them out
        elif len(row) < len(columns):
            raise ValueError(
                f"{path} row {reader.line_num}: {len(row)} columns, expected {len(columns)} ({', '.join(columns)}). "
                "Remedy: fetch the file again; it must be tab separated, without quoting"
            )
        else:
            yield reader.line_num, dict(zip(columns, row))


def _table_rows(files: list[Path]) -> Rows:
    number = 0
    for path in files:
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            rows = parquet.read_table(path).to_pylist()
        else:
            import datasets

            rows = list(datasets.Dataset.from_file(str(path)))
        for row in rows:
            yield number, row
            number += 1


def _json_rows(path: Path, task: str) -> Rows:
    """SuperGLUE's JSON lines, nested ones taken apart into the hub's flat rows."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} row {number}: not JSON ({error}). Remedy: fetch the file again"
                ) from error
            try:
                flat = list(_flatten(row, task))
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} row {number}: no {error} where {task} should have it"
                ) from error
            yield from ((number, one) for one in flat)


def _flatten(row: dict[str, Any], task: str) -> Iterator[dict[str, Any]]:
    if task == "multirc" and "passage" in row:
        for question in row["passage"]["questions"]:
            for answer in question["answers"]:
                labelled = {"label": answer["label"]} if "label" in answer else {}
                yield {
                    "paragraph": row["passage"]["text"], "question": question["question"], "answer": answer["text"],
                    "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]}, **labelled,
                }  # fmt: skip
    elif task == "record" and "qas" in row:
        text = row["passage"]["text"]
        entities = list(
            dict.fromkeys(text[e["start"] : e["end"] + 1] for e in row["passage"]["entities"])
        )
        for question in row["qas"]:
            answers = [answer["text"] for answer in question.get("answers", [])]
            yield {
                "passage": text,
                "query": question["query"],
                "entities": entities,
                "answers": answers,
            }
    elif task == "wsc" and "target" in row:
        yield {**row, **row["target"]}
    else:
        yield row


def _split(
    task: str,
    rows: Iterable[tuple[int, dict[str, Any]]],
    columns: tuple[str, ...],
    part: str,
    where: str,
) -> Split:
    """Checked rows -> Split. Errors name the file and the row."""
    if task == "record":
        rows = _candidates(rows)
    s = spec(task)
    texts, labels, groups, values = [], [], [], []
    question_numbers: dict[Any, int] = {}
    for number, row in rows:
        at = f"{where} row {number}"
        missing = [name for name in columns[:-1] if name not in row]
        if part != "test" and columns[-1] not in row:
            missing.append(columns[-1])
        if missing:
            raise ValueError(
                f"{at}: no column {', '.join(map(repr, missing))}; columns: {', '.join(map(str, row))}. "
                f"Remedy: {task} needs the columns of {s.hub_id}, config {s.config}"
            )
        text = tuple(
            str(row[name] if row[name] is not None else "").strip() for name in columns[:-1]
        )
        if not all(text):
            if task == "qqp":
                continue  # two questions of QQP are empty
            raise ValueError(
                f"{at}: column '{columns[text.index('')]}' is empty. Remedy: fetch the file again"
            )
        texts.append(text)
        labels.append(_label(s, row.get(columns[-1]), part, at))
        if isinstance(row.get("idx"), dict):
            question = (
                row["idx"].get("passage", row["idx"].get("paragraph")),
                row["idx"].get("question", row["idx"].get("query")),
            )
            groups.append(question_numbers.setdefault(question, len(question_numbers)))
            values.append(float(row.get("value", math.nan)))
    if not texts:
        raise ValueError(
            f"{where}: no rows. Remedy: the file of part '{part}' is empty; fetch it again"
        )
    return Split(
        np.arange(len(texts), dtype=np.int64),
        texts,
        np.array(labels, dtype=np.int64 if s.labels else np.float64),
        np.array(groups, dtype=np.int64) if task in ("multirc", "record") else None,
        np.array(values) if task == "record" else None,
    )


def _candidates(rows: Iterable[tuple[int, dict[str, Any]]]) -> Rows:
    """ReCoRD: one row per candidate entity, labelled by exact match, with its token F1 against the answers."""
    for question, (number, row) in enumerate(rows):
        if not {"entities", "answers", "passage", "query"} <= row.keys():
            yield number, row  # refused with the names of the missing columns
            continue
        for entity in row["entities"]:
            # without answers (test part) no label
            matches = [normalise(entity) == normalise(answer) for answer in row["answers"]]
            yield number, {
                "passage": row["passage"], "query": row["query"], "entity": entity,
                "label": any(matches) if matches else -1, "idx": {"passage": 0, "query": question},
                "value": max((token_f1(entity, answer) for answer in row["answers"]), default=math.nan),
            }  # fmt: skip


def _label(s: Spec, value: Any, part: str, at: str) -> float:
    """Number of the class (regression: the value) from a name, a number, or a truth value."""
    unlabelled = value is None or value == "" or (s.labels and str(value) == "-1")
    if unlabelled and part == "test":
        return -1 if s.labels else math.nan
    if not s.labels:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if part == "test" and number == -1:
            return math.nan
        if not 0 <= number <= 5:
            raise ValueError(
                f"{at}: score {value!r} is not a number from 0 to 5. Are columns swapped?"
            )
        return number
    name = str(value).strip()
    if name in s.labels:
        return s.labels.index(name)
    if s.labels == _FALSE_TRUE and name.lower() in ("false", "true"):
        return int(name.lower() == "true")
    if name.isdecimal() and int(name) < len(s.labels):
        return int(name)
    allowed = ", ".join(s.labels) + " or " + ", ".join(map(str, range(len(s.labels))))
    raise ValueError(
        f"{at}: label {name[:60]!r} is not one of {allowed}. "
        + ("Unlabelled rows belong into the test part" if unlabelled else "Are columns swapped?")
    )


# --- metrics (pure numpy: they are called thousands of times on resampled rows) -------------------------------


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
    return (
        float((n * np.trace(table) - true @ predicted) / math.sqrt(spread)) if spread > 0 else 0.0
    )


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


def score(
    task: str, label: np.ndarray, prediction: np.ndarray,
    groups: np.ndarray | None = None, values: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """Metrics of a task in [-1, 1]. `prediction`: classes, scores (STS-B), or one score per candidate (ReCoRD).

    MultiRC and ReCoRD need `groups` (and ReCoRD `values`) of the Split. MNLI: `groups` 0 = matched and 1 =
    mismatched rows adds `accuracy_m` and `accuracy_mm`.
    """
    if len(label) == 0 or len(label) != len(prediction):
        raise ValueError(
            f"{task}: {len(prediction)} predictions for {len(label)} labels; both must be equal and not 0"
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
            if np.any(groups == group):
                result[name] = accuracy(label[groups == group], prediction[groups == group])
    return result


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy, "f1": f1, "f1_macro": f1_macro, "matthews": matthews, "pearson": pearson, "spearman": spearman,
}  # fmt: skip


def normalise(answer: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (the convention of SQuAD and ReCoRD)."""
    text = re.sub(r"[^\w\s]|_", "", answer.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, answer: str) -> float:
    """F1 over the words of two answers."""
    p, a = normalise(prediction).split(), normalise(answer).split()
    common = sum((Counter(p) & Counter(a)).values())
    return 2 * common / (len(p) + len(a)) if common else 0.0


# --- level splits --------------------------------------------------------------------------------------------


def level_split(
    labels: np.ndarray, fractions: Sequence[float], stream: torch.Generator
) -> list[np.ndarray]:
    """Rows (sorted, int64) of each level of a multi-level problem: disjoint, stratified, drawn by `stream`.

    `fractions` sum to at most 1. Real-valued labels (regression) are stratified by ten quantile bins. Rows are dealt
    out in class order, so the size of a level is exact to one row and its share of each class to about one.
    """
    n = len(labels)
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions={list(fractions)}: they must be positive and sum to at most 1")
    strata = np.asarray(labels)
    if strata.dtype.kind == "f":
        strata = np.searchsorted(np.quantile(strata, np.linspace(0.1, 0.9, 9)), strata, side="left")
    shuffled = torch.randperm(n, generator=stream).numpy()
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    # Position i of the class order belongs to the level that is furthest behind its share: a fixed pattern
    # without randomness of its own, so that all of it comes from `shuffled`.
    shares = np.array([*fractions, max(0.0, 1 - sum(fractions))])
    level = _deal(n, shares / shares.sum())
    rows = [np.sort(by_class[level == number]).astype(np.int64) for number in range(len(fractions))]
    for number, chosen in enumerate(rows):
        if len(chosen) == 0:
            raise ValueError(
                f"level {number} of {list(fractions)} is empty for {n} rows; use more rows or larger fractions"
            )
    together = np.concatenate(rows)
    assert len(np.unique(together)) == len(together), "levels overlap"
    return rows


def _deal(n: int, shares: np.ndarray) -> np.ndarray:
    """(n,) level of each position, so that each prefix holds every level in proportion to `shares`, to within one."""
    target, dealt = np.zeros(len(shares)), np.zeros(len(shares))
    level = np.empty(n, dtype=np.int64)
    for position in range(n):
        target += shares
        level[position] = np.argmax(target - dealt)
        dealt[level[position]] += 1
    return level


# --- samples for rehearsals ------------------------------------------------------------------------------------

_WORDS = (
    "the a this that small large old new red green river house train garden letter teacher dog child city market "
    "walks runs sees finds writes reads sells keeps opens closes never often today slowly with without under near"
)


def sample(task: str, n: int, stream: torch.Generator) -> Split:
    """`n` made-up rows with every label in turn, for rehearsals and tests; they mean nothing."""
    s, words = spec(task), _WORDS.split()

    def sentence() -> str:
        length = int(torch.randint(5, 12, (), generator=stream))
        return (
            " ".join(
                words[i] for i in torch.randint(len(words), (length,), generator=stream).tolist()
            )
            + " ."
        )

    texts = [tuple(sentence() for _ in s.hub[:-1]) for _ in range(n)]
    if s.labels:
        labels = np.arange(n) % len(s.labels)
    else:
        labels = np.round(torch.rand(n, generator=stream, dtype=torch.float64).numpy() * 5, 3)
    return Split(
        np.arange(n, dtype=np.int64), texts, labels.astype(np.int64 if s.labels else np.float64)
    )


def write_sample(root: Path, task: str, n: int, stream: torch.Generator) -> Path:
    """Write made-up `train` and `validation` parts (MNLI: both) of `n` rows each below `root`, a folder for
    REPRO_DATA, in the task's own layout -> the task's folder."""
    s = spec(task)
    folder = Path(root) / s.folder
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["train", "validation"] + (["validation_mismatched"] if task == "mnli" else [])
    for part in parts:
        split = sample(task, n, stream)
        if s.tsv:
            lines = _sample_tsv(s, split)
        else:
            lines = [json.dumps(_sample_json(task, s, i, split)) for i in range(n)]
        path = folder / (_stem(task, part) + (".tsv" if s.tsv else ".jsonl"))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _sample_tsv(s: Spec, split: Split) -> list[str]:
    if s.config == "cola":
        return [f"made\t{label}\t\t{text[0]}" for text, label in zip(split.texts, split.labels)]
    numbered = (
        s.config in ("cola", "sst2", "mrpc", "qqp", "wnli") or not s.labels
    )  # these write labels as numbers
    lines = ["\t".join(s.tsv)]
    for text, label in zip(split.texts, split.labels):
        lines.append("\t".join([*text, str(label) if numbered else s.labels[label]]))
    return lines


def _sample_json(task: str, s: Spec, i: int, split: Split) -> dict[str, Any]:
    text, label = split.texts[i], int(split.labels[i])
    if task == "multirc":
        # two answers to each question, one right and one wrong
        answers = [
            {"text": text[2], "label": 1, "idx": 0},
            {"text": "nobody", "label": 0, "idx": 1},
        ]
        return {
            "idx": i,
            "passage": {
                "text": text[0],
                "questions": [{"question": text[1], "idx": i, "answers": answers}],
            },
        }
    if task == "record":
        first, second = text[0].split()[:2]
        entities = [
            {"start": 0, "end": len(first) - 1},
            {"start": len(first) + 1, "end": len(first) + len(second)},
        ]
        answers = [{"start": 0, "end": len(first) - 1, "text": first}]
        return {"idx": i, "passage": {"text": text[0], "entities": entities},
                "qas": [{"query": text[1] + " @placeholder", "answers": answers, "idx": i}]}  # fmt: skip
    row: dict[str, Any] = dict(zip(s.hub[:-1], text)) | {"idx": i}
    row["label"] = {"copa": label}.get(
        task, bool(label) if s.labels == _FALSE_TRUE else s.labels[label]
    )
    if task == "wsc":
        row["target"] = {
            "span1_text": row.pop("span1_text"),
            "span2_text": row.pop("span2_text"),
            "span1_index": 0,
            "span2_index": 1,
        }
    return row
