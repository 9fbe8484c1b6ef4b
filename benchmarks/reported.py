"""Published numbers: the schema of reported.yaml, which of our runs answers which, and the row of each.

python -m benchmarks.reported convert SRC DST     bring a file of slightly other form to the schema
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.claims import one_of
from benchmarks.rules import default_tolerance, reported_verdict
from benchmarks.scores import Missing, NodeKey, Scores, item_count
from shared.protocol import BadInput

FILE_KEYS = ("paper", "arxiv", "note", "entries", "not_found")
ENTRY_KEYS = (
    *("id", "table", "claim", "method", "metric", "value", "std", "higher_is_better"),
    *("confidence", "origin", "setting", "source"),
)
REQUIRED = ("id", "method", "metric", "value", "source", "confidence", "origin")
ORIGINS = ("paper", "official_repository", "baseline_paper", "third_party", "context")
OWN_RESULT = ("paper", "official_repository")  # origins that are the paper's own result


# ---------------------------------------------------------------- the file


def read_yaml(path: Path) -> Any:
    """By libyaml where it is there: the largest of these files takes seconds without it."""
    try:
        return yaml.load(
            path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """reported.yaml, checked; keys that an entry leaves out (table, claim, std, ...) are None."""
    path = Path(path)
    if not path.exists():
        raise BadInput(
            f"{path} does not exist: every paper lists its published numbers, or that none was found"
        )
    document = read_yaml(path) or {}
    where = f"{path.parent.name}/{path.name}"
    for key in document:
        one_of(key, FILE_KEYS, where)
    for key in FILE_KEYS:
        if key not in document:
            raise BadInput(f"{where}: {key!r} is missing")
    seen: set[str] = set()
    for number, entry in enumerate(document["entries"], 1):
        here = f"{where}: entry {entry.get('id', number)}"
        for key in entry:
            one_of(key, ENTRY_KEYS, here)
        for key in REQUIRED:
            if key not in entry or (entry[key] in (None, "") and key != "value"):
                raise BadInput(
                    f"{here}: {key!r} is missing; every number needs it (value may be null)"
                )
        one_of(entry["origin"], ORIGINS, f"{here}: origin")
        one_of(entry["confidence"], ("read", "derived"), f"{here}: confidence")
        for key in ("value", "std"):
            value = entry.get(key)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise BadInput(f"{here}: {key} is {value!r}; write a number or null")
        if entry.get("higher_is_better") not in (True, False, None):
            raise BadInput(
                f"{here}: higher_is_better is {entry['higher_is_better']!r}; true, false or null"
            )
        if not isinstance(entry.get("setting") or {}, dict):
            raise BadInput(f"{here}: setting is {entry['setting']!r}; write a mapping")
        if entry["id"] in seen:
            raise BadInput(f"{here}: two entries have this id; give each its own")
        seen.add(entry["id"])
    document["entries"] = [{**dict.fromkeys(ENTRY_KEYS), **entry} for entry in document["entries"]]
    return dict(document)


def check_targets(
    targets: Sequence[Mapping[str, Any]], reported: Mapping[str, Any], where: str
) -> None:
    """Refuses a target whose id or pattern names no published number."""
    ids = [entry["id"] for entry in reported["entries"]]
    for target in targets:
        if not any(fnmatchcase(name, target["reported"]) for name in ids):
            one_of(target["reported"], ids, f"{where}: target")


# ---------------------------------------------------------------- ours beside theirs


def target_of(entry_id: str, targets: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The target that answers a reported number: one that names its id, else the first pattern that matches."""
    named = [target for target in targets if target["reported"] == entry_id]
    return next(iter(named + [t for t in targets if fnmatchcase(entry_id, t["reported"])]), None)


def judge_reported(
    entries: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    scale: str,
    nodes: Collection[NodeKey],
    scores: Scores,
) -> list[dict[str, Any]]:
    """A row per reported number: all of them at scale paper; elsewhere those whose target names the scale."""
    rows = []
    usable = [target for target in targets if scale in target.get("scales", ["paper"])]
    for entry in entries:
        target = target_of(entry["id"], usable)
        if target is not None or scale == "paper":
            rows.append(reported_row(entry, target, nodes, scores))
    return rows


