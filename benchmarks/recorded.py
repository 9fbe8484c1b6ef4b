"""A results file: what one scale of one paper came to. Written and read here and nowhere else.

Every field has a default, so that a file of an older schema, or of a run that was killed, still
reads. Numbers are None where they are undefined. `docs/verdicts.md` says what each field is.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.claims import Arms
from benchmarks.rules import tidy
from shared.inputs import writable
from shared.protocol import BadInput, read_as

SCHEMA = 2  # what is written; a result keeps the rule of its own: 1 had no *within*
SCALES = ("paper", "gpu", "cpu")  # the most telling first; a rehearsal never has a verdict

Number = int | float
Numbers = Sequence[Number | None]
RunKey = tuple[str, str, int]  # (arm, task, seed)


def finite(values: Numbers | None) -> list[float]:
    return [float(v) for v in values or [] if v is not None and math.isfinite(v)]


def run_name(key: RunKey) -> str:
    return f"{key[0]} on {key[1]}, seed {key[2]}"


class Control(BaseModel):
    """The method minus one control."""

    arm: str
    d: Numbers = []
    effect: Number | None = None
    ci95: Numbers | None = None
    p_for: Number | None = None
    flip_for: Number | None = None
    item_ci95: Numbers | None = None
    outcome: str = "OPEN"


class Sensitivity(BaseModel):
    """The claim's positive control: A - B, known from outside to differ, measured likewise."""

    arms: Arms = Arms()
    d: Numbers = []
    effect: Number | None = None
    ci95: Numbers | None = None
    outcome: str = "NOT SHOWN"  # SHOWN, NOT SHOWN, NOT RUN or none
    reason: str = ""  # why it is not shown, or why there is none


class Claim(BaseModel):
    """A claim as it was judged; `d` has a difference per replicate, positive favours the claim."""

    id: str
    statement: str = ""
    kind: str = "difference"
    role: str = "secondary"
    arms: Arms = Arms()
    tasks: list[str] = []
    metric: str | None = None
    unit: str = "points"
    direction: str = "higher"
    threshold: Number = 0.0
    material: Number = 1.0
    n: int = 0
    d: Numbers = []
    d_by_task: dict[str, Numbers] = {}
    effect: Number | None = None
    median: Number | None = None
    ci95: Numbers | None = None
    detectable: Number | None = None
    p_for: Number | None = None
    p_against: Number | None = None
    p_holm_for: Number | None = None
    p_holm_against: Number | None = None
    p_within: Number | None = None
    p_holm_within: Number | None = None
    flip_for: Number | None = None
    flip_against: Number | None = None
    flip_within: Numbers | None = None
    sensitivity: Sensitivity | None = None
    item_ci95: Numbers | None = None
    wins_ties_losses: list[int] = [0, 0, 0]
    diverged: dict[str, int] = {}
    at_chance: dict[str, int] = {}
    verdict: str | None = None  # of an exhibit: None
    reason: str = ""
    controls: list[Control] = []


class Gate(BaseModel):
    """A mechanical check, over all runs that recorded it."""

    id: str
    statement: str = ""
    passed: bool
    detail: str = ""


class RunEntry(BaseModel):
    """One declared run; `gradient_evaluations_with_uses` adds those of the runs that it uses."""

    arm: str
    task: str
    seed: int
    status: str = "finished"
    config_sha256: str | None = None
    split_sha256: str | None = None
    state_sha256: str | None = None
    selection: str | None = None
    chosen_step: int | None = None
    validation: dict[str, Number | None] = {}
    metrics: dict[str, Number | None] = {}
    seconds: Number | None = None
    gradient_evaluations: int | None = None
    gradient_evaluations_with_uses: int | None = None
    peak_memory_mb: Number | None = None
    predictions_sha256: str | None = None
    reason: str = ""
    attempts: int = 1
    record_sha256: str | None = None

    @property
    def key(self) -> RunKey:
        return (self.arm, self.task, self.seed)


class Reported(BaseModel):
    """A published number beside ours."""

    id: str
    method: str | None = None
    task: str | list[str] | None = None
    metric: str | None = None
    unit: str = "points"
    reported: Number | None = None
    sd: Number | None = None
    sd_over: str | None = None
    n_paper: int | None = None
    source: str | None = None
    measured: Number | None = None
    scores: Numbers = []
    gap: Number | None = None
    ci95: Numbers | None = None
    tolerance: Number | None = None
    tolerance_reason: str | None = None
    deviations: list[str] = []
    verdict: str = "NOT RUN"


class Earlier(BaseModel):
    """Verdicts recorded before, from other seeds or on another processor."""

    commit: str | None = None
    created: str | None = None
    revision: int | None = None
    processor: str | None = None
    verdicts: dict[str, str | None] = {}
    effects: dict[str, Number | None] = {}


class Machine(BaseModel):
    """Processor, device and package versions that some runs of a result had in common."""

    runs: int
    environment: dict[str, Any] = {}


class Seconds(BaseModel):
    wall: Number | None = None  # of all calls that trained something
    runs: Number | None = None
    cpu: Number | None = None


SINCE_2 = {"p_within", "p_holm_within", "flip_within", "sensitivity"}  # fields of a claim


class Judged(BaseModel):
    """What the judge derives from runs, predictions and claims."""

    claims: list[Claim] = []
    reported: list[Reported] = []
    gates: list[Gate] = []

    def fields_of(self, schema: int) -> dict[str, Any]:
        """As a file of that schema has them."""
        later = {"claims": {"__all__": SINCE_2}} if schema < 2 else None
        return self.model_dump(exclude=later)


