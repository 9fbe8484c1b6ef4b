"""Derives every recorded number again: from committed predictions to metrics, differences, intervals, verdicts, tables.

    python -m benchmarks.check                 all papers with a recorded result
    python -m benchmarks.check autolora        one
    python -m benchmarks.check --rerun         also train one recorded run of each paper again
    python -m benchmarks.check --stamp         (maintainers) note in results/checked.json that it passed

Works in a clean clone. Exit status 1 where a digit, a run or a file differs; results of older code are a notice.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks import readme, reported, verdicts
from benchmarks.claims import load_claims
from benchmarks.predictions import Predictions, pack_predictions, unpack_predictions
from benchmarks.rules import DIGITS, tidy
from shared import protocol
from shared.protocol import BadInput, Protocol

__all__ = [
    "check_paper",
    "check_scale",
    "differences",
    "main",
    "pack_predictions",
    "unpack_predictions",
]

ROOT = Path(__file__).resolve().parent.parent
SCALES = ("paper", "gpu", "cpu")
SHOWN = 20  # problems printed per result


# ---------------------------------------------------------------- comparing


def same_number(recorded: Any, derived: Any) -> bool:
    """Whether `recorded` is `derived` written with ten digits.

    Where `derived` lies between two such numbers, the last bits of another processor may round it either way.
    """
    if recorded == tidy(derived):
        return True
    if (
        isinstance(recorded, bool)
        or not isinstance(recorded, int | float)
        or not isinstance(derived, float)
    ):
        return False
    if not math.isfinite(derived) or tidy(float(recorded)) != recorded or recorded == 0:
        return False
    unit = 10.0 ** (math.floor(math.log10(abs(recorded))) - DIGITS + 1)
    return abs(recorded - derived) <= 0.5001 * unit


def differences(recorded: Any, derived: Any, place: str) -> list[str]:
    """Where two parts of a results file differ, in words, down to the digit."""
    if isinstance(derived, np.ndarray | tuple):
        derived = list(derived)
    if isinstance(derived, np.generic):
        derived = derived.item()
    if isinstance(derived, Mapping) and isinstance(recorded, Mapping):
        found = [f"{place}: {key!r} is missing" for key in derived if key not in recorded]
        found += [
            f"{place}: {key!r} does not belong there" for key in recorded if key not in derived
        ]
        for key in derived:
            if key in recorded:
                found += differences(recorded[key], derived[key], f"{place}.{key}")
        return found
    if isinstance(derived, list) and isinstance(recorded, list):
        if len(derived) != len(recorded):
            return [f"{place}: {len(recorded)} recorded, {len(derived)} derived"]
        pairs = enumerate(zip(recorded, derived))
        return [
            line for i, (r, d) in pairs for line in differences(r, d, f"{place}[{named(d, i)}]")
        ]
    if same_number(recorded, derived):
        return []
    wrong, right = repr(recorded), repr(tidy(derived))
    first = next(
        (i for i, (a, b) in enumerate(zip(wrong, right)) if a != b), min(len(wrong), len(right))
    )
    return [f"{place}: recorded {wrong}, derived {right} (character {first + 1})"]


def named(item: Any, number: int) -> str:
    """An element of a list by its id or arm where it has one."""
    return (
        str(item.get("id") or item.get("arm") or number)
        if isinstance(item, Mapping)
        else str(number)
    )


# ---------------------------------------------------------------- one result


def evaluate_of(paper_dir: Path) -> ModuleType:
    if str(paper_dir.parent) not in sys.path:
        sys.path.insert(0, str(paper_dir.parent))
    return importlib.import_module(f"{paper_dir.name}.evaluate")


def check_files(paper_dir: Path, scale: str, result: Mapping[str, Any]) -> list[str]:
    """Files that the result names by their sha256."""
    files = {
        "claims_sha256": "claims.yaml",
        "protocol_sha256": "protocol.yaml",
        "reported_sha256": "reported.yaml",
    }
    files["predictions_sha256"] = f"results/{scale}.predictions.npz"
    problems = []
    for key, name in files.items():
        path = paper_dir / name
        if not path.exists():
            problems.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != result.get(key):
            problems.append(f"{name} changed since these results were recorded")
    return problems


def check_head(paper: Protocol, scale: str, result: Mapping[str, Any]) -> list[str]:
    """What the result says of itself and of its protocol."""
    declared = {
        "schema": 1,
        "paper": paper.paper,
        "scale": scale,
        "preview": None,
        "revision": paper.revision(),
        "revisions": load_claims(paper.directory / "claims.yaml").get("revisions") or [],
        "seeds": paper.seeds(scale),
        "development_seeds": "0-99",
        "tuning": paper.document.tuning,
    }
    return [
        line for key, value in declared.items() for line in differences(result.get(key), value, key)
    ]


def check_costs(paper: Protocol, scale: str, result: Mapping[str, Any]) -> list[str]:
    """Gradient evaluations of a run with all it uses are its own and those of the runs it uses."""
    entries = {(run["arm"], run["task"], run["seed"]): run for run in result["runs"]}
    key, problems = "gradient_evaluations_with_uses", []
    for node in paper.nodes(scale):
        run, used = entries.get(node.key, {}), [entries.get(use, {}).get(key) for use in node.uses]
        if run.get(key) is None or None in used:
            continue
        derived = run["gradient_evaluations"] + sum(used) if run["status"] == "finished" else 0
        problems += differences(
            run[key], derived, f"{key} of {node.arm} on {node.task}, seed {node.seed}"
        )
    return problems


def check_runs(
    paper: Protocol, scale: str, result: Mapping[str, Any], predictions: Predictions
) -> list[str]:
    """Every declared run is there once, with predictions if it finished, and nothing else is."""
    nodes = {node.key: node for node in paper.nodes(scale)}
    problems, seen = [], {}
    for run in result["runs"]:
        key = (run["arm"], run["task"], run["seed"])
        name = f"{key[0]} on {key[1]}, seed {key[2]}"
        if key in seen:
            problems.append(f"run {name} is listed twice")
        elif key not in nodes:
            problems.append(f"run {name} is not declared by the protocol")
        elif run["status"] not in ("finished", "diverged"):
            problems.append(
                f"run {name} is {run['status']}; a recorded result has only runs that ended"
            )
        elif run["status"] == "finished" and not nodes[key].stage and key not in predictions:
            problems.append(f"run {name} has no predictions")
        seen[key] = run
    problems += [
        f"run {k[0]} on {k[1]}, seed {k[2]} is declared and missing" for k in nodes if k not in seen
    ]
    problems += [f"predictions of {k} belong to no run" for k in predictions if k not in seen]
    return problems


def check_numbers(
    paper: Protocol, scale: str, result: Mapping[str, Any], predictions: Predictions
) -> list[str]:
    """Metrics of every run, then claims, reported numbers and gates."""
    evaluate = evaluate_of(paper.directory)
    problems: list[str] = []
    for run in result["runs"]:
        key = (run["arm"], run["task"], run["seed"])
        if key in predictions:
            fresh = {
                name: float(value) for name, value in evaluate.score(dict(predictions[key])).items()
            }
            written = {name: run["metrics"].get(name) for name in fresh}
            problems += differences(
                written, fresh, f"metrics of {key[0]} on {key[1]}, seed {key[2]}"
            )
    claims = load_claims(paper.directory / "claims.yaml")
    derived = verdicts.judge(
        claims=claims,
        scale=scale,
        nodes=paper.nodes(scale),
        runs=result["runs"],
        gates=[],
        predictions=predictions,
        score=evaluate.score,
        statistics=getattr(evaluate, "STATISTICS", {}),
        reported=reported.load(paper.directory / "reported.yaml"),
        item_values=getattr(evaluate, "item_values", None),
    )
    for part in ("claims", "reported"):
        problems += differences(result[part], derived[part], part)
    held = {gate["id"]: gate for gate in result["gates"]}
    for gate in derived["gates"]:
        if gate["id"] not in held:
            problems.append(f"gate {gate['id']} is not in the file")
        elif gate["id"] in verdicts.BUILT_IN_GATES:
            problems += differences(held[gate["id"]], gate, f"gates[{gate['id']}]")
        elif held[gate["id"]]["statement"] != gate["statement"]:
            problems.append(f"gate {gate['id']}: its statement is not that of claims.yaml")
    declared = {gate["id"] for gate in derived["gates"]}
    problems += [
        f"gate {name} is not declared in claims.yaml" for name in held if name not in declared
    ]
    return problems


def check_scale(paper_dir: Path, scale: str) -> tuple[list[str], list[str]]:
    """(problems, notices) of `<paper>/results/<scale>.json`."""
    path = paper_dir / "results" / f"{scale}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{path.name} is not JSON: {error}"], []
    if not isinstance(result, dict):
        return [f"{path.name} is not a results file; restore it with git"], []
    problems = check_files(paper_dir, scale, result)
    paper = Protocol(paper_dir)
    try:
        predictions = unpack_predictions(paper_dir / "results" / f"{scale}.predictions.npz")
        problems += check_head(paper, scale, result)
        problems += check_runs(paper, scale, result, predictions)
        problems += check_costs(paper, scale, result)
        problems += check_numbers(paper, scale, result, predictions)
    except (BadInput, AttributeError, KeyError, TypeError) as error:
        problems.append(f"cannot be derived again: {type(error).__name__}: {error}")
    notices = []
    if result.get("code_sha256") != protocol.sha256_json(
        protocol.code_hashes(paper_dir / "train.py")
    ):
        notices.append(f"STALE: recorded by older code (commit {str(result.get('commit'))[:10]})")
    if readme.checked(paper_dir, scale) == "results changed since":
        notices.append(
            f"results/{scale}.json is not the file that checked.json names: see git diff for what no prediction gives "
            "(seconds, memory, counts, hashes); a maintainer stamps a new recording with --stamp"
        )
    return problems, notices


def check_tables(readme_path: Path, tables: Mapping[str, str]) -> list[str]:
    if not readme_path.exists():
        return [f"{readme_path.name} is missing"]
    names = readme.outdated(readme_path, dict(tables))
    return [
        f"README.md: the generated table {name!r} is not what the results say" for name in names
    ]


def check_paper(paper_dir: Path) -> tuple[list[str], list[str], list[str]]:
    """(recorded scales, problems, notices) of one paper."""
    scales = [scale for scale in SCALES if (paper_dir / "results" / f"{scale}.json").exists()]
    problems, notices = [], []
    for scale in scales:
        found, noted = check_scale(paper_dir, scale)
        problems += [f"{scale}: {line}" for line in found]
        notices += [f"{scale}: {line}" for line in noted]
    if (paper_dir / "README.md").exists():
        problems += check_tables(paper_dir / "README.md", readme.readme_tables(paper_dir))
    return scales, problems, notices


# ---------------------------------------------------------------- training again


def rerun(paper_dir: Path, scale: str) -> list[str]:
    """Trains the cheapest recorded run of a scale again, with all it uses, and compares its predictions."""
    result = json.loads((paper_dir / "results" / f"{scale}.json").read_text(encoding="utf-8"))
    recorded = unpack_predictions(paper_dir / "results" / f"{scale}.predictions.npz")
    runs = [run for run in result["runs"] if (run["arm"], run["task"], run["seed"]) in recorded]
    run = min(
        runs, key=lambda r: (r.get("gradient_evaluations_with_uses") or 0, r["arm"], r["seed"])
    )
    name = f"{run['arm']} on {run['task']}, seed {run['seed']}"
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--scale",
            scale,
            "--arm",
            run["arm"],
            "--task",
            run["task"],
            "--seed",
            str(run["seed"]),
        ]
        command = [sys.executable, "-m", f"{paper_dir.name}.train", *words]
        done = subprocess.run(
            command,
            cwd=paper_dir.parent,
            env={**os.environ, "REPRO_RUNS": folder},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return [
                f"run {name} could not be repeated: {(done.stderr or done.stdout).strip()[-300:]}"
            ]
        directory = (
            Path(folder) / paper_dir.name / scale / run["task"] / f"seed{run['seed']}" / run["arm"]
        )
        with np.load(directory / "predictions.npz", allow_pickle=False) as archive:
            again = {key: archive[key] for key in archive.files}
    before = recorded[run["arm"], run["task"], run["seed"]]
    moved = [key for key in again if key not in before or not agree(again[key], before[key])]
    return (
        [f"run {name} trained again gives other predictions: {', '.join(moved)}"] if moved else []
    )


def agree(again: np.ndarray, before: np.ndarray) -> bool:
    """Classes and ids exactly; numbers as far as they are stored and as processors agree."""
    if again.dtype.kind == "f" and again.shape == before.shape:
        return bool(np.allclose(again, before, rtol=1e-3, atol=1e-3, equal_nan=True))
    return bool(np.array_equal(again, before))


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paper", nargs="*", help="default: all with a recorded result")
    parser.add_argument(
        "--rerun", action="store_true", help="train one recorded run of each paper again"
    )
    parser.add_argument("--stamp", action="store_true", help="note that the results passed")
    options = parser.parse_args(arguments)
    failed = False
    named_papers = [name.replace("-", "_").strip("/") for name in options.paper]
    for name in named_papers:
        if not (root / name / "protocol.yaml").exists():
            print(f"error: {name} is not a paper of this repository", file=sys.stderr)
            return 2
    papers = named_papers or sorted(path.parent.name for path in root.glob("*/protocol.yaml"))
    for name in papers:
        scales, problems, notices = check_paper(root / name)
        if options.rerun and scales and not problems:
            problems += [f"{scales[-1]}: {line}" for line in rerun(root / name, scales[-1])]
        for line in notices:
            print(f"{name} {line}")
        for line in problems[:SHOWN]:
            print(f"{name} FAILED {line}")
        if len(problems) > SHOWN:
            print(f"{name} FAILED ... and {len(problems) - SHOWN} more")
        if not problems:
            print(
                f"{name}: {'every digit derived again at ' + ', '.join(scales) if scales else 'nothing recorded'}"
            )
            if options.stamp and scales:
                for scale in scales:
                    readme.stamp_checked(root / name, scale)
        failed = failed or bool(problems)
    if options.stamp and not failed:
        readme.update_readme(root / "README.md", readme.project_tables(root))
    elif (root / "README.md").exists():
        stale = check_tables(root / "README.md", readme.project_tables(root))
        print(*stale, sep="\n", end="\n" if stale else "")
        failed = failed or bool(stale)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
