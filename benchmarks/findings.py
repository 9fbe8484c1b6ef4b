"""What we found about these papers: questions of questions.yaml, answered by recorded verdicts and by nothing else.

`answers` serves the report's page findings.html, `findings_table` the committed docs/findings.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import readme

QUESTIONS = Path(__file__).with_name("questions.yaml")
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


def questions() -> dict[str, list[dict[str, str]]]:
    """Paper -> its questions in order, as the file has them: `ask`, `claim`, perhaps `control`."""
    return readme.load_yaml(QUESTIONS)


def answer(question: dict[str, str], claims: list[dict[str, Any]]) -> dict[str, Any] | None:
    """`ask`, `words`, `evidence` and the claim; None where the claim, or its control, is not judged at this scale."""
    claim = next((c for c in claims if c["id"] == question["claim"]), None)
    if claim is None:
        return None
    controls = readme.controls_of(claim)
    judged, verdict, formula = claim, str(claim.get("verdict") or "NOT RUN"), readme.formula(claim)
    if arm := question.get("control"):
        judged = next((c for c in controls if c["arm"] == arm), {})
        if not judged:
            return None
        verdict = str(judged.get("outcome") or "OPEN")
        formula = readme.formula(claim, arm)
    verdict = verdict.removesuffix(readme.SCALED_DOWN).removesuffix(" for this model")
    named = {
        o: ", ".join(c["arm"] for c in controls if c.get("outcome") == o) for o in ("OPEN", "NOT BEATEN")
    }
    evidence = formula
    if judged.get("effect") is not None:
        evidence += f" = {readme.number(judged['effect'], signed=True)} {readme.unit_of(claim)}"
        if claim["kind"] != "exact":
            evidence += f" (95 % {readme.interval(judged['ci95'])}, n {claim['n']})"
    return {
        "ask": question["ask"],
        "words": ANSWERS[verdict].format(**named),
        "evidence": evidence,
        "claim": claim,
    }


def answers(paper: str, claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers about one paper out of its claims at one scale."""
    found = (answer(question, claims) for question in questions().get(paper) or [])
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
