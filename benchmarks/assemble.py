"""From the records of finished runs to a results file, and from there into the repository."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import recorded, reported, verdicts
from benchmarks.plan import ROOT, load_claims, say
from benchmarks.pool import Key, Outcome
from benchmarks.predictions import pack_predictions, unpack_predictions
from benchmarks.recorded import Earlier, Gate, Rehearsal, Results, RunEntry, Seconds, result_path
from shared import protocol
from shared.protocol import BadInput, Node, Protocol

Record = dict[str, Any]  # record.json of a run


def short(path: Path) -> str:
    return os.path.relpath(path)


# --- time spent on a scale ------------------------------------------------------------------------


def wall(folder: Path) -> dict[str, float]:
    """wall.json; one that cannot be read costs the time of earlier calls, never a run."""
    path = folder / "wall.json"
    if not path.exists():
        return {}
    try:
        return {key: float(value) for key, value in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        path.unlink()
        say(f"  {short(path)} cannot be read and is deleted: earlier calls are not counted")
        return {}


def add_wall(folder: Path, seconds: float, runs: float, workers: int) -> None:
    """Add a call (`runs`: sum of run times; `offered`: wall time x workers) to wall.json."""
    folder.mkdir(parents=True, exist_ok=True)
    before = wall(folder)
    added = {"wall": seconds, "runs": runs, "offered": seconds * workers}
    total = {key: before.get(key, 0.0) + value for key, value in added.items()}
    (folder / "wall.json").write_text(json.dumps(total))


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
            entry = RunEntry.model_validate(record)
            entry.attempts = outcome.attempts
            entry.record_sha256 = protocol.record_sha256(record)
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
    arrays = {
        node.key: runs.load_arrays(paper.run_directory(scale, node.key) / "predictions.npz")
        for node, entry, _ in rows
        if entry.status == "finished" and not node.stage
    }
    packed = folder / f"{name}.predictions.npz"
    predictions_sha256 = pack_predictions(packed, arrays, evaluate.score)
    records = [(node, record) for node, _, record in rows if record]
    gates = [
        (node.key, [Gate.model_validate(gate) for gate in record.get("gates", [])])
        for node, record in records
    ]
    claims, entries = load_claims(paper), [entry for _, entry, _ in rows]
    judged = verdicts.judge(
        claims=claims,
        scale=scale,
        nodes=nodes,
        runs=entries,
        gates=gates,
        predictions=unpack_predictions(packed),  # what is committed is what is judged
        score=evaluate.score,
        statistics=getattr(evaluate, "STATISTICS", {}),
        reported=reported.load(paper.directory / "reported.yaml"),
        item_values=getattr(evaluate, "item_values", None),
    )
    if preview:  # a gate of runs that were not asked for has not failed
        judged.gates = [gate for gate in judged.gates if gate.detail != verdicts.UNRECORDED]
    data = {
        key: value["sha256"]
        for _, record in records
        for key, value in (record["fingerprint"].get("data") or {}).items()
    }
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
        code_sha256=protocol.sha256_json(protocol.code_hashes(paper.directory / "train.py")),
        revision=paper.revision(),
        revisions=claims.revisions,
        earlier=earlier(paper, scale, predictions_sha256),
        environment=records[-1][1]["environment"] if records else {},
        data=data,
        splits={r["task"]: r["splits"] for _, r in records if r.get("splits")},
        seeds=paper.seeds(scale),
        development_seeds="0-99",
        tuning=paper.document.tuning,
        seconds=Seconds(
            wall=round(wall(folder).get("wall", 0.0), 1),
            runs=round(sum(record["seconds"] for _, record in records), 1),
            cpu=round(sum(record["cpu_seconds"] for _, record in records), 1),
        ),
        **dict(judged),
        runs=entries,
    )
    path = folder / f"{name}.json"
    results.write(path)
    return recorded.read(path), path


def earlier(paper: Protocol, scale: str, predictions_sha256: str) -> list[Earlier]:
    """Verdicts recorded before, from other seeds (a revision) or another processor."""
    old = recorded.recorded(paper.directory, scale)
    if old is None:
        return []
    if old.revision == paper.revision() and old.predictions_sha256 == predictions_sha256:
        return old.earlier
    superseded = Earlier(
        commit=old.commit,
        created=old.created,
        revision=old.revision,
        processor=old.environment.get("processor"),
        verdicts={claim.id: claim.verdict for claim in old.claims},
        effects={claim.id: claim.effect for claim in old.claims},
    )
    return [*old.earlier, superseded]


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
    from benchmarks import readme
    from shared import runs

    paper = Protocol(ROOT / name)
    paper.scale(scale)
    commit = runs.commit(ROOT)
    if commit is None or commit.endswith("+changes"):
        raise BadInput("recording needs a clean, committed tree: commit or stash first")
    source = protocol.runs_root(ROOT) / name / scale / "results.json"
    again = f"make reproduce-{name} SCALE={scale}"
    if not source.exists():
        raise BadInput(f"{short(source)} does not exist: run {again} first")
    target = result_path(paper.directory, scale)
    if scale == "rehearsal":
        rehearsal = recorded.read_rehearsal(source)
        if not rehearsal.passed:
            raise BadInput("the rehearsal did not pass")
        rehearsal.commit = commit
        rehearsal.write(target)
    else:
        result = recorded.read(source)
        check_fresh(paper, result, again)
        result.commit = commit
        result.write(target)
        arrays = source.with_suffix(".predictions.npz")
        shutil.copyfile(arrays, target.with_suffix(".predictions.npz"))
    readme.write_readmes(ROOT, [name])
    say(f"recorded: {short(target)}; now commit it")
    return 0


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
