"""The first minutes on a CUDA device, in the order of what is worth most, within a budget.

    make gpu-visit BUDGET=10m         python -m benchmarks.gpu_visit --budget 10m [--only autolora]

1. the tests that need a device; 2. a step of each method beside a plain step, at scale `gpu`:
seconds, tokens or images a second, share of this device's own matrix product; 3. from the same
steps the hours of each protocol; 4. the cheapest claims of scale `gpu`, until the budget is spent.
runs/gpu-visit/ has visit.json, tests.log and records.tar.gz, which `make merge FROM=` takes.

Exit status: 0 what fitted is done, 1 a test or a run failed, 2 no device, 75 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import PAPERS, visits
from benchmarks.claims import ClaimSpec
from benchmarks.plan import ROOT, load_claims, missing_inputs, say, seconds_of
from benchmarks.visits import Phase, Short, seconds_of_runs
from benchmarks.words import duration
from shared import protocol
from shared.protocol import BadInput, Protocol

SCALE = visits.VISITED
DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75
OF_TESTS, OF_STEPS = 0.4, 0.65  # share of the budget after which they have ended
RESERVE = 20.0  # seconds for the archive, and for runs to write their checkpoints


@dataclass
class Visit:
    folder: Path
    end: float  # time.monotonic() when the budget is spent
    budget: float
    papers: Sequence[str]
    failed: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # what visit.json holds

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the budget is spent, less what the end needs."""
        reserve = min(RESERVE, 0.1 * self.budget)
        return self.end - (1 - share) * self.budget - reserve - time.monotonic()

    def call(self, words: Sequence[str], seconds: float, log: str) -> int | None:
        """Exit status of a command; None where it was ended for want of time."""
        with open(self.folder / log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                return process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                process.terminate()  # a run checkpoints
                return None
            finally:  # also after Ctrl-C, which the command has heard itself
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def write(self) -> None:
        text = json.dumps(self.facts, indent=1)
        (self.folder / "visit.json").write_text(text + "\n", encoding="utf-8")


# --- 1. tests -------------------------------------------------------------------------------------


def tests(visit: Visit) -> None:
    say("tests that need a device")
    begun, log = time.monotonic(), visit.folder / "tests.log"
    words = ["-m", "pytest", "-m", "gpu and not slow"]  # what `make test-gpu` runs
    status = visit.call(words, visit.left(OF_TESTS), log.name)
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    last = lines[-1] if lines else "nothing was said"
    outcome = "stopped, their share of the budget was spent" if status is None else last
    say(f"  {outcome} ({duration(time.monotonic() - begun)})")
    visit.facts["tests"] = {"status": status, "outcome": outcome}
    if status:
        visit.failed.append(f"tests: {log}")


# --- 2. and 3. steps and hours --------------------------------------------------------------------


def products(precision: str) -> float:
    """FLOPs a second of a large matrix product on this device, in the precision of a run."""
    import torch

    low = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16}
    torch.backends.cuda.matmul.allow_tf32 = False
    size, seconds = 256, 0.0
    while seconds < 0.003 and size < 16384:  # small ones show the launch alone
        size *= 2
        x = torch.randn(size, size, device="cuda").to(low.get(precision, torch.float32))
        took = []
        for _ in range(3):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            x @ x
            torch.cuda.synchronize()
            took.append(time.perf_counter() - begun)
        seconds = min(took)
    return 2 * size**3 / seconds


def measured(visit: Visit) -> dict[str, list[Short]]:
    """Paper -> its cut runs. Each paper has an equal share of what is left for this part."""
    found: dict[str, list[Short]] = {}
    for number, name in enumerate(visit.papers):
        paper = Protocol(ROOT / name)
        if lacking := missing_inputs(paper, SCALE, paper.nodes(SCALE)):
            some = ", ".join(map(" ".join, lacking[:4]))
            say(f"{name}: not measured and not run, inputs are missing: {some}")
            continue
        seconds = visit.left(OF_STEPS) / (len(visit.papers) - number)
        if seconds < 1:
            say(f"{name}: not measured, its share of the budget is spent")
            continue
        out = visit.folder / f"steps-{name}.jsonl"
        words = ["-m", "benchmarks.short_runs", name, SCALE, "--out", str(out)]
        words += ["--seconds", f"{seconds:.0f}"]
        visit.call(words, seconds + 30, "steps.log")
        found[name] = visits.read(out)
        for short in found[name]:
            if short.error:
                say(f"{name}: {short.arm} on {short.task} failed: {short.error.splitlines()[-1]}")
                visit.failed.append(f"{name} {short.arm}: steps.log")
        show_steps(visit, name, found[name])
        show_hours(visit, paper, found[name])
    return found


