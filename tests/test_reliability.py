"""What every method promises of its runs, asked of all seven: the same bits again, after a stop, a kill, a full disk; and refusals.

Each method runs its `tiny` configuration (protocol.yaml: no download, seconds). What costs seconds is in `make test`; fresh processes,
kills and the offline start are in `make test-slow`. `python -m benchmarks.reliability` counts what passed; the numbers of the items
are those of its table.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import PAPERS
from shared import protocol, runs, sources

ROOT = Path(__file__).resolve().parent.parent
SAME = ("state_sha256", "predictions_sha256", "split_sha256", "metrics", "gradient_evaluations")


SMALLER = {"ppo_nlu": {"steps": 16, "examples": 256}}  # twelve seconds otherwise


class Method:
    """A method's tiny configuration: its runs in order (stages first), and one finished set of them in `home`."""

    def __init__(self, paper: str, home: Path):
        self.paper, self.home = paper, home
        self.protocol = protocol.Protocol(ROOT / paper)
        self.train = importlib.import_module(f"{paper}.train")
        tiny = self.protocol.document["tiny"]
        self.nodes: list[protocol.Node] = []

        def add(node: protocol.Node) -> None:
            for key in node.uses:
                add(self.protocol.node("tiny", *key))
            if node not in self.nodes:
                self.nodes.append(node)

        add(self.protocol.node("tiny", tiny["arm"], tiny["task"], 0))

    def directory(self, node: protocol.Node) -> Path:
        return self.home / self.paper / "tiny" / node.task / f"seed{node.seed}" / node.arm

    def run(self, node: protocol.Node, out: Path | None = None, **changes) -> Path:
        """The run, beside the finished ones or in `out`; what it uses are the finished ones."""
        values = self.protocol.config("tiny", node) | {
            "device": "cpu",
            "out": str(out or self.directory(node)),
        }
        values["uses"] = {
            k[0]: str(self.home / self.paper / "tiny" / k[1] / f"seed{k[2]}" / k[0])
            for k in node.uses
        }
        return self.train.run(
            self.train.Config(**{**values, **SMALLER.get(self.paper, {}), **changes})
        )

    def record(self, node: protocol.Node) -> dict:
        return record(self.directory(node))


def record(directory: Path) -> dict:
    return json.loads((directory / "record.json").read_text())


def assert_same(a: dict, b: dict) -> None:
    assert {k: a[k] for k in SAME} == {k: b[k] for k in SAME}


def checkpoints(directory: Path) -> list[Path]:
    return sorted((directory / "checkpoint").glob("step-*.pt"))


