"""Derives every recorded number again: metrics, differences, intervals, verdicts, tables.

    python -m benchmarks.check                 all papers with a recorded result
    python -m benchmarks.check autolora        one
    python -m benchmarks.check --rerun 3 --seed 71    also train three runs of each paper again
    python -m benchmarks.check --stamp         (maintainers) note that it passed

Works in a clean clone. Exit status 1 where a digit, a run, a page or a file differs, 2 where a
results file cannot be read; results of older code are a notice. docs/verdicts.md says what this
proves and what it cannot.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import PAPERS, history, readme, recorded, records, reported, verdicts
from benchmarks.assemble import judge_sha256
from benchmarks.blocks import outdated
from benchmarks.claims import Claims, load_claims
from benchmarks.comparing import differences
from benchmarks.predictions import (
    Arrays,
    Predictions,
    predictions_sha256,
    smallest,
    unpack_predictions,
)
from benchmarks.recorded import SCALES, Gate, Results, RunKey, digest, result_path, run_name
from benchmarks.records import Record, Records, unpack_records
from benchmarks.rerun import parse, rerun
from benchmarks.rules import tidy
from benchmarks.scores import item_ids
from shared import protocol
from shared.protocol import BadInput, Protocol, sha256_yaml

ROOT = Path(__file__).resolve().parent.parent
PRINTED = 20  # problems per result


# --- one result -----------------------------------------------------------------------------------


def evaluate_of(paper_dir: Path) -> Any:
    """The paper's evaluate.py as a module."""
    if str(paper_dir.parent) not in sys.path:
        sys.path.insert(0, str(paper_dir.parent))
    return importlib.import_module(f"{paper_dir.name}.evaluate")


def check_files(paper_dir: Path, scale: str, result: Results) -> list[str]:
    """Files that the result names by their sha256."""
    files = {
        "claims.yaml": (sha256_yaml, result.claims_sha256),
        "protocol.yaml": (sha256_yaml, result.protocol_sha256),
        "reported.yaml": (sha256_yaml, result.reported_sha256),
        f"results/{scale}.predictions.npz": (predictions_sha256, result.predictions_sha256),
    }
    if result.records_sha256 or result.judge_sha256:
        files[f"results/{scale}.records.jsonl.gz"] = (digest, result.records_sha256)
    problems = []
    for name, (hashed, sha256) in files.items():
        path = paper_dir / name
        if not path.exists():
            problems.append(f"{name} is missing")
        elif hashed(path) != sha256:
            problems.append(f"{name} changed since these results were recorded")
    return problems


def check_head(paper: Protocol, scale: str, result: Results, claims: Claims) -> list[str]:
    """What the result says of itself and of its protocol."""
    declared = {
        "schema": (result.version, min(result.version, recorded.SCHEMA)),
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
    kept: Records,
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
        gates=records.gates(kept),
        predictions=predictions,
        score=evaluate.score,
        statistics=getattr(evaluate, "STATISTICS", {}),
        reported=reported.load(paper.directory / "reported.yaml"),
        item_values=getattr(evaluate, "item_values", None),
        schema=result.version,
    )
    plain = derived.fields_of(result.version)
    for part in ("claims", "reported"):
        problems += differences(document[part], plain[part], part)
    gates = check_gates(result.gates, derived.gates)
    if kept and not gates:
        gates = differences(document["gates"], plain["gates"], "gates")
    return problems + gates


def check_gates(listed: Sequence[Gate], derived: Sequence[Gate]) -> list[str]:
    """Which gates there are; of those that only a run can decide, the statement alone."""
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


def check_labels(predictions: Predictions) -> list[str]:
    """A test item has one label: in all arms of a seed, and in all seeds where most agree.

    A paper may draw its items anew for each seed and number them from 0: then no two seeds agree.
    """
    groups: dict[tuple[str, bytes], list[RunKey]] = {}
    for key, arrays in sorted(predictions.items()):
        if "label" in arrays:
            groups.setdefault((key[1], item_ids(arrays).tobytes()), []).append(key)
    problems = []
    for keys in groups.values():
        labels = {key: predictions[key]["label"].tobytes() for key in keys}
        commonest, times = Counter(labels.values()).most_common(1)[0]
        for key in keys:
            peers = keys if 2 * times > len(keys) else [k for k in keys if k[2] == key[2]]
            usual = commonest if peers is keys else labels[peers[0]]
            if labels[key] != usual:
                other = next(k for k in peers if labels[k] == usual)
                apart = int(np.sum(predictions[key]["label"] != predictions[other]["label"]))
                problems.append(
                    f"labels of {run_name(key)} differ from those of {run_name(other)} in {apart} "
                    "items"
                )
    return problems


