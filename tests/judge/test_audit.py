"""Do printed numbers agree with each other: intervals, the kinds of relations, the seven files."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import PAPERS, audit, report
from benchmarks.audit import Numbers, audit_paper, audit_tables, check, printed, short
from benchmarks.check import check_pages
from benchmarks.relations import Relation
from benchmarks.reported import Published, load
from shared.protocol import BadInput


def entry(name: str, text: str, **more) -> str:
    """A line of reported.yaml whose value is written as printed."""
    fields = {"method": "m", "metric": "accuracy", "source": "s", "confidence": "read"} | more
    words = ", ".join(f"{key}: {value}" for key, value in fields.items())
    return f"  - {{id: {name}, value: {text}, {words}, origin: paper}}"


def folder(tmp_path: Path, lines: list[str], *relations: dict, not_audited: list | None = None):
    """A paper with these published numbers and relations, in a folder of its own."""
    place = tmp_path / "a_paper"
    place.mkdir(exist_ok=True)
    text = "\n".join(["paper: a_paper", "arxiv: x", "note: n", "not_found: []", "entries:", *lines])
    (place / "reported.yaml").write_text(text)
    whole = [{"source": "Table 1", "id": f"r{i}"} | r for i, r in enumerate(relations)]
    document = {"paper": "a_paper", "relations": whole, "not_audited": not_audited or []}
    (place / "audit.yaml").write_text(yaml.safe_dump(document))
    return place


CELLS = [entry("a", "90.0"), entry("b", "80.0"), entry("c", "71.0"), entry("m", "80.3")]
MEAN = {"kind": "mean", "of": "m", "parts": ["a", "b", "c"]}
MINUS = {"kind": "difference", "of": "m", "minuend": "a", "subtrahend": "b"}
SHARE = {"kind": "granularity", "entries": ["m"], "items": 277, "runs": 1}
ROWS = {"kind": "count", "of": "m", "total": 3, "rows": [["a", "b"], ["b", "c"]]}


@pytest.mark.parametrize(
    ("text", "relation", "label", "words"),
    [
        ("80.3", MEAN, "HOLDS", "80.28 to 80.38"),
        ("80.9", MEAN, "OFF BY 0.47", "80.9 printed (80.85 to 80.95); the mean of 3 gives 80.28 "),
        ("80", MEAN, "HOLDS", "80 printed (79.5 to 80.5)"),
        ("80.40", MEAN, "OFF BY 0.01", "80.40 printed (80.4 to 80.41)"),  # the zero was printed
        ("80.4", MEAN, "HOLDS", "80.4 printed (80.35 to 80.45)"),
        ("241.0", {**MEAN, "times": 3}, "HOLDS", "3 times the mean of 3 gives 240.85 to 241.15"),
        ("80.5", {**MEAN, "parts": ["a", ["b", "c"]]}, "OFF BY 2.15", "82.7 to 82.8"),
        ("10.0", MINUS, "HOLDS", "90.0 - 80.0 = 10.00 (9.9 to 10.1)"),
        ("10.2", MINUS, "OFF BY 0.05", "10.2 printed (10.15 to 10.25)"),
        ("14.5", {**MINUS, "subtrahend": ["b", "c"]}, "HOLDS", "75.50 (mean of 2)"),
        ("80.1", {"kind": "same", "groups": [["m", "b"]]}, "HOLDS", "80.1 (m) and 80.0 (b)"),
        ("80.2", {"kind": "same", "groups": [["m", "b"], ["b", "m"]]}, "OFF BY 0.10", "80.2 (m)"),
        ("83.0", {"kind": "between", "first": "m", "second": "b", "at_most": 3, "note": "n"},
         "HOLDS", "83.0 and 80.0: 3 apart, at most 3 expected"),
        ("83.5", {"kind": "between", "first": "m", "second": "b", "at_most": 3, "note": "n"},
         "OFF BY 0.40", "3.5 apart"),
        ("95.0", {"kind": "between", "first": "m", "first_minus": "a", "second": "b",
                  "second_minus": "c", "at_most": 2, "note": "n"}, "OFF BY 1.80", "= 9.00 "),
        ("84.3", SHARE, "IMPOSSIBLE", "no count gives it, 84.1 and 84.5 are next"),
        ("84.1", SHARE, "HOLDS", "233 of 277"),
        ("0.841", {**SHARE, "whole": 1}, "HOLDS", "233 of 277"),
        ("84.2", {**SHARE, "runs": 3}, "HOLDS", "of 277 items and 3 runs: 700 of 831"),
        ("84.3", {k: v for k, v in SHARE.items() if k != "runs"}, "NOT CHECKED", "not stated"),
        ("84.1", {k: v for k, v in SHARE.items() if k != "runs"}, "HOLDS", "233 of 277"),
        ("64.3", {**SHARE, "items": 146}, "IMPOSSIBLE", "94 of 146 does if cut off instead"),
        ("84.3", {**SHARE, "items": 9815}, "HOLDS", "any value is possible"),
        ("100.0", SHARE, "HOLDS", "277 of 277"),
        ("0.0", SHARE, "HOLDS", "0 of 277"),
        ("110.0", {**SHARE, "items": 10}, "IMPOSSIBLE", "no share is below 0 or above 100"),
        ("-3.0", {**SHARE, "items": 100}, "IMPOSSIBLE", "no share is below 0"),
        ("1.2", {**SHARE, "items": 10, "whole": 1}, "IMPOSSIBLE", "no share is below 0 or above 1"),
        ("2", ROWS, "HOLDS", "2 of 3 printed; the 2 rows give 2 to 3"),
        ("1", ROWS, "OFF BY 0.50", "the 2 rows give 2 to 3"),
        ("2", {"kind": "count", "of": "m", "total": 3}, "NOT CHECKED", "cells are not on file"),
        ("80.3", {"kind": "mean", "of": "m", "missing": "its cells"}, "NOT CHECKED", "its cells"),
        ("null", MEAN, "NOT CHECKED", "m has no value"),
    ],
)  # fmt: skip
def test_outcomes(tmp_path, text, relation, label, words):
    lines = [*CELLS[:3], entry("m", text)]
    rest = [{"reported": name, "reason": "r"} for name in "abcm"]
    findings = audit_paper(folder(tmp_path, lines, relation, not_audited=rest)).findings
    worst = max(findings, key=lambda finding: finding.by)
    assert (worst.label, words in worst.words) == (label, True), worst


def test_a_count_is_exact_and_a_bound_is_open(tmp_path):
    lines = [
        *(entry(name, "4", exact="true") for name in "abc"),
        entry("m", "12", exact="true"),
        entry("over", "3.0", setting="{comparison: lower_bound}"),
    ]
    rest = [{"reported": "*", "reason": "r"}]
    total = {**MEAN, "times": 3}
    place = folder(
        tmp_path, lines, total, {**MINUS, "of": "over", "minuend": "m"}, not_audited=rest
    )
    assert [finding.label for finding in audit_paper(place).findings] == ["HOLDS", "HOLDS"]
    lines[3] = entry("m", "13", exact="true")
    place = folder(tmp_path, lines, total, not_audited=rest)
    assert audit_paper(place).findings[0].label == "OFF BY 1.00"


def test_one_missing_value_leaves_the_others(tmp_path):
    place = folder(tmp_path, [*CELLS[:3], entry("m", "null")], {**SHARE, "entries": ["*"]})
    labels = [finding.label for finding in audit_paper(place).findings]
    assert labels.count("NOT CHECKED") == 1 and len(labels) == 4


def test_ties_within_rounding_count_either_way(tmp_path):
    lines = [entry("a", "1.0"), entry("b", "1.0"), entry("c", "0.5"), entry("k", "1")]
    rows = {"kind": "count", "of": "k", "total": 2, "rows": [["a", "b"], ["a", "c"]]}
    rest = [{"reported": "*", "reason": "r"}]
    finding = audit_paper(folder(tmp_path, lines, rows, not_audited=rest)).findings[0]
    assert (finding.label, finding.words[-6:]) == ("HOLDS", "1 to 2")


def test_each_writes_a_relation_per_word(tmp_path):
    lines = [entry(f"{row}_{x}", "1.0") for row in ("p", "q") for x in ("a", "b", "m")]
    relation = {"id": "mean of {}", "kind": "mean", "each": ["p", "q"], "of": "{}_m"}
    place = folder(tmp_path, lines, {**relation, "parts": ["{}_a", "{}_b"]})
    names = [finding.relation.id for finding in audit_paper(place).findings]
    assert names == ["mean of p", "mean of q"]


@pytest.mark.parametrize(
    ("relation", "rest", "message"),
    [
        ({**MEAN, "of": "mm"}, [], r"relations\.r0: unknown key 'mm'; did you mean 'm'"),
        ({**SHARE, "entries": ["x*"]}, [], r"relations\.r0: unknown key 'x\*'"),
        ({**MEAN, "kind": "meen"}, [], "did you mean 'mean'"),
        ({**MEAN, "part": "a"}, [], "did you mean 'parts'"),
        ({**MEAN, "minuend": "a"}, [], "kind mean: unknown key 'minuend'"),
        ({"kind": "mean", "of": "m"}, [], "kind mean lacks parts"),
        ({"kind": "between", "first": "a", "second": "b", "at_most": 1}, [], "between lacks note"),
        ({**SHARE, "items": 0}, [], "items"),
        ({**MEAN, "parts": []}, [], "parts: is empty, or a part of it"),
        ({**MEAN, "parts": ["a", []]}, [], "parts: is empty, or a part of it"),
        ({**MINUS, "subtrahend": []}, [], "subtrahend: is empty"),
        ({**SHARE, "entries": []}, [], "entries: is empty"),
        ({"kind": "same", "groups": [["m"]]}, [], "groups: compares an entry with nothing"),
        ({"kind": "same", "groups": [["m", "m"]]}, [], "groups: compares an entry with nothing"),
        ({**ROWS, "rows": [["a"]]}, [], "rows: compares an entry with nothing"),
        ({**ROWS, "total": 1}, [], "has 2 rows of a total of 1"),
        ({**MEAN, "parts": ["a", "m"]}, [], "compares 'm' with itself"),
        ({**MEAN, "times": 0}, [], "times"),
        ({**MEAN, "id": "{}", "each": ["a", "a"]}, [], "each: names a word twice"),
        ({**MEAN, "each": ["a", "b"]}, [], r"has no? ?`?each|no \{\} in its id"),
        ({**MEAN, "parts": ["a", "b"]}, [], "no relation names 'c'; add a relation, or a line of"),
        (MEAN, [{"reported": "zz", "reason": "r"}], "not_audited: unknown key 'zz'"),
        (MEAN, [{"reported": "m"}], "'reason' is missing"),
    ],
)
def test_bad_files_are_refused(tmp_path, relation, rest, message):
    with pytest.raises(BadInput, match=message):
        audit_paper(folder(tmp_path, CELLS, relation, not_audited=rest))


def test_a_mean_that_is_only_a_part_is_refused(tmp_path):
    """To name a printed average is not to check it."""
    lines = [*CELLS[:3], entry("m", "80.3", metric="average of three")]
    with pytest.raises(BadInput, match="'m' is computed from others, unchecked; add a relation"):
        audit_paper(folder(tmp_path, lines, {**MEAN, "of": "a", "parts": ["b", "c", "m"]}))


def test_decimals_are_those_of_the_file(tmp_path):
    texts = {"a": "80.0", "b": "80", "c": "84.90", "d": "0.00961", "e": "null", "f": "-0.4"}
    place = folder(tmp_path, [entry(name, text) for name, text in texts.items()])
    entries = {e.id: e for e in load(place / "reported.yaml").entries}
    assert [entries[name].decimals for name in texts] == [1, 0, 2, 5, None, 1]
    assert [entries[name].printed for name in "abcf"] == ["80.0", "80", "84.90", "-0.4"]
    assert entries["c"].half == pytest.approx(0.005)


# --- the seven papers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audits(root):
    start = time.process_time()
    made = {paper: audit_paper(root / paper) for paper in PAPERS}
    assert time.process_time() - start < 10
    return made


@pytest.mark.parametrize("paper", PAPERS)
def test_committed_files_answer_every_entry(audits, paper):
    assert audits[paper].findings and audits[paper].paper == paper
    assert sum(audits[paper].tally.values()) == len(audits[paper].findings)


def test_the_known_contradictions_are_found(audits):
    labels = {one.relation.id: one for one in audits["ppo_nlu"].findings}
    expected = {
        "GLUE test, PPO over SFT, from nine columns": ("HOLDS", "= 6.33 "),
        "gain of PPO over SFT, test against validation": ("OFF BY 1.06", "= 2.16 "),
        "gain of PPO over SFT on SST-2, test against validation": ("OFF BY 16.83", "= 22.60 "),
        "GLUE test without SST-2, PPO over SFT, by us": ("HOLDS", "4.3 printed"),
        "SST-2 of SFT, test against validation": ("OFF BY 18.59", "73.8 and 96.44: 22.64 apart"),
        "SST-2 of ppo, test against validation": ("HOLDS", "96.4 and 96.10"),
        "SuperGLUE, PPO over few-shot, from averages": ("OFF BY 4.95", "78.3 - 54.9 = 23.40 "),
        "SuperGLUE, PPO over few-shot, from cells": ("OFF BY 8.48", "= 19.87 "),
        "SuperGLUE average, few_shot": ("OFF BY 3.49", "58.44 to 58.54"),
        "GLUE average, ppo_mt": ("OFF BY 0.01", "82.74 to 82.84"),
        "GLUE average of PPO in the text": ("OFF BY 0.10", "84.8 "),
    }
    for name, (label, words) in expected.items():
        assert labels[name].label == label and words in labels[name].words, labels[name]
    shown = [finding.relation.id for finding in audits["ppo_nlu"].headlines]
    assert len({*shown} & {*expected}) >= 8  # on the report's first page


def test_the_first_page_shows_the_headlines_without_a_click(audits, root):
    """What the printed numbers say of PPO's gains: 6.3 on test, 2.16 on validation, 22.60 on SST-2
    alone; 28.5 on SuperGLUE, where the averages give 23.40 and the cells 19.87."""
    row = SimpleNamespace(paper="ppo_nlu", audit=audits["ppo_nlu"], page="p.html", linked=True)
    text = "{% import 'macros.html' as m %}{% include 'audit_headlines.html' %}"
    shown = report.templates().from_string(text).render(rows=[row])
    for number in ("6.3 printed", "= 2.16", "= 22.60", "28.5 printed", "= 23.40", "= 19.87"):
        assert number in shown, number
    assert "<details open>" in shown and "<details>" not in shown
    index = (root / "benchmarks/templates/index.html").read_text(encoding="utf-8")
    assert "{% include 'audit_headlines.html' %}" in index and "fold" not in index


def test_reruns_by_others_are_never_audited(root):
    """They stand apart: beside the official outputs alone, in a relation that says whose they are,
    never beside a number that the paper prints."""
    for paper in ("ts_watermark", "autolora"):
        entries = load(root / paper / "reported.yaml").entries
        others = {e.id for e in entries if e.origin == "third_party"}
        relations = audit.load(root / paper / "audit.yaml", load(root / paper / "reported.yaml"))
        assert others
        for relation in relations.every():
            named = set(relation.named())
            if named & others:
                assert relation.id.startswith("a reader's rerun"), relation.id
                assert all(name.startswith("opt.") for name in named - others), relation.id


def test_output_and_exit_status(root, capsys, monkeypatch):
    monkeypatch.delenv("REPRO_DATA", raising=False)
    assert audit.main(["ppo-nlu"], root) == 0
    out = capsys.readouterr().out
    assert out.startswith("ppo_nlu: ") and "OFF BY 4.95" in out and "HOLDS  " not in out
    assert audit.main(["ts_watermark"], root) == 0
    assert "git clone https://github.com/mignonjia/TS_watermark" in capsys.readouterr().out
    assert audit.main(["ppo_nlp"], root) == 2
    assert "did you mean 'ppo_nlu'" in capsys.readouterr().err


def test_the_committed_page_says_the_same(root):
    assert audit_tables(root) in (root / "docs" / "findings.md").read_text(encoding="utf-8")


def audit_problems(root):
    return [line for line in check_pages(root) if line.startswith("docs/findings.md")]


def test_check_derives_the_audit_again(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "PAPERS", ("a_paper",))
    folder(tmp_path, CELLS, MEAN)
    page = tmp_path / "docs" / "findings.md"
    page.parent.mkdir()
    block = f"<!-- generated: audit -->\n{audit_tables(tmp_path)}\n<!-- end generated -->\n"
    page.write_text(block)
    assert audit_problems(tmp_path) == []
    folder(tmp_path, [*CELLS[:3], entry("m", "80.9")], MEAN)
    assert "'audit' is not what" in audit_problems(tmp_path)[0]
    assert audit.main(["a_paper", "--write"], tmp_path) == 0 and audit_problems(tmp_path) == []
    assert "**OFF BY 0.47**" in page.read_text()
    folder(tmp_path, CELLS, {**MEAN, "of": "mm"})
    with pytest.raises(BadInput, match=r"unknown|did you mean|no entry"):
        audit_problems(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"), [(80.28333, "80.28"), (3.0, "3"), (0.00195, "0.00195"), (100.0, "100")]
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_check_prints_notes(audits):
    """A reader of the terminal sees the reason beside the number."""
    assert "[nine columns; WNLI and AX are left out]" in printed(audits["ppo_nlu"])
    numbers = Numbers([Published.model_validate(yaml.safe_load(CELLS[0])[0])])
    relation = Relation(id="r", kind="count", source="s", of="a", total=2)
    assert check(relation, numbers, Path("x"), None)[0].outcome == "NOT CHECKED"
