"""How many seeds a claim needs: the `plan` of protocol.yaml, computed and checked.

    python -m benchmarks.plan_n autolora       # lines for `plan.cpu`, from results/cpu.json
    python -m benchmarks.plan_n autolora --claim "8 allocation" --d 0.3 -0.2 0.9   # a pilot

A line holds the pilot's seeds, the sd of its differences, the n of the scale, and `detectable`: the
smallest true effect that n seeds find in 80 % of repetitions at Holm's first step, 0.025 over the
number of primary claims of the scale. It has to be at most the claim's `material`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import recorded
from benchmarks.claims import Claims, ClaimSpec, load_claims
from benchmarks.recorded import Results, finite
from benchmarks.rules import MOST_SEEDS, detectable, seeds_needed
from benchmarks.words import seeds_text
from shared.protocol import BadInput, Plan, Protocol, load_yaml, sha256_yaml

PLANNED = ("cpu", "gpu")  # scales whose claims name a positive control and a plan


def primary(claims: Claims, scale: str) -> list[ClaimSpec]:
    """The primary claims of a scale that are tested: Holm's family."""
    return [
        claim
        for claim in claims.claims
        if claim.role == "primary" and claim.kind != "exact" and scale in claim.scales
    ]


def tasks_of(paper: Protocol, claim: ClaimSpec, scale: str) -> list[str]:
    """The tasks of a claim at a scale."""
    fixed = {text.partition("@")[2] for text in claim.arms.named()} - {""}
    listed = claim.tasks
    if isinstance(listed, dict):
        listed = [task for name, tasks in listed.items() if name == scale for task in tasks]
    named = set(listed) or fixed
    return [task for task in paper.tasks(scale) if task in named or not named]


def seeds_of(paper: Protocol, claim: ClaimSpec, scale: str) -> int:
    """How many seeds its arms share on all its tasks."""
    tasks = tasks_of(paper, claim, scale)
    pairs = [(task, arm) for task in tasks for arm in claim.arms.sides]
    return min((len(paper.seeds(scale, *pair)) for pair in pairs), default=0)


# --- what is refused ------------------------------------------------------------------------------


def check_plans(claims: Claims, paper: Protocol) -> None:
    """BadInput for a claim that does not say what would matter, or what its runs can show."""
    where = f"{paper.paper}/claims.yaml"
    for claim in claims.claims:
        if "material" not in claim.model_fields_set or not claim.material_reason.strip():
            raise BadInput(
                f"{where}: claim {claim.id}: material or material_reason is missing; write the "
                "smallest difference that would matter to somebody, and why"
            )
        for scale in PLANNED:
            if scale in claim.scales and scale in paper.document.scales:
                _check_positive(claim, paper, scale, where)
    for scale in PLANNED:
        if scale in paper.document.scales:
            family = primary(claims, scale)
            for claim in family:
                _check_plan(claim, paper, scale, len(family))


def _check_positive(claim: ClaimSpec, paper: Protocol, scale: str, where: str) -> None:
    if claim.sensitivity is None:
        raise BadInput(
            f"{where}: claim {claim.id}: sensitivity is missing; write {{method: A, opponent: B}}, "
            "two arms known beforehand to differ, or 'none: why'"
        )
    for text in claim.positive:
        arm, _, task = text.partition("@")
        places = {task} if task else set(tasks_of(paper, claim, scale))
        lacks = places - set(paper.arm_tasks(arm, scale))
        if lacks or arm not in paper.selected(scale):
            place = f"on {', '.join(sorted(lacks))} " if lacks else ""
            raise BadInput(
                f"{where}: claim {claim.id}: sensitivity: '{arm}' is not run {place}at scale "
                f"{scale}; name another pair, or add it to the scale's `core`"
            )


