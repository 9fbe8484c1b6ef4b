"""`make check` on a small recorded paper: as recorded it passes, all tampering is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pytest
import toy as toy_paper
from recorded_toy import ENTRY, judge, load, record, save

from benchmarks import check, plan_n, readme, recorded, scores
from benchmarks.claims import load_claims
from benchmarks.comparing import differences, same_number
from benchmarks.predictions import pack_predictions, unpack_predictions
from benchmarks.recorded import SINCE_2
from benchmarks.words import number
from shared.protocol import Protocol


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Two hundred draws instead of two thousand: these tests compare, intervals are not theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "RESAMPLES", 200)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few_resamples):
    root = tmp_path_factory.mktemp("recorded")
    folder = toy_paper.write(root)
    text = (folder / "reported.yaml").read_text().replace("entries: []", f"entries:\n  - {ENTRY}")
    (folder / "reported.yaml").write_text(text)
    record(folder)
    return root


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A fresh copy of the recorded paper; nothing of it stays imported."""
    root = tmp_path / "copy"
    shutil.copytree(whole, root)
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    yield root / "toy"
    for name in [name for name in sys.modules if name == "toy.evaluate"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def toy_package(monkeypatch):
    """`toy` is tests/toy.py here; the paper of that name is imported from the copy."""
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    yield
    sys.modules.pop("toy", None)
    sys.modules.pop("toy.evaluate", None)


def problems(folder):
    return check.check_paper(folder)[1]


def edit(folder, change):
    result = load(folder)
    change(result)
    save(folder, result)
    return problems(folder)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda r: r.update(preview="SEEDS given"), "preview"),
        (lambda r: r.update(scale="paper"), "scale"),
        (lambda r: r.update(tuning=[{"arm": "good"}]), "tuning"),
        (lambda r: r["revisions"].append({"what": "x"}), "revisions"),
        (
            lambda r: r["gates"].append({"id": "made-up", "statement": "", "passed": True}),
            "gate made-up",
        ),
        (
            lambda r: r["runs"][0].update(gradient_evaluations=1),
            "gradient_evaluations_with_uses of",
        ),
    ],
)
def test_what_a_result_says_of_itself_is_compared(folder, change, named):
    assert any(named in line for line in edit(folder, change))


def test_every_flipped_byte_of_the_predictions_is_a_problem_and_never_a_traceback(folder):
    path = folder / "results" / "cpu.predictions.npz"
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        lines, _ = check.check_scale(folder, "cpu")
        assert any("cpu.predictions.npz changed" in line for line in lines), place


def test_json_that_is_no_result_is_a_problem(folder):
    (folder / "results" / "cpu.json").write_text("[1]")
    path = folder / "results" / "cpu.json"
    message = f"cannot be derived again: {path} is not a results file; restore it with git"
    assert check.check_scale(folder, "cpu")[0] == [message]


def test_as_recorded_it_passes(folder, capsys):
    scales, lines, notices = check.check_paper(folder)
    assert (scales, lines, notices) == (["cpu"], [], [])
    assert check.main(["toy"], folder.parent) == 0
    assert "every digit derived again" in capsys.readouterr().out