@pytest.fixture(scope="module", params=PAPERS)
def method(request, tmp_path_factory):
    """A method with its tiny runs finished; made once, whatever the number of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "reliability"
    home.mkdir(exist_ok=True)
    found = Method(request.param, home)
    with open(home / f"{request.param}.lock", "w") as lock, by_hand():
        fcntl.flock(lock, fcntl.LOCK_EX)
        for node in found.nodes:
            found.run(node)
    return found


@contextlib.contextmanager
def by_hand():
    """As on a terminal, whatever a test before this one in the same process made of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_worker", False)
        patch.setattr(runs, "_stop_asked", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _by_hand():
    with by_hand():
        yield


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Ask the next run to stop after so many steps."""
    count = itertools.count(1)
    patch.setattr(runs, "_stop_asked", lambda: next(count) == steps)


def steps_of(patch: pytest.MonkeyPatch) -> list[int]:
    """The list that the next run's numbers of steps are written to."""
    seen, real = [], runs.Run.steps

    def steps(self, start, total, *rest, **more):
        seen.append(total)
        return real(self, start, total, *rest, **more)

    patch.setattr(runs.Run, "steps", steps)
    return seen


def stopped(method: Method, node: protocol.Node, out: Path, steps: int) -> list[Path]:
    """Begin the run in `out` and stop it after so many steps; its checkpoints. Empty if the run has no steps."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps)
        try:
            method.run(node, out)
        except runs.Stopped:
            assert not (out / "record.json").exists()
            return checkpoints(out)
    return []


def total_steps(method: Method, node: protocol.Node, out: Path) -> int:
    """How many steps the run has; 0 if it counts none. Learned from its first step alone."""
    with pytest.MonkeyPatch.context() as patch:
        seen = steps_of(patch)
        stopped(method, node, out, 1)
    return seen[-1] if seen else 0


@pytest.fixture(scope="module")
def half(method, tmp_path_factory):
    """(node, directory) of the method's own run, stopped in its middle; copied by the tests that continue it."""
    with by_hand():
        for node in reversed(
            method.nodes
        ):  # a last run that only looks things up has next to no steps
            total = total_steps(method, node, tmp_path_factory.mktemp("first"))
            if total >= 4:
                break
        out = tmp_path_factory.mktemp("half")
        assert stopped(method, node, out, total // 2), (node.arm, total)
    return node, out


def copied(run: Path, to: Path) -> Path:
    """A copy of an interrupted run that continues in its new place."""
    shutil.copytree(run, to)
    begun = json.loads((to / "config.json").read_text())
    begun["config"]["out"] = str(to)
    (to / "config.json").write_text(json.dumps(begun))
    return to


@pytest.fixture
def continued(half, tmp_path):
    """A copy of the half run, to be spoiled or continued."""
    node, out = half
    return node, copied(out, tmp_path / "copy")


# --- 1, 2, 4: the same bits --------------------------------------------------------------------------------------------


def tiny_command(paper: str, home: Path, **environ) -> dict:
    """Arguments of subprocess for the command of the README, its runs in `home`."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "REPRO_RUNS": str(home),
        **environ,
    }
    return {
        "args": [sys.executable, "-m", f"{paper}.train", "--tiny", "--device", "cpu"],
        "cwd": ROOT,
        "env": env,
    }


def all_records(home: Path) -> dict[str, dict]:
    return {
        str(p.parent.relative_to(home)): record(p.parent) for p in sorted(home.rglob("record.json"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_repeat_is_bitwise(paper, tmp_path, record_property):
    """Two fresh processes: every run of the chain (stages too) has the same states, predictions and splits."""
    found = []
    for name in "ab":
        done = subprocess.run(
            **tiny_command(paper, tmp_path / name), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        found.append(all_records(tmp_path / name))
    assert found[0] and found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert_same(value, found[1][key])


def test_resume_in_the_middle_is_bitwise(method, continued, capsys):
    node, out = continued
    assert_same(record(method.run(node, out)), method.record(node))
    assert "continues at step" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("where", ["first", "last"])
def test_resume_is_bitwise_for_every_run(method, where, tmp_path):
    """Every run of the chain, stopped after its first and before its last step."""
    counted = 0
    for i, node in enumerate(method.nodes):
        total = total_steps(method, node, tmp_path / f"{i}")
        if not total:
            continue
        counted += 1
        if where == "last" and total > 2:
            stopped(method, node, tmp_path / f"{i}", total - 2)  # continues after the first
        assert_same(record(method.run(node, tmp_path / f"{i}")), method.record(node))
    assert counted


def test_a_checkpoint_without_one_field_is_refused(method, continued, tmp_path, record_property):
    """Every field of the method's checkpoint, left out in turn: the error names it."""
    node, out = continued
    path = checkpoints(out)[-1]
    whole = runs.unpack(path.read_bytes(), path.name)
    empty = [
        k for k, v in whole.items() if v is None or v == {} or v == []
    ]  # what this run has no use for
    fields = [k for k in whole if k not in ("step", "_spent", *empty)]
    refused = 0
    for name in fields:
        copy = copied(out, tmp_path / name)
        checkpoints(copy)[-1].write_bytes(runs.pack({k: v for k, v in whole.items() if k != name}))
        with pytest.raises(runs.BadInput, match=f"lacks '{name}'"):
            method.run(node, copy)
        refused += 1
    record_property("figure", f"{refused}/{len(fields)}")


KILLS = [(i, PAPERS[i % len(PAPERS)]) for i in range(20)]


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    """paper -> (records of a run that nobody killed, its seconds)."""
    known: dict[str, tuple[dict, float]] = {}

    def of(paper: str) -> tuple[dict, float]:
        if paper not in known:
            home, begun = tmp_path_factory.mktemp("whole"), time.monotonic()
            done = subprocess.run(
                **tiny_command(paper, home, REPRO_CHECKPOINT_SECONDS="0"),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            known[paper] = all_records(home), time.monotonic() - begun
        return known[paper]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("number, paper", KILLS)
def test_sigkill_and_the_same_command_again(number, paper, unkilled, tmp_path):
    """SIGKILL at a seeded moment between start and end, be it import, step, save or scoring."""
    whole, seconds = unkilled(paper)
    moment = random.Random(number).uniform(0.1, 0.9) * seconds
    while True:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        command = tiny_command(paper, tmp_path / "runs", REPRO_CHECKPOINT_SECONDS="0")
        process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            break
        moment *= 0.7  # it was done before: the machine is faster now
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    done = subprocess.run(**command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    found = all_records(tmp_path / "runs")
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        assert_same(found[key], value)


# --- 5 to 8, 11: damaged files ----------------------------------------------------------------------------------------


SAVER = """
import sys, time
from pathlib import Path
from shared import runs

class Slow:
    "A file that takes its time, so that a kill meets the middle of a write."
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, payload):
        for i in range(0, len(payload), max(1, len(payload) // 100)):
            self.file.write(payload[i : i + max(1, len(payload) // 100)]); self.file.flush(); time.sleep(0.005)

old, new = Path(sys.argv[1]), Path(sys.argv[2])
payload = old.read_bytes()
runs.open = lambda *words: Slow(open(*words))
print("writing", flush=True)
while True:
    runs.write_bytes(new, payload)
    runs.write_bytes(old, payload)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_sigkill_inside_a_save(number, tmp_path):
    """A throttled save, killed at a seeded moment: whatever bears a checkpoint's name is whole."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    value = {
        "w": torch.randn(50_000, generator=torch.Generator().manual_seed(number)),
        "step": number,
    }
    (directory / "step-000000001.pt").write_bytes(runs.pack(value))
    code = [sys.executable, "-c", SAVER, *(str(directory / f"step-00000000{i}.pt") for i in (1, 2))]
    process = subprocess.Popen(
        code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    time.sleep(random.Random(number).uniform(0.05, 1.2))
    process.kill()
    process.wait()
    kept = checkpoints(tmp_path)
    assert kept and all(
        torch.equal(runs.unpack(p.read_bytes(), p.name)["w"], value["w"]) for p in kept
    )
    assert any(p.name.endswith(".tmp") for p in directory.iterdir()), "the kill met no write"


def test_bit_flips_of_its_own_checkpoint_are_caught(half, record_property):
    payload = checkpoints(half[1])[-1].read_bytes()
    rng, caught = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        with pytest.raises(runs.BadInput, match="sha256"):
            runs.unpack(bytes(damaged), "x")
        caught += 1
    record_property("figure", f"{caught}/200")


@pytest.mark.slow
def test_a_truncated_checkpoint_is_refused_and_the_run_begins_again(
    method, continued, record_property, capsys
):
    """Cut at 0, 1, 50, 99 %: the file and the remedy are named; without another checkpoint the run starts over, to the same bits."""
    node, out = continued
    path = checkpoints(out)[-1]
    payload = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.99):
        with pytest.raises(runs.BadInput, match=rf"{path.name}.*delete it"):
            runs.unpack(payload[: int(share * len(payload))], path.name)
    for other in checkpoints(out):
        other.write_bytes(payload[: len(payload) // 2])
    assert_same(record(method.run(node, out)), method.record(node))
    said = capsys.readouterr().out
    assert "trying an older checkpoint" in said and "continues at step" not in said
    record_property("figure", "4/4")


def test_a_full_disk_keeps_the_old_checkpoint(method, continued, monkeypatch):
    """No byte more than half a checkpoint fits: an error that says how many were needed, and nothing else moved."""
    node, out = continued
    path = checkpoints(out)[-1]
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        with pytest.raises(
            OSError, match=r"could not write [\d,]+ bytes to .*step-.*free disk space"
        ):
            method.run(node, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (
        checkpoints(out) == [path]
        and path.read_bytes() == before
        and not (out / "record.json").exists()
    )


class Evil:
    def __init__(self, where: Path):
        self.where = where

    def __reduce__(self):
        return (os.mkdir, (str(self.where),))


def test_a_planted_pickle_in_its_checkpoint_never_runs(method, continued, tmp_path):
    node, out = continued
    path = checkpoints(out)[-1]
    path.with_name("step-999999999.pt").write_bytes(
        runs.pack({"step": 1, "model": Evil(tmp_path / "ran")})
    )
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        method.run(node, out)
    assert not (tmp_path / "ran").exists()


# --- 9: not a number --------------------------------------------------------------------------------------------------


def poisoned(
    method: Method, node: protocol.Node, out: Path, at: int, which: int
) -> tuple[str, int] | None:
    """The run with NaN put into the variables of the `which`-th optimiser before step `at`; None if it has no such.

    Every level moves its own variables by its own optimiser, so this is a fault of one level.
    Returns how the run ended and the last step that a kept checkpoint would continue at."""
    refs: list[weakref.ref[torch.optim.Optimizer]] = []
    met = []
    initialise, steps = torch.optim.Optimizer.__init__, runs.Run.steps

    def new(self, *words, **more):
        initialise(self, *words, **more)
        refs.append(weakref.ref(self))

    def counted(self, start, total, *rest, **more):
        for step in steps(self, start, total, *rest, **more):
            if step == at:
                gc.collect()
                made = [o for r in refs if (o := r()) is not None]  # those still in use
                if -len(made) <= which < len(made):
                    met.append(which)
                    for p in made[which].param_groups[0]["params"]:
                        p.data.fill_(float("nan"))
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "__init__", new)
        patch.setattr(runs.Run, "steps", counted)
        patch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
        patch.setenv("KEEP", "1")
        stop_after(patch, at + 3)
        try:
            method.run(node, out)
            ended = "finished"
        except runs.Diverged as error:
            ended = f"diverged: {error.level} level"
            assert record(out)["status"] == "diverged" and error.level in record(out)["reason"]
        except runs.Stopped:
            ended = "went on"
    return (ended, max(int(p.stem[5:]) for p in checkpoints(out))) if met else None


# A step that uses the variables of all levels; mlo_mae's cycle of two ends with every odd step.
USED = {"mlo_mae": 3}


@pytest.mark.slow
def test_nan_in_any_level_stops_within_its_step(method, tmp_path, record_property):
    """Each optimiser's variables of each run of the chain in turn, at an early step, and those in use at the end: recorded as
    diverged, a level named, no checkpoint written after."""
    ends = {}
    for node in method.nodes:
        total = total_steps(method, node, tmp_path / node.arm)
        early = USED.get(method.paper, 2)
        if total < 4:
            continue
        for which in itertools.count():
            out = tmp_path / f"{node.arm}-{which}"
            found = poisoned(method, node, out, early, which)
            if found is None:
                break
            ends[node.arm, which, early] = found
        found = poisoned(method, node, tmp_path / f"{node.arm}-late", total - 1, -1)
        if found is not None:
            ends[node.arm, "last", total - 1] = found
    good = {k: v for k, v in ends.items() if v[0].startswith("diverged") and v[1] <= k[2]}
    print(method.paper, *(f"{k} -> {v}" for k, v in ends.items()), sep="\n  ")
    record_property("figure", f"{len(good)}/{len(ends)}")
    assert good == ends and ends


def test_a_diverged_command_exits_non_zero(monkeypatch):
    def run(config):
        raise runs.Diverged("lower", 3, [1, 2])

    train = importlib.import_module("weight_mixup.train")
    monkeypatch.setattr(sys, "argv", ["train", "--tiny"])
    monkeypatch.setattr(signal, "signal", lambda *words: None)
    with pytest.raises(
        SystemExit, match=r"diverged: lower level: value nan at step 3, batch items \[1, 2\]"
    ):
        runs.command_line(train.Config, run, train.__doc__, train.__file__)


# --- 10: configurations that cannot be meant ------------------------------------------------------------------------------


class LoadedTooSoon(Exception):
    """A model or a data file was touched before the settings were refused."""


RATE = {"tapweight": "lr_I"}  # else lr
BATCH = {"tapweight": "batch_I"}  # else batch
CHOICE = {  # a field, a typo, the value meant
    "autolora": ("kind", "serach", "search"), "tapweight": ("mode", "exact-dt", "exact-dot"),
    "weight_mixup": ("search", "exat", "exact"), "ppo_nlu": ("method", "pppo", "ppo"),
    "ts_watermark": ("job", "evalute", "evaluate"), "mlo_mae": ("mask", "lerned", "learned"), "dasgm": ("variant", "jiont", "joint"),
}  # fmt: skip


def bad_words(paper: str, case: str) -> tuple[list[str], list[str]]:
    """Command line, and the words that the refusal must have."""
    document = protocol.Protocol(ROOT / paper).document
    arm = document["tiny"]["arm"]
    task = next(iter(document["scales"]["cpu"]["tasks"]))
    rate, batch = RATE.get(paper, "lr"), BATCH.get(paper, "batch")
    field, typo, meant = CHOICE[paper]
    return {
        "arm misspelt": (["--arm", arm[:-1] + arm[-1] * 2], [arm]),
        "task misspelt": (["--task", task[:-1] + task[-1] * 2], [task]),
        "scale misspelt": (["--scale", "cpuu"], ["cpuu", "cpu"]),
        "option misspelt": (["--tiny", f"--{batch}z", "3"], [f"--{batch.replace('_', '-')}"]),
        "whole number expected": (
            ["--tiny", f"--{batch}", "many"],
            [batch.replace("_", "-"), "many"],
        ),
        "number expected": (["--tiny", f"--{rate}", "fast"], [rate.replace("_", "-"), "fast"]),
        "seed not a number": (["--tiny", "--seed", "one"], ["seed", "one"]),
        "rate negative": (["--tiny", f"--{rate}", "-1"], [rate, "-1"]),
        "batch negative": (["--tiny", f"--{batch}", "-4"], [batch, "-4"]),
        "choice misspelt": (["--tiny", f"--{field}", typo], [field.replace("_", "-"), meant]),
        "no such device": (["--tiny", "--device", "cuda:7"], ["cuda:7", "cpu"]),
    }[case]


CASES = ["arm misspelt", "task misspelt", "scale misspelt", "option misspelt", "whole number expected", "number expected",
         "seed not a number", "rate negative", "batch negative", "choice misspelt", "no such device"]  # fmt: skip


@pytest.mark.parametrize("paper, case", itertools.product(PAPERS, CASES))
def test_a_bad_command_is_refused_before_anything_is_loaded(
    paper, case, tmp_path, monkeypatch, capsys
):
    train = importlib.import_module(f"{paper}.train")
    words, expected = bad_words(paper, case)

    def too_soon(*words, **more):
        raise LoadedTooSoon

    monkeypatch.setattr(torch.nn.Module, "__init__", too_soon)
    monkeypatch.setattr(sources, "note", too_soon)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda *words: None)
    monkeypatch.setattr(
        runs, "_train_used", lambda *words: None
    )  # stages are another command's business
    monkeypatch.setattr(runs.Run, "open", lambda self: None)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["train", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        runs.command_line(train.Config, train.run, train.__doc__, train.__file__)
    said = str(error.value) + capsys.readouterr().err
    assert error.value.code != 0 and all(w in said for w in expected), said


BAD_PROTOCOLS = {
    "key of the defaults misspelt": (lambda d, f: d.setdefault("defaults", {}).update({f + "z": 1}), lambda f: f"did you mean '{f}'"),
    "type in tiny": (lambda d, f: d["tiny"]["set"].update({f: "many"}), lambda f: f"{f} = 'many' is str"),
    "unknown stage": (lambda d, f: next(iter(d["arms"].values())).update(uses=["nothing"]), lambda f: "unknown key 'nothing'"),
    "negative number": (lambda d, f: d["tiny"]["set"].update({f: -4}), lambda f: f"{f} = -4 must be a finite number of at least 0"),
    "unknown scale": (lambda d, f: d["scales"].update(cpuu={"tasks": []}), lambda f: "did you mean 'cpu'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PROTOCOLS)
@pytest.mark.parametrize("paper", PAPERS)
def test_a_bad_protocol_is_refused_before_anything_is_loaded(paper, case, tmp_path):
    import yaml

    (tmp_path / paper).mkdir()
    shutil.copy(ROOT / paper / "train.py", tmp_path / paper)
    document = yaml.safe_load((ROOT / paper / "protocol.yaml").read_text())
    for arm, body in document["arms"].items():
        document["arms"][arm] = body or {}
    spoil, expected = BAD_PROTOCOLS[case]
    field = BATCH.get(paper, "batch")
    spoil(document, field)
    (tmp_path / paper / "protocol.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(protocol.BadInput) as error:
        protocol.Protocol(tmp_path / paper)
    assert expected(field) in str(error.value)


# --- 13: no leak -------------------------------------------------------------------------------------------------------


def test_no_item_is_in_two_levels(method, record_property):
    """Parts of one run are disjoint, pair by pair; and no stage saw a test item of the run that is scored."""
    parts = {n.arm: runs.load_arrays(method.directory(n) / "splits.npz") for n in method.nodes
             if (method.directory(n) / "splits.npz").exists()}  # fmt: skip
    pairs = 0
    for held in parts.values():
        for a, b in itertools.combinations(held, 2):
            assert not np.intersect1d(held[a], held[b]).size, (a, b)
            pairs += 1
    tested = parts[method.nodes[-1].arm]["test"]
    for arm, held in parts.items():
        for name, ids in held.items():
            if name != "test":
                assert not np.intersect1d(tested, ids).size, (arm, name)
                pairs += 1
    assert pairs
    record_property("figure", f"{pairs}/{pairs}")


# --- 20: offline, cold --------------------------------------------------------------------------------------------------


def without_network() -> list[str]:
    """Words that run a command in a network namespace without routes, where this machine allows it."""
    words = ["unshare", "-rn"]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return words if allowed else []


def cold(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty home and no place for data, models or caches but new ones."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("REPRO_", "HF_", "XDG_", "TRANSFORMERS_"))
    }
    home = tmp_path / "home"
    home.mkdir()
    return {**kept, "HOME": str(home), "REPRO_RUNS": str(tmp_path / "runs"), "REPRO_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_offline_cold_start_trains(paper, tmp_path):
    command = [*without_network(), sys.executable, "-m", f"{paper}.train", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=cold(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert all_records(tmp_path / "runs")


def without_data(paper: str, tmp_path: Path) -> str:
    """What the judge says of the paper's own protocol on a machine without data, models and network."""
    command = [
        *without_network(),
        sys.executable,
        "-m",
        "benchmarks.reproduce",
        paper,
        "--scale",
        "paper",
    ]
    env = cold(tmp_path) | {"REPRO_DATA": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in said, said[-3000:]
    assert not list((tmp_path / "runs").rglob("record.json"))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_offline_the_papers_protocol_names_what_is_missing(paper, tmp_path):
    """A status of its own, no traceback, nothing trained."""
    assert "missing for scale paper" in without_data(paper, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_offline_the_papers_protocol_says_how_to_fetch_it(paper, tmp_path):
    said = without_data(paper, tmp_path)
    assert "NOT RUN" in said and "hf download" in said, said[-3000:]
