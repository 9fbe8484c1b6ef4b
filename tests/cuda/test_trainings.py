"""Every paper trains on a CUDA device: `make test-gpu` on a real one, `make test` on a pretended
one (test_pretended.py). Scale `gpu`, cut in length."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import reliable
import torch
from safetensors.torch import load_file
from short_gpu import Paper, record_on

from benchmarks import PAPERS
from shared import protocol, runs

pytestmark = pytest.mark.gpu


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


def goes_on(paper: Paper, node: protocol.Node, steps: int, out: Path) -> None:
    """Stopped in its middle and continued after other draws, a run ends with the same bits."""
    with pytest.MonkeyPatch.context() as patch:
        reliable.stop_after(patch, max(1, steps // 2))
        with pytest.raises(runs.Stopped):
            paper.run(node, out)
    assert reliable.checkpoints(out)
    torch.manual_seed(999)
    reliable.assert_same(record_on(paper.device, paper.run(node, out)), paper.record(node))


@pytest.mark.parametrize("name", PAPERS)
def test_the_method_and_an_opponent(name, device, tmp_path):
    """Both arms of a claim: trained, scored, exported; the method also interrupted."""
    paper, steps = Paper(name, tmp_path, device), {}
    nodes = chain(paper, paper.node(paper.method))
    for node in nodes:
        with reliable.steps_taken() as steps[node.key]:
            directory = paper.run(node)
        record_on(device, directory)
        exports_are_of_no_device(directory)
    scores_again(name, directory)
    trained = [node for node in nodes if paper.record(node)["gradient_evaluations"]]
    goes_on(paper, trained[-1], len(steps[trained[-1].key]), tmp_path / "halves")
    for arm in paper.opponents():  # the first that trains: some only ask a model
        if record_on(device, paper.run(paper.node(arm)))["gradient_evaluations"]:
            return
    pytest.fail("no opponent trains")
