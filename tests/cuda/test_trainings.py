"""Every paper trains on a CUDA device: `make test-gpu` on a real one, `make test` on a pretended
one (test_pretended.py). Scale `gpu`, cut in length."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import reliable
import torch
from counted import Steps, hand_over
from safetensors.torch import load_file
from short_gpu import Paper, record_on

from benchmarks import PAPERS, papers
from shared import protocol, runs

pytestmark = pytest.mark.gpu
SCORED = ("evaluate", "prompt")  # jobs that train nothing


def scores_again(paper: str, directory: Path) -> None:
    """What is recorded is what `evaluate` makes of the predictions, on the host."""
    predictions = runs.load_arrays(directory / "predictions.npz")
    score = importlib.import_module(f"{paper}.evaluate").score
    recorded = reliable.record(directory)["metrics"]
    again = score(predictions)
    assert again and {name: recorded[name] for name in again} == pytest.approx(again, nan_ok=True)


def on_the_host(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.device.type == "cpu"
    parts = value.values() if isinstance(value, dict) else value
    return not isinstance(parts, list | tuple) or all(map(on_the_host, parts))


def exports_are_of_no_device(directory: Path) -> None:
    """What a run leaves behind is there, and its weights load where there is no CUDA."""
    for name in reliable.record(directory)["exports"]:
        files = [path for path in (directory / name).rglob("*") if path.is_file()]
        assert files, name
        for path in files:
            if path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix in (".pt", ".pth"):
                assert on_the_host(torch.load(path)), path


def chain(paper: Paper, node: protocol.Node) -> list[protocol.Node]:
    """The runs that a run uses, in order, and the run itself."""
    nodes: list[protocol.Node] = []
    for key in node.uses:
        nodes += [n for n in chain(paper, paper.protocol.node(paper.scale, *key)) if n not in nodes]
    return [*nodes, node]


def continued(paper: Paper, node: protocol.Node, out: Path) -> dict[str, Any]:
    """The record of a run that was stopped after its first step, and went on after other draws."""
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        reliable.stop_after(patch, 1)
        with pytest.raises(runs.Stopped):
            paper.run(node, out)
    assert reliable.checkpoints(out)
    torch.manual_seed(999)
    return record_on(paper.device, paper.run(node, out))


def opponent(paper: Paper, ours: list[protocol.Node]) -> tuple[protocol.Node, list[protocol.Node]]:
    """The first opponent that trains, with its runs beside those of the method."""
    for node in map(paper.node, paper.opponents()):
        own = [n for n in chain(paper, node) if n not in ours]
        scored = paper.settings(node, paper.home).get("job") in SCORED
        if own != [node] or not scored:
            return node, own
    pytest.fail("no opponent trains")


@pytest.mark.parametrize("name", PAPERS)
def test_the_method_and_an_opponent(name, device, tmp_path):
    """Both arms of a claim: trained, scored, exported; the method also interrupted."""
    paper, steps = Paper(name, tmp_path, device), {}
    nodes = chain(paper, paper.node(paper.method))
    for node in nodes:
        with Steps() as steps[node.key]:
            directory = paper.run(node)
        hand_over(paper, node, steps[node.key])
        steps[node.key].within(papers.paper(name).waits)
        record_on(device, directory)
        exports_are_of_no_device(directory)
    scores_again(name, directory)
    last = [node for node in nodes if paper.record(node)["gradient_evaluations"]][-1]
    again, whole = continued(paper, last, tmp_path / "halves"), paper.record(last)
    assert {k: again[k] for k in reliable.SAME} == {k: whole[k] for k in reliable.SAME}

    node, own = opponent(paper, nodes)
    with Steps() as of_opponent:
        record_on(device, paper.run(node))
    assert any(paper.record(n)["gradient_evaluations"] for n in own)
    hand_over(paper, node, of_opponent, opponent=True)
