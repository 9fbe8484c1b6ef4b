"""From the records of finished runs to a results file, and from there into the repository."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import locks, recorded, records, reported, verdicts
from benchmarks.plan import ROOT, load_claims, say
from benchmarks.pool import Key, Outcome
from benchmarks.predictions import (
    pack_predictions,
    prediction_files,
    require_small,
    unpack_predictions,
    write_files,
)
from benchmarks.recorded import Earlier, Rehearsal, Results, RunEntry, Seconds, result_path
from benchmarks.records import Record
from shared import protocol
from shared.protocol import BadInput, Node, Protocol


def short(path: Path) -> str:
    return os.path.relpath(path)


# --- time spent on a scale ------------------------------------------------------------------------


def wall(folder: Path) -> dict[str, float]:
    """wall.json; one that cannot be read costs the time of earlier calls, never a run."""
    path = folder / "wall.json"
    if not path.exists():
        return {}
    try:
        return {
            key: float(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (ValueError, TypeError, AttributeError):
        path.unlink()
        say(f"  {short(path)} cannot be read and is deleted: earlier calls are not counted")
        return {}


def add_wall(folder: Path, seconds: float, runs: float, workers: int) -> None:
    """Add a call (`runs`: sum of run times; `offered`: wall time x workers) to wall.json."""
    before = wall(folder)
    added = {"wall": seconds, "runs": runs, "offered": seconds * workers}
    total = {key: before.get(key, 0.0) + value for key, value in added.items()}
    recorded.write_text(folder / "wall.json", json.dumps(total))


# --- judging --------------------------------------------------------------------------------------


def collect(
    paper: Protocol, scale: str, nodes: Sequence[Node], outcomes: Mapping[Key, Outcome]
) -> list[tuple[Node, RunEntry, Record | None]]:
    """(node, entry of the results file, record) of every declared run.

    One that did not end is `crashed`, without a record; one whose stage diverged has diverged.
    """
    rows: list[tuple[Node, RunEntry, Record | None]] = []
    diverged: set[Key] = set()
    for node in nodes:
        record = protocol.read_record(paper.run_directory(scale, node.key))
        outcome = outcomes.get(node.key, Outcome("blocked"))
        if outcome.status in {"finished", "diverged"} and record:
            entry = records.entry(record)
            entry.attempts = outcome.attempts
        else:
            record = None
            entry = RunEntry(
                arm=node.arm,
                task=node.task,
                seed=node.seed,
                status="diverged" if diverged & set(node.uses) else "crashed",
                reason=outcome.detail.strip()[-300:],
                attempts=outcome.attempts,
            )
        if entry.status == "diverged":
            diverged.add(node.key)
        rows.append((node, entry, record))
    return rows


def assemble(
    paper: Protocol,
    scale: str,
    nodes: Sequence[Node],
    outcomes: Mapping[Key, Outcome],
    preview: str | None,
) -> tuple[Results, Path]:
    """Verdicts from runs: the results file and its compact predictions, written and returned."""
    from shared import runs

    rows = collect(paper, scale, nodes, outcomes)
    folder = protocol.runs_root(ROOT) / paper.paper / scale
    name = "preview" if preview else "results"
    evaluate = importlib.import_module(f"{paper.paper}.evaluate")
    by_run = {node.key: record for node, _, record in rows if record}
    made = records.head(list(by_run.values()))  # refuses what two versions of the code made
    arrays = {
        node.key: runs.load_arrays(paper.run_directory(scale, node.key) / "predictions.npz")
        for node, entry, _ in rows
        if entry.status == "finished" and not node.stage
    }
    packed = folder / f"{name}.predictions.npz"
    predictions_sha256 = pack_predictions(packed, arrays, evaluate.score)
    claims, entries = load_claims(paper), [entry for _, entry, _ in rows]
    judged = verdicts.judge(
        claims=claims,
        scale=scale,
        nodes=nodes,
        runs=entries,
        gates=records.gates(by_run),
        predictions=unpack_predictions(packed),  # what is committed is what is judged
        score=evaluate.score,
        statistics=getattr(evaluate, "STATISTICS", {}),
        reported=reported.load(paper.directory / "reported.yaml"),
        item_values=getattr(evaluate, "item_values", None),
    )
    if preview:  # a gate of runs that were not asked for has not failed
        judged.gates = [gate for gate in judged.gates if gate.detail != verdicts.UNRECORDED]
    results = Results(
        paper=paper.paper,
        scale=scale,
        preview=preview,
        created=recorded.now(),
        commit=runs.commit(ROOT),
        claims_sha256=protocol.sha256_yaml(paper.directory / "claims.yaml"),
        protocol_sha256=protocol.sha256_yaml(paper.path),
        reported_sha256=protocol.sha256_yaml(paper.directory / "reported.yaml"),
        predictions_sha256=predictions_sha256,
        records_sha256=records.pack_records(folder / f"{name}.records.jsonl.gz", by_run),
        judge_sha256=judge_sha256(),
        revision=paper.revision(),
        revisions=claims.revisions,
        earlier=earlier(paper, scale, predictions_sha256),
        seeds=paper.seeds(scale),
        development_seeds="0-99",
        tuning=paper.document.tuning,
        seconds=Seconds(wall=round(wall(folder).get("wall", 0.0), 1), **records.spent(by_run)),
        **made,
        **dict(judged),
        runs=entries,
    )
    path = folder / f"{name}.json"
    results.write(path)
    return recorded.read(path), path


def judge_sha256() -> str:
    """Hash of the files that judge, from the predictions on."""
    return protocol.sha256_json(protocol.code_hashes(ROOT / "benchmarks" / "verdicts.py"))


def earlier(paper: Protocol, scale: str, predictions_sha256: str) -> list[Earlier]:
    """Verdicts recorded before, from other seeds (a revision) or another processor."""
    old = recorded.recorded(paper.directory, scale)
    if old is None:
        return []
    if old.revision == paper.revision() and old.predictions_sha256 == predictions_sha256:
        return old.earlier
    return [*old.earlier, recorded.superseded(old)]


def rehearse(paper: Protocol, nodes: Sequence[Node], passed: bool) -> Rehearsal:
    """What every arm and task of the paper's own protocol came to in a few steps."""
    from shared import runs

    folder = protocol.runs_root(ROOT) / paper.paper / "rehearsal"
    result = Rehearsal(
        paper=paper.paper,
        passed=passed,
        runs=len(nodes),
        arms=sorted({node.arm for node in nodes}),
        tasks=sorted({node.task for node in nodes}),
        seconds=round(wall(folder).get("wall", 0.0), 1),
        created=recorded.now(),
        commit=runs.commit(ROOT),
    )
    result.write(folder / "results.json")
    return result


