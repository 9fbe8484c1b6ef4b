"""Every arm of the scales `gpu` and `rehearsal` on a CUDA device, the method on every task; and
the same run on the host."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator

import pytest
import torch
from short_gpu import Paper, difference, record_on, trained_tensors
from test_trainings import chain

from benchmarks import PAPERS
from shared import protocol
from shared.inputs import MissingInput

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
# arms of libraries whose kernels have no order: under DETERMINISTIC=1, as here, refused by name
NO_ORDER = {"adalora": "kthvalue"}


def every(paper: Paper) -> Iterator[protocol.Node]:
    for task in paper.protocol.arm_tasks(paper.method, paper.scale):
        yield paper.node(paper.method, task)
    for arm in paper.protocol.selected(paper.scale, "all"):
        if paper.protocol.arm_tasks(arm, paper.scale):
            yield paper.node(arm)


@pytest.mark.parametrize("scale", ["gpu", "rehearsal"])
@pytest.mark.parametrize("name", PAPERS)
def test_every_arm(name, scale, device, tmp_path):
    paper, failed, missing = Paper(name, tmp_path, device, scale), [], []
    nodes = {node.key: node for node in every(paper)}
    for node in nodes.values():
        try:
            record_on(device, paper.run(node))
        except MissingInput as error:  # a package: RDKit
            missing.append(f"{node.key}: {error}")
        except Exception as error:
            kernel = NO_ORDER.get(node.arm)
            if kernel and f"{kernel} does not have a deterministic" in str(error):
                continue
            failed.append(f"{node.key}: {traceback.format_exc(limit=-4)}")
    print(*missing, sep="\n")
    assert not failed, f"{len(failed)} of {len(nodes)}\n" + "\n".join(failed)
    assert len(missing) < len(nodes)


@pytest.mark.parametrize("name", PAPERS)
def test_with_host_draws_a_run_is_that_of_the_host(name, device, tmp_path, monkeypatch):
    """In fp32, with the draws of the host: trained tensors and scores, to rounding."""
    if os.environ.get("PRETEND_CUDA_DRAWS") != "host":
        pytest.skip("CUDA draws other numbers than the host; the pretended device need not")
    enter = torch.autocast.__init__

    def off(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        enter(self, device_type, dtype, False, cache_enabled)

    monkeypatch.setattr(torch.autocast, "__init__", off)
    states = trained_tensors(monkeypatch)
    both = {}
    for place in ("cpu", "cuda"):
        torch.manual_seed(0)
        paper = Paper(name, tmp_path / place, place)
        records = {
            n.arm: record_on(place, paper.run(n)) for n in chain(paper, paper.node(paper.method))
        }
        both[place] = dict(states), records
        states.clear()
    (on_host, records), (on_device, again) = both["cpu"], both["cuda"]
    apart = {run: difference(on_host[run], on_device[run]) for run in on_host}
    assert on_host.keys() == on_device.keys() and max(apart.values()) < 1e-3, apart
    for arm, record in records.items():
        assert record["split_sha256"] == again[arm]["split_sha256"]
        assert record["metrics"] == pytest.approx(again[arm]["metrics"], rel=0.02, abs=0.02), arm
