"""reported.yaml: the seven files hold the numbers they were made from, and bad files are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import PAPERS, reported, reproduce
from benchmarks.claims import load_claims
from benchmarks.reported import ORIGINS, check_targets, convert, flow, load, target_of
from shared.protocol import BadInput, Protocol

COUNTS = {"autolora": 71, "dasgm": 87, "mlo_mae": 36, "ppo_nlu": 15, "tapweight": 9, "ts_watermark": 884, "weight_mixup": 21}  # fmt: skip


@pytest.mark.parametrize("paper", PAPERS)
def test_committed_files_follow_the_schema(root, paper):
    document = load(root / paper / "reported.yaml")
    entries = document["entries"]
    assert len(entries) == COUNTS.get(paper, len(entries)) and document["paper"] == paper
    assert document["not_found"] and document["note"] and document["arxiv"]
    assert all(entry["source"] and entry["origin"] in ORIGINS for entry in entries)
    assert (root / paper / "reported.yaml").stat().st_size < 300_000


@pytest.mark.parametrize("paper", PAPERS)
def test_numbers_equal_the_originals(root, paper):
    original = root.parent / "shared" / "papers" / f"{paper}.reported.yaml"
    if not original.exists():
        pytest.skip("the original files (../shared/papers) are not here")
    theirs = reported.read_yaml(original)
    ours = load(root / paper / "reported.yaml")
    entries = theirs.get("entries") or theirs["reported"]
    for key in (
        "id",
        "value",
        "std",
        "metric",
        "method",
        "table",
        "claim",
        "higher_is_better",
        "confidence",
    ):
        assert [e.get(key) for e in ours["entries"]] == [e.get(key) for e in entries], key
    assert len(ours["not_found"]) == len(theirs["not_found"])
    for mine, other in zip(ours["entries"], entries):
        assert mine["setting"].items() >= (other.get("setting") or {}).items()
        assert type(mine["value"]) is type(other["value"])


def test_a_paper_that_was_not_read_has_no_result_of_its_own(root):
    own = {
        p: {e["origin"] for e in load(root / p / "reported.yaml")["entries"]}
        & set(reported.OWN_RESULT)
        for p in PAPERS
    }
    assert own["dasgm"] == own["tapweight"] == set()
    assert own["autolora"] == own["ts_watermark"] == {"official_repository"}
    assert own["ppo_nlu"] == own["weight_mixup"] == own["mlo_mae"] == {"paper"}


def test_conversion_is_repeatable(root, tmp_path):
    original = root.parent / "shared" / "papers" / "weight_mixup.reported.yaml"
    if not original.exists():
        pytest.skip("the original files (../shared/papers) are not here")
    assert convert(original, tmp_path / "x" / "reported.yaml") == 21
    assert (tmp_path / "x" / "reported.yaml").read_bytes() == (
        root / "weight_mixup" / "reported.yaml"
    ).read_bytes()


def write(path: Path, **change) -> Path:
    entry = {"id": "a", "method": "m", "metric": "accuracy", "value": 1.5, "source": "s", "confidence": "read",
             "origin": "paper"}  # fmt: skip
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
        ({"origin": "papers"}, "did you mean 'paper'"),
        ({"confidence": "guess"}, "confidence"),
        ({"higher_is_better": "yes please"}, "true, false or null"),
        ({"setting": "roberta"}, "write a mapping"),
        ({"entries": [{"id": "a", "method": "m", "metric": "m", "value": 1, "source": "s", "confidence": "read",
                       "origin": "paper"}]}, "two entries have this id"),
        ({"top": {"entry": []}}, "did you mean 'entries'"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        load(write(tmp_path, **change))


def test_missing_values_and_files(tmp_path):
    assert load(write(tmp_path, value=None))["entries"][0]["std"] is None
    with pytest.raises(BadInput, match="does not exist"):
        load(tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="not valid YAML"):
        load(tmp_path / "broken.yaml")


def test_targets_match_by_id_before_pattern():
    targets = [{"reported": "opt.*.z"}, {"reported": "opt.*"}, {"reported": "opt.ts.0.1.z"}]
    assert target_of("opt.ts.0.1.z", targets) is targets[2]
    assert target_of("opt.kgw.z", targets) is targets[0]
    assert target_of("opt.kgw.ppl", targets) is targets[1]
    assert target_of("llama.z", targets) is None
    known = {"entries": [{"id": "opt.kgw.z"}]}
    check_targets(targets[:2], known, "claims.yaml")
    with pytest.raises(BadInput, match=r"unknown key 'opt\.kgw\.zz'; did you mean 'opt\.kgw\.z'"):
        check_targets([{"reported": "opt.kgw.zz"}], known, "claims.yaml")


def test_the_runner_refuses_a_target_that_names_no_published_number(root, tmp_path):
    for name in ("protocol.yaml", "claims.yaml", "reported.yaml", "train.py"):
        (tmp_path / "autolora").mkdir(exist_ok=True)
        (tmp_path / "autolora" / name).write_bytes((root / "autolora" / name).read_bytes())
    paper = Protocol(tmp_path / "autolora")
    assert reproduce.load_claims(paper)["targets"]
    path = tmp_path / "autolora" / "claims.yaml"
    path.write_text(
        path.read_text().replace("reported: readme-cola-rank-sum", "reported: readme-cola-rank-sun")
    )
    with pytest.raises(
        BadInput, match="unknown key 'readme-cola-rank-sun'; did you mean 'readme-cola-rank-sum'"
    ):
        reproduce.load_claims(paper)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_target_of_the_papers_names_a_published_number(root, paper):
    targets = load_claims(root / paper / "claims.yaml").get("targets") or []
    check_targets(targets, load(root / paper / "reported.yaml"), f"{paper}/claims.yaml")


@pytest.mark.parametrize(
    "value",
    [
        1e-7,
        0.1,
        1e22,
        5,
        -3,
        "null",
        "yes",
        "a: b",
        "-x",
        "1.5",
        "x #y",
        "é",
        None,
        True,
        {"k": 1.0},
    ],
)
def test_flow_style_survives_reading(value):
    assert yaml.safe_load(flow(value)) == value
