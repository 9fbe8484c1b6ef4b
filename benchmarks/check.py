"""Derives every recorded number again: metrics, differences, intervals, verdicts, tables.

    python -m benchmarks.check                 all papers with a recorded result
    python -m benchmarks.check autolora        one
    python -m benchmarks.check --rerun         also train one recorded run of each paper again
    python -m benchmarks.check --stamp         (maintainers) note that it passed

Works in a clean clone. Exit status 1 where a digit, a run or a file differs; results of older code
are a notice.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import audit, readme, recorded, reported, verdicts
from benchmarks.blocks import outdated, update_readme
from benchmarks.claims import Claims, load_claims
from benchmarks.predictions import Predictions, unpack_predictions
from benchmarks.recorded import SCALES, Gate, Results, digest, result_path, run_name
from benchmarks.rules import DIGITS, tidy
from shared import protocol
from shared.protocol import BadInput, Protocol, read_as, sha256_yaml

ROOT = Path(__file__).resolve().parent.parent
PRINTED = 20  # problems per result


# --- comparing ------------------------------------------------------------------------------------


def same_number(recorded: Any, derived: Any) -> bool:
    """Whether `recorded` is `derived` written with ten digits.

    Where `derived` lies between two such numbers, the last bits of another processor may round it
    either way.
    """
    if recorded == tidy(derived):
        return True
    if isinstance(recorded, bool) or not isinstance(recorded, int | float):
        return False
    if not isinstance(derived, float) or not math.isfinite(derived):
        return False
    if tidy(float(recorded)) != recorded or recorded == 0:
        return False
    unit = 10.0 ** (math.floor(math.log10(abs(recorded))) - DIGITS + 1)
    return abs(recorded - derived) <= 0.5001 * unit


def differences(recorded: Any, derived: Any, place: str) -> list[str]:
    """Where two parts of a results file differ, in words, down to the digit."""
    if isinstance(derived, Mapping) and isinstance(recorded, Mapping):
        lines = [f"{place}: {key!r} is missing" for key in derived if key not in recorded]
        lines += [
            f"{place}: {key!r} does not belong there" for key in recorded if key not in derived
        ]
        for key in derived:
            if key in recorded:
                lines += differences(recorded[key], derived[key], f"{place}.{key}")
        return lines
    if isinstance(derived, list) and isinstance(recorded, list):
        if len(derived) != len(recorded):
            return [f"{place}: {len(recorded)} recorded, {len(derived)} derived"]
        lines = []
        for i, (was, now) in enumerate(zip(recorded, derived)):
            names = now if isinstance(now, Mapping) else {}
            name = names.get("id") or names.get("arm") or i
            lines += differences(was, now, f"{place}[{name}]")
        return lines
    if same_number(recorded, derived):
        return []
    wrong, right = repr(recorded), repr(tidy(derived))
    pairs = enumerate(zip(wrong, right))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(wrong), len(right)))
    return [f"{place}: recorded {wrong}, derived {right} (character {shared + 1})"]


# --- one result -----------------------------------------------------------------------------------


def evaluate_of(paper_dir: Path) -> Any:
    """The paper's evaluate.py as a module."""
    if str(paper_dir.parent) not in sys.path:
        sys.path.insert(0, str(paper_dir.parent))
    return importlib.import_module(f"{paper_dir.name}.evaluate")


def check_files(paper_dir: Path, scale: str, result: Results) -> list[str]:
    """Files that the result names by their sha256."""
    files = {
        "claims.yaml": result.claims_sha256,
        "protocol.yaml": result.protocol_sha256,
        "reported.yaml": result.reported_sha256,
        f"results/{scale}.predictions.npz": result.predictions_sha256,
    }
    problems = []
    for name, sha256 in files.items():
        path = paper_dir / name
        if not path.exists():
            problems.append(f"{name} is missing")
        elif (sha256_yaml if path.suffix == ".yaml" else digest)(path) != sha256:
            problems.append(f"{name} changed since these results were recorded")
    return problems


def check_head(paper: Protocol, scale: str, result: Results, claims: Claims) -> list[str]:
    """What the result says of itself and of its protocol."""
    declared = {
        "schema": (result.version, 1),
        "paper": (result.paper, paper.paper),
        "scale": (result.scale, scale),
        "preview": (result.preview, None),
        "revision": (result.revision, paper.revision()),
        "revisions": (result.revisions, claims.revisions),
        "seeds": (result.seeds, paper.seeds(scale)),
        "development_seeds": (result.development_seeds, "0-99"),
        "tuning": (result.tuning, paper.document.tuning),
    }
    pairs = declared.items()
    return [line for name, (was, now) in pairs for line in differences(was, now, name)]


def check_costs(paper: Protocol, scale: str, result: Results) -> list[str]:
    """Gradient evaluations of a run with all it uses are its own and those of its uses."""
    total = {run.key: run.gradient_evaluations_with_uses for run in result.runs}
    own = {run.key: run for run in result.runs}
    problems = []
    for node in paper.nodes(scale):
        used = [total.get(key) for key in node.uses]
        if total.get(node.key) is None or None in used:
            continue
        run, derived = own[node.key], 0
        if run.status == "finished":
            derived = (run.gradient_evaluations or 0) + sum(n or 0 for n in used)
        place = f"gradient_evaluations_with_uses of {run_name(node.key)}"
        problems += differences(total[node.key], derived, place)
    return problems