def _check_plan(claim: ClaimSpec, paper: Protocol, scale: str, claims: int) -> None:
    where = f"{paper.paper}/protocol.yaml: plan.{scale}"
    lines = {name: plans for name, plans in paper.document.plan.items() if name == scale}
    line: Plan | None = next(iter(lines.values()), {}).get(claim.id)
    remedy = f"python -m benchmarks.plan_n {paper.paper} --scale {scale} prints the line"
    if line is None:
        raise BadInput(f"{where}: primary claim {claim.id} has no plan; {remedy}")
    n = seeds_of(paper, claim, scale)
    if claim.unit != "item" and line.n != n:
        raise BadInput(f"{where}: {claim.id}: n is {line.n}, the scale has {n} seeds; {remedy}")
    smallest = detectable(line.n, line.sd, claims=claims)
    if smallest is None or not math.isclose(line.detectable, smallest, rel_tol=0.02):
        raise BadInput(
            f"{where}: {claim.id}: detectable is {line.detectable:g}, but sd {line.sd:g} and n "
            f"{line.n} give {smallest or math.nan:.3g}; {remedy}"
        )
    if line.detectable > claim.material and not line.short.strip():
        needed = seeds_needed(line.sd, float(claim.material), claims)
        raise BadInput(
            f"{where}: {claim.id}: {line.detectable:g} is the smallest effect it would find, and "
            f"{claim.material:g} would matter: give the scale {needed or 'over 10,000'} seeds, or "
            "make the claim secondary; `short: why` keeps it, and is printed beside its verdict"
        )


def short(paper_dir: Path, result: Results) -> dict[str, str]:
    """claim -> why it is primary although its seeds may miss what would matter.

    Of the protocol that the result was made with: none where that has changed since.
    """
    path = paper_dir / "protocol.yaml"
    if not path.exists() or sha256_yaml(path) != result.protocol_sha256:
        return {}
    plans = (load_yaml(path, path.name).get("plan") or {}).get(result.scale) or {}
    return {
        name: f"finds {line['detectable']:g} or more; {line['short']}"
        for name, line in plans.items()
        if line.get("short")
    }


# --- the lines ------------------------------------------------------------------------------------


def plan_line(claim: ClaimSpec, d: Sequence[float], seeds: str, n: int, k: int, source: str) -> str:
    """A line of `plan`, from the differences d of a pilot; k: primary claims of the scale."""
    sd = statistics.stdev(d)
    smallest = detectable(n, sd, claims=k) or 0.0
    fields = f'{{seeds: "{seeds}", sd: {sd:.3g}, n: {n}, detectable: {smallest:.3g}'
    line = f'    "{claim.id}": {fields}, source: "{source}"}}'
    if smallest <= claim.material:
        return line
    needed = seeds_needed(sd, float(claim.material), k) or f"over {MOST_SEEDS:,}"
    return (
        f"{line}\n      # above material {claim.material:g}: needs {needed} seeds, or `short: why`"
    )


def recorded_d(paper_dir: Path, scale: str) -> dict[str, tuple[list[float], str, str]]:
    """claim -> its differences in the recorded result, their seeds, and where they stand."""
    result = recorded.recorded(paper_dir, scale)
    if result is None:
        return {}
    source = f"an earlier recording, results/{scale}.json of commit {str(result.commit)[:10]}"
    of_claim = {claim.id: finite(claim.d) for claim in result.claims}
    return {
        name: (d, seeds_text(result.seeds[: len(d)]), source)
        for name, d in of_claim.items()
        if len(d) > 1
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_n", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("paper")
    add("--scale", default="cpu", choices=PLANNED)
    add("--claim", help="only this one")
    add("--d", type=float, nargs="+", help="differences of a pilot, one per development seed")
    options = parser.parse_args(arguments)
    try:
        paper = Protocol(Path(__file__).resolve().parent.parent / options.paper)
        family = primary(load_claims(paper.directory / "claims.yaml"), options.scale)
        pilots = recorded_d(paper.directory, options.scale)
        for claim in family:
            if options.claim in (None, claim.id):
                pilot = (options.d, f"0-{len(options.d) - 1}", "a pilot") if options.d else None
                pilot = pilot or pilots.get(claim.id)
                if pilot is None or len(pilot[0]) < 2:
                    print(f"    # {claim.id}: nothing recorded; run a pilot and give --d")
                    continue
                d, seeds, source = pilot
                n = seeds_of(paper, claim, options.scale)
                print(plan_line(claim, d, seeds, n, len(family), source))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
