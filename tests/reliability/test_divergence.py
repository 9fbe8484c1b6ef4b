"""Not a number: found within its step, named, recorded; no checkpoint is written after (item 9)."""

from __future__ import annotations

import gc
import importlib
import itertools
import signal
import sys
import weakref
from pathlib import Path

import pytest
import torch
from reliable import Method, checkpoints, record, steps_taken, stop_after

from shared import protocol, runs


def poisoned(
    method: Method, node: protocol.Node, out: Path, at: int, which: int
) -> tuple[str, int] | None:
    """The run with NaN in its `which`-th optimiser's variables before step `at`; None: no such.

    Every level moves its own variables by its own optimiser, so this is a fault of one level.
    Returns how the run ended and the last step that a checkpoint would continue at."""
    refs: list[weakref.ref[torch.optim.Optimizer]] = []
    spoilt = []
    initialise = torch.optim.Optimizer.__init__

    def new(self, *words, **more):
        initialise(self, *words, **more)
        refs.append(weakref.ref(self))

    def spoil(number: int) -> None:
        if number == at:
            gc.collect()
            optimisers = [o for r in refs if (o := r()) is not None]  # those still in use
            if -len(optimisers) <= which < len(optimisers):
                spoilt.append(which)
                for p in optimisers[which].param_groups[0]["params"]:
                    p.data.fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch, steps_taken(spoil):
        patch.setattr(torch.optim.Optimizer, "__init__", new)
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
    return (ended, max(int(p.stem[5:]) for p in checkpoints(out))) if spoilt else None


# A step that uses the variables of all levels; mlo_mae's cycle of two ends with every odd step.
USED = {"mlo_mae": 3}


@pytest.mark.slow
def test_nan_in_any_level_stops_within_its_step(method, tmp_path, record_property):
    """Each optimiser's variables of each run, at an early step, and those in use at the end:
    recorded as diverged, a level named, no checkpoint written after."""
    ends = {}
    for node in method.nodes:
        total = method.steps[node.arm]
        early = USED.get(method.paper, 2)
        if total < 4:
            continue
        for which in itertools.count():
            out = tmp_path / f"{node.arm}-{which}"
            end = poisoned(method, node, out, early, which)
            if end is None:
                break
            ends[node.arm, which, early] = end
        end = poisoned(method, node, tmp_path / f"{node.arm}-late", total - 1, -1)
        if end is not None:
            ends[node.arm, "last", total - 1] = end
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