def show_steps(visit: Visit, name: str, runs: Sequence[Short]) -> None:
    """A line for each phase that trains, over the plain step: the longest of the first opponent."""
    good = [short for short in runs if not short.error]
    rows = [(short, phase, step) for short in good for phase, step in training(short)]
    if not rows:
        return
    claims = load_claims(Protocol(ROOT / name)).claims
    opponents = {c.arms.opponent for c in claims if SCALE in c.scales}
    of_opponent = [(s.arm, step) for s, _, step in rows if s.arm in opponents]
    first = [step for arm, step in of_opponent if arm == of_opponent[0][0]]
    plain = max(first or [rows[-1][2]], key=lambda step: step.steps * step.seconds)
    say(f"{name}: seconds of a step, over the plain step, reads a second, TFLOP/s, share")
    peaks: dict[str, float] = {}
    listed = visit.facts.setdefault("steps", {}).setdefault(name, [])
    seen: set[tuple[str, str]] = set()
    for short, phase, step in rows:
        if (short.arm, phase) in seen or step.seconds <= 0:
            continue
        seen.add((short.arm, phase))
        if short.precision not in peaks:
            peaks[short.precision] = products(short.precision)
        rate, peak = step.flops / step.seconds, peaks[short.precision]
        reads = max((step.tokens, "tokens"), (step.images, "images"))
        words = f"{reads[0] / step.seconds:,.0f} {reads[1]}/s" if reads[0] else "-"
        share = f"{rate / 1e12:.3g} TFLOP/s, {rate / peak:.1%}" if step.flops else "not counted"
        ratio = step.seconds / plain.seconds if plain.seconds else float("nan")
        what = f"{short.arm} {short.task}: {phase}"
        say(f"  {what:44} {step.seconds:9.4f} s {ratio:7.2f}  {words:>20}  {share}")
        listed.append(
            {"arm": short.arm, "task": short.task, "phase": phase, "seconds": step.seconds,
             "over_plain": ratio, "tokens": step.tokens, "images": step.images,
             "flops": step.flops, "peak_flops": peak, "precision": short.precision}
        )  # fmt: skip


def training(short: Short) -> Iterator[tuple[str, Phase]]:
    """The longest phase of a run, and others that are at least a tenth of it."""
    costs = {name: step.steps * step.seconds for name, step in short.phases.items()}
    for name, cost in costs.items():
        if cost >= 0.1 * max(costs.values()):
            yield name, short.phases[name]


def show_hours(visit: Visit, paper: Protocol, runs: Sequence[Short]) -> None:
    """Hours of the scale: those of each run, added, divided by the runs side by side."""
    nodes, body = paper.nodes(SCALE), paper.scale(SCALE)
    known = seconds_of_runs(runs, nodes)
    if not known:
        return
    total = sum(known.values()) + (len(nodes) - len(known)) * fmean(known.values())
    stated = f"; the protocol states {body.hours:g} h" if body.hours else ""
    hours = total / 3600
    say(
        f"  {len(nodes)} runs, {len(known)} of arms that were measured: {hours:.2f} h one after "
        f"another, at best {hours / body.jobs:.2f} h as {body.jobs} side by side{stated}"
    )
    visit.facts.setdefault("hours", {})[paper.paper] = {
        "runs": len(nodes), "measured": len(known), "one_after_another": hours,
        "side_by_side": body.jobs, "stated": body.hours,
    }  # fmt: skip


# --- 4. claims ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cheap:
    """A claim of scale `gpu` with the runs that it needs."""

    paper: Protocol
    claim: ClaimSpec
    arms: list[str]
    tasks: list[str]
    seconds: float


def cheapest(measured: dict[str, list[Short]]) -> list[Cheap]:
    """Claims all of whose arms were measured, the cheapest first."""
    found = []
    for name, runs in measured.items():
        paper = Protocol(ROOT / name)
        for claim in load_claims(paper).claims:
            if SCALE not in claim.scales:
                continue
            arms = list(dict.fromkeys([*claim.arms.sides, *claim.control_arms, *claim.positive]))
            arms = [arm for arm in arms if paper.at_scale(arm, SCALE)]
            named = claim.tasks if isinstance(claim.tasks, list) else claim.tasks.get("gpu", [])
            tasks = [task for task in named or paper.tasks(SCALE) if task in paper.tasks(SCALE)]
            pairs = [(a, t) for a in arms for t in tasks if t in paper.arm_tasks(a, SCALE)]
            nodes = paper.nodes(SCALE, pairs=pairs) if pairs else []
            known = seconds_of_runs(runs, nodes)
            if nodes and len(known) == len(nodes):
                seconds = sum(known.values()) / paper.scale(SCALE).jobs
                found.append(Cheap(paper, claim, arms, tasks, seconds))
    return sorted(found, key=lambda cheap: cheap.seconds)


