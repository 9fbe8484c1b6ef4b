"""What a finished run is believed for: its inputs, caches, code and machine; whose folder it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_folders
import pytest
from toy import command, module, record

from shared import inputs, machine, protocol, runs, sources
from shared.runs import BadInput


@pytest.fixture
def train(toy, monkeypatch):
    """The toy's train module, with data and models of its own."""
    monkeypatch.setattr(runs, "_worker", False)
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    for variable in ("DATA", "MODELS", "CACHE"):
        (toy / variable.lower()).mkdir()
        monkeypatch.setenv(f"REPRO_{variable}", str(toy / variable.lower()))
    write(toy / "data" / "rows" / "train-00000-of-00001.parquet")
    return module(toy, monkeypatch)


def write(path: Path, text: str = "first") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def config(train, toy, **changes):
    values = {"scale": "cpu", "arm": "noisy", "task": "line", "out": str(toy / "out"), "noise": 1.0}
    return train.Config(**(values | {"data": "rows"} | changes))


def stamp(toy: Path) -> int:
    return (toy / "out" / "record.json").stat().st_mtime_ns


def moved(toy, monkeypatch):
    (toy / "data").rename(toy / "elsewhere")
    monkeypatch.setenv("REPRO_DATA", str(toy / "elsewhere"))


def other_folder(toy, monkeypatch):
    write(toy / "other" / "rows" / "train-00000-of-00001.parquet", "second")
    monkeypatch.setenv("REPRO_DATA", str(toy / "other"))


DATA = "train-00000-of-00001.parquet"
WEIGHTS = {"model": "a/b", "data": ""}
CASES = [  # changes of the configuration, what happens, why the run is made again (None: it stands)
    ({}, lambda toy, m: None, None),
    ({}, lambda toy, m: write(toy / "data" / "rows" / DATA), None),  # touched
    ({}, lambda toy, m: write(toy / "data" / "rows" / "README.md"), None),
    ({}, lambda toy, m: write(toy / "data" / "rows" / ".train-of-an-editor"), None),
    ({}, moved, None),
    ({}, other_folder, f"data changed: rows/{DATA}"),
    ({}, lambda toy, m: write(toy / "data" / "rows" / DATA, "First"), f"data changed: rows/{DATA}"),
    ({}, lambda toy, m: write(toy / "data" / "rows" / "train-00001.parquet"), "1 -> 2 files"),
    ({}, lambda toy, m: write(toy / "data" / "rows" / "train.tsv"), "1 -> 2 files"),
    (
        WEIGHTS,
        lambda toy, m: write(toy / "a" / "b" / "weights", "new"),
        "data changed: a/b/weights",
    ),
    (WEIGHTS, lambda toy, m: write(toy / "models" / "a" / "B" / "weights"), "is there now"),
    (WEIGHTS, lambda toy, m: write(toy / "models" / "c" / "d" / "weights"), None),
    ({"data": "Row_s"}, lambda toy, m: write(toy / "data" / "Row_s" / DATA), "Row_s is there now"),
    ({"data": "Row_s"}, lambda toy, m: write(toy / "data" / "more" / DATA), None),
    (WEIGHTS, lambda toy, m: m.delenv("REPRO_MODELS"), None),
    ({}, lambda toy, m: write(toy / "data" / "rows" / "sub" / "test.parquet"), "with 2 tables"),
    ({"data": ""}, lambda toy, m: write(toy / "data" / "rows" / "x.arrow"), None),
]


@pytest.mark.parametrize("changes, happens, reason", CASES)
def test_a_run_stands_as_long_as_it_would_read_the_same(
    toy, train, monkeypatch, capsys, changes, happens, reason
):
    monkeypatch.chdir(toy)
    write(toy / "a" / "b" / "weights")
    train.run(config(train, toy, **changes))
    before = stamp(toy)
    happens(toy, monkeypatch)
    train.run(config(train, toy, **changes))
    said = capsys.readouterr().out
    assert (stamp(toy) == before) == (reason is None), said
    assert (reason or "finished before") in said
    assert str(toy) not in json.dumps(record(toy / "out")["fingerprint"])


