"""What the tools refuse, naming the value and the remedy, before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared import examples
from shared.inputs import MissingInput
from shared.protocol import BadInput

IDS, LABELS = torch.zeros(8, 3, dtype=torch.long), torch.zeros(8, dtype=torch.long)
GOOD = {"input_ids": IDS, "labels": LABELS}


@pytest.mark.parametrize(("value", "said"), [
    ([IDS], "examples are no mapping"),
    ({"input_ids": IDS.tolist()}, "tokenizer"),
    ({"input_ids": IDS, "labels": LABELS[:5]}, "numbers of rows differ.*'labels': 5"),
    ({"input_ids": IDS[:2]}, "2 examples: give at least 4"),
])  # fmt: skip
def test_examples_that_cannot_be_used(value, said):
    with pytest.raises(BadInput, match=said):
        examples.count(value)


def test_a_model_without_a_loss_is_refused():
    class Silent(nn.Module):
        def forward(self, **_):
            return type("Output", (), {"loss": None})

    with pytest.raises(BadInput, match="Silent returns no loss for a batch of input_ids; add lab"):
        examples.model_loss(Silent(), {"input_ids": IDS})


def test_objectives_are_functions_that_return_a_scalar():
    from tapweight import tool

    encoder = nn.Linear(2, 2)
    with pytest.raises(BadInput, match=r"objectives: give a mapping \{name"):
        tool.learn_weights(encoder, [], GOOD, sum, GOOD)
    with pytest.raises(BadInput, match="masked is list, not a function; give f"):
        tool.learn_weights(encoder, {"masked": [1.0]}, GOOD, sum, GOOD)

    def vector(model, batch):
        return model(torch.ones(4, 2)).sum(1)

    with pytest.raises(BadInput, match=r"one returns \(4,\); give a scalar tensor"):
        tool.learn_weights(encoder, {"one": vector}, GOOD, vector, GOOD, steps=1)


@pytest.mark.parametrize(("images", "labels", "said"), [
    (torch.rand(6, 1, 8, 8), [0, 1] * 3, "torch.float32.*give uint8"),
    (torch.zeros(6, 8, 8, dtype=torch.uint8), [0, 1] * 3, r"shape \(6, 8, 8\)"),
    (torch.zeros(6, 1, 8, 8, dtype=torch.uint8), [0, 1], r"labels are .* give int64 \(6,\)"),
    (torch.zeros(6, 1, 8, 8, dtype=torch.uint8), [0] * 5 + [2], "class 1 of 3 has 0 images"),
])  # fmt: skip
def test_images_that_cannot_be_used(images, labels, said):
    from dasgm import tool

    with pytest.raises(BadInput, match=said):
        tool.search(images, torch.tensor(labels))


def test_a_folder_without_classes_of_images_is_refused(tmp_path):
    from mlo_mae import tool

    with pytest.raises(MissingInput, match="is no folder"):
        tool.pretrain(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "images" / "birds").mkdir(parents=True)
    with pytest.raises(BadInput, match="class birds has fewer than 5 images; give two folders"):
        tool.pretrain(tmp_path / "images", tmp_path / "out")
    with pytest.raises(BadInput, match="size 30 by patch 16"):
        tool.pretrain(tmp_path / "images", tmp_path / "out", size=30)
