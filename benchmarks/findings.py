"""What we found: the questions of each paper.yaml, answered by recorded verdicts alone.

`answers` serves the report's page findings.html, `findings_table` the committed docs/findings.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import papers, readme

ANSWERS = {
    "SUPPORTED": "Yes",
    "SUPPORTED, NOT ATTRIBUTED": "Yes, but no more than without the idea ({NOT BEATEN})",
    "SUPPORTED, ATTRIBUTION OPEN": "Yes; whether because of the idea stays open ({OPEN})",
    "CONTRADICTED": "No",
    "INCONCLUSIVE": "These runs cannot tell",
    "NOT RUN": "Not run",
    "BEATEN": "Yes",
    "NOT BEATEN": "No, that does as well",
    "OPEN": "These runs cannot tell",
}


def answer(question: papers.Question, claims: list[dict[str, Any]]) -> dict[str, Any] | None:
    """`ask`, `words`, `evidence` and the claim; None where it, or its control, is not judged here."""
    claim = next((c for c in claims if c["id"] == question.claim), None)
    if claim is None:
        return None
    controls = readme.controls_of(claim)
    judged, verdict, formula = claim, str(claim.get("verdict") or "NOT RUN"), readme.formula(claim)
    if arm := question.control:
        judged = next((c for c in controls if c["arm"] == arm), {})
        if not judged:
            return None
        verdict = str(judged.get("outcome") or "OPEN")
        formula = readme.formula(claim, arm)
    verdict = verdict.removesuffix(readme.SCALED_DOWN).removesuffix(" for this model")
    named = {
        o: ", ".join(c["arm"] for c in controls if c.get("outcome") == o)
        for o in ("OPEN", "NOT BEATEN")
    }
    evidence = formula
    if judged.get("effect") is not None:
        evidence += f" = {readme.number(judged['effect'], signed=True)} {readme.unit_of(claim)}"
        if claim["kind"] != "exact":
            evidence += f" (95 % {readme.interval(judged['ci95'])}, n {claim['n']})"
    return {
        "ask": question.ask,
        "words": ANSWERS[verdict].format(**named),
        "evidence": evidence,
        "claim": claim,
    }


def answers(paper: str, claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers about one paper out of its claims at one scale."""
    found = (answer(question, claims) for question in papers.paper(paper).questions)
    return [one for one in found if one]


def findings_table(root: Path) -> str:
    """Block `findings` of docs/findings.md: a table for each paper, at its most telling recorded scale."""
    parts = []
    for paper in readme.PAPERS:
        scale, result = next(iter(readme.recorded(root / paper).items()), (None, {}))
        rows = [
            [readme.cell(a["ask"]), f"**{readme.cell(a['words'])}**", readme.cell(a["evidence"]), f"[{readme.cell(a['claim']['id'])}](../{paper}/README.md)"]
            for a in answers(paper, result.get("claims") or [])
        ]  # fmt: skip
        body = (
            readme.table(["question", "answer", "evidence", "claim"], rows)
            if rows
            else "Nothing is recorded yet."
        )
        parts.append(f"**{paper}**" + (f", scale `{scale}`" if scale else "") + f"\n\n{body}")
    return "\n\n".join(parts)


def replica(result: dict[str, Any]) -> dict[str, Any] | None:
    """The newest earlier record with the same seeds from another processor, claim by claim; None if there is none.

    `then`, `now`: the processors; `judged`: number of claims with a verdict in both; `changed`: those whose verdicts differ."""
    now = (result.get("environment") or {}).get("processor")
    same = [
        e
        for e in result.get("earlier") or []
        if e.get("revision") == result.get("revision") and e.get("processor") not in (None, now)
    ]
    if not same:
        return None
    old = same[-1]
    both = [
        c for c in result["claims"] if c.get("verdict") and (old["verdicts"] or {}).get(c["id"])
    ]
    changed = [
        {
            "claim": c,
            "then": old["verdicts"][c["id"]],
            "effect_then": (old.get("effects") or {}).get(c["id"]),
        }
        for c in both
        if old["verdicts"][c["id"]] != c["verdict"]
    ]
    return {"then": old["processor"], "now": now, "judged": len(both), "changed": changed}


def replicas_table(root: Path) -> str:
    """Block `replicas` of docs/findings.md: verdicts that another processor gave differently, and how many it gave alike."""
    rows, judged, alike = [], 0, 0
    for paper in readme.PAPERS:
        scale, result = next(iter(readme.recorded(root / paper).items()), (None, {}))
        if not result or not (found := replica(result)):
            continue
        judged, alike = judged + found["judged"], alike + found["judged"] - len(found["changed"])
        for one in found["changed"]:
            claim = one["claim"]
            sides = [
                f"{str(verdict).removesuffix(readme.SCALED_DOWN)}"
                + (f" ({readme.number(effect, signed=True)})" if effect is not None else "")
                for verdict, effect in (
                    (one["then"], one["effect_then"]),
                    (claim["verdict"], claim.get("effect")),
                )
            ]
            rows.append(
                [
                    f"{paper}, `{scale}`",
                    readme.cell(claim["statement"]),
                    f"{found['then']}: {sides[0]}",
                    f"{found['now']}: {sides[1]}",
                ]
            )
    if not judged:
        return "Every result was recorded on one kind of processor."
    said = f"{alike} of {judged} verdicts are the same on both."
    return (
        f"{said}\n\n{readme.table(['paper', 'claim', 'first', 'now (the verdict that counts)'], rows)}"
        if rows
        else said
    )