@pytest.mark.parametrize("happens, reason", [
    (lambda toy, m: shutil.rmtree(toy / "data" / "rows"), "REPRO_DATA="),
    (lambda toy, m: m.delenv("REPRO_DATA"), "REPRO_DATA is not set"),
    (lambda toy, m: m.setenv("REPRO_DATA", str(toy / "nowhere")), "is not a folder"),
])  # fmt: skip
def test_a_missing_input_costs_nothing_that_was_finished(
    toy, train, monkeypatch, capsys, happens, reason
):
    train.run(config(train, toy))
    before = {p: p.read_bytes() for p in (toy / "out").rglob("*") if p.name != ".lock"}
    happens(toy, monkeypatch)
    with pytest.raises(inputs.MissingInput):
        train.run(config(train, toy))
    said = capsys.readouterr().out
    assert f"made again, data missing: rows/{DATA}" in said and "REPRO_DATA" in said
    assert {p: p.read_bytes() for p in (toy / "out").rglob("*") if p.name != ".lock"} == before
    monkeypatch.setenv("REPRO_DATA", str(toy / "data"))
    write(toy / "data" / "rows" / DATA)
    train.run(config(train, toy))
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize("name, reason", [
    ("special_tokens_map.json", "3 -> 4 files"),
    ("model-00001-of-00001.safetensors", "3 -> 4 files"),
    ("chat_template.jinja", "3 -> 4 files"),
    ("README.md", None),
    ("training_args.json", None),
    (".cache.json", None),
])  # fmt: skip
@pytest.mark.parametrize("place", ["models", "data", "by path"])
def test_a_file_added_to_a_model_is_noticed(tmp_path, monkeypatch, place, name, reason):
    folder = model_folders.write(tmp_path / place / "a" / "b")
    model = "a/b" if place == "models" else str(folder)
    for variable in ("MODELS", "DATA") if place != "by path" else ():
        monkeypatch.setenv(f"REPRO_{variable}", str(tmp_path / place))
    with inputs.recording({"model": model}) as read:
        sources.find_model(model)
    assert inputs.changed(read, {"model": model}) is None
    write(folder / name)
    now = inputs.changed(read, {"model": model})
    assert (reason is None and now is None) or reason in str(now)


def snapshot(cache: Path, name: str, age: int) -> Path:
    folder = model_folders.write(cache / "models--a--b" / "snapshots" / name)
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


@pytest.mark.parametrize("lacking, reason", [
    ([], None),
    (["tokenizer.json"], None),  # an unfinished download is not read
    (["model.safetensors"], None),
    (["config.json"], None),
])  # fmt: skip
def test_a_newer_snapshot_counts_if_it_would_be_read(tmp_path, monkeypatch, lacking, reason):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot(tmp_path, "old", 10)
    with inputs.recording({}) as read:
        assert sources.find_model("a/b")[0].endswith("old")
    new = snapshot(tmp_path, "new", 5)
    if lacking:
        write(new / "generation_config.json", "other")
    for name in lacking:
        (new / name).unlink()
    os.utime(new, (1e9 - 5, 1e9 - 5))
    assert inputs.changed(read, {}) == reason
    assert Path(sources.find_model("a/b")[0]).name == ("old" if lacking else "new")


@pytest.mark.parametrize("inner", ["REPRO_DATA", "REPRO_MODELS", "HF_HUB_CACHE"])
def test_of_folders_inside_each_other_the_innermost_is_meant(tmp_path, monkeypatch, inner):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    monkeypatch.setenv(inner, str(tmp_path / "inner"))
    write(path := tmp_path / "inner" / "x" / "train.tsv")
    with inputs.recording({}) as read:
        inputs.note("x/train.tsv", path)
    path.unlink()
    assert str(inputs.changed(read, {})).startswith("data missing: x/train.tsv")


