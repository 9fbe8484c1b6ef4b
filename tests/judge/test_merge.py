"""Finished runs of other machines: the very same runs are taken over, nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from benchmarks import merge
from shared import protocol


@pytest.fixture
def two(toy, finished, monkeypatch):
    """(this checkout, without runs; a folder of the runs of another machine)."""
    theirs = toy / "theirs"
    shutil.copytree(finished[0] / "runs", theirs)
    monkeypatch.setattr(merge, "ROOT", toy)
    monkeypatch.delenv("REPRO_RUNS", raising=False)
    return toy, theirs


def records(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.glob("toy/*/*/*/*/record.json")}


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_runs_of_two_machines_make_one_result(two, capsys):
    toy, theirs = two
    other = toy / "other"
    shutil.copytree(theirs, other)
    for folder, seeds in ((theirs, "10[3-5]"), (other, "10[0-2]")):
        for place in folder.glob(f"toy/cpu/*/seed{seeds}"):
            shutil.rmtree(place)
    # runs of the first folder use a stage that the second one has
    assert merge.main([f"{other},{theirs}"]) == 0, capsys.readouterr()
    assert "23 taken over" in capsys.readouterr().out
    paper = protocol.Protocol(toy / "toy")
    code = protocol.code_hashes(paper.directory / "train.py")
    for node in paper.nodes("cpu"):
        folder = paper.run_directory("cpu", node.key)
        assert protocol.stale(folder, paper.config("cpu", node), code) is None, node.key
    before = records(toy / "runs")
    assert len(before) == 23 and not list((toy / "runs").rglob(".*merging"))
    assert merge.main([str(other)]) == 0 and "10 here already" in capsys.readouterr().out
    assert records(toy / "runs") == before


BAD = {  # what spoils one finished run there -> what is said, exit status 2, it is not taken over
    "predictions": (
        lambda place: (place / "predictions.npz").write_bytes(b"other"),
        "refused: predictions.npz does not match its record",
    ),
    "another run's record": (
        lambda place: edit(place / "record.json", seed=104),
        "refused: record.json is that of another run",
    ),
    "other settings": (
        lambda place: edit(place / "record.json", fingerprint={"config": "other"}),
        "refused: settings changed",
    ),
    "a split": (
        lambda place: (place / "splits.npz").write_bytes(b"other"),
        "refused: splits.npz does not match its record",
    ),
    "a pipe": (lambda place: os.mkfifo(place / "x"), "refused: it cannot be copied"),
    "a loop": (lambda place: (place / "x").symlink_to("x"), "refused: it cannot be copied"),
    "unknown arm": (lambda place: place.rename(place.parent / "nosy"), "did you mean 'noisy'"),
    "no seed": (lambda place: os.renames(place, place.parents[1] / "seed_1/noisy"), "is no seed"),
    "not JSON": (lambda place: (place / "record.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_run_that_this_checkout_would_not_make_is_refused(two, case, capsys):
    toy, theirs = two
    spoil, text = BAD[case]
    spoil(theirs / "toy/cpu/line/seed101/noisy")
    assert merge.main([str(theirs)]) == 2
    said = capsys.readouterr().out
    assert text in said and "22 taken over" in said and "1 refused" in said
    assert not (toy / "runs/toy/cpu/line/seed101/noisy").exists()


def test_a_clash_is_refused_with_both_places_and_nothing_is_overwritten(two, capsys):
    toy, theirs = two
    shutil.copytree(theirs, toy / "runs")
    edit(theirs / "toy/cpu/line/seed101/noisy/record.json", metrics={"accuracy": 1.0})
    unfinished = toy / "runs/toy/cpu/line/seed102/noisy"
    (unfinished / "record.json").unlink()
    before = records(toy / "runs")
    assert merge.main([str(theirs)]) == 2
    said = capsys.readouterr().out
    for folder in (theirs, toy / "runs"):
        assert str(folder / "toy/cpu/line/seed101/noisy") in said
    assert f"{unfinished} is unfinished" in said and "2 clash" in said
    assert records(toy / "runs") == before


def test_other_claims_or_no_runs_are_refused(two, capsys):
    toy, theirs = two
    claims = toy / "toy" / "claims.yaml"
    claims.write_text(claims.read_text().replace("material: 1.0", "material: 2.0"))
    for folder, text in (
        (theirs, "made with another claims.yaml"),
        (toy / "toy", "no finished run"),
    ):
        assert merge.main([str(folder)]) == 2 and text in capsys.readouterr().err
    for place, text in (
        (toy / "nowhere", "is no folder and no archive"),
        (toy / "toy" / "claims.yaml", "no archive of runs, or cut short (file could not be opened"),
    ):
        assert merge.main([str(place)]) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1, said
    assert merge.main([""]) == 2 and "FROM= is missing" in capsys.readouterr().err


def test_runs_of_a_paper_that_is_not_here_keep_out_no_others(two, capsys):
    toy, theirs = two
    shutil.copytree(theirs / "toy", theirs / "another")  # comes before toy
    assert merge.main([str(theirs)]) == 2
    said = capsys.readouterr()
    assert "another is no paper" in said.err and "23 refused" in said.out
    assert "23 taken over" in said.out and len(records(toy / "runs")) == 23
