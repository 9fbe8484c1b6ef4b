"""The first page: a sentence a paper, one figure, what is open; and the items behind a result."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import synthetic_results

from benchmarks import PAPERS, front, items, papers, recorded, report, tables, views
from benchmarks.arms import Cost
from benchmarks.recorded import Claim, Sensitivity

ROOT = Path(__file__).resolve().parents[2]


def claim(verdict: str, **values) -> Claim:
    base = {"id": "c", "statement": "A beats B.", "role": "primary", "metric": "accuracy"}
    base |= {"effect": 2.0, "ci95": [1.0, 3.0], "n": 10, "material": 1.0, "verdict": verdict}
    return Claim(**base | values)


def test_a_sentence_says_each_verdict_in_words_with_its_numbers():
    claims = [
        claim("SUPPORTED (scaled down)", statement="Ranks that are learned help."),
        claim("SUPPORTED, but smaller than 1 (scaled down)", effect=0.5, ci95=[0.2, 0.8]),
        claim("CONTRADICTED (scaled down)", statement="PPO helps", effect=-2.0, ci95=[-3, -1]),
        claim("INCONCLUSIVE (scaled down)", effect=0.1, ci95=[-1, 1.2]),
        claim("SUPPORTED", role="secondary", statement="Never said."),
    ]
    said = front.sentence(claims, "cpu").replace(front.HARD, " ")
    assert said == (
        "On small models and data it holds that ranks that are learned help (+2.00 points, 95 % "
        "+1.00 to +3.00), and that a beats B (+0.50 points, 95 % +0.20 to +0.80, less than the "
        "1 point that would matter); the opposite was found of the claim that PPO helps (-2.00 "
        "points, 95 % -3.00 to -1.00); these runs cannot tell whether a beats B (+0.10 points, "
        "95 % -1.00 to +1.20)."
    )
    assert front.sentence([], "cpu") == "No primary claim is judged yet."
    raw = claim("SUPPORTED", unit="raw", metric="frontier_gap")
    assert "frontier_gap" not in front.sentence([raw], "paper")


def test_the_figure_measures_from_the_threshold_in_differences_that_matter():
    shifted = claim("SUPPORTED", effect=0.3, ci95=[0.1, 0.5], threshold=-0.1, material=0.2)
    far = claim("SUPPORTED", effect=40.0, ci95=[30.0, 50.0])
    first, second = front.lines([("x", [shifted, claim("", ci95=None)]), ("y", [far])])
    assert (first.effect, *first.ends) == pytest.approx((2.0, 1.0, 3.0))
    assert second.effect == 40
    drawn = front.picture([("x", [shifted]), ("y", [far])])
    assert drawn and "y, A beats B. SUPPORTED, +40.00 points" in drawn.alt
    assert "+40" in drawn.svg and front.picture([]) is None


def test_open_claims_say_what_would_settle_them_and_for_how_long():
    sides = {"method": "a", "opponent": "b"}
    costs = {"a": Cost(1, 2.0, 1, 1, 10.0), "b": Cost(1, 3.0, 1, 1, 5.0)}
    wide = claim("INCONCLUSIVE", reason="t", detectable=2.0, arms=sides, tasks=["x", "y"])
    blind = claim("INSENSITIVE", sensitivity=Sensitivity(outcome="NOT SHOWN"), arms=sides)
    settled = claim("SUPPORTED")
    first, second = front.open_claims([wide, blind, settled], costs)
    assert first.settles == "about 40 new seeds, which would find 1 point"
    assert first.seconds == 40 * (10 + 5) * 2  # seeds, arms, tasks
    assert "another experiment" in second.settles and second.seconds is None


def test_hours_of_the_papers_own_scale_are_those_of_its_protocol(tmp_path):
    assert front.paper_hours(ROOT / "weight_mixup") == 110
    assert front.paper_hours(tmp_path) is None


def test_every_metric_of_a_judged_claim_is_said_in_words():
    lacking = []
    for paper in PAPERS:
        for result in recorded.all_recorded(ROOT / paper).values():
            judged = [c for c in result.claims if c.role != "exhibit"]
            lacking += [(paper, c.metric) for c in judged if not views.meaning(c, paper)]
    assert not lacking


def test_metrics_and_items_of_a_paper_yaml_exist():
    for paper in PAPERS:
        about, declared = papers.paper(paper), tables.declared_claims(ROOT / paper)
        assert declared is not None
        assert all(source.partition("/")[0] in items.SOURCES for source in about.items.values())
        result = recorded.recorded(ROOT / paper, "cpu")
        if result:
            assert set(about.items) <= {run.task for run in result.runs}, paper


# --- items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "source"), [("mlo_mae", "mnist"), ("dasgm", "digits")])
def test_digits_are_shown_with_their_label_and_what_each_arm_answered(paper, source):
    result = recorded.recorded(ROOT / paper, "cpu")
    if result is None:
        pytest.skip(f"{paper} has no record at cpu")
    every = items.of_result(paper, result, recorded.result_path(ROOT / paper, "cpu"))
    (name,) = (task for task, of in papers.paper(paper).items.items() if of == source)
    digits = next(task for task in every if task.task == name)
    shown = digits.of if source == "digits" else items.FEW
    assert digits.of > 100 and len(digits.items) == shown and len(digits.arms) >= 2
    first = digits.items[0]
    assert first.spread == max(item.spread for item in digits.items)
    assert all(0 <= share <= 1 for item in digits.items for share in item.right.values())
    # the labels are those of the predictions, so that ids are rows of the digits
    from shared import bundled

    test = bundled.mnist()["test"]
    labels = dict(zip(test.ids.tolist(), test.labels.tolist()))
    if source == "digits":
        labels = dict(enumerate(bundled.digits()[1].tolist()))
    predictions = items.unpack_predictions(
        recorded.result_path(ROOT / paper, "cpu").with_suffix(".predictions.npz")
    )
    for (_, task, _), arrays in predictions.items():
        if task == digits.task and "label" in arrays:
            assert [labels[i] for i in arrays["id"].tolist()] == arrays["label"].tolist()
    uri = first.picture.partition(",")[2]
    assert base64.b64decode(uri).startswith(b"\x89PNG") and first.text.endswith(first.label)


def test_sentences_are_few_and_absent_data_are_said(monkeypatch):
    from shared import bundled
    from shared.inputs import MissingInput

    result = recorded.recorded(ROOT / "tapweight", "cpu")
    assert result is not None
    path = recorded.result_path(ROOT / "tapweight", "cpu")

    def absent(*_, **__):
        raise MissingInput("vaderSentiment is not here\n  remedy: ...")

    monkeypatch.setattr(bundled, "ratings", absent)
    (task,) = items.of_result("tapweight", result, path)
    assert task.problem == "vaderSentiment is not here" and not task.items and task.of == 600


def test_sections_fold_and_their_links_still_lead_there():
    page = report.fold('<p>before</p><h2 id="a">A</h2><p>x</p><h2 id="b">B</h2><p>y</p>')
    assert page == (
        '<p>before</p><details class="part"><summary><h2 id="a">A</h2></summary><p>x</p></details>'
        '<details class="part"><summary><h2 id="b">B</h2></summary><p>y</p></details>'
    )


def test_the_first_page_answers_in_order(checkout):
    text = (checkout / "report" / "index.html").read_text(encoding="utf-8")
    order = ['id="asked"', 'id="found"', 'id="open"', 'id="verdicts"']
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    judged = [c for c in synthetic_results.result().claims if c.role == "primary"]
    assert "The evidence" not in text and 'aria-label="the evidence: claims of autolora"' in text
    assert judged and "Primary claims of all papers" in text