def check_runs(paper: Protocol, scale: str, result: Results, predictions: Predictions) -> list[str]:
    """Every declared run is there once, with predictions if it finished, and nothing else is."""
    nodes = {node.key: node for node in paper.nodes(scale)}
    problems = []
    counted: set[recorded.RunKey] = set()
    for run in result.runs:
        name = f"run {run_name(run.key)}"
        if run.key in counted:
            problems.append(f"{name} is listed twice")
        elif run.key not in nodes:
            problems.append(f"{name} is not declared by the protocol")
        elif run.status not in ("finished", "diverged"):
            problems.append(f"{name} is {run.status}; a recorded result has only runs that ended")
        elif run.status == "finished" and not nodes[run.key].stage and run.key not in predictions:
            problems.append(f"{name} has no predictions")
        counted.add(run.key)
    problems += [f"run {run_name(k)} is declared and missing" for k in nodes if k not in counted]
    problems += [f"predictions of {k} belong to no run" for k in predictions if k not in counted]
    return problems


def check_numbers(
    paper: Protocol,
    scale: str,
    document: Mapping[str, Any],
    result: Results,
    claims: Claims,
    predictions: Predictions,
) -> list[str]:
    """Metrics of every run, then claims, reported numbers and gates of the file's `document`."""
    evaluate = evaluate_of(paper.directory)
    problems: list[str] = []
    for run in result.runs:
        if run.key in predictions:
            scores = evaluate.score(dict(predictions[run.key]))
            fresh = {name: float(value) for name, value in scores.items()}
            written = {name: run.metrics.get(name) for name in fresh}
            problems += differences(written, fresh, f"metrics of {run_name(run.key)}")
    derived = verdicts.judge(
        claims=claims,
        scale=scale,
        nodes=paper.nodes(scale),
        runs=result.runs,
        gates=[],
        predictions=predictions,
        score=evaluate.score,
        statistics=getattr(evaluate, "STATISTICS", {}),
        reported=reported.load(paper.directory / "reported.yaml"),
        item_values=getattr(evaluate, "item_values", None),
    )
    plain = derived.model_dump()
    for part in ("claims", "reported"):
        problems += differences(document[part], plain[part], part)
    return problems + check_gates(result.gates, derived.gates)


def check_gates(listed: Sequence[Gate], derived: Sequence[Gate]) -> list[str]:
    """What runs recorded cannot be derived again: of those gates only the statement is compared."""
    by_id, problems = {gate.id: gate for gate in listed}, []
    for gate in derived:
        if gate.id not in by_id:
            problems.append(f"gate {gate.id} is not in the file")
        elif gate.id in (verdicts.STATES_DIFFER, verdicts.ITEMS_SHARED):
            was, now = by_id[gate.id].model_dump(), gate.model_dump()
            problems += differences(was, now, f"gates[{gate.id}]")
        elif by_id[gate.id].statement != gate.statement:
            problems.append(f"gate {gate.id}: its statement is not that of claims.yaml")
    extra = by_id.keys() - {gate.id for gate in derived}
    return problems + [f"gate {name} is not declared in claims.yaml" for name in sorted(extra)]


def check_scale(paper_dir: Path, scale: str) -> tuple[list[str], list[str]]:
    """(problems, notices) of `<paper>/results/<scale>.json`."""
    path = result_path(paper_dir, scale)
    try:
        document = recorded.load_json(path)
        if not isinstance(document, dict):
            return [f"{path.name} is not a results file; restore it with git"], []
        result = read_as(Results, document, path.name)
    except BadInput as error:
        return [f"cannot be derived again: {error}"], []
    problems = check_files(paper_dir, scale, result)
    try:
        paper = Protocol(paper_dir)
        claims = load_claims(paper_dir / "claims.yaml")
        predictions = unpack_predictions(path.with_suffix(".predictions.npz"))
        problems += check_head(paper, scale, result, claims)
        problems += check_runs(paper, scale, result, predictions)
        problems += check_costs(paper, scale, result)
        problems += check_numbers(paper, scale, document, result, claims, predictions)
    except (BadInput, AttributeError, KeyError, TypeError) as error:
        problems.append(f"cannot be derived again: {type(error).__name__}: {error}")
    notices = []
    code = protocol.code_hashes(paper_dir / "train.py")
    if result.code_sha256 != protocol.sha256_json(code):
        notices.append(f"STALE: recorded by older code (commit {str(result.commit)[:10]})")
    if scale in recorded.stamps(paper_dir) and recorded.stamped(paper_dir, scale) is None:
        notices.append(
            f"results/{scale}.json is not the file that checked.json names: see git diff for what "
            "no prediction gives (seconds, memory, counts, hashes); a maintainer stamps a new "
            "recording with --stamp"
        )
    return problems, notices


