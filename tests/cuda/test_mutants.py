"""Mistakes that only a CUDA device shows, planted: the short trainings must not survive them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from short_gpu import Paper
from test_trainings import continued

from benchmarks import PAPERS
from shared import runs

pytestmark = pytest.mark.gpu
Patch = pytest.MonkeyPatch
FEW = [PAPERS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PAPERS[1:])]


def labels_stay(patch: Patch) -> None:
    """Labels are not moved to the device."""
    to = torch.Tensor.to

    def mutant(self: torch.Tensor, *words, **more) -> torch.Tensor:
        moved = to(self, *words, **more)
        labels = self.dtype == torch.int64 and self.dim() == 1
        return self if labels and moved.is_cuda and not self.is_cuda else moved

    patch.setattr(torch.Tensor, "to", mutant)


def streams_of_the_device(patch: Patch) -> None:
    """Generators lie on the device, and draw for the host."""
    patch.setattr(runs, "stream", lambda *names: torch.Generator("cuda").manual_seed(0))


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    ("mutant", "words"), [(labels_stay, "same device"), (streams_of_the_device, "generator")]
)
def test_what_lies_on_the_wrong_device(mutant: Callable, words, name, device, tmp_path):
    if mutant is labels_stay and name == "ppo_nlu":
        pytest.skip("a rule reads its labels, which never are tensors")
    paper = Paper(name, tmp_path, device)
    with Patch.context() as patch:
        mutant(patch)
        with pytest.raises(RuntimeError, match=words):
            paper.run(paper.node(paper.method))


def seeds_of_the_host(patch: Patch) -> None:
    """The device's random state is not put back: dropout there goes on from wherever it was."""

    def mutant(seed: int, *names: object) -> None:
        torch.default_generator.manual_seed(runs._number(seed, names))

    patch.setattr(runs, "seed_global", mutant)


def test_random_state_of_the_device_after_a_stop(device, tmp_path):
    paper = Paper("weight_mixup", tmp_path, device)
    node = paper.node(paper.opponents()[0])
    with Patch.context() as patch:
        seeds_of_the_host(patch)
        torch.manual_seed(1)
        paper.run(node)
        again = continued(paper, node, tmp_path / "halves")
    assert again["split_sha256"] == paper.record(node)["split_sha256"]
    assert again["state_sha256"] != paper.record(node)["state_sha256"]