def check_hashes(
    paper: Protocol, scale: str, result: Results, predictions: Predictions, current: bool
) -> tuple[list[str], list[str]]:
    """(problems, notices): hashes and sums in the file against what they are of.

    current: the code is that of the runs, so that its settings are theirs.
    """
    problems, unequal, equal, rounded = [], [], 0, 0
    for run in result.runs:
        if run.key in predictions and run.predictions_sha256:
            arrays = predictions[run.key]
            same = saved_sha256(arrays) == run.predictions_sha256
            equal, rounded = equal + same, rounded + (not same and may_be_rounded(arrays))
            if not same and not may_be_rounded(arrays):
                unequal.append(f"predictions of {run_name(run.key)} are not those that it recorded")
    problems += unequal if equal else []
    for node in paper.nodes(scale) if current else []:
        config = protocol.config_sha256(json.loads(json.dumps(paper.config(scale, node))))
        for run in result.runs:
            if run.key == node.key and run.config_sha256 not in (None, config):
                problems.append(f"{run_name(run.key)} was not made with the protocol's settings")
    for task in sorted({run.task for run in result.runs if run.split_sha256}):
        split = protocol.sha256_json(result.splits.get(task))
        if split not in {run.split_sha256 for run in result.runs if run.task == task}:
            problems.append(f"splits.{task} is not that of any run")
    seconds = [float(run.seconds or 0.0) for run in result.runs]
    if result.seconds.runs is not None or any(seconds):
        problems += differences(result.seconds.runs, round(sum(seconds), 1), "seconds.runs")
        spent = (result.seconds.wall, result.seconds.cpu)
        problems += [] if all(spent) else ["seconds: wall or cpu is missing"]
    notices = []
    if unequal and not equal:
        notices.append("packed by another numpy or zlib: predictions are not compared run by run")
    if rounded:
        notices.append(f"predictions of {rounded} runs were rounded: not compared run by run")
    return problems, notices


def saved_sha256(arrays: Arrays) -> str:
    """Hash of the file in which a run writes these predictions (`runs.save_arrays`)."""
    buffer = io.BytesIO()
    plain: dict[str, Any] = dict(sorted(arrays.items()))
    np.savez_compressed(buffer, **plain)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def may_be_rounded(arrays: Arrays) -> bool:
    floats = [array for array in arrays.values() if array.dtype.kind == "f"]
    return bool(floats) and all(smallest(array).dtype != array.dtype for array in floats)


def check_records(
    paper: Protocol, scale: str, document: Mapping[str, Any], result: Results, kept: Records
) -> list[str]:
    """All that follows from the records of the runs, and that one run's hash is in the next."""
    ended = [node for node in paper.nodes(scale) if node.key in kept]
    of_result = {**records.head([kept[node.key] for node in ended])}
    of_result["machines"] = [one.model_dump() for one in of_result["machines"]]
    problems = []
    for name, derived in of_result.items():
        problems += differences(document.get(name), derived, name)
    problems += differences(
        document["seconds"], {**document["seconds"], **records.spent(kept)}, "seconds"
    )
    hashes = {key: protocol.record_sha256(record) for key, record in kept.items()}
    for node in ended:
        name, made = run_name(node.key), kept[node.key]["fingerprint"]
        if made.get("uses") != {key[0]: hashes.get(key) for key in node.uses}:
            problems.append(f"{name} was made with other runs than those that are recorded")
        if made.get("config") != kept[node.key].get("config_sha256"):
            problems.append(f"{name}: its record has two hashes of its settings")
    for run in result.runs:
        if run.key in kept:
            derived = records.entry(kept[run.key])
            derived.attempts = run.attempts
            place = f"run {run_name(run.key)}"
            problems += differences(tidy(run.model_dump()), derived.model_dump(), place)
        elif run.status == "finished":
            problems.append(f"run {run_name(run.key)} has no record")
    return problems