def test_volatile_fields_may_differ(folder):
    edit(folder, lambda r: r.update(created="2030", commit="def"))
    assert check.check_scale(folder, "cpu") == ([], [])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda r: r["runs"][2]["metrics"].update(
                accuracy=r["runs"][2]["metrics"]["accuracy"] + 0.01
            ),
            "metrics of",
        ),
        (
            lambda r: r["claims"][0]["d"].__setitem__(1, r["claims"][0]["d"][1] + 1e-8),
            "claims[C1].d[1]",
        ),
        (
            lambda r: r["claims"][0].update(p_for=r["claims"][0]["p_for"] * 1.001),
            "claims[C1].p_for",
        ),
        (lambda r: r["claims"][0].update(verdict="SUPPORTED"), "claims[C1].verdict"),
        (lambda r: r["claims"][0]["item_ci95"].__setitem__(0, 1.0), "claims[C1].item_ci95[0]"),
        (lambda r: r["claims"].clear(), "claims: 0 recorded, 1 derived"),
        (lambda r: r["claims"][0].pop("median"), "'median' is missing"),
        (lambda r: r["runs"].pop(), "is declared and missing"),
        (lambda r: r["runs"].append(r["runs"][1]), "listed twice"),
        (lambda r: r["runs"][3].update(status="crashed"), "is crashed"),
        (lambda r: r["runs"][3].update(seed=999), "not declared"),
        (
            lambda r: r["runs"][2].update(state_sha256=r["runs"][6]["state_sha256"]),
            "gates[distinct-states]",
        ),
        (lambda r: r["gates"].clear(), "gate toy-gate is not in the file"),
        (lambda r: r.update(revision=1), "revision: recorded 1"),
        (lambda r: r["seeds"].pop(), "seeds: 5 recorded"),
    ],
)
def test_an_edited_result_is_caught(folder, change, named):
    lines = edit(folder, change)
    assert any(named in line for line in lines), lines


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda r: r["environment"].update(processor="B"), "environment.processor"),
        (lambda r: r["machines"][0].update(runs=3), "machines[0].runs"),
        (lambda r: r.update(data={}), "data: 'made' is missing"),
        (lambda r: r.update(splits={}), "splits: 'line' is missing"),
        (lambda r: r["seconds"].update(cpu=None), "seconds: wall or cpu is missing"),
        (lambda r: r["seconds"].update(runs=1.0), "seconds.runs"),
        (lambda r: r["gates"][0].update(detail="held 999 times"), "gates[toy-gate].detail"),
        (lambda r: r["runs"][1]["metrics"].update(invented=1.0), "metrics: 'invented' does not"),
        (lambda r: r["runs"][1].update(state_sha256="x"), "state_sha256"),
        (lambda r: r["runs"][1].update(seconds=0.1), "seconds: recorded 0.1"),
        (lambda r: r["runs"][1].update(record_sha256="x"), "record_sha256"),
        (lambda r: r.update(records_sha256=None), "cpu.records.jsonl.gz changed"),
    ],
)
def test_what_records_say_is_derived_again(folder, change, named):
    lines = edit(folder, change)
    assert any(named in line for line in lines), lines


