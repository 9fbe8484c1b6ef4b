"""A recorded paper in a git repository of its own, and the ways in which a forger edits it.

The forger judges again with our own code, writes every hash that the file names, fills the pages,
stamps the result and commits: what is left to find is what no such edit can make true.
"""

from __future__ import annotations

import copy
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import check, readme, recorded, records, reported, verdicts
from benchmarks.blocks import update_readme
from benchmarks.claims import load_claims
from benchmarks.predictions import Predictions, pack_predictions, unpack_predictions
from benchmarks.recorded import RunKey
from shared import protocol
from shared.protocol import Protocol

ROOT = Path(__file__).resolve().parent.parent


class Forged:
    """The recorded `paper` at scale cpu, copied to `root`: its files, result and predictions."""

    def __init__(self, paper: str, root: Path):
        self.root, self.folder = root, root / paper
        for name in (paper, "shared", "benchmarks"):
            junk = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, root / name, ignore=junk)
        self.path = self.folder / "results" / "cpu.json"
        self.packed = self.path.with_suffix(".predictions.npz")
        self.result = recorded.read(self.path)
        self.predictions: Predictions = unpack_predictions(self.packed)
        self.git("init", "-q")
        old = self.result.model_copy(deep=True)
        old.created, old.predictions_sha256, old.earlier = "2020-01-01T00:00:00Z", "older", []
        old.code_sha256 = "older"  # or other predictions would be a fault
        old.write(self.path)
        self.commit()
        self.result.earlier = [recorded.superseded(old)]
        self.kept = self._records()
        self.fill(self.kept)
        self.result.commit = self.git("rev-parse", "HEAD").strip()
        self.judge(records.gates(self.kept))
        self.finish()
        self.whole = self.git("rev-parse", "HEAD").strip()

    def restore(self) -> None:
        """As it was recorded."""
        self.git("reset", "-q", "--hard", self.whole)
        self.result, self.predictions = recorded.read(self.path), unpack_predictions(self.packed)

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", *identity, *words]
        done = subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout

    def commit(self) -> None:
        self.git("add", "-A"), self.git("commit", "-q", "--allow-empty", "-m", "x")

    def _records(self) -> dict[RunKey, dict[str, Any]]:
        """Records as the runs may have written them, out of what the committed result says."""
        paper = Protocol(self.folder)
        code = protocol.code_hashes(self.folder / "train.py")
        data = {name: {"sha256": sha256} for name, sha256 in self.result.data.items()}
        gates = [
            {"id": gate.id, "passed": gate.passed, "detail": gate.detail}
            for gate in self.result.gates
            if gate.id not in (verdicts.STATES_DIFFER, verdicts.ITEMS_SHARED)
        ]
        entries = {run.key: run for run in self.result.runs}
        kept: dict[RunKey, dict[str, Any]] = {}
        for node in paper.nodes("cpu"):
            record = entries[node.key].model_dump(exclude={"record_sha256", "attempts"})
            split = self.result.splits.get(node.task)
            if protocol.sha256_json(split) == record["split_sha256"]:
                record["splits"] = split
            uses = {key[0]: protocol.record_sha256(kept[key]) for key in node.uses}
            record["fingerprint"] = {
                **{"config": record["config_sha256"], "code": code, "data": data, "uses": uses}
            }
            record["gates"] = gates if not kept else []
            record["environment"] = self.result.environment
            record["cpu_seconds"] = 1.0
            kept[node.key] = record
        return kept

    def fill(self, kept: dict[RunKey, dict[str, Any]]) -> None:
        """Pack these records; the head and the runs of the result say what they say."""
        self.result.records_sha256 = records.pack_records(
            self.path.with_suffix(".records.jsonl.gz"), kept
        )
        for name, value in records.head(list(kept.values())).items():
            setattr(self.result, name, value)
        self.result.runs = [
            records.entry(kept[run.key]).model_copy(update={"attempts": run.attempts})
            for run in self.result.runs
        ]
        for name, value in records.spent(kept).items():
            setattr(self.result.seconds, name, value)

    def judge(self, gates: Any = ()) -> None:
        """Verdicts from the predictions and claims as they are now; gates as they are in words."""
        evaluate = check.evaluate_of(self.folder)
        nodes = Protocol(self.folder).nodes("cpu")
        judged = verdicts.judge(
            claims=load_claims(self.folder / "claims.yaml"),
            scale="cpu",
            nodes=nodes,
            runs=self.result.runs,
            gates=gates,
            predictions=self.predictions,
            score=evaluate.score,
            statistics=getattr(evaluate, "STATISTICS", {}),
            reported=reported.load(self.folder / "reported.yaml"),
            item_values=getattr(evaluate, "item_values", None),
        )
        self.result.claims, self.result.reported = judged.claims, judged.reported
        derived = (verdicts.STATES_DIFFER, verdicts.ITEMS_SHARED)
        old = {gate.id: gate for gate in self.result.gates}
        self.result.gates = [
            gate if gates or gate.id in derived else old[gate.id] for gate in judged.gates
        ]

    def finish(self) -> None:
        """Every hash and sum that the file has, the pages, the stamp, a commit."""
        self.result.predictions_sha256 = pack_predictions(self.packed, self.predictions)
        for name in ("claims", "protocol"):
            sha256 = protocol.sha256_yaml(self.folder / f"{name}.yaml")
            setattr(self.result, f"{name}_sha256", sha256)
        self.result.write(self.path)
        update_readme(self.folder / "README.md", readme.paper_tables(self.folder))
        recorded.stamp_checked(self.folder, "cpu")
        self.commit()

    def edit(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change what a YAML file of the paper says."""
        path = self.folder / f"{name}.yaml"
        document = protocol.load_yaml(path, path.name)
        change(document)
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")

    def rescore(self) -> None:
        """Metrics of runs as the predictions give them now."""
        evaluate = check.evaluate_of(self.folder)
        for run in self.result.runs:
            if run.key in self.predictions:
                scores = evaluate.score(dict(self.predictions[run.key]))
                run.metrics = {**run.metrics, **{k: float(v) for k, v in scores.items()}}


# --- the forger's edits ---------------------------------------------------------------------------


def arms_of(one: Forged) -> tuple[str, str]:
    """Two arms that were scored alike on the same task and seed."""
    shape = {
        key: (*key[1:], *sorted((name, array.shape) for name, array in x.items()))
        for key, x in sorted(one.predictions.items())
    }
    return next((a[0], b[0]) for a, b in itertools.combinations(shape, 2) if shape[a] == shape[b])


def outcomes(one: Forged) -> None:
    """Better answers in the first run whose answers are not all the same."""
    answers = ("prediction", "correct", "greedy", "z")
    arrays = [x for run in one.predictions.values() for name, x in run.items() if name in answers]
    for array in arrays:
        half, old = len(array) // 2, array.copy()
        array[:half] = array[half:][:half]
        if not np.array_equal(array, old):
            return
    raise AssertionError("no answer that could be changed")


def labels(one: Forged) -> None:
    """The labels of one arm are what it answered (or all that the arm has, moved by one row)."""
    arm, _ = arms_of(one)
    for key, arrays in one.predictions.items():
        if key[0] == arm and "label" in arrays and "prediction" in arrays:
            arrays["label"] = arrays["prediction"].copy()
        elif key[0] == arm:
            for name, array in arrays.items():
                if name != "id" and not name.startswith("_"):
                    arrays[name] = np.roll(array, 1, axis=0)


def swapped(one: Forged) -> None:
    """Two arms take each other's predictions, scores and hashes."""
    first, second = arms_of(one)
    by_key = {run.key: run for run in one.result.runs}
    for key in [k for k in one.predictions if k[0] == first]:
        other = (second, *key[1:])
        if other in one.predictions:
            pair = one.predictions[other], one.predictions[key]
            one.predictions[key], one.predictions[other] = pair
            a, b = by_key[key], by_key[other]
            for name in ("metrics", "state_sha256", "predictions_sha256", "record_sha256"):
                x, y = getattr(a, name), getattr(b, name)
                setattr(a, name, y), setattr(b, name, x)


def threshold(one: Forged) -> None:
    one.edit("claims", lambda document: document["claims"][0].update(threshold=-50))


def controls(one: Forged) -> None:
    def none(document: dict[str, Any]) -> None:
        for claim in document["claims"]:
            claim["controls"] = "none: not needed"

    one.edit("claims", none)


def fewer_seeds(one: Forged) -> None:
    def cut(document: dict[str, Any]) -> None:
        body = document["scales"]["cpu"]
        tasks = body["tasks"] if isinstance(body["tasks"], dict) else {}
        for part in filter(None, [body, *tasks.values()]):
            if "seeds" in part:
                part["seeds"] -= 1

    one.edit("protocol", cut)
    paper = Protocol(one.folder)
    nodes = {node.key for node in paper.nodes("cpu")}
    one.result.seeds = paper.seeds("cpu")
    one.result.runs = [run for run in one.result.runs if run.key in nodes]
    one.predictions = {key: x for key, x in one.predictions.items() if key in nodes}


def gate_details(one: Forged) -> None:
    one.result.gates[0].detail = "held 10000 times"


def no_earlier(one: Forged) -> None:
    one.result.earlier = []


def no_data(one: Forged) -> None:
    one.result.data = {}


def no_splits(one: Forged) -> None:
    one.result.splits = {}


def no_seconds(one: Forged) -> None:
    one.result.seconds = recorded.Seconds()


def invented(one: Forged) -> None:
    for run in one.result.runs:
        run.metrics = {**run.metrics, "invented": 1.0}


def at_a_new_commit(one: Forged) -> None:
    """A threshold that is committed before it is said to have judged the same runs."""
    threshold(one)
    one.commit()
    one.result.commit = one.git("rev-parse", "HEAD").strip()


def dated_back(one: Forged) -> None:
    """The same, and the result that is there came after this one."""
    at_a_new_commit(one)
    one.result.created = "2019-01-01T00:00:00Z"


def made_again(one: Forged) -> None:
    """Better answers, in the records too, as of a second recording; the first one is listed."""
    one.result.earlier = [recorded.superseded(one.result), *one.result.earlier]
    one.result.created = recorded.now()
    outcomes(one)
    one.rescore()
    metrics = {run.key: run.metrics for run in one.result.runs}
    kept = copy.deepcopy(one.kept)
    for node in Protocol(one.folder).nodes("cpu"):
        record = kept[node.key]
        record["metrics"] = metrics[node.key]
        if node.key in one.predictions:
            record["predictions_sha256"] = check.saved_sha256(one.predictions[node.key])
        uses = {key[0]: protocol.record_sha256(kept[key]) for key in node.uses}
        record["fingerprint"]["uses"] = uses
    one.fill(kept)


FORGERIES = (
    *(outcomes, labels, swapped, threshold, controls, fewer_seeds, gate_details, no_earlier),
    *(no_data, no_splits, no_seconds, invented, at_a_new_commit, dated_back, made_again),
)
JUDGED_ANEW = (
    *(outcomes, labels, swapped, threshold, controls, fewer_seeds),
    *(at_a_new_commit, dated_back, made_again),
)


def forge(one: Forged, forgery: Callable[[Forged], None]) -> None:
    """Apply a forgery and make all fit that a forger can make fit."""
    forgery(one)
    if forgery in JUDGED_ANEW:
        one.rescore()
        one.judge()
    one.finish()