def reported_row(
    entry: Mapping[str, Any],
    target: Mapping[str, Any] | None,
    nodes: Collection[NodeKey],
    scores: Scores,
) -> dict[str, Any]:
    """One reported number beside ours. A target without an arm says why nothing of ours answers it."""
    target = target or {"reason": "no target names this number"}
    setting = entry.get("setting") or {}
    sd_over = target.get("sd_over", setting.get("sd_over", "seeds" if "seeds" in setting else None))
    n_paper = target.get("n_paper", setting.get("seeds"))
    unit = target.get("unit", "points")
    deviations = list(target.get("deviations") or [])
    ours: list[float] = []
    rows_tested = 0
    if target.get("arm"):
        ours, rows_tested, selections = our_scores(target, unit, nodes, scores)
        published = setting.get("selection")
        if published and selections and selections != {published}:
            deviations.append(
                f"selection: published {published}, ours {', '.join(sorted(selections))}"
            )
    tolerance, why = target.get("tolerance"), target["reason"]
    if tolerance is None and unit == "points" and rows_tested:
        tolerance = default_tolerance(rows_tested, entry.get("std"), sd_over, n_paper)
    verdict, gap, interval = reported_verdict(
        entry["value"],
        ours,
        tolerance,
        higher_is_better=entry.get("higher_is_better"),
        sd=entry.get("std"),
        sd_over=sd_over,
        n_paper=n_paper,
        own=entry.get("origin") in OWN_RESULT,
        deviations=deviations,
    )
    if not target.get("arm") and verdict == "NOT RUN":
        verdict = "no counterpart"
    return {
        "id": entry["id"],
        "method": entry.get("method"),
        "task": target.get("task"),
        "metric": entry.get("metric"),
        "unit": unit,
        "reported": entry["value"],
        "sd": entry.get("std"),
        "sd_over": sd_over,
        "n_paper": n_paper,
        "source": entry.get("source"),
        "measured": float(np.mean(ours)) if len(ours) else None,
        "scores": ours,
        "gap": gap,
        "ci95": interval,
        "tolerance": tolerance,
        "tolerance_reason": why,
        "deviations": deviations,
        "verdict": verdict,
    }


def our_scores(
    target: Mapping[str, Any], unit: str, nodes: Collection[NodeKey], scores: Scores
) -> tuple[list[float], int, set[str]]:
    """Our numbers per seed (differences where the target has an opponent), test rows, and how runs were selected.

    Empty unless every declared run of the target is there. `task` may be a list: averaged within a seed.
    """
    tasks = [target["task"]] if isinstance(target["task"], str) else list(target["task"])
    arms = [target["arm"], *([target["opponent"]] if target.get("opponent") else [])]
    per_task = [{s for a, t, s in nodes if a in arms and t == task} for task in tasks]
    seeds = sorted(set.intersection(*per_task)) if per_task else []
    keys = {(arm, task, seed) for arm in arms for task in tasks for seed in seeds}
    try:
        if not keys or not keys <= set(nodes):
            return [], 0, set()
        value = {key: scores.value(key, target["metric"]) for key in keys}
    except Missing:
        return [], 0, set()
    factor = 100.0 if unit == "points" and all(abs(v) <= 1.0 for v in value.values()) else 1.0
    mean = {
        (arm, s): factor * float(np.mean([value[arm, task, s] for task in tasks]))
        for arm in arms
        for s in seeds
    }
    ours = [mean[arms[0], s] - (mean[arms[1], s] if len(arms) > 1 else 0.0) for s in seeds]
    tested = min(
        (item_count(scores.predictions[key]) for key in keys if key in scores.predictions),
        default=0,
    )
    return ours, tested, {str(scores.runs[key].get("selection")) for key in keys} - {"None"}


# ---------------------------------------------------------------- bringing other files to the schema

FACTS: dict[str, dict[str, str]] = {  # what files of another form leave to their comments
    "autolora": {
        "note": "None of the paper's own scores could be read. What stands here: one list of learned ranks from the "
        "official README, and baseline scores of LoRA's authors and of users who ran LoRA again."
    },
    "dasgm": {
        "note": "None of the paper's own scores could be read. All entries are results of the searches it builds on, "
        "or ground truth of NAS-Bench-201."
    },
    "mlo_mae": {
        "arxiv": "2402.18128",
        "note": "Table main holds the paper's results; baseline_reference is MAE's own documentation; third_party are "
        "runs by others. Derived values are differences of read ones.",
    },
    "ppo_nlu": {
        "note": "Only differences are published where we could read; no absolute score was found."
    },
    "tapweight": {
        "arxiv": "2410.10006",
        "note": "None of the paper's own tables could be read. The entries are plain finetuning scores of others.",
    },
    "ts_watermark": {
        "arxiv": "2402.18059",
        "note": "The numbers behind the paper's figures, as stored in its official repository. Derived: a count over "
        "the number of texts, or computed again from stored z-scores. Standard deviations are over texts.",
    },
    "weight_mixup": {
        "arxiv": "2403.12918",
        "note": "The paper's tables could not be read; the values come from two independent reading notes, A (which "
        "quotes the ACL version) and B (which lists averages). In points unless the metric says otherwise.",
    },
}
NEW_ORIGIN = {"third_party_rerun": "third_party"}


