"""protocol.yaml: precedence, seeds, stages, fingerprints; malformed files are refused."""

from __future__ import annotations

import json

import pytest
import toy as toy_paper
import yaml

from shared import protocol
from shared.protocol import BadInput, Protocol


def edited(root, change):
    path = root / "toy" / "protocol.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return Protocol(root / "toy")


def test_nodes_seeds_and_stages(toy):
    paper = Protocol(toy / "toy")
    nodes = paper.nodes("cpu")
    scored = [n for n in nodes if not n.stage]
    assert {n.arm for n in scored} == {"good", "noisy"}  # `extra` is not core
    assert {n.seed for n in scored if n.task == "line"} == set(range(100, 105))
    assert {n.seed for n in scored if n.task == "plane"} == set(range(100, 106))
    stages = [n for n in nodes if n.stage]
    assert [(n.task, n.seed) for n in stages] == [("line", 100)]  # over: one serves all
    assert all(
        nodes.index(next(m for m in nodes if m.key == u)) < i
        for i, n in enumerate(nodes)
        for u in n.uses
    )
    assert {n.arm for n in paper.nodes("cpu", "all")} == {"stage", "good", "noisy", "extra"}
    assert [n.seed for n in paper.nodes("rehearsal", only=["noisy"])] == [0]  # development seeds


def test_an_arm_may_have_the_first_of_the_seeds_alone(toy):
    paper = edited(toy, lambda p: p["arms"]["noisy"].update(seeds=5))
    nodes = [n for n in paper.nodes("cpu") if n.task == "plane"]
    assert [n.seed for n in nodes if n.arm == "good"] == list(range(100, 106))
    assert [n.seed for n in nodes if n.arm == "noisy"] == list(range(100, 105))
    assert {n.seed for n in paper.nodes("cpu", seeds=2)} == {100, 101}
    more = edited(toy, lambda p: p["arms"]["noisy"].update(seeds=50))
    assert more.seeds("cpu", "plane", "noisy") == list(range(100, 106))
    with pytest.raises(BadInput, match=r"stage\.seeds: others use its runs"):
        edited(toy, lambda p: p["arms"]["stage"].update(seeds=5))
    with pytest.raises(BadInput, match=r"noisy\.seeds is 4; a verdict needs 5"):
        edited(toy, lambda p: p["arms"].update(stage={"stage": True}, noisy={"seeds": 4}))


def test_revision_moves_the_seeds(toy):
    claims = toy / "toy" / "claims.yaml"
    claims.write_text(
        claims.read_text().replace("revisions: []", "revisions: [{what: steps, why: too few}]")
    )
    assert Protocol(toy / "toy").seeds("cpu", "line") == list(range(200, 205))


def test_precedence(toy):
    def change(document):
        document["scales"]["cpu"]["tasks"]["line"] = {"lr": 0.2}
        document["arms"]["noisy"]["at"] = {
            "cpu": {"noise": 2.0, "tasks": {"plane": {"noise": 1.0}}}
        }

    paper = edited(toy, change)
    assert paper.settings("cpu", "noisy", "line") == {"lr": 0.2, "steps": 20, "noise": 2.0}
    assert paper.settings("cpu", "noisy", "plane") == {"lr": 0.5, "steps": 12, "noise": 1.0}
    assert paper.settings("cpu", "extra", "line")["lr"] == 0.1
    assert (
        paper.settings("rehearsal", "noisy", "line")["steps"] == 2
    )  # the rehearsal's own words come last


@pytest.mark.parametrize(
    "change, names",
    [
        (lambda d: d.update(defautls={}), ["defautls", "defaults"]),
        (lambda d: d.update(paper="toi"), ["toi", "toy"]),
        (lambda d: d["scales"].update(cpuu={}), ["cpuu", "cpu"]),
        (lambda d: d["scales"]["cpu"].update(sedes=5), ["sedes", "seeds"]),
        (lambda d: d["scales"]["cpu"].update(core=["godo"]), ["godo", "good"]),
        (lambda d: d["scales"]["cpu"]["set"].update(stpes=5), ["stpes", "steps"]),
        (
            lambda d: d["scales"]["cpu"]["set"].update(steps="many"),
            ["steps", "'many'", "whole number"],
        ),
        (lambda d: d["scales"]["cpu"]["set"].update(steps=2.5), ["steps", "2.5", "whole number"]),
        (lambda d: d["scales"]["cpu"]["tasks"].update(line={"lrr": 1}), ["lrr", "lr"]),
        (lambda d: d["arms"]["good"].update(use=["stage"]), ["use", "uses"]),
        (lambda d: d["arms"]["good"].update(uses=["stagee"]), ["stagee", "stage"]),
        (lambda d: d["arms"]["extra"]["set"].update(lr=True), ["lr", "True", "number"]),
        (lambda d: d["arms"]["extra"].update(scales=["gpuu"]), ["gpuu", "gpu"]),
        (lambda d: d["arms"]["extra"].update(at={"cpx": {}}), ["cpx", "cpu"]),
        (lambda d: d["tiny"].update(sets={}), ["sets", "set"]),
        (lambda d: d.update(defaults=[1]), ["defaults", "mapping", "[1]"]),
    ],
)
def test_malformed_protocols_are_refused(toy, change, names):
    with pytest.raises(BadInput) as error:
        edited(toy, change)
    assert all(n in str(error.value) for n in names), error.value