def check_scale(paper_dir: Path, scale: str) -> tuple[list[str], list[str]]:
    """(problems, notices) of `<paper>/results/<scale>.json`."""
    path = result_path(paper_dir, scale)
    try:
        document = recorded.load_json(path)
        result = recorded.as_results(document, path)
    except BadInput as error:
        return [f"cannot be derived again: {error}"], []
    problems = check_files(paper_dir, scale, result)
    notices: list[str] = []
    code = protocol.sha256_json(protocol.code_hashes(paper_dir / "train.py"))
    if result.code_sha256 != code:
        notices.append(f"STALE: recorded by older code (commit {str(result.commit)[:10]})")
    try:
        paper = Protocol(paper_dir)
        claims = load_claims(paper_dir / "claims.yaml")
        predictions = unpack_predictions(path.with_suffix(".predictions.npz"))
        kept, lines = dict[RunKey, Record](), path.with_suffix(".records.jsonl.gz")
        if result.records_sha256 or result.judge_sha256 or lines.exists():
            kept = unpack_records(lines)
            problems += check_records(paper, scale, document, result, kept)
        else:
            notices.append("recorded before the records of runs were kept: gates are not derived")
        problems += check_head(paper, scale, result, claims)
        problems += check_runs(paper, scale, result, predictions)
        problems += check_costs(paper, scale, result)
        problems += check_labels(predictions)
        wrong, noted = check_hashes(
            paper, scale, result, predictions, current=result.code_sha256 == code
        )
        problems, notices = problems + wrong, notices + noted
        if history.remembers(paper_dir):
            problems += history.written_once(path, document) + history.earlier(path, result)
            wrong, noted = history.of_commit(paper_dir, result, list(kept.values()))
            problems, notices = problems + wrong, notices + noted
        problems += check_numbers(paper, scale, document, result, claims, predictions, kept)
    except (BadInput, AttributeError, KeyError, TypeError, ValueError) as error:
        problems.append(f"cannot be derived again: {type(error).__name__}: {error}")
    if result.judge_sha256 not in (None, judge_sha256()):
        notices.append("judged by an older version of the judge; today's gives what is said here")
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


# --- the command ----------------------------------------------------------------------------------


def report_paper(paper_dir: Path, options: argparse.Namespace) -> int:
    """Check one paper and print what came of it: 0, or 1 or 2 as the command ends."""
    name = paper_dir.name
    scales, problems, notices = check_paper(paper_dir)
    if options.rerun is not None and scales and not problems:
        problems = rerun(paper_dir, scales[-1], options.rerun, options.seed or "0")
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
    try:
        recorded.all_recorded(paper_dir)
    except BadInput:
        return 2
    return int(bool(problems))


def check_pages(root: Path) -> list[str]:
    """Pages of the whole project and figures that were recorded once, against what they say."""
    problems = []
    for path, tables in readme.pages(root, []):
        place = path.relative_to(root)
        stale = outdated(path, tables)
        problems += [
            f"{place}: the generated table {n!r} is not what the results say" for n in stale
        ]
    for path in sorted(root.glob("benchmarks/**/results/*.json")):
        problems += history.written_once(path, recorded.load_json(path))
    return problems


def check_report(root: Path) -> list[str]:
    """The pages of a report that was written here, against pages written now."""
    folder = recorded.report_root(root)
    papers = [name for name in PAPERS if (folder / f"{name}.html").exists()]
    if not papers:
        return []
    from benchmarks import report  # matplotlib and jinja2 come with it

    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / "report"  # a copy: the overview links to the pages that are there
        shutil.copytree(folder, again)
        report.render(root, papers, out=again)
        files = sorted(path for path in again.iterdir() if path.suffix in (".html", ".json"))
        stale = [p.name for p in files if p.read_bytes() != (folder / p.name).read_bytes()]
    return [f"{folder}/{name} is not what the results say; `make report`" for name in stale]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paper", nargs="*", help="default: all with a recorded result")
    more = "train so many recorded runs of each paper again (a number or all)"
    add("--rerun", nargs="?", const=1, type=parse, help=more)
    add("--seed", default="", help="decides which runs are drawn: any number of yours")
    add("--stamp", action="store_true", help="note that the results passed")
    options = parser.parse_args(arguments)
    if options.seed and options.rerun is None:
        parser.error("SEED draws the runs of RERUN=n: give RERUN as well")
    papers = [name.replace("-", "_").strip("/") for name in options.paper]
    for name in papers:
        if not (root / name / "protocol.yaml").exists():
            print(f"error: {name} is not a paper of this repository", file=sys.stderr)
            return 2
    papers = papers or sorted(path.parent.name for path in root.glob("*/protocol.yaml"))
    if not history.remembers(root):
        print("no git history here: earlier results and the code of a commit are not compared")
    status = max(report_paper(root / name, options) for name in papers)
    try:
        if options.stamp and not status:
            readme.write_readmes(root, [])
        stale = check_pages(root) + ([] if options.paper else check_report(root))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*(f"FAILED {line}\n" for line in stale), sep="", end="")
    return max(status, int(bool(stale)))


if __name__ == "__main__":
    sys.exit(main())
