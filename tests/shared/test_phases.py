"""Phases of a run: stopped anywhere, also in evaluation, it ends as if nothing had happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared import runs
from shared.runs import BadInput, Batches, Parts, schedule


def train(folder, monkeypatch, stop_after=10**9):
    """Two trainings of one weight and an evaluation, asked to stop after some steps; the run."""
    count = iter(range(10**9))
    asked = [False]
    monkeypatch.setattr(runs, "_stop_asked", lambda: asked[0])
    with runs.start(runs.RunConfig("cpu", "arm", "task", out=str(folder)), __file__) as run:
        w = torch.zeros(3)
        noise = runs.stream(0, "noise")
        optimizer = torch.optim.AdamW([w.requires_grad_()], 0.1)
        losses: dict[str, float] = {}
        for name, aim in (("first", 1.0), ("second", -1.0)):
            work = Parts(w=[w], optimizer=optimizer, noise=noise, losses=losses)
            for step in run.phase(name, 7, work):
                asked[0] = next(count) + 1 >= stop_after
                loss = ((w - aim + torch.randn(3, generator=noise)) ** 2).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[name] = loss.item()
                run.log(step=step, phase=name, loss=loss.item())
        rows: list[float] = []
        for step in run.phase("evaluation", 5, Parts(rows=rows)):
            asked[0] = next(count) + 1 >= stop_after
            rows.append(w.sum().item() + step)
        run.finish(state=[w], rows=rows, losses=losses)
    return run


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    monkeypatch.setattr(runs, "_worker", False)
    monkeypatch.setattr(runs.protocol, "code_hashes", lambda file: {"test": "1"})


def outcome(run):
    record = runs.protocol.read_record(run.directory)
    return record["state_sha256"], record["details"], (run.directory / "metrics.jsonl").read_text()


@pytest.mark.parametrize("stops", [(3,), (7,), (9,), (16,), (1, 5, 4, 7), (2, 2, 2)])
def test_stopped_anywhere_a_run_ends_alike(tmp_path, monkeypatch, stops):
    whole = outcome(train(tmp_path / "whole", monkeypatch))
    for stop in stops:
        with pytest.raises(runs.Stopped):
            train(tmp_path / "cut", monkeypatch, stop)
    assert outcome(train(tmp_path / "cut", monkeypatch)) == whole


def test_phases_of_one_name_are_refused(tmp_path):
    config = runs.RunConfig("cpu", "arm", "task", out=str(tmp_path / "twice"))
    with runs.start(config, __file__) as run:
        list(run.phase("training", 1))
        with pytest.raises(ValueError, match="two phases"):
            list(run.phase("training", 1))


def test_a_part_that_cannot_be_restored_is_named():
    with pytest.raises(TypeError, match="float"):
        Parts(loss=1.0).load({"loss": 2.0})


def test_batches_are_whole_epochs_in_an_order_of_their_own():
    batches = Batches(np.arange(10, 20), 4, 3, "lower")
    assert batches.per_epoch == 2
    first = np.concatenate([batches(0), batches(1)])
    assert len(set(first)) == 8 and set(first) <= set(range(10, 20))
    order = torch.randperm(10, generator=runs.stream(3, "lower", 0)).numpy()
    assert (first == np.arange(10, 20)[order][:8]).all()
    assert (
        batches(1) == Batches(np.arange(10, 20), 4, 3, "lower")(1)
    ).all()  # whatever was asked before
    whole = Batches(torch.arange(10), 4, 3, "lower", keep_last=True)
    epoch = torch.cat([whole(3), whole(4), whole(5)])
    assert whole.per_epoch == 3 and sorted(epoch.tolist()) == list(range(10))
    for rows, size in ((np.arange(0), 4), (np.arange(4), 0)):
        with pytest.raises(BadInput, match="at least 1"):
            Batches(rows, size, 0, "lower")


def test_schedules():
    assert [schedule("linear", t, 4) for t in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [schedule("linear", t, 6, 2) for t in range(3)] == [0.5, 1.0, 1.0]
    assert schedule("cosine", 0, 10) == 1.0 and schedule("cosine", 5, 10) == pytest.approx(0.5)
    assert schedule("cosine", 12, 10) == 0.0 and schedule("constant", 9, 10, 4) == 1.0
