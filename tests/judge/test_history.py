"""What git remembers of a result, on the recorded toy in a repository of its own."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import toy as toy_paper
from recorded_toy import load, record, save

from benchmarks import history, recorded


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The toy recorded from its first commit, and the commit of that record."""
    root = tmp_path_factory.mktemp("history")
    folder = toy_paper.write(root)
    git(root, "init", "-q")
    commit(root)
    record(folder)
    result = load(folder)
    result["commit"], result["created"] = head(root), "2021-01-01T00:00:00Z"
    save(folder, result)
    commit(root)
    return root


def git(root, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", *identity, *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root):
    git(root, "add", "-A"), git(root, "commit", "-q", "--allow-empty", "-m", "x")


def head(root):
    return git(root, "rev-parse", "HEAD").strip()


@pytest.fixture
def folder(committed, tmp_path):
    shutil.copytree(committed, tmp_path / "copy")
    return tmp_path / "copy" / "toy"


def told(folder):
    path = folder / "results" / "cpu.json"
    result = recorded.read(path)
    problems = history.written_once(path, load(folder)) + history.earlier(path, result)
    more, notices = history.of_commit(folder, result, [])
    return [*problems, *more], notices


def test_what_was_recorded_passes(folder):
    assert told(folder)[0] == []
    assert told(folder)[1] == []


def test_a_result_is_written_once(folder):
    result = load(folder)
    result["runs"][0]["seconds"] = 0.5
    save(folder, result)
    commit(folder.parent)
    assert told(folder)[0] == [
        "cpu.json in git.runs[stage].seconds: recorded 0.5, derived 1.5 (character 1)"
    ]


def test_claims_are_those_of_the_commit(folder):
    path = folder / "claims.yaml"
    path.write_text(path.read_text().replace("threshold: 0", "threshold: -9"))
    commit(folder.parent)
    result = load(folder)
    result["claims_sha256"] = history.protocol.sha256_yaml(path)
    save(folder, result)
    assert any("claims.yaml of commit" in line for line in told(folder)[0])


def newer(folder, **changes):
    """Another result of the runs that are committed, recorded later at the newest commit."""
    git(folder.parent, "checkout", "-q", "HEAD", "--", ".")
    commit(folder.parent)
    result = load(folder) | {"commit": head(folder.parent), "created": "2022-02-02T00:00:00Z"}
    save(folder, result | changes)


def test_an_older_result_that_was_replaced_is_listed(folder):
    newer(folder, predictions_sha256="other", code_sha256="other")
    assert ["earlier" in line and "is not listed" in line for line in told(folder)[0]] == [True]
    old = recorded.as_results(
        history.versions(folder / "results" / "cpu.json")[0], folder / "results" / "cpu.json"
    )
    listed = recorded.superseded(old).model_dump()
    other = {"predictions_sha256": "other", "code_sha256": "other"}
    newer(folder, **other, earlier=[listed])
    assert told(folder)[0] == []
    newer(folder, **other, earlier=[listed | {"verdicts": {"C1": "SUPPORTED!"}}])
    assert any("with other verdicts" in line for line in told(folder)[0])
    newer(folder, predictions_sha256="other", earlier=[listed])
    assert [line.partition(", commit")[0] for line in told(folder)[0]] == [
        "the result of 2021-01-01T00:00:00Z"
    ]
    assert "other predictions from the same code" in told(folder)[0][0]


def test_a_result_cannot_be_moved_in_time_or_to_another_commit(folder):
    claims = load(folder)["claims"]
    claims[0] = {**claims[0], "threshold": -9}
    newer(folder, claims=claims, created="2021-01-01T00:00:00Z")
    assert any("threshold" in line for line in told(folder)[0])
    newer(folder, claims=claims, created="2019-01-01T00:00:00Z")
    assert any("is newer, and this one took its place" in line for line in told(folder)[0])
    newer(folder, created="2021-01-01T00:00:00Z")  # recorded twice
    assert told(folder)[0] == []


@pytest.mark.parametrize(
    "key, value",
    [
        ("threshold", -9),
        ("material", 5.0),
        ("role", "secondary"),
        ("tasks", ["another"]),
        ("direction", "lower"),
        ("d", [9.0]),
        ("sensitivity", {"arms": {"method": "noisy", "opponent": "good"}}),
    ],
)
def test_a_claim_that_moved_after_its_scores_takes_new_seeds(folder, key, value):
    claims = load(folder)["claims"]
    claims[0] = {**claims[0], key: value}
    newer(folder, claims=claims)
    assert any(f"claim C1 had {key}" in line for line in told(folder)[0])
    newer(folder, claims=claims, seeds=[200], revision=1)
    assert not any("claim C1" in line for line in told(folder)[0])


def test_a_commit_that_nobody_has_is_a_notice(folder):
    result = load(folder)
    result["commit"] = "0" * 40
    save(folder, result)
    assert any("is not in this history" in line for line in told(folder)[1])
    shutil.rmtree(folder.parent / ".git")
    assert not history.remembers(folder)