# --- recording ------------------------------------------------------------------------------------


def record(name: str, scale: str) -> int:
    """Copy a finished result into `<paper>/results/` and write the README tables."""
    from benchmarks import page_pictures, readme

    paper = Protocol(ROOT / name)
    paper.scale(scale)
    source = protocol.runs_root(ROOT) / name / scale / "results.json"
    again = f"make reproduce-{name} SCALE={scale}"
    if not source.exists():
        raise BadInput(f"{short(source)} does not exist: run {again} first")
    target = result_path(paper.directory, scale)
    with (
        locks.alone(source.parent, f"{name} at scale {scale}"),
        locks.alone(protocol.runs_root(ROOT), "a recording", patience=60),
    ):
        copy(paper, scale, source, target, again)
        readme.write_readmes(ROOT, [name])
        if scale == "cpu" and (names := page_pictures.drawn(name)):
            page_pictures.write(name, names, scale)
    say(f"recorded: {short(target)}; now commit it")
    return 0


def copy(paper: Protocol, scale: str, source: Path, target: Path, again: str) -> None:
    """The result `source` and what it was derived from, to `target` and beside it."""
    from shared import runs

    commit = runs.commit(ROOT)
    if commit is None or commit.endswith("+changes"):
        raise BadInput("recording needs a clean, committed tree: commit or stash first")
    if scale == "rehearsal":
        rehearsal = recorded.read_rehearsal(source)
        if not rehearsal.passed:
            raise BadInput("the rehearsal did not pass")
        rehearsal.commit = commit
        return rehearsal.write(target)
    result = recorded.read(source)
    check_fresh(paper, result, again)
    packed = source.with_suffix(".predictions.npz")
    require_small(packed)
    result.commit = commit
    payloads = [file.read_bytes() for file in prediction_files(packed)]
    write_files(target.with_suffix(".predictions.npz"), payloads)
    lines = source.with_suffix(".records.jsonl.gz").read_bytes()
    recorded.write_bytes(target.with_suffix(".records.jsonl.gz"), lines)
    result.write(target)


def check_fresh(paper: Protocol, result: Results, again: str) -> None:
    """Refuses what is no whole result of the files as they are now."""
    if result.preview:
        raise BadInput(f"a preview is never recorded ({result.preview})")
    made_with = {
        paper.directory / "claims.yaml": result.claims_sha256,
        paper.path: result.protocol_sha256,
    }
    for path, sha256 in made_with.items():
        if sha256 != protocol.sha256_yaml(path):
            raise BadInput(f"{path.name} changed since these runs; repeat {again}")
    code = protocol.code_hashes(paper.directory / "train.py")
    if result.code_sha256 != protocol.sha256_json(code):
        raise BadInput(f"the code changed since these runs; repeat {again}")
    if any(run.status == "crashed" for run in result.runs):
        raise BadInput("a declared run did not end; repeat it first")