def claims(visit: Visit, measured: dict[str, list[Short]]) -> None:
    """Run what fits; the last one that does not is begun, and goes on with the same command."""
    judged = visit.facts.setdefault("claims", [])
    for cheap in cheapest(measured):
        name, seconds = cheap.paper.paper, visit.left()
        if seconds < 5:
            say("the budget is spent")
            break
        say(f"{name}: {cheap.claim.id}: {duration(cheap.seconds)} expected")
        words = ["-m", "benchmarks.reproduce", name, "--scale", SCALE]
        words += ["--only", ",".join(cheap.arms), "--task", ",".join(cheap.tasks)]
        status = visit.call([*words, "--limit", f"{seconds:.0f}s"], seconds + 15, "claims.log")
        path = protocol.runs_root(ROOT) / name / SCALE / "preview.json"
        verdicts = {}
        if status in (DONE, FAILED) and path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            verdicts = {claim["id"]: claim["verdict"] for claim in result["claims"]}
        verdict = verdicts.get(cheap.claim.id) or "stopped: the budget is spent"
        say(f"  {verdict}")
        judged.append({"paper": name, "claim": cheap.claim.id, "verdict": verdict})
        if status not in (DONE, STOPPED, None):
            visit.failed.append(f"{name} {cheap.claim.id}: claims.log")


# --- the archive ----------------------------------------------------------------------------------


def archive(visit: Visit) -> None:
    """Finished runs of scale `gpu`, as `runs/` has them, and what was measured."""
    root, path = protocol.runs_root(ROOT), visit.folder / "records.tar.gz"
    places = "*/seed*/[!.]*/record.json"
    records = [path for name in visit.papers for path in (root / name / SCALE).glob(places)]
    with tarfile.open(path, "w:gz") as file:
        for record in sorted(records):
            for item in sorted(record.parent.iterdir()):
                if item.name not in ("checkpoint", "older") and item.name[0] != ".":
                    file.add(item, Path("runs") / item.relative_to(root))
        heads = (root / name / SCALE / "preview.json" for name in visit.papers)
        for head in filter(Path.exists, heads):  # which claims and protocol they belong to
            file.add(head, Path("runs") / head.relative_to(root))
        file.add(visit.folder / "visit.json", "visit.json")
    say(f"{len(records)} finished runs: make merge FROM={path}")


def visit(budget: float, papers: Sequence[str]) -> int:
    import torch

    if not torch.cuda.is_available():
        raise BadInput(
            f"torch {torch.__version__} sees no CUDA device, so that there is nothing to visit; "
            "where there is one: pip install -r requirements-cuda.txt, then make gpu-visit"
        )
    folder = protocol.runs_root(ROOT) / visits.VISIT
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.*"):
        path.unlink()
    now = Visit(folder, time.monotonic() + budget, budget, papers)
    now.facts |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    now.facts |= {"budget": budget, "papers": list(papers)}
    say(f"{now.facts['device']}, {duration(budget)} for {len(papers)} paper(s)")
    interrupted = False
    try:
        tests(now)
        claims(now, measured(now))
    except KeyboardInterrupt:
        interrupted = True
    now.write()
    archive(now)
    for line in now.failed:
        say(f"FAILED: {line}")
    return STOPPED if interrupted else FAILED if now.failed else DONE


def main(argv: Sequence[str] | None = None) -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("--budget", default="10m", help="time for all of it, e.g. 10m (default)")
    parser.add_argument("--only", help="these papers alone, separated by commas")
    asked = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        budget = seconds_of(asked.budget, "BUDGET", "h") or 600.0
        papers = (asked.only or ",".join(PAPERS)).split(",")
        for name in papers:
            if name not in PAPERS:
                raise protocol.unknown(name, PAPERS, "papers")
        with_scale = [p for p in papers if SCALE in Protocol(ROOT / p).document.scales]
        return visit(budget, with_scale)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
