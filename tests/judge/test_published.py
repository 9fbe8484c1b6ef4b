"""reported.yaml: the seven files follow the schema, and bad files are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import PAPERS, plan
from benchmarks.claims import Target, load_claims
from benchmarks.reported import ReportedFile, check_targets, load, target_of
from shared.protocol import BadInput, Protocol

COUNTS = {
    **{"autolora": 78, "dasgm": 87, "mlo_mae": 36, "ppo_nlu": 308, "tapweight": 9},
    **{"ts_watermark": 1628, "weight_mixup": 21},
}


@pytest.mark.parametrize("paper", PAPERS)
def test_committed_files_follow_the_schema(root, paper):
    document = load(root / paper / "reported.yaml")
    assert len(document.entries) == COUNTS[paper] and document.paper == paper
    assert document.not_found and document.note and document.arxiv
    assert (root / paper / "reported.yaml").stat().st_size < 300_000


def test_a_paper_that_was_not_read_has_no_result_of_its_own(root):
    own = {}
    for paper in PAPERS:
        entries = load(root / paper / "reported.yaml").entries
        own[paper] = {entry.origin for entry in entries if entry.own}
    assert own["dasgm"] == own["tapweight"] == set()
    assert own["autolora"] == own["ts_watermark"] == {"official_repository", "paper"}
    assert own["ppo_nlu"] == own["weight_mixup"] == own["mlo_mae"] == {"paper"}


ENTRY = {
    **{"id": "a", "method": "m", "metric": "accuracy", "source": "s"},
    **{"confidence": "read", "origin": "paper"},
}


def write(path: Path, **change) -> Path:
    entry = {**ENTRY, "value": 1.5}
    more = change.pop("entries", [])
    top = change.pop("top", {})
    entry = {k: v for k, v in {**entry, **change}.items() if v != "drop"}
    document = {
        "paper": "x",
        "arxiv": "1",
        "note": "n",
        "entries": [entry, *more],
        "not_found": [],
        **top,
    }
    (path / "reported.yaml").write_text(yaml.safe_dump(document))
    return path / "reported.yaml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sourc": "s"}, "did you mean 'source'"),
        ({"source": "drop"}, "'source' is missing"),
        ({"source": ""}, "'source' is missing"),
        ({"value": "drop"}, "'value' is missing"),
        ({"value": "83,6"}, "write a number or null"),
        ({"value": True}, "write a number or null"),
        ({"value": float("nan")}, "is nan; write a number or null"),
        ({"std": float("inf")}, "is inf; write a number or null"),
        ({"origin": "papers"}, "did you mean 'paper'"),
        ({"confidence": "guess"}, "confidence"),
        ({"higher_is_better": "yes please"}, "write true or false"),
        ({"setting": "roberta"}, "write a mapping"),
        ({"entries": [{**ENTRY, "value": 1}]}, "two entries have this id"),
        ({"top": {"entry": []}}, "did you mean 'entries'"),
    ],
)
def test_bad_files_are_refused(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        load(write(tmp_path, **change))


def test_missing_values_and_files(tmp_path):
    assert load(write(tmp_path, value=None)).entries[0].std is None
    with pytest.raises(BadInput, match="does not exist"):
        load(tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="not valid YAML"):
        load(tmp_path / "broken.yaml")


def test_targets_match_by_id_before_pattern():
    names = ["opt.*.z", "opt.*", "opt.ts.0.1.z"]
    targets = [Target(reported=name, reason="r") for name in names]
    assert target_of("opt.ts.0.1.z", targets) is targets[2]
    assert target_of("opt.kgw.z", targets) is targets[0]
    assert target_of("opt.kgw.ppl", targets) is targets[1]
    assert target_of("llama.z", targets) is None
    entry = {**ENTRY, "id": "opt.kgw.z", "value": None}
    facts = {"paper": "x", "arxiv": "1", "note": "n", "not_found": []}
    published = ReportedFile.model_validate({**facts, "entries": [entry]})
    check_targets(targets[:2], published, "claims.yaml")
    with pytest.raises(BadInput, match=r"unknown key 'opt\.kgw\.zz'; did you mean 'opt\.kgw\.z'"):
        check_targets([Target(reported="opt.kgw.zz", reason="r")], published, "claims.yaml")


def test_the_runner_refuses_a_target_that_names_no_published_number(root, tmp_path):
    for name in ("protocol.yaml", "claims.yaml", "reported.yaml", "config.py"):
        (tmp_path / "autolora").mkdir(exist_ok=True)
        (tmp_path / "autolora" / name).write_bytes((root / "autolora" / name).read_bytes())
    paper = Protocol(tmp_path / "autolora")
    assert plan.load_claims(paper).targets
    path = tmp_path / "autolora" / "claims.yaml"
    path.write_text(
        path.read_text().replace("reported: readme-cola-rank-sum", "reported: readme-cola-rank-sun")
    )
    with pytest.raises(
        BadInput, match="unknown key 'readme-cola-rank-sun'; did you mean 'readme-cola-rank-sum'"
    ):
        plan.load_claims(paper)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_target_of_the_papers_names_a_published_number(root, paper):
    targets = load_claims(root / paper / "claims.yaml").targets
    check_targets(targets, load(root / paper / "reported.yaml"), f"{paper}/claims.yaml")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_number_of_a_paper_is_answered(root, paper):
    """By an arm, or by the reason why none does."""
    targets = load_claims(root / paper / "claims.yaml").targets
    entries = load(root / paper / "reported.yaml").entries
    assert [e.id for e in entries if e.own and target_of(e.id, targets) is None] == []
