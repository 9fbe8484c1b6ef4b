"""Results files: old ones still read, what is read is written again, mistakes are named."""

from __future__ import annotations

import json

import pytest
import synthetic_results

from benchmarks import PAPERS, recorded
from benchmarks.recorded import RunEntry
from shared.protocol import BadInput


@pytest.mark.parametrize("paper", PAPERS)
def test_committed_results_lose_nothing(root, paper):
    for path in (root / paper / "results").glob("*.json"):
        if path.stem in recorded.SCALES:
            document = json.loads(path.read_text())
            again = recorded.read(path).model_dump(by_alias=True, exclude_unset=True)
            assert again == document
    assert recorded.rehearsal(root / paper).runs > 0


def test_a_result_is_written_as_it_was_read(tmp_path):
    result = synthetic_results.result()
    result.write(tmp_path / "a" / "cpu.json")
    again = recorded.read(tmp_path / "a" / "cpu.json")
    again.write(tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a" / "cpu.json").read_bytes()
    assert list(json.loads((tmp_path / "b.json").read_text()))[:3] == ["schema", "paper", "scale"]
    assert again.claims[0].arms == result.claims[0].arms


def test_a_partial_result_reads_with_defaults(tmp_path):
    synthetic_results.write(tmp_path / "cpu.json", synthetic_results.partial())
    result = recorded.read(tmp_path / "cpu.json")
    assert result.claims[1].verdict is None and result.claims[1].controls == []
    assert result.runs[0].status == "crashed" and result.runs[0].metrics == {}
    assert result.claims[0].controls[0].outcome == "OPEN" and result.seconds.wall is None
    result.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["claims"][0]["d"] == [1.0, None, None]


def test_what_is_no_result_is_named(tmp_path):
    path = tmp_path / "cpu.json"

    def refused(text, match):
        path.write_text(text)
        with pytest.raises(BadInput, match=match):
            recorded.read(path)

    refused("{", "is not valid JSON")
    refused("[]", "is not a results file; restore it with git")
    refused(
        '{"schema": 99}', f"schema 99, and this version .* reads up to {recorded.SCHEMA}; update"
    )
    refused("{}", "'paper' is missing")
    wrong = {"paper": "p", "scale": "cpu", "runs": [{"arm": "a", "task": "t", "seed": "x"}]}
    refused(json.dumps(wrong), r"runs\.0\.seed is 'x'; write a whole number")


def test_a_run_knows_its_key():
    assert RunEntry(arm="a", task="t", seed=3).key == ("a", "t", 3)
    assert recorded.run_name(("a", "t", 3)) == "a on t, seed 3"
