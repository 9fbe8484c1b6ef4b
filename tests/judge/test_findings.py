"""Questions are answered by the verdicts of their claims, and by nothing else."""

from __future__ import annotations

import pytest

from benchmarks import PAPERS, findings, papers, words
from benchmarks.claims import load_claims
from benchmarks.papers import Question
from benchmarks.recorded import Claim, Results


@pytest.mark.parametrize("paper", PAPERS)
def test_questions_ask_for_claims_and_controls_that_are_declared(root, paper):
    asked = papers.paper(paper).questions
    declared = [c for c in load_claims(root / paper / "claims.yaml").claims if c.role != "exhibit"]
    primary = {c.id for c in declared if c.role == "primary" and "cpu" in c.scales}
    assert len(asked) >= 3 and primary <= {question.claim for question in asked}
    by_id = {claim.id: claim for claim in declared}
    for question in asked:
        controls = by_id[question.claim].control_arms
        assert question.ask.endswith("?")
        assert not question.control or question.control in controls


@pytest.mark.parametrize(
    "verdict, words",
    [
        ("SUPPORTED (scaled down)", "Yes"),
        ("SUPPORTED, NOT ATTRIBUTED (scaled down)", "Yes, but without the idea just as well (b)"),
        (
            "SUPPORTED, NOT ATTRIBUTED, but smaller than 1 (scaled down)",
            "Yes, by less than 1 point, but without the idea just as well (b)",
        ),
        ("SUPPORTED, ATTRIBUTION OPEN", "Yes; whether because of the idea stays open (c)"),
        ("CONTRADICTED", "No"),
        ("INCONCLUSIVE for this model (scaled down)", "These runs cannot tell"),
        ("SUPPORTED, but smaller than 1 (scaled down)", "Yes, by less than 1 point"),
        (
            "NO MATERIAL DIFFERENCE (scaled down)",
            "No difference that would matter: less than 1 point either way",
        ),
        ("INSENSITIVE", "This experiment could not have told: its positive control does not show"),
    ],
)
def test_an_answer_is_the_verdict_of_its_claim(verdict, words):
    controls = [
        {"arm": a, "outcome": o, "effect": -1.0, "ci95": [-2.0, 0.0]}
        for a, o in [("a", "BEATEN"), ("b", "NOT BEATEN"), ("c", "OPEN")]
    ]
    judged = {"verdict": verdict, "n": 5, "effect": 2.0, "ci95": [1.0, 3.0], "controls": controls}
    arms = {"method": "m", "opponent": "o"}
    claim = Claim.model_validate({"id": "1", "arms": arms, **judged})
    ours = findings.answer(Question(ask="Is it?", claim="1"), [claim])
    assert (
        ours.words == words and ours.evidence == "m - o = +2.00 points (95 % +1.00 to +3.00, n 5)"
    )
    for arm, said in [
        ("a", "Yes"),
        ("b", "No, that does as well"),
        ("c", "These runs cannot tell"),
    ]:
        ours = findings.answer(Question(ask="Is it?", claim="1", control=arm), [claim])
        assert ours.words == said and ours.evidence.startswith(f"m - {arm} = -1.00 points")
    assert findings.answer(Question(ask="Is it?", claim="2"), [claim]) is None


def test_an_effect_on_a_metric_that_should_fall_is_written_as_its_sign_is():
    """d favours the claim when positive: 460 passes saved are best_uniform - autolora."""
    arms = {"method": "autolora", "opponent": "best_uniform"}
    measure = {"unit": "raw", "metric": "cost", "direction": "lower", "arms": arms}
    judged = {"id": "cost", "kind": "exact", "effect": 460.0, "verdict": "SUPPORTED"}
    claim = Claim.model_validate({**judged, **measure})
    ours = findings.answer(Question(ask="Is it cheaper?", claim="cost"), [claim])
    assert ours.evidence.startswith("best_uniform - autolora = +460")


def alone(claim):
    return findings.Answer("?", "Yes", "", claim, words.unit_of(claim))


@pytest.mark.parametrize("paper", PAPERS)
def test_units_that_are_names_of_metrics_are_said_in_words(root, paper):
    _, result = findings.lead(root / paper)
    asked = findings.answers(paper, result.claims if result else [])
    for claim in (one.claim for one in asked if one.claim.unit == "raw"):
        name = claim.metric.replace("_", " ")
        said = findings.units(paper, [alone(claim)])
        assert said.startswith(f"*{name}*: ") and len(said) > len(name) + 20
    points = Claim.model_validate({"id": "1", "arms": {"method": "m"}, "unit": "points"})
    assert findings.units(paper, [alone(points)]) == ""


def test_a_record_from_another_processor_is_compared_claim_by_claim():
    claims = [
        {"id": "a", "verdict": "INCONCLUSIVE", "effect": 0.5},
        {"id": "b", "verdict": "SUPPORTED", "effect": 2.0},
        {"id": "c", "verdict": None, "effect": 1.0},
    ]
    old = {
        "revision": 1,
        "processor": "A",
        "verdicts": {"a": "SUPPORTED", "b": "SUPPORTED", "c": None},
        "effects": {"a": 0.9, "b": 2.1},
    }
    head = {"paper": "p", "scale": "cpu", "revision": 1, "environment": {"processor": "B"}}

    def replica(**change):
        document = {**head, "claims": claims, "earlier": [{**old, **change}]}
        return findings.replica(Results.model_validate(document))

    both = replica()
    assert both.then == "A" and both.now == "B" and both.judged == 2
    (changed,) = both.changed
    assert (changed.claim.id, changed.then, changed.effect_then) == ("a", "SUPPORTED", 0.9)
    # the same machine, other seeds, an unknown machine
    assert replica(processor="B") is replica(revision=0) is replica(processor=None) is None
