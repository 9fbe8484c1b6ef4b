"""Records of runs as they are committed: `<scale>.records.jsonl.gz`, a line per run.

A line is the run's record.json, every digit of it, without its settings, which the protocol gives.
What a result says of its runs and of where they were made follows from these lines, so that
`make check` derives it again; the hash of each line is the one that runs which used it recorded.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recorded import Gate, Machine, RunEntry, RunKey, run_name, write_bytes
from shared import protocol
from shared.protocol import BadInput

Record = dict[str, Any]  # record.json of a run
Records = dict[RunKey, Record]
MOST_UNPACKED = 1_000_000_000  # bytes; a small file may unpack to anything


def pack_records(path: Path, records: Mapping[RunKey, Record]) -> str:
    """Write `path`, return its sha256; the same records give the same bytes."""
    lines = [
        json.dumps({k: v for k, v in records[key].items() if k != "config"}, sort_keys=True)
        for key in sorted(records)
    ]
    payload = gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)
    write_bytes(path, payload)
    return hashlib.sha256(payload).hexdigest()


def unpack_records(path: Path) -> Records:
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_UNPACKED + 1)
        if len(content) > MOST_UNPACKED:
            raise ValueError(f"it unpacks to more than {MOST_UNPACKED:,} bytes")
        listed = [json.loads(line) for line in content.decode().split("\n") if line]
        return {(r["arm"], r["task"], int(r["seed"])): r for r in listed}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({error}); restore it with git") from error


# --- what follows from records --------------------------------------------------------------------


def entry(record: Record) -> RunEntry:
    """The run as the results file has it; how often it was tried stands in no record."""
    run = RunEntry.model_validate(record)
    run.record_sha256 = protocol.record_sha256(record)
    return run


def gates(records: Mapping[RunKey, Record]) -> list[tuple[RunKey, list[Gate]]]:
    pairs = records.items()
    return [
        (key, [Gate.model_validate(g) for g in record.get("gates", [])]) for key, record in pairs
    ]


def spent(records: Mapping[RunKey, Record]) -> dict[str, float]:
    """Seconds of all runs, on the wall and of processors."""
    fields = {"runs": "seconds", "cpu": "cpu_seconds"}
    return {name: round(sum(r[k] for r in records.values()), 1) for name, k in fields.items()}


def head(records: Sequence[Record]) -> dict[str, Any]:
    """Fields of a result's head that follow from the records of its runs, in the protocol's order.

    BadInput where they were made by more than one version of the code: such runs answer nothing.
    """
    data = {
        name: source["sha256"]
        for record in records
        for name, source in (record["fingerprint"].get("data") or {}).items()
    }
    return {
        "code_sha256": code_sha256(records),
        "environment": records[-1]["environment"] if records else {},
        "machines": machines(records),
        "data": data,
        "splits": {r["task"]: r["splits"] for r in records if r.get("splits")},
    }


def code_sha256(records: Sequence[Record]) -> str | None:
    by_code: dict[str, list[str]] = {}
    files: set[tuple[str, str]] = set()
    for record in records:
        code = record["fingerprint"]["code"]
        name = run_name((record["arm"], record["task"], record["seed"]))
        by_code.setdefault(protocol.sha256_json(code), []).append(name)
        files |= set(code.items())
    if len(by_code) > 1:
        times = Counter(name for name, _ in files)
        moved = ", ".join(sorted(name for name, n in times.items() if n > 1)) or "other files"
        groups = "; ".join(f"{len(names)} such as {names[0]}" for names in by_code.values())
        raise BadInput(
            f"the code ({moved}) changed while these runs were made, and no verdict comes from two "
            f"versions of it: {groups}. Give the same command again: what older code made is made "
            "again"
        )
    return next(iter(by_code), None)


def machines(records: Sequence[Record]) -> list[Machine]:
    """Every environment that a run was made in, with the number of runs, the commonest first."""
    listed: list[Machine] = []
    for record in records:
        for one in listed:
            if one.environment == record["environment"]:
                one.runs += 1
                break
        else:
            listed.append(Machine(runs=1, environment=record["environment"]))
    return sorted(listed, key=lambda one: -one.runs)
