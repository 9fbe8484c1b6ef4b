"""One run on several processes: who takes which rows, and that two processes are one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import PAPERS
from shared import processes, runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("n", [8, 7, 3, 1])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_rows_are_divided_evenly_and_none_is_left_out(monkeypatch, n, kind):
    rows, taken = list(range(10, 10 + n)), []
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    for k in range(4):
        monkeypatch.setattr(processes, "rank", lambda k=k: k)
        taken.append([int(x) for x in processes.shard(kind(rows))])
    assert {len(t) for t in taken} == {-(-n // 4)}
    assert {x for t in taken for x in t} == set(rows)


def test_one_process_is_left_alone():
    rows = torch.arange(5)
    gradient = torch.nn.Parameter(torch.ones(2))
    gradient.grad = torch.tensor([1.0, 2.0])
    processes.mean_gradients([gradient])
    assert processes.shard(rows) is rows
    assert processes.noise_names() == () and processes.world_size() == 1
    assert processes.any_rank(True, False) == (True, False) and processes.broadcast("x") == "x"
    assert gradient.grad.tolist() == [1.0, 2.0]


BODY = """
import torch, torch.distributed as dist
from accelerate import PartialState
from shared import processes
PartialState(cpu=True)
rank = processes.rank()
assert processes.world_size() == 2 and processes.gather(rank) == [0, 1]
assert processes.broadcast(rank) == 0 and processes.any_rank(rank == 1, False) == (True, False)
a, b, c = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
processes.average_before_steps()
optimiser = torch.optim.SGD([a, b, c], lr=1.0)
a.grad = torch.full((2,), float(rank))        # 0 and 1: mean 0.5
if rank: b.grad = torch.ones(2)  # it counts as zero in the other process
optimiser.step()
assert a.tolist() == [-0.5, -0.5] and b.tolist() == [-0.5, -0.5] and c.grad is None, (a, b, c)
with processes.single():                       # no message is sent: the other process is elsewhere
    if rank:
        a.grad = torch.ones(2)
        optimiser.step()
        assert processes.shard([1, 2]) == [1, 2]
assert a.tolist() == ([-0.5, -0.5] if rank == 0 else [-1.5, -1.5])
dist.destroy_process_group()
"""


def launch(*words: str, config: str = "ddp", **environ: str) -> subprocess.CompletedProcess:
    """`accelerate launch` with the project's configuration: two processes, gloo on CPUs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = ["-m", "accelerate.commands.launch", "--config_file", f"configs/{config}.yaml"]
    group = ["--num_processes", "2", "--main_process_port", port]
    command = [sys.executable, *launch, *group, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environ}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


def test_two_processes_average_and_agree(tmp_path):
    body = tmp_path / "body.py"
    body.write_text(BODY)
    done = launch(str(body), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]


def records(home: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(home.rglob("record.json"))}


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_two_processes_train_every_method_and_stay_equal(paper, tmp_path):
    """Every run of the tiny chain: two processes ended with the same weights, and gates hold."""
    done = launch("-m", f"{paper}.train", "--tiny", "--device", "cpu", REPRO_RUNS=str(tmp_path))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    by_arm = records(tmp_path)
    assert by_arm
    for arm, record in by_arm.items():
        assert record["details"]["processes"] == {"number": 2, "equal": True}, arm
        assert all(g["passed"] for g in record["gates"]), (arm, record["gates"])


def tensors(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value.double()
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f"{name}.{key}")


# Methods whose rows draw no noise of their own, whose networks hold no batch statistics and where
# nothing is ranked: the masks of mlo_mae may flip by rounding (its own test compares fewer steps),
# the answers of ppo_nlu are drawn (its own test compares updates).
@pytest.mark.slow
@pytest.mark.parametrize("paper", ["autolora", "weight_mixup"])
def test_two_processes_equal_one_to_the_last_optimiser(paper, tmp_path):
    """Weights, upper variables and moments after all steps of every run, up to rounding."""
    keep = {"REPRO_CHECKPOINT_SECONDS": "0", "KEEP": "1"}
    machine = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = ["tests/launched.py", paper, "--tiny", "--device", "cpu"]
    one = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **machine, "REPRO_RUNS": str(tmp_path / "one"), **keep},
    )  # fmt: skip
    assert one.returncode == 0, one.stderr[-3000:]
    two = launch(*words, REPRO_RUNS=str(tmp_path / "two"), **keep)
    assert two.returncode == 0, two.stderr[-3000:]
    assert {r["details"]["processes"]["number"] for r in records(tmp_path / "two").values()} == {2}
    compared = 0
    for a in sorted((tmp_path / "one").rglob("step-*.pt")):
        b = tmp_path / "two" / a.relative_to(tmp_path / "one")
        alone, together = (dict(tensors(runs.unpack(p.read_bytes(), p.name))) for p in (a, b))
        assert alone.keys() == together.keys()
        for name, x in alone.items():
            if x.numel():
                assert (x - together[name]).abs().max() <= 1e-4 * max(1.0, float(x.abs().max())), (
                    a,
                    name,
                )
                compared += 1
    assert compared


@pytest.mark.slow
def test_fsdp2_configuration_trains_ppo(tmp_path):
    """configs/fsdp2.yaml: a tiny Llama, its frozen weights divided between two processes."""
    words = (
        "-m",
        "ppo_nlu.train",
        "--scale",
        "rehearsal",
        "--arm",
        "ppo",
        "--task",
        "rte",
        "--device",
        "cpu",
    )
    done = launch(*words, config="fsdp2", REPRO_RUNS=str(tmp_path))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "weights divided among 2 processes (FSDP2)" in done.stdout
    record = records(tmp_path)["ppo"]
    assert record["details"]["processes"] == {"number": 2, "equal": True}
    assert all(g["passed"] for g in record["gates"]) and record["exports"] == ["export"]