def test_a_layout_that_comes_first_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    files = [tmp_path / "x" / name for name in ("dev.tsv", "val.jsonl", "z.csv")]
    write(files[1])
    with inputs.recording({}) as read:
        assert inputs.first(files) == files[1]
    write(files[2])
    assert inputs.changed(read, {}) is None
    write(files[0])
    assert "REPRO_DATA/x/dev.tsv is there now" in str(inputs.changed(read, {}))


def test_a_folder_of_images_is_hashed_by_names_and_sizes(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    write(tmp_path / "images" / "train" / "cat" / "0.JPEG")
    with inputs.recording() as read:
        inputs.note("images/train", tmp_path / "images" / "train")
    for name, reason in (("cat/.DS_Store", None), ("dog/1.JPEG", "data changed: images/train")):
        write(tmp_path / "images" / "train" / name)
        assert inputs.changed(read) == reason
    shutil.rmtree(tmp_path / "images")
    assert inputs.changed(read) == f"data missing: images/train (REPRO_DATA={tmp_path})"


def test_data_that_change_while_a_run_is_interrupted(toy, train, monkeypatch, capsys):
    count = iter(range(1000))
    monkeypatch.setattr(runs, "_stop_asked", lambda: next(count) == 9)
    with pytest.raises(runs.Stopped):
        train.run(config(train, toy))
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    write(toy / "data" / "rows" / DATA, "second")
    train.run(config(train, toy))
    assert f"begins again, data changed: rows/{DATA}" in capsys.readouterr().out


def test_an_older_run_is_kept_until_the_new_one_is_recorded(toy, train, monkeypatch, capsys):
    train.run(config(train, toy))
    monkeypatch.setattr(runs, "_stop_asked", lambda: True)
    with pytest.raises(runs.Stopped):
        train.run(config(train, toy, steps=21))
    assert "steps 20 -> 21" in capsys.readouterr().out
    assert record(toy / "out" / "older")["config"]["steps"] == 20
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    train.run(config(train, toy, steps=21))
    assert not (toy / "out" / "older").exists() and record(toy / "out")["config"]["steps"] == 21


def test_a_moved_run_stands_and_goes_on(toy, train, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_RUNS", str(toy / "one"))
    train.run(config(train, toy, arm="stage", out=""))
    used = {"uses": {"stage": str(toy / "one" / "toy" / "cpu" / "line" / "seed0" / "stage")}}
    count = iter(range(1000))
    monkeypatch.setattr(runs, "_stop_asked", lambda: next(count) == 9)
    with pytest.raises(runs.Stopped):
        train.run(config(train, toy, arm="good", out="", **used))
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    (toy / "one").rename(toy / "two")
    monkeypatch.setenv("REPRO_RUNS", str(toy / "two"))
    used["uses"]["stage"] = used["uses"]["stage"].replace("one", "two")
    for said in ("continues at step", "finished before"):
        train.run(config(train, toy, arm="good", out="", **used))
        assert said in capsys.readouterr().out


# --- caches, machine, code --------------------------------------------------------------------


def test_a_poisoned_cache_entry_changes_the_record(toy, train):
    clean = train.run(config(train, toy, begin=0.5))
    before = protocol.record_sha256(record(clean)), record(clean)["fingerprint"]["caches"]
    (entry,) = (toy / "cache" / "values").glob("*.pt")
    head, packed = entry.read_bytes().split(b"\n", 1)
    poison = runs.pack(runs.unpack(packed, "entry") * 0.3)
    entry.write_bytes(head + b"\n" + poison)
    (toy / "out" / "record.json").unlink()
    again = record(train.run(config(train, toy, begin=0.5)))
    assert protocol.record_sha256(again) != before[0]
    assert again["fingerprint"]["caches"] != before[1]
    entry.unlink()  # an empty cache: the first value again, to the bit
    (toy / "out" / "record.json").unlink()
    assert protocol.record_sha256(record(train.run(config(train, toy, begin=0.5)))) == before[0]


def test_an_entry_is_of_its_data_packages_and_code(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    write(tmp_path / "x.csv")
    made: list[str] = []

    def make() -> str:
        path = inputs.look("REPRO_DATA", "x.csv")
        assert path is not None
        inputs.note("x.csv", path)
        made.append(path.read_text(encoding="utf-8"))
        return made[-1]

    for text, number in (("first", 1), ("first", 1), ("other", 2), ("other", 2)):
        write(tmp_path / "x.csv", text)
        with inputs.recording() as read:
            assert runs.cached(("x",), make) == text and len(made) == number
        assert read["x.csv"]["path"] == "REPRO_DATA/x.csv" and len(read.caches) == 1
    monkeypatch.setattr(machine, "packages", lambda: {"torch": "0.1"})
    runs.cached(("x",), make)
    assert len(made) == 3
    monkeypatch.setattr(protocol, "imported_code", lambda path: {path.name: "other code"})
    runs.cached(("x",), make)
    assert len(made) == 4


@pytest.mark.parametrize("before, reason", [
    ({"packages": {"torch": "0.1"}}, "packages changed: torch 0.1 -> 0.2"),
    ({"packages": {}}, "packages changed: torch none -> 0.2"),
    ({"device": "cuda"}, "device changed: cuda -> cpu"),
    ({"portable": True}, "portable changed: True -> False"),
    ({"deterministic": True}, "deterministic changed: True -> None"),
    ({}, None),
])  # fmt: skip
def test_what_of_a_machine_can_move_a_score(before, reason):
    now = {"device": "cpu", "portable": False, "packages": {"torch": "0.2"}}
    assert machine.moved(now | before, now) == reason


def test_other_packages_make_a_run_again(toy, train, monkeypatch, capsys):
    train.run(config(train, toy))
    newer = machine.packages() | {"torch": "99"}
    monkeypatch.setattr(machine, "packages", lambda: newer)
    train.run(config(train, toy))
    assert "packages changed: torch" in capsys.readouterr().out


def test_the_bits_of_a_gpu_are_promised_where_they_were_asked_for(monkeypatch):
    """And a run on a CPU, whose bits are the same anyway, does not depend on it."""
    import torch

    assert not machine.deterministic() and "deterministic" not in machine.fingerprint("cuda")
    monkeypatch.setenv("DETERMINISTIC", "1")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert machine.fingerprint("cuda")["deterministic"] is True
    assert "deterministic" not in machine.fingerprint("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        runs.device(protocol.RunConfig(device="cpu"))
        assert not torch.are_deterministic_algorithms_enabled()
        runs.device(protocol.RunConfig(device="cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == machine.CUBLAS
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_cpu_run_is_recorded_as_one_where_a_gpu_is(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.kind("auto") == "cuda" and machine.kind("cpu") == "cpu"
    assert machine.environment("cpu")["device"] == "cpu"
    assert machine.peak_memory_mb("cpu", reset=True) > 50


EDIT = "import toy.train, sys; open('toy/evaluate.py', 'a').write('NEW = 1\\n'); "
RUN = "toy.train.run(toy.train.Config(scale='cpu', arm='noisy', task='line', out='out'))"


def test_the_record_names_the_code_that_was_imported(toy):
    """An edit while workers train: their records hold the hash of what ran, and say so."""
    hashes = protocol.code_hashes(toy / "toy" / "train.py")
    lines = f"import toy.train; {RUN}; {EDIT}{RUN.replace('out=', 'seed=1, out=')}"
    done = subprocess.run([sys.executable, "-c", lines], cwd=toy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "toy/evaluate.py was edited meanwhile" in done.stdout
    assert record(toy / "out")["seed"] == 1
    assert record(toy / "out")["fingerprint"]["code"] == hashes
    lines = f"import toy.train; {RUN.replace('out=', 'seed=1, out=')}"
    done = subprocess.run([sys.executable, "-c", lines], cwd=toy, capture_output=True, text=True)
    assert "code changed: toy/evaluate.py" in done.stdout, done.stderr


def test_a_file_edited_while_a_process_begins_is_refused(toy):
    done = subprocess.run(
        [sys.executable, "-c", EDIT + RUN], cwd=toy, capture_output=True, text=True
    )
    assert done.returncode and "edited while this process began" in done.stderr


def test_portable_settings_reach_the_process(toy):
    done = command(toy, "--arm", "noisy", "--out", "out", PORTABLE="1")
    assert done.returncode == 0, done.stderr
    assert record(toy / "out")["fingerprint"]["machine"]["portable"] is True
    assert record(toy / "out")["environment"]["settings"]["MKL_CBWR"] == "COMPATIBLE"


# --- whose folder it is -----------------------------------------------------------------------


def model_folder(out: Path) -> None:
    write(out / "config.json", '{"model_type": "bert"}')
    write(out / "model.safetensors")
    write(out / "subfolder" / "x.txt")


def link_to_foreign(out: Path) -> None:
    model_folder(out.parent / "precious")
    out.symlink_to(out.parent / "precious")


def temporary_among_others(out: Path) -> None:
    write(out / ".config.json.7.tmp")
    write(out / "thesis.txt")


def run_among_others(out: Path) -> None:
    write(out / "run" / "config.json", '{"config": {}, "code": {}, "uses": {}}')
    write(out / "thesis.txt")


FOREIGN = [model_folder, link_to_foreign, run_among_others, temporary_among_others,
           lambda out: write(out / "thesis.txt"),
           lambda out: write(out / "record.json", "{}"),
           lambda out: write(out / "config.json", '{"config": 1, "code": {}, "uses": {}}'),
           lambda out: write(out / "config.json", "[]")]  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("fill", FOREIGN)
def test_a_foreign_folder_is_left_alone(toy, train, fill):
    fill(toy / "out")
    before = content(toy / "out")
    with pytest.raises(BadInput, match="no run of this project; move them away"):
        train.run(config(train, toy))
    assert content(toy / "out") == before


@pytest.mark.parametrize("name", ["config.json", "record.json", "files.json"])
def test_a_kill_while_a_file_gets_its_name_blocks_nothing(toy, name):
    """Not the same command, nor the next with other settings, which puts the run aside."""
    kill = f"import os; os.replace = lambda old, new: str(new).endswith({name!r}) and os._exit(9)"
    lines = f"{kill} or os.rename(old, new); import toy.train; {RUN.replace('noisy', 'stage')}"
    killed = subprocess.run([sys.executable, "-c", lines], cwd=toy, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    left = [path.name for path in (toy / "out").glob(".*.tmp")]
    assert len(left) == 1 and left[0].startswith(f".{name}.")
    assert (toy / "out" / "config.json").exists() == (name != "config.json")
    for arm in ("stage", "noisy"):
        done = command(toy, "--arm", arm, "--out", "out")
        assert done.returncode == 0, done.stderr
        assert record(toy / "out")["arm"] == arm


class Killed(BaseException):
    """Unlike an error of the disk, nothing may catch it."""


@pytest.mark.parametrize("refused, arms", [(False, ["noisy", "stage"]), (True, ["stage", "noisy"])])
def test_a_kill_between_any_two_files_blocks_nothing(toy, train, monkeypatch, refused, arms):
    """While a run is put aside for another, deleted, or put back because the other is refused."""
    clean = {}
    for arm in arms:
        train.run(config(train, toy, arm=arm, out=str(toy / arm)))
        clean[arm] = record(toy / arm)["state_sha256"]
    for n in range(60):
        out = str(toy / f"out{n}")
        train.run(config(train, toy, arm="stage", out=out))
        try:
            with monkeypatch.context() as patch:
                kill_after(n, patch)
                if refused:
                    patch.setattr(runs.Run, "phase", refuse)
                train.run(config(train, toy, arm="noisy", out=out))
            break
        except BadInput:
            break
        except Killed:
            for arm in arms:
                train.run(config(train, toy, arm=arm, out=out))
                assert record(Path(out))["state_sha256"] == clean[arm], (n, arm)
    assert 15 < n < 59


def kill_after(n: int, patch: pytest.MonkeyPatch) -> None:
    """Let the first `n` files be moved or deleted, and none after them."""
    done: list[str] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*words: Any, **more: Any) -> Any:
            done.append(name)
            if len(done) > n:
                raise Killed
            return real(*words, **more)

        patch.setattr(owner, name, call)

    for name in ("rename", "unlink", "mkdir"):
        counted(Path, name)
    for name in ("replace", "rmdir"):
        counted(os, name)


def refuse(*_: Any) -> None:
    raise BadInput("no")


@pytest.mark.parametrize("place", [".", "/", "~", "toy", "runs"])
def test_places_that_are_no_place_for_a_run(toy, train, monkeypatch, place):
    monkeypatch.setenv("HOME", str(toy))
    monkeypatch.chdir(toy)
    write(toy / "runs" / "other" / "x.txt")
    before = content(toy)
    with pytest.raises(BadInput, match="no run of this project"):
        train.run(config(train, toy, out=os.path.expanduser(place)))
    assert content(toy) == before


@pytest.mark.parametrize("name", ["notes.txt", "export/mine.bin", "checkpoint/mine.pt", "other/x"])
def test_a_users_file_in_a_run_is_never_deleted(toy, train, name):
    train.run(config(train, toy))
    write(toy / "out" / name)
    before = content(toy / "out")
    with pytest.raises(BadInput, match=f"no run wrote there: {name}"):
        train.run(config(train, toy, steps=21))
    assert content(toy / "out") == before


def test_a_users_file_put_in_while_a_run_is_interrupted(toy, train, monkeypatch):
    monkeypatch.setattr(runs, "_stop_asked", lambda: True)
    with pytest.raises(runs.Stopped):
        train.run(config(train, toy))
    write(toy / "out" / "notes.txt")
    monkeypatch.setattr(runs, "_stop_asked", lambda: False)
    train.run(config(train, toy))
    with pytest.raises(BadInput, match=r"no run wrote there: notes\.txt"):
        train.run(config(train, toy, steps=21))


def test_a_link_inside_a_run_is_not_followed(toy, train):
    train.run(config(train, toy))
    model_folder(toy / "precious")
    (toy / "out" / "checkpoint").symlink_to(toy / "precious")
    with pytest.raises(BadInput, match="no run wrote there: checkpoint"):
        train.run(config(train, toy, steps=21))
    assert len(content(toy / "precious")) == 3


def test_what_a_paper_adds_to_its_run_is_deleted_with_it(toy, train):
    train.run(config(train, toy, arm="stage"))
    assert (toy / "out" / "shift.json").exists()
    train.run(config(train, toy))
    assert not (toy / "out" / "shift.json").exists() and record(toy / "out")["arm"] == "noisy"


MANGLED = [{"fingerprint": []}, {"fingerprint": None}, {"metrics": "high"}, {"config": 3},
           {"fingerprint": {"code": ["x"]}}, {"fingerprint": {"data": {"glue": "x"}}},
           {"fingerprint": {"data": {"glue": {"sha256": 1}}}}, {"fingerprint": {"asked": {"x": 1}}},
           {"fingerprint": {"uses": "stage"}}, {"fingerprint": {"machine": 5}},
           {"fingerprint": {"machine": {"device": "cpu", "portable": False, "packages": [1]}}},
           {"fingerprint": {"data": {"x": {"path": "REPRO_DATA/x"}}}},
           {"fingerprint": {"data": {"x": {"sha256": "0", "path": 5}}}},
           {"fingerprint": {"data": {"x": {"sha256": "0", "path": "REPRO_DATA/" + "x" * 999}}}},
           {"fingerprint": {"asked": ["x"]}}, {"status": "running"}, {"status": ["finished"]},
           {"metrics": {"accuracy": "high"}}, {"gates": "all"}, {"splits": None},
           {"files": ["splits.npz"]}]  # fmt: skip


@pytest.mark.parametrize("parts", MANGLED, ids=str)
def test_a_record_edited_by_hand_is_made_again(toy, train, parts, capsys):
    train.run(config(train, toy))
    path = toy / "out" / "record.json"
    whole = record(toy / "out")
    for name, part in parts.items():
        whole[name] = {**whole[name], **part} if isinstance(part, dict) and part else part
    write(path, json.dumps(whole))
    train.run(config(train, toy))
    assert "record.json is not as a run writes it" in capsys.readouterr().out
    assert record(toy / "out")["metrics"]


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 200_000, '{"seed": ' + "9" * 5000 + "}",
                                  "\0" * 9, '{"paper": "toy", '])  # fmt: skip
def test_a_record_that_is_none_is_made_again(toy, train, text, capsys):
    train.run(config(train, toy))
    write(toy / "out" / "record.json", text)
    train.run(config(train, toy))
    assert "made again, record.json cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("arm, name", [
    ("noisy", "splits.npz"), ("noisy", "predictions.npz"), ("stage", "shift.json"),
])  # fmt: skip
@pytest.mark.parametrize("happens", [
    lambda path: path.write_bytes(b"other"), lambda path: path.unlink(),
    lambda path: (path.unlink(), path.mkdir()),
])  # fmt: skip
def test_a_file_that_is_not_as_its_run_left_it(toy, train, capsys, arm, name, happens):
    train.run(config(train, toy, arm=arm))
    train.run(config(train, toy, arm=arm))
    assert "finished before" in capsys.readouterr().out
    before = (toy / "out" / name).read_bytes()
    happens(toy / "out" / name)
    train.run(config(train, toy, arm=arm))
    assert f"made again, {name} does not match its record" in capsys.readouterr().out
    assert (toy / "out" / name).read_bytes() == before


def other(**parts: object):
    def change(toy: Path) -> None:
        write(toy / "out" / "record.json", json.dumps(record(toy / "out") | parts))

    return change


@pytest.mark.parametrize("change, said", [
    (lambda toy: write(toy / "out" / "shift.json", "{}"), "shift.json does not match its record"),
    (lambda toy: (toy / "out" / "shift.json").unlink(), "shift.json does not match its record"),
    (lambda toy: shutil.rmtree(toy / "out"), "not finished"),
    (lambda toy: write(toy / "out" / "record.json", "{"), "not finished"),
    (other(arm="noisy"), "is arm noisy of toy"), (other(paper="other"), "is arm stage of other"),
    (other(status="diverged"), "diverged"), (other(fingerprint=None), "no run wrote"),
    (other(fingerprint={"code": {}, "data": "x"}), "no run wrote"),
    (other(gradient_evaluations_with_uses="9"), "no run wrote"), (other(files=[1]), "no run wrote"),
])  # fmt: skip
def test_a_run_that_is_used_is_whole_and_the_right_one(toy, train, change, said):
    train.run(config(train, toy, arm="stage"))
    good = {"arm": "good", "out": str(toy / "good"), "uses": {"stage": str(toy / "out")}}
    change(toy)
    with pytest.raises(BadInput, match=f"the run it uses, stage, .*{said}"):
        train.run(config(train, toy, **good))
    assert not (toy / "good" / "config.json").exists()


def test_other_bytes_of_the_same_size_and_time_are_noticed(toy, train, capsys):
    path = toy / "data" / "rows" / DATA
    train.run(config(train, toy))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    write(path, "tsrif")
    os.utime(path, ns=times)
    train.run(config(train, toy))
    assert f"data changed: rows/{DATA}" in capsys.readouterr().out


# --- the command line -------------------------------------------------------------------------


ESCAPES = [("--tiny", "--task", "../../../../escape"), ("--task", "/tmp/escape"), ("--arm", "../x"),
           ("--scale", "../x"), ("--seed", "../1"), ("--tiny", "--task", ".."),
           ("--tiny", "--scale", "cpu")]  # fmt: skip


def test_names_are_names(toy, train, monkeypatch):
    monkeypatch.chdir(toy)
    before = content(toy)
    for words in ESCAPES:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        with pytest.raises(SystemExit) as stopped:
            runs.command_line(train.Config, train.run, train.__doc__, train.__file__)
        assert stopped.value.code == 2, words
    for field in ("scale", "task", "arm"):
        with pytest.raises(BadInput, match="is no name"):
            train.run(config(train, toy, out="", **{field: "../x"}))
    text = (toy / "toy" / "protocol.yaml").read_text(encoding="utf-8")
    for old, new in (("extra:", "../extra:"), ("plane:", "../plane:")):
        write(toy / "toy" / "protocol.yaml", text.replace(old, new))
        with pytest.raises(BadInput, match="is no name"):
            protocol.Protocol(toy / "toy")
    write(toy / "toy" / "protocol.yaml", text)
    assert content(toy) == before


@pytest.mark.parametrize("words", [
    *(("--out", place) for place in ("/dev/null", "/proc/x", "/etc/passwd/x", "x" * 5000, "loop")),
    *((name, value) for name in ("--data", "--model")
      for value in ("x" * 5000, "/dev/null", "loop")),
    ("--seed", "9" * 5000), ("--seed", "\u0663"), ("--task", "x" * 5000), ("--lr", "nan"),
    ("--steps", "9" * 5000),
    *((f"{name}={value}",) for name in ("REPRO_DATA", "REPRO_CACHE", "REPRO_RUNS")
      for value in ("/dev/null", "/proc/x", "x" * 5000, "loop")),
    ("REPRO_DATA=~nobody-here/x",),
], ids=lambda words: " ".join(words)[:30])  # fmt: skip
def test_a_place_that_cannot_be_is_an_error_of_one_line(toy, train, monkeypatch, capsys, words):
    monkeypatch.chdir(toy)
    (toy / "loop").symlink_to("loop")
    words, variables = [x for x in words if "=" not in x], [x for x in words if "=" in x]
    for variable in variables:
        monkeypatch.setenv(*variable.split("=", 1))
    out = [] if variables == [] or "RUNS" in variables[0] else ["--out", "out"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["train.py", "--arm", "noisy", "--data", "rows", "--begin", "0.5", *out, *words],
    )
    with pytest.raises(SystemExit) as stopped:
        runs.command_line(train.Config, train.run, train.__doc__, train.__file__)
    assert stopped.value.code == 2 and capsys.readouterr().err


def test_other_settings_stand_beside_the_protocols_run(toy, train, monkeypatch, capsys):
    """An override reaches the stages; neither run, nor the stages they use, destroys the other."""
    monkeypatch.setenv("REPRO_RUNS", str(toy / "runs"))
    place = toy / "runs" / "toy" / "cpu" / "line" / "seed0"

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", "--arm", "good", *words])
        runs.command_line(train.Config, train.run, train.__doc__, train.__file__)
        return capsys.readouterr().out

    call("--device", "cpu")
    before = content(place)
    assert set(os.listdir(place)) == {"good", "stage"}
    said = call("--steps", "6")
    (good,), (stage,) = place.glob("good+*"), place.glob("stage+*")
    assert f"good with steps 20 -> 6: in {good}; the protocol's own is {place / 'good'}" in said
    assert record(good)["config"]["uses"] == {"stage": str(stage)}
    assert record(good)["config"]["steps"] == record(stage)["config"]["steps"] == 6
    assert content(place) | before == content(place)  # the protocol's own are untouched
    for words in ((), ("--steps", "6"), ("--steps", "20")):
        assert "finished in" not in call(*words)
    call("--uses.stage", str(stage))
    assert len(list(place.glob("good+*"))) == 2 and content(place) | before == content(place)
