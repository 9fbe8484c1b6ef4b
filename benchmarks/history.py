"""What git remembers of a result: the claims and code of its commit, and what was recorded before.

A result is written once. So every version of its file with the same commit and time must be the
same, each older one must be listed under `earlier`, and claims, protocol and code must be those of
the commit that it names. Who rewrites the history as well is not found (docs/verdicts.md).
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import recorded
from benchmarks.comparing import differences
from benchmarks.records import Record
from benchmarks.rules import tidy
from shared import protocol
from shared.protocol import BadInput

Document = dict[str, Any]


def git(folder: Path, *words: str) -> bytes | None:
    """What git prints; None where it fails, or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def remembers(folder: Path) -> bool:
    """Whether `folder` stands in a git checkout with commits."""
    return git(folder, "rev-parse", "HEAD") is not None


def versions(path: Path) -> list[Document]:
    """Every committed version of a JSON file that can be read, the newest first."""
    log = git(path.parent, "log", "--format=%H", "--", path.name) or b""
    documents = []
    for commit in log.decode().split():
        content = git(path.parent, "show", f"{commit}:./{path.name}")
        try:
            document = json.loads(content or b"null")
        except ValueError:
            continue
        if isinstance(document, dict):
            documents.append(document)
    return documents


def written_once(path: Path, document: Document) -> list[str]:
    """Differences from a version that says it was made at the same time.

    Only the commit may differ: one result can be recorded twice."""
    for old in versions(path) if document.get("created") else []:
        same = old.get("created") == document["created"]
        if same and {**old, "commit": None} != {**document, "commit": None}:
            place = f"{path.name} in git"
            moved = differences(tidy(document), old, place)
            return moved or [f"{place}: not the same numbers"]
    return []


def others(path: Path, result: recorded.Results) -> list[recorded.Results]:
    """Committed versions of another time than `result`, the newest first."""
    listed = []
    for document in versions(path):
        with contextlib.suppress(BadInput):  # of a schema that is no longer read
            old = recorded.as_results(document, path)
            listed += [old] if old.created != result.created else []
    return sorted(listed, key=lambda old: old.created or "", reverse=True)


def earlier(path: Path, result: recorded.Results) -> list[str]:
    """Older results that the file does not list as they were; claims moved on the same seeds."""
    listed = {(entry.commit, entry.created): entry for entry in result.earlier}
    newer, problems = result, []
    for old in others(path, result):
        place = f"the result of {old.created}, commit {str(old.commit)[:10]},"
        if (old.created or "") > (result.created or ""):
            problems.append(f"{place} is newer, and this one took its place")
            continue
        entry = listed.get((old.commit, old.created))
        same = all(getattr(old, k) == getattr(newer, k) for k in ("revision", "predictions_sha256"))
        if not same and (entry is None or entry.verdicts != recorded.superseded(old).verdicts):
            what = "is not listed" if entry is None else "is listed with other verdicts"
            problems.append(f"earlier: {place} {what}")
        if (old.revision, old.seeds) == (result.revision, result.seeds):
            problems += [f"{line} in {place} on the same seeds" for line in moved(old, result)]
            problems += [f"{place} {line}" for line in repeated(old, result)]
        newer = old
    return problems


MADE_BY = ("code_sha256", "protocol_sha256", "data", "environment")


def repeated(old: recorded.Results, new: recorded.Results) -> list[str]:
    """The same code, settings, data and seeds on the same machine give the same predictions."""
    same = old.code_sha256 and all(getattr(old, k) == getattr(new, k) for k in MADE_BY)
    if not same or new.scale != "cpu" or old.predictions_sha256 == new.predictions_sha256:
        return []
    return ["had other predictions from the same code, data, seeds and machine"]


# The direction too, but of schema 1: some of those have the default.
JUDGED_BY = ("kind", "role", "arms", "tasks", "metric", "unit", "threshold", "material")


def moved(old: recorded.Results, new: recorded.Results) -> list[str]:
    """Claims that were judged in another way before; such a change takes new seeds."""
    now, lines = {claim.id: claim for claim in new.claims}, []
    scored = ("predictions_sha256", "judge_sha256")
    same = new.judge_sha256 and all(getattr(old, k) == getattr(new, k) for k in scored)
    names = [*JUDGED_BY, *(["direction"] if old.version >= 2 else [])]
    for claim in old.claims:
        if claim.id not in now:
            lines.append(f"claim {claim.id} is gone: it stands")
            continue
        fresh = now[claim.id]
        pairs = {k: (getattr(claim, k), getattr(fresh, k)) for k in names}
        if claim.verdict and "NOT RUN" not in claim.verdict:
            arms = [sorted(c.arm for c in one.controls) for one in (claim, fresh)]
            pairs["controls"] = (arms[0], arms[1])
            items = [one.item_ci95 is not None for one in (claim, fresh)]
            pairs["an item interval:"] = (items[0], items[1])
        if same:  # chance, units and weights of tasks
            pairs["d"] = (claim.d, fresh.d)
        if claim.sensitivity and fresh.sensitivity:
            pairs["sensitivity"] = (claim.sensitivity.arms, fresh.sensitivity.arms)
        lines += [f"claim {claim.id} had {k} {a}" for k, (a, b) in pairs.items() if a != b]
    return lines


# --- the commit of a result -----------------------------------------------------------------------


def of_commit(
    paper_dir: Path, result: recorded.Results, records: Sequence[Record]
) -> tuple[list[str], list[str]]:
    """(problems, notices): claims, protocol, published numbers and code against `result.commit`."""
    commit, short = str(result.commit), str(result.commit)[:10]
    root, name = paper_dir.resolve().parent, paper_dir.resolve().name
    archive = git(root, "archive", commit, "--", name, "shared", "benchmarks")
    if archive is None:
        return [], [
            f"commit {short} is not in this history: its claims, protocol and code are not compared"
        ]
    problems, notices = [], []
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        then = Path(folder) / name
        for kind in ("claims", "protocol", "reported"):
            path, sha256 = then / f"{kind}.yaml", getattr(result, f"{kind}_sha256")
            if not path.exists() or protocol.sha256_yaml(path) != sha256:
                problems.append(
                    f"{kind}.yaml of commit {short} is not the one that judged these results"
                )
        code = protocol.code_hashes(then / "train.py")
        judge = protocol.code_hashes(Path(folder) / "benchmarks" / "verdicts.py")
    ran: Mapping[str, str] = records[0]["fingerprint"]["code"] if records else code
    moved = sorted(file for file in {*ran, *code} if ran.get(file) != code.get(file))
    if moved and len(moved) == len({*ran, *code}):
        notices.append("its code was hashed in another way: not compared with that of its commit")
    elif moved:
        problems.append(f"the runs had another {', '.join(moved)} than commit {short}")
    if result.judge_sha256 and result.judge_sha256 != protocol.sha256_json(judge):
        notices.append(f"judged by another version of the judge than that of commit {short}")
    return problems, notices
