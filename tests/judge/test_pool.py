"""The pool's workers: a process in which a run crashed trains nothing else."""

import pytest

from benchmarks.pool import Pool
from shared.protocol import Node

TRAIN = """
import dataclasses, os, pathlib

poisoned = False  # a CUDA error stays with its process


@dataclasses.dataclass
class Config:
    place: str
    name: str


def run(config):
    global poisoned
    log = pathlib.Path(config.place, "log")
    lines = log.read_text().splitlines() if log.exists() else []
    poisoned = poisoned or (config.name == "bad" and not any(x.startswith("bad") for x in lines))
    device = os.environ.get("CUDA_VISIBLE_DEVICES")
    with log.open("a") as file:
        file.write(f"{config.name} {os.getpid()} {device} {'lost' if poisoned else 'fine'}\\n")
    if poisoned:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_cuda_error_costs_one_attempt(tmp_path, jobs):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "__init__.py").write_text("")
    (tmp_path / "fake" / "train.py").write_text(TRAIN)
    ended = {}
    pool = Pool(
        root=tmp_path,
        paper="fake",
        jobs=jobs,
        logs=tmp_path / "logs",
        config=lambda node: {"place": str(tmp_path), "name": node.arm},
        ended=lambda node, outcome: ended.update({node.arm: outcome}),
        gpus=["4", "7"],
    )
    nodes = [Node(arm, "task", 0, False) for arm in ("first", "bad", "after", "last")]
    outcomes = pool.run(nodes, set())
    assert {key[0]: o.status for key, o in outcomes.items()} == dict.fromkeys(ended, "finished")
    assert ended["bad"].attempts == 2 and ended["after"].attempts == 1 and len(ended) == 4
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, _, _, state in lines if state == "lost"] == ["bad"]
    # the new worker has the place of the one that left: its log and its GPU
    assert len(list((tmp_path / "logs").iterdir())) == jobs
    assert {gpu for _, _, gpu, _ in lines} <= set(["4", "7"][:jobs])