def test_unknown_arm_task_scale_and_paper(toy):
    paper = Protocol(toy / "toy")
    for call, names in (
        (lambda: paper.node("cpu", "godo", "line", 0), ["godo", "good"]),
        (lambda: paper.node("cpu", "good", "lien", 0), ["lien", "line"]),
        (lambda: paper.scale("gpu"), ["gpu", "cpu"]),
        (lambda: Protocol(toy / "toi"), ["toi"]),
    ):
        with pytest.raises(BadInput) as error:
            call()
        assert all(n in str(error.value) for n in names), error.value


def test_yaml_exponents_are_numbers(toy):
    paper = edited(toy, lambda d: d["defaults"].update(lr="1e-4"))  # YAML 1.1 reads 1e-4 as text
    assert paper.settings("cpu", "good", "plane")["lr"] == 1e-4


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize("content, said", [
    (BOMB.encode(), "unfold"), (b"a: &a [*a]\n", "unfold"), (b"a: &a {b: *a}\n", "unfold"),
    (b"a: 1\nb: 2\na: 3\n", "the key 'a' is there twice"), (b"a: caf\xe9\n", "utf-8"),
    ("a: 1\n".encode("utf-16"), "utf-8"), (b"a: b\0c\n", "unacceptable character"),
    (b"[" * 9999, "recursion"), (b"a: !!python/object/apply:os.system [ls]\n", "constructor"),
    (b"a: b: c\n", "not allowed"), (b"a: &a 1\nb: *c\n", "undefined alias"),
    (b"\ta: 1\n", "cannot start"), (b"a: 2026-13-45\n", "month"),
], ids=[*"abcdefghijklm"])  # fmt: skip
def test_yaml_that_is_none_is_refused(content, said, tmp_path):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(BadInput, match=rf"(?s)x.yaml is not valid YAML.*{said}"):
        protocol.load_yaml(tmp_path / "x.yaml", "x.yaml")
    (tmp_path / "x.yaml").unlink()
    (tmp_path / "x.yaml").mkdir()
    with pytest.raises(BadInput, match="not valid YAML"):
        protocol.load_yaml(tmp_path / "x.yaml", "x.yaml")


def test_aliases_that_repeat_a_part_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}, d: 2}\n")
    read = protocol.load_yaml(tmp_path / "x.yaml", "x.yaml")
    assert read == {"a": [1, 2], "b": [1, 2], "c": {"d": 2}}


def test_config_is_read_without_a_method(toy):
    paper = Protocol(toy / "toy")
    assert {"scale", "arm", "task", "seed", "device", "out", "uses"} < set(paper.defaults)
    assert paper.defaults["nan_at"] == -1 and isinstance(paper.defaults["lr"], float)


def test_code_files_are_those_imported(toy):
    names = protocol.code_files(toy / "toy" / "train.py")
    assert (
        "toy/evaluate.py" in names and "shared/runs.py" in names and "shared/protocol.py" in names
    )
    assert "toy/figures.py" not in names and not any(
        n.startswith(("tests", "benchmarks")) for n in names
    )


PLAIN = """import math


def half(x: float = 1.0) -> float:
    # why
    return math.sqrt(x) / 2
"""


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.replace("# why", "# because"),
        lambda s: s.replace("    # why\n", '    """Half of the root."""\n    # why\n'),
        lambda s: s.replace("x) / 2", "\n        x\n    ) / (2)"),
        lambda s: '"""What is here."""\n' + s,
        lambda s: s + "\n\n# the end\n",
    ],
)
def test_words_and_layout_do_not_change_the_hash_of_code(tmp_path, edit):
    hashes = []
    for name, text in (("a", PLAIN), ("b", edit(PLAIN))):
        folder = tmp_path / name / "toy"
        folder.mkdir(parents=True)
        (folder / "train.py").write_text(text)
        hashes.append(protocol.code_hashes(folder / "train.py"))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.replace("/ 2", "/ 2.0"),
        lambda s: s.replace("/ 2", "/ 3"),
        lambda s: s.replace("/ 2", "* 2"),
        lambda s: s.replace("= 1.0", "= 1"),
        lambda s: s.replace("= 1.0", "= True"),
        lambda s: s.replace("def half", "@staticmethod\ndef half"),
        lambda s: s.replace("sqrt", "exp"),
        lambda s: s.replace("    return", "    x = 'words'\n    return"),
        lambda s: s.replace("import math", "import numpy as math"),
    ],
)
def test_what_can_move_a_score_changes_the_hash_of_code(tmp_path, edit):
    (tmp_path / "toy").mkdir()
    path = tmp_path / "toy" / "train.py"
    path.write_text(PLAIN)
    before = protocol.code_hashes(path)
    path.write_text(edit(PLAIN))
    assert protocol.code_hashes(path) != before


def test_record_hash_ignores_time_and_place():
    record = {
        "metrics": {"a": 1.0},
        "seconds": 3.0,
        "config": {"out": "/x"},
        "fingerprint": {"data": {"d": {"sha256": "1", "path": "/a"}}},
    }
    moved = json.loads(json.dumps(record))
    moved.update(seconds=4.0, config={"out": "/y"})
    moved["fingerprint"]["data"]["d"]["path"] = "/b"
    assert protocol.record_sha256(record) == protocol.record_sha256(moved)
    moved["metrics"]["a"] = 1.5
    assert protocol.record_sha256(record) != protocol.record_sha256(moved)


def test_toy_is_what_the_tests_think(toy):
    assert toy_paper.record is not None and (toy / "shared" / "runs.py").exists()