class Head(BaseModel):
    """What a result says of itself."""

    model_config = ConfigDict(populate_by_name=True)

    version: int = Field(SCHEMA, alias="schema")
    paper: str
    scale: str
    preview: str | None = None
    created: str | None = None
    commit: str | None = None
    claims_sha256: str | None = None
    protocol_sha256: str | None = None
    reported_sha256: str | None = None
    predictions_sha256: str | None = None
    code_sha256: str | None = None  # of the files that the runs imported
    judge_sha256: str | None = None  # of the files that judged them
    records_sha256: str | None = None  # of <scale>.records.jsonl.gz; None: none was kept
    revision: int = 0
    revisions: list[dict[str, str]] = []
    earlier: list[Earlier] = []
    environment: dict[str, Any] = {}  # of the last run
    machines: list[Machine] = []  # of all runs
    data: dict[str, str] = {}
    splits: dict[str, dict[str, str | None]] = {}  # task -> part -> sha256 of its item ids
    seeds: list[int] = []
    development_seeds: str | None = None
    tuning: list[dict[str, Any]] = []
    seconds: Seconds = Seconds()


class Results(Judged, Head):
    runs: list[RunEntry] = []

    def document(self) -> dict[str, Any]:
        """The file's content: numbers with ten digits, null for what is undefined."""
        plain: dict[str, Any] = tidy(self.model_dump(by_alias=True))
        return plain

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.document(), indent=1, allow_nan=False) + "\n")


class Rehearsal(BaseModel):
    """Every arm and task of a paper's own protocol ran for a few steps: passed or not."""

    paper: str = ""
    scale: str = "rehearsal"
    passed: bool
    runs: int
    arms: list[str] = []
    tasks: list[str] = []
    seconds: Number = 0.0
    created: str | None = None
    commit: str | None = None

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")


class Stamp(BaseModel):
    """`results/checked.json` has one per scale: the very bytes that `make check` derived again."""

    created: str
    passed: bool
    results_sha256: str


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_bytes(path: Path, payload: bytes) -> None:
    """By one rename: who reads sees the old file or the new one, also after a kill."""
    from shared import runs  # torch comes with it: only where something is written

    runs.write_bytes(path, payload)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, IsADirectoryError, PermissionError) as error:
        raise BadInput(
            f"{path} is not valid JSON ({error}); restore it with git, or, below runs/, delete it "
            "and give the command again"
        ) from error


def read(path: Path) -> Results:
    """BadInput for what is no result, or one of a newer version of this project."""
    return as_results(load_json(path), path)


def as_results(document: Any, path: Path) -> Results:
    if not isinstance(document, dict):
        raise BadInput(f"{path} is not a results file; restore it with git")
    version = document.get("schema", SCHEMA)
    if isinstance(version, int) and version > SCHEMA:
        raise BadInput(
            f"{path}: schema {version}, and this version of the project reads up to {SCHEMA}; "
            "update the checkout (git pull)"
        )
    return read_as(Results, document, str(path))


def superseded(old: Results) -> Earlier:
    """What a newer result says of an older one."""
    return Earlier(
        commit=old.commit,
        created=old.created,
        revision=old.revision,
        processor=old.environment.get("processor"),
        verdicts={claim.id: claim.verdict for claim in old.claims},
        effects={claim.id: claim.effect for claim in old.claims},
    )


def report_root(root: Path) -> Path:
    """The folder of the report's pages."""
    return Path(os.environ.get("REPRO_REPORT") or writable(root) / "report")


def result_path(paper_dir: Path, scale: str) -> Path:
    return paper_dir / "results" / f"{scale}.json"


def recorded(paper_dir: Path, scale: str) -> Results | None:
    """The committed result of a scale, or None."""
    path = result_path(paper_dir, scale)
    return read(path) if path.exists() else None


def all_recorded(paper_dir: Path) -> dict[str, Results]:
    """scale -> committed result, the most telling scale first."""
    results = {scale: recorded(paper_dir, scale) for scale in SCALES}
    return {scale: result for scale, result in results.items() if result is not None}


def read_rehearsal(path: Path) -> Rehearsal:
    return read_as(Rehearsal, load_json(path), str(path))


def rehearsal(paper_dir: Path) -> Rehearsal | None:
    path = result_path(paper_dir, "rehearsal")
    return read_rehearsal(path) if path.exists() else None


def stamps(paper_dir: Path) -> dict[str, Stamp]:
    path = result_path(paper_dir, "checked")
    written = load_json(path) if path.exists() else {}
    return {scale: read_as(Stamp, stamp, str(path)) for scale, stamp in written.items()}


def stamped(paper_dir: Path, scale: str) -> Stamp | None:
    """The stamp of a scale if it holds for the bytes that are committed now."""
    stamp, path = stamps(paper_dir).get(scale), result_path(paper_dir, scale)
    if stamp is None or not path.exists() or stamp.results_sha256 != digest(path):
        return None
    return stamp


def stamp_checked(paper_dir: Path, scale: str) -> None:
    """Note that the committed result of a scale passed; the day stays while the bytes do."""
    listed = {name: stamp.model_dump() for name, stamp in stamps(paper_dir).items()}
    if stamped(paper_dir, scale) is None:
        sha = digest(result_path(paper_dir, scale))
        listed[scale] = {"created": now()[:10], "passed": True, "results_sha256": sha}
    text = json.dumps(listed, indent=1, sort_keys=True)
    write_text(result_path(paper_dir, "checked"), text + "\n")


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