def numbers(value, place=()):
    if isinstance(value, dict):
        for key in value:
            yield from numbers(value[key], (*place, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from numbers(item, (*place, i))
    elif isinstance(value, float) and value:
        yield place, value


def test_every_single_digit_of_a_claim_is_checked(folder):
    """Change each digit of each number of the first claim, one at a time."""
    claims = load(folder)["claims"]
    predictions = unpack_predictions(folder / "results" / "cpu.predictions.npz")
    runs = recorded.read(folder / "results" / "cpu.json").runs
    derived = judge(folder, runs, predictions).model_dump()["claims"]
    assert differences(claims, derived, "claims") == []
    tried = 0
    for place, value in numbers(claims):
        text = repr(value)
        for i, character in enumerate(text):
            if character.isdigit():
                other = float(text[:i] + str((int(character) + 1) % 10) + text[i + 1 :])
                copy = json.loads(json.dumps(claims))
                at = copy
                for key in place[:-1]:
                    at = at[key]
                at[place[-1]] = other
                assert differences(copy, derived, "claims"), (place, text, other)
                tried += 1
    assert tried > 100


def test_rounding_of_another_processor_is_no_difference():
    assert same_number(0.3333333333, 1 / 3 + 1e-16)
    between = 0.12345678905  # rounds up or down with its last bit
    assert same_number(0.1234567890, between) and same_number(0.1234567891, between)
    assert not same_number(0.1234567892, between) and not same_number(0.1234567889, between)
    assert not same_number(0.33333333333, 1 / 3)  # an eleventh digit was added
    assert same_number(None, float("nan")) and not same_number(0.0, 0.5)
    assert not same_number(True, 1.0001) and same_number(5, 5)


def rewrite(folder, change):
    """Edit the predictions and name their new sha256: the scores must give it away."""
    path = folder / "results" / "cpu.predictions.npz"
    predictions = unpack_predictions(path)
    change(predictions)
    digest = pack_predictions(path, predictions)
    return edit(folder, lambda r: r.update(predictions_sha256=digest))


def test_one_edited_prediction_is_caught(folder):
    def flip(predictions):
        predictions["good", "line", 102]["prediction"][17] ^= 1

    lines = rewrite(folder, flip)
    assert any("metrics of good on line, seed 102.accuracy: recorded" in line for line in lines), (
        lines
    )
    assert any("claims[C1].d[2]" in line for line in lines)


def test_an_edited_prediction_file_is_caught_by_its_hash(folder):
    path = folder / "results" / "cpu.predictions.npz"
    predictions = unpack_predictions(path)
    both = predictions["good", "line", 102]
    both["prediction"], both["label"] = both["label"], both["prediction"]  # no score moves
    pack_predictions(path, predictions)
    assert problems(folder) == [
        "cpu: results/cpu.predictions.npz changed since these results were recorded",
        "cpu: labels of good on line, seed 102 differ from those of good on line, seed 100 in 6 "
        "items",
        "cpu: predictions of good on line, seed 102 are not those that it recorded",
    ]
    path.write_bytes(path.read_bytes()[:-200])
    assert any("cannot be read" in line for line in problems(folder))


def test_a_dropped_seed_is_caught(folder):
    lines = rewrite(folder, lambda predictions: predictions.pop(("noisy", "line", 104)))
    assert any("run noisy on line, seed 104 has no predictions" in line for line in lines)
    result = load(folder)
    result["runs"] = [run for run in result["runs"] if run["seed"] != 104]
    save(folder, result)
    assert any(
        "good on line, seed 104 is declared and missing" in line for line in problems(folder)
    )


def test_a_claim_of_an_arm_with_fewer_seeds_derives_again(folder):
    path, edits = (
        folder / "protocol.yaml",
        {"seeds: 5\n": "seeds: 7\n", "noise: 3.0}}": "noise: 3.0}, seeds: 6}"},
    )
    for old, new in {**edits, "n: 5, detectable: 0.505": "n: 6, detectable: 0.437"}.items():
        path.write_text(path.read_text().replace(old, new, 1))
    record(folder)
    claim = load(folder)["claims"][0]
    assert (claim["n"], len(claim["d"]), load(folder)["seeds"]) == (6, 6, list(range(100, 107)))
    plan_n.check_plans(load_claims(folder / "claims.yaml"), Protocol(folder))
    assert problems(folder) == []
    path.write_text(path.read_text().replace("seeds: 6}", "seeds: 5}"))
    assert any("noisy on line, seed 105 is not declared" in line for line in problems(folder))


def test_a_file_of_schema_1_is_derived_by_the_rule_of_its_time(folder):
    def aged(result):
        result["schema"] = 1
        for name in SINCE_2:
            del result["claims"][0][name]

    edit(folder, aged)
    readme.write_readmes(folder.parent, ["toy"])
    assert problems(folder) == []
    assert "schema 3, and this version" in edit(folder, lambda r: r.update(schema=3))[0]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("reported.yaml", "81.25", "81.26"),
        ("claims.yaml", "material: 1.0", "material: 0.5"),
        ("protocol.yaml", "steps: 20", "steps: 21"),
    ],
)
def test_a_changed_input_file_is_caught(folder, name, old, new):
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert any(f"{name} changed since" in line for line in problems(folder))


def test_a_threshold_changed_with_its_hash_is_caught_by_the_verdict(folder):
    path = folder / "claims.yaml"
    path.write_text(path.read_text().replace("threshold: 0", "threshold: 90"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = edit(folder, lambda r: r.update(claims_sha256=digest))
    assert any("claims[C1].threshold: recorded 0" in line for line in lines)


def test_an_edited_table_is_caught(folder):
    path = folder / "README.md"
    result = load(folder)
    effect = number(result["claims"][0]["effect"], signed=True)
    path.write_text(path.read_text().replace(effect, "+99.99"))
    assert problems(folder) == [
        "README.md: the generated table 'claims' is not what the results say"
    ]


def test_older_code_is_a_notice(folder):
    """Code that means something else, that is: a comment moves no score."""
    path, stale = folder / "train.py", ["cpu: STALE: recorded by older code (commit abc)"]
    for text, expected in (("# a later thought\n", []), ("LATER = 1\n", stale)):
        path.write_text(path.read_text() + text)
        assert check.check_paper(folder)[1:] == ([], expected)


def test_broken_files_are_problems_not_tracebacks(folder, capsys):
    (folder / "README.md").unlink()
    (folder / "results" / "cpu.json").write_text("{")
    assert "is not valid JSON" in problems(folder)[0]
    (folder / "results" / "cpu.json").write_text("{}")
    assert any("cannot be derived again" in line for line in problems(folder))
    assert check.main(["toy"], folder.parent) == 2
    assert check.main(["toys"], folder.parent) == 2
    assert "not a paper" in capsys.readouterr().err
