"""What we found: the questions of each paper.yaml, answered by recorded verdicts alone.

`answers` serves the report's page findings.html, `findings_table` the committed docs/findings.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import PAPERS, papers, recorded
from benchmarks.recorded import Claim, Control, Results
from benchmarks.rules import SMALLER, plain
from benchmarks.words import (
    cell,
    fewer,
    formula,
    interval,
    margin,
    number,
    positive_control,
    table,
    unit_of,
)

ANSWERS = {
    "SUPPORTED": "Yes{less}",
    "SUPPORTED, NOT ATTRIBUTED": "Yes{less}, but without the idea just as well ({NOT BEATEN})",
    "SUPPORTED, ATTRIBUTION OPEN": "Yes{less}; whether because of the idea stays open ({OPEN})",
    "CONTRADICTED": "No{less}",
    "NO MATERIAL DIFFERENCE": "No difference that would matter: less than {margin} either way",
    "INSENSITIVE": "This experiment could not have told: its positive control does not show",
    "INCONCLUSIVE": "These runs cannot tell",
    "NOT RUN": "Not run",
    "BEATEN": "Yes",
    "NOT BEATEN": "No, that does as well",
    "OPEN": "These runs cannot tell",
}


@dataclass(frozen=True)
class Answer:
    ask: str
    words: str
    evidence: str
    claim: Claim
    unit: str


def answer(question: papers.Question, claims: Sequence[Claim]) -> Answer | None:
    """None where the claim, or its control, is not judged at this scale."""
    claim = next((c for c in claims if c.id == question.claim), None)
    if claim is None:
        return None
    judged: Claim | Control = claim
    verdict, arm = claim.verdict or "NOT RUN", question.control or ""
    if arm:
        of_arm = [control for control in claim.controls if control.arm == arm]
        if not of_arm:
            return None
        judged, verdict = of_arm[0], of_arm[0].outcome
    evidence, unit = formula(claim, arm), question.unit or unit_of(claim)
    if judged.effect is not None:
        evidence += f" = {number(judged.effect, signed=True)} {unit}"
        if claim.kind != "exact":
            of_fewer = fewer(judged, claim) if isinstance(judged, Control) else ""
            n = of_fewer.removeprefix(", ") or f"n {claim.n}"
            evidence += f" (95 % {interval(judged.ci95)}, {n})"
    if claim.sensitivity and claim.sensitivity.d and not arm:
        evidence += f"; positive control {positive_control(claim)}"
    arms = {
        outcome: ", ".join(c.arm for c in claim.controls if c.outcome == outcome)
        for outcome in ("OPEN", "NOT BEATEN")
    }
    less = f", by less than {margin(claim)}" if SMALLER.search(verdict) else ""
    words = ANSWERS[plain(verdict)].format(margin=margin(claim), less=less, **arms)
    return Answer(question.ask, words, evidence, claim, unit)


def answers(paper: str, claims: Sequence[Claim]) -> list[Answer]:
    """The answers about one paper out of its claims at one scale."""
    possible = (answer(question, claims) for question in papers.paper(paper).questions)
    return [one for one in possible if one]


def lead(paper_dir: Path) -> tuple[str | None, Results | None]:
    """The most telling recorded scale and its result."""
    return next(iter(recorded.all_recorded(paper_dir).items()), (None, None))


def findings_table(root: Path) -> str:
    """Block `findings` of docs/findings.md: a table for each paper."""
    parts = []
    for paper in PAPERS:
        scale, result = lead(root / paper)
        answered = answers(paper, result.claims if result else [])
        rows = [
            [
                cell(one.ask),
                f"**{cell(one.words)}**",
                cell(one.evidence),
                f"[{cell(one.claim.id)}](../{paper}/README.md)",
            ]
            for one in answered
        ]
        body = table(["question", "answer", "evidence", "claim"], rows)
        if said := units(paper, answered):
            body += f"\n\n{said}"
        named = f"**{paper}**" + (f", scale `{scale}`" if scale else "")
        parts.append(f"{named}\n\n{body if rows else 'Nothing is recorded yet.'}")
    return "\n\n".join(parts)


def short_table(root: Path) -> str:
    """Block `found` of README.md: the first question of each paper, its answer and one number."""
    rows, said = [], []
    for paper in PAPERS:
        about = papers.paper(paper)
        _, result = lead(root / paper)
        link = f"[{paper}]({paper}/README.md)"
        first = answers(paper, result.claims if result else [])[:1]
        if not first:
            rows.append([link, cell(about.questions[0].ask), "Not run", ""])
        for one in first:
            number_of = _one_number(one) if one.claim.effect is not None else ""
            rows.append([link, cell(one.ask), f"**{cell(one.words)}**", cell(number_of)])
        said.append(units(paper, first))
    body = table(["method", "question", "answer", "one number: method − opponent"], rows)
    return "\n\n".join([body, *filter(None, [" ".join(filter(None, said))])])


def _one_number(one: Answer) -> str:
    return f"{number(one.claim.effect, signed=True)} {one.unit} ({one.claim.n} seeds)"


def units(paper: str, shown: Sequence[Answer]) -> str:
    """What units measure that are names of metrics, in the words of paper.yaml; "" for none."""
    metrics = papers.paper(paper).metrics
    said = {
        one.unit: metrics.get(one.claim.metric or "", "")
        for one in shown
        if one.claim.unit == "raw" and one.unit == unit_of(one.claim)
    }
    return " ".join(f"*{cell(name)}*: {cell(words)}." for name, words in said.items() if words)


# --- the same seeds on another processor ----------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A verdict that the earlier processor gave differently."""

    claim: Claim
    then: str
    effect_then: float | None


@dataclass(frozen=True)
class Replica:
    """`then`, `now`: the processors; `judged`: number of claims with a verdict in both."""

    then: str
    now: str | None
    judged: int
    changed: list[Change]


def replica(result: Results) -> Replica | None:
    """The newest earlier record with the same seeds from another processor, claim by claim."""
    now = result.environment.get("processor")
    same = [
        earlier
        for earlier in result.earlier
        if earlier.revision == result.revision and earlier.processor not in (None, now)
    ]
    if not same:
        return None
    old, judged, changed = same[-1], 0, []
    for claim in result.claims:
        then = old.verdicts.get(claim.id)
        if claim.verdict and then:
            judged += 1
            if then != claim.verdict:
                changed.append(Change(claim, then, old.effects.get(claim.id)))
    return Replica(str(old.processor), now, judged, changed)


def replicas_table(root: Path) -> str:
    """Block `replicas`: verdicts that another processor gave differently, the others counted."""

    def side(processor: str | None, verdict: str | None, effect: float | None) -> str:
        size = f" ({number(effect, signed=True)})" if effect is not None else ""
        return f"{processor}: {str(verdict).removesuffix(' (scaled down)')}{size}"

    rows, judged, alike = [], 0, 0
    for paper in PAPERS:
        scale, result = lead(root / paper)
        if not result or not (pair := replica(result)):
            continue
        judged, alike = judged + pair.judged, alike + pair.judged - len(pair.changed)
        for one in pair.changed:
            before = side(pair.then, one.then, one.effect_then)
            after = side(pair.now, one.claim.verdict, one.claim.effect)
            rows.append([f"{paper}, `{scale}`", cell(one.claim.statement), before, after])
    if not judged:
        return "Every result was recorded on one kind of processor."
    said = f"{alike} of {judged} verdicts are the same on both."
    head = ["paper", "claim", "first", "now (the verdict that counts)"]
    return f"{said}\n\n{table(head, rows)}" if rows else said