def check_tables(readme_path: Path, tables: Mapping[str, str]) -> list[str]:
    if not readme_path.exists():
        return [f"{readme_path.name} is missing"]
    names = outdated(readme_path, tables)
    return [f"README.md: the generated table {n!r} is not what the results say" for n in names]


def check_audit(root: Path) -> list[str]:
    """The audit of the published numbers, derived again, beside its block of docs/findings.md."""
    page = root / "docs" / "findings.md"
    try:
        stale = outdated(page, {"audit": audit.audit_tables(root)}) if page.exists() else []
    except BadInput as error:
        return [f"the audit cannot be derived again: {error}"]
    what = "docs/findings.md: the audit is not what reported.yaml and audit.yaml say"
    return [f"{what}; python -m benchmarks.audit --write writes it"] * len(stale)


def check_paper(paper_dir: Path) -> tuple[list[str], list[str], list[str]]:
    """(recorded scales, problems, notices) of one paper."""
    scales = [scale for scale in SCALES if result_path(paper_dir, scale).exists()]
    problems, notices = [], []
    for scale in scales:
        wrong, noted = check_scale(paper_dir, scale)
        problems += [f"{scale}: {line}" for line in wrong]
        notices += [f"{scale}: {line}" for line in noted]
    if (paper_dir / "README.md").exists():
        with contextlib.suppress(BadInput):  # a result that cannot be read is a problem already
            problems += check_tables(paper_dir / "README.md", readme.paper_tables(paper_dir))
    return scales, problems, notices


# --- training again -------------------------------------------------------------------------------


def rerun(paper_dir: Path, scale: str) -> list[str]:
    """Trains the cheapest recorded run again, with all it uses, and compares its predictions."""
    result = recorded.read(result_path(paper_dir, scale))
    predictions = unpack_predictions(paper_dir / "results" / f"{scale}.predictions.npz")
    runs = [run for run in result.runs if run.key in predictions]
    run = min(runs, key=lambda r: (r.gradient_evaluations_with_uses or 0, r.arm, r.seed))
    with tempfile.TemporaryDirectory() as folder:
        words = ["--scale", scale, "--arm", run.arm, "--task", run.task, "--seed", str(run.seed)]
        done = subprocess.run(
            [sys.executable, "-m", f"{paper_dir.name}.train", *words],
            cwd=paper_dir.parent,
            env={**os.environ, "REPRO_RUNS": folder},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-300:]
            return [f"run {run_name(run.key)} could not be repeated: {said}"]
        place = Path(folder) / paper_dir.name / scale / run.task / f"seed{run.seed}" / run.arm
        with np.load(place / "predictions.npz", allow_pickle=False) as archive:
            again = {key: archive[key] for key in archive.files}
    before = predictions[run.key]
    moved = [key for key in again if key not in before or not agree(again[key], before[key])]
    if not moved:
        return []
    return [f"run {run_name(run.key)} trained again gives other predictions: {', '.join(moved)}"]


def agree(again: np.ndarray, before: np.ndarray) -> bool:
    """Classes and ids exactly; numbers as far as they are stored and as processors agree."""
    if again.dtype.kind == "f" and again.shape == before.shape:
        return bool(np.allclose(again, before, rtol=1e-3, atol=1e-3, equal_nan=True))
    return bool(np.array_equal(again, before))


def report_paper(paper_dir: Path, options: argparse.Namespace) -> bool:
    """Check one paper and print what came of it; True if it passed."""
    name = paper_dir.name
    scales, problems, notices = check_paper(paper_dir)
    if options.rerun and scales and not problems:
        problems = [f"{scales[-1]}: {line}" for line in rerun(paper_dir, scales[-1])]
    for line in notices:
        print(f"{name} {line}")
    for line in problems[:PRINTED]:
        print(f"{name} FAILED {line}")
    if len(problems) > PRINTED:
        print(f"{name} FAILED ... and {len(problems) - PRINTED} more")
    if not problems:
        again = f"every digit derived again at {', '.join(scales)}"
        print(f"{name}: {again if scales else 'nothing recorded'}")
        for scale in scales if options.stamp else []:
            recorded.stamp_checked(paper_dir, scale)
    return not problems


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paper", nargs="*", help="default: all with a recorded result")
    add("--rerun", action="store_true", help="train one recorded run of each paper again")
    add("--stamp", action="store_true", help="note that the results passed")
    options = parser.parse_args(arguments)
    papers = [name.replace("-", "_").strip("/") for name in options.paper]
    for name in papers:
        if not (root / name / "protocol.yaml").exists():
            print(f"error: {name} is not a paper of this repository", file=sys.stderr)
            return 2
    papers = papers or sorted(path.parent.name for path in root.glob("*/protocol.yaml"))
    passed = [report_paper(root / name, options) for name in papers]
    if options.stamp and all(passed):
        update_readme(root / "README.md", readme.project_tables(root))
    elif (root / "README.md").exists():
        stale = check_tables(root / "README.md", readme.project_tables(root)) + check_audit(root)
        print(*stale, sep="\n", end="\n" if stale else "")
        passed.append(not stale)
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