def origin_of(paper: str, entry: Mapping[str, Any]) -> str:
    """Where a number was published, for files that say it in comments or by the name of the table."""
    if "origin" in entry:
        return NEW_ORIGIN.get(entry["origin"], entry["origin"])
    if paper == "mlo_mae":
        return {"main": "paper", "baseline_reference": "baseline_paper"}.get(
            entry["table"], "third_party"
        )
    if paper == "dasgm":
        return "baseline_paper" if "README" in entry["table"] else "context"
    if entry.get("context"):
        return "context"
    return "official_repository" if paper == "ts_watermark" else "paper"


def setting_of(paper: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The setting, with what an sd was taken over where the source says it, and remarks that had keys of their own."""
    setting = dict(entry.get("setting") or {})
    said: dict[str, dict[str, Any]] = {
        "readme-cola-rank-mean": {"sd_over": "maps"},
        "mae_ref_finetune_4seeds": {"seeds": 4},
        "darts2_cifar10_10runs": {"seeds": 10},
    }
    setting |= {"sd_over": "texts"} if paper == "ts_watermark" else said.get(entry["id"], {})
    return setting | {key: entry[key] for key in ("comparison", "metric_note") if key in entry}


def converted(document: Mapping[str, Any], paper: str) -> dict[str, Any]:
    """The same numbers under the same ids, in the schema."""
    facts = FACTS[paper]
    entries = []
    for entry in document.get("entries") or document.get("reported") or []:
        kept = {key: entry[key] for key in ENTRY_KEYS if key in entry}
        kept |= {"origin": origin_of(paper, entry), "setting": setting_of(paper, entry)}
        kept["source"] = kept["source"].replace(
            "shared/data/nasbench201.csv.gz", "NAS-Bench-201's table of all cells"
        )
        entries.append(
            {key: kept[key] for key in ENTRY_KEYS if kept.get(key) is not None or key == "value"}
        )
    missing = [
        line if isinstance(line, str) else f"{line['table']}: {line['what']}"
        for line in document.get("not_found") or []
    ]
    arxiv = document.get("arxiv") or facts["arxiv"]
    return {
        "paper": paper,
        "arxiv": arxiv,
        "note": facts["note"],
        "entries": entries,
        "not_found": missing,
    }


def flow(value: Any) -> str:
    """One value in YAML's flow style, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:.20f}".rstrip("0")
    if isinstance(value, str):
        harmless = (
            value.replace(" ", "").replace("_", "").replace("-", "").isalnum() and value.isascii()
        )
        same = harmless and not value.startswith("-") and yaml.safe_load(value) == value
        return value if same else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def written(document: Mapping[str, Any]) -> str:
    """The file: an entry per line. A setting or source that several entries share is written once (a YAML anchor)."""
    counts: dict[str, int] = {}
    for entry in document["entries"]:
        for key in ("setting", "source"):
            text = flow(entry.get(key))
            counts[text] = counts.get(text, 0) + 1
    anchors: dict[str, str] = {}

    def shared(key: str, value: Any) -> str:
        text = flow(value)
        if key not in ("setting", "source") or counts[text] == 1:
            return text
        if text in anchors:
            return f"*{anchors[text]}"
        anchors[text] = f"{key}{len(anchors) + 1}"
        return f"&{anchors[text]} {text}"

    lines = [f"{key}: {flow(document[key])}" for key in ("paper",)]
    lines += [
        f"arxiv: {json.dumps(document['arxiv'])}",
        f"note: {json.dumps(document['note'])}",
        "entries:",
    ]
    for entry in document["entries"]:
        lines.append(
            "  - {"
            + ", ".join(f"{key}: {shared(key, value)}" for key, value in entry.items())
            + "}"
        )
    lines += [
        "not_found:",
        *(f"  - {json.dumps(line, ensure_ascii=False)}" for line in document["not_found"]),
    ]
    return "\n".join(lines) + "\n"


def convert(source: Path, destination: Path) -> int:
    """Writes `destination` (`<paper>/reported.yaml`) from `source`; returns the number of entries."""
    paper = source.name.split(".")[0]
    if paper not in FACTS:
        raise BadInput(f"{source}: no paper of this repository; expected <paper>.reported.yaml")
    document = converted(read_yaml(source), paper)
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_text(written(document), encoding="utf-8")
    return len(load(destination)["entries"])


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "convert":
        sys.exit(f"usage: {(__doc__ or '').splitlines()[2].strip()}")
    print(f"{sys.argv[3]}: {convert(Path(sys.argv[2]), Path(sys.argv[3]))} entries")
