"""A repository with one paper whose scale `paper` has a rehearsal's sizes, and the hub's inputs.

Scale `paper` keeps its models, data, tasks, arms and metrics. Lengths, batches and limits become
those of `rehearsal`, whose made-up inputs are left out: what is loaded comes from the hub.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.claims import load_claims
from shared import protocol
from shared.protocol import Node, Protocol

ROOT = Path(__file__).resolve().parent.parent.parent
OTHER = {"paper": "rehearsal", "rehearsal": "paper"}
PACKAGES = {"molecules": "rdkit"}  # data that cannot be read without a module
# random networks of a few numbers are flat along v: finite differences of theirs are rounding
EXACT = {"tapweight": {"mode": "exact-dot"}}
INPUTS = {"model", "encoder", "judge", "steering", "corpus", "checkpoints", "data"}


def write(root: Path, paper: str) -> Protocol:
    """Copies of `shared`, `benchmarks` and the paper below `root`; the paper's protocol there."""
    left_out = shutil.ignore_patterns("__pycache__", "results")
    for name in ("shared", "benchmarks", paper):
        shutil.copytree(ROOT / name, root / name, ignore=left_out)
    if (ROOT / ".packages").exists():  # what is bundled
        (root / ".packages").symlink_to((ROOT / ".packages").resolve())
    document = protocol.load_yaml(root / paper / "protocol.yaml", "protocol.yaml")
    text = yaml.safe_dump(small(document), sort_keys=False)
    (root / paper / "protocol.yaml").write_text(text, encoding="utf-8")
    return Protocol(root / paper)


def small(document: dict[str, Any]) -> dict[str, Any]:
    """`paper` and `rehearsal` change names: the new `paper` is like the old one, but short."""
    scales = {OTHER.get(name, name): body for name, body in document["scales"].items()}
    short, whole = scales["paper"], scales["rehearsal"]
    costs = {name: whole[name] for name in ("needs", "hours") if name in whole}
    inputs = with_names(whole)
    scales["paper"] = without_stand_ins(short, inputs) | {"like": "rehearsal", **costs}
    scales["paper"]["set"] |= EXACT.get(document["paper"], {})
    arms = {name: renamed(body, inputs) for name, body in document["arms"].items()}
    return document | {"scales": scales, "arms": arms}


def renamed(arm: dict[str, Any] | None, inputs: set[Any]) -> dict[str, Any]:
    arm = dict(arm or {})
    if "scales" in arm:
        arm["scales"] = [OTHER.get(name, name) for name in arm["scales"]]
    if "at" in arm:
        arm["at"] = {
            OTHER.get(name, name): without_stand_ins(body, inputs) if name == "rehearsal" else body
            for name, body in arm["at"].items()
        }
    return arm


def with_names(value: Any) -> set[Any]:
    """Every text in a scale: what of a rehearsal is not among them is its own stand-in."""
    if isinstance(value, dict):
        return set(value).union(*map(with_names, value.values()))
    return set().union(*map(with_names, value)) if isinstance(value, list) else {value}


def without_stand_ins(value: Any, inputs: set[Any]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: without_stand_ins(part, inputs)
        for key, part in value.items()
        if key not in INPUTS or isinstance(part, dict) or part in inputs
    }


Inputs = set[tuple[str, str]]  # ("model" or "data", name)


@dataclass(frozen=True)
class Choice:
    """Runs of scale `paper` that need, between them, all `inputs`, and judge `claim`."""

    claim: str
    arms: list[str]
    tasks: list[str]
    inputs: Inputs


def choice(paper: Protocol) -> Choice:
    """The arms of the first claim, then tasks, then arms until every input is needed.

    Left out: data that this machine's packages cannot read."""
    lacking = {data for data, module in PACKAGES.items() if not importlib.util.find_spec(module)}
    needs, everything = paper.scale("paper").needs, paper.nodes("paper", "all", seeds=1)
    unread = {word for name in lacking for word in needs.data.get(name, [])}
    tasks = [task for task in paper.tasks("paper") if task not in unread]
    paper.nodes = _answered(paper.nodes, everything)  # type: ignore[method-assign]

    def inputs(arms: Iterable[str], on: Iterable[str]) -> Inputs:
        pairs = [(a, t) for a in arms for t in paper.arm_tasks(a, "paper") if t in on]
        found = paper.inputs("paper", paper.nodes("paper", pairs=pairs, seeds=1)) if pairs else []
        return {(kind, name) for kind, name in found if name not in lacking}

    claims = load_claims(paper.directory / "claims.yaml").claims
    of_paper = (claim for claim in claims if "paper" in claim.scales and claim.arms.opponent)
    claim = next(of_paper, None) or next(c for c in claims if "paper" in c.scales)
    arms = list(dict.fromkeys(claim.arms.sides))
    named = claim.tasks if isinstance(claim.tasks, list) else claim.tasks.get("paper", [])
    on = [task for task in named or paper.arm_tasks(arms[0], "paper") if task in tasks]
    wanted = {("model", n) for n in needs.models} | {("data", n) for n in needs.data}
    covered = inputs(arms, on)
    for arm in [*arms, *paper.selected("paper"), *paper.selected("paper", "all")]:
        for task in [t for t in tasks if t in paper.arm_tasks(arm, "paper")]:
            if covered >= wanted - {("data", name) for name in lacking}:
                break
            if inputs([arm], [task]) - covered:
                covered |= inputs([arm], [task])
                arms, on = list(dict.fromkeys([*arms, arm])), list(dict.fromkeys([*on, task]))
    return Choice(claim.id, arms, on, covered)


def _answered(nodes: Any, everything: list[Node]) -> Any:
    """`Protocol.nodes`, which asks for all runs of all seeds again and again, with an answer."""

    def answer(scale: str, *words: Any, **more: Any) -> Any:
        return everything if words == ("all",) and not more else nodes(scale, *words, **more)

    return answer
