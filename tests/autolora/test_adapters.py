"""Retrained models: plain LoRA with given ranks, and AdaLoRA; numbers as in section 11."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autolora import adapters, maps, method
from shared import runs


def stream(*names):
    return runs.stream(0, *names)


@pytest.mark.parametrize("scale", ["per_rank", "constant"])
def test_12_rebuilt_model_has_the_ranks_and_scales_map_by_map(scale, tiny_bert):
    found = method.adapted_maps(tiny_bert)
    ranks = {name: 2 + i % 4 for i, name in enumerate(found)}
    ranks["bert.encoder.layer.11.attention.self.query"] = 7
    wrapped = method.lora(tiny_bert, ranks, 8, "classifier", lambda n: stream("A", n), scale=scale)
    assert maps.ranks_read_back(wrapped) == ranks  # block 1 and block 11 differ
    for name, made in maps.lora_layers(wrapped).items():
        expected = 16 / ranks[name] if scale == "per_rank" else 2.0
        assert made.scaling["default"] == pytest.approx(expected)
        assert not made.lora_B["default"].weight.any()
    trained = [n for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" in n]
    numbers = [wrapped.get_parameter(n).numel() for n in trained]
    assert sum(numbers) == sum(r * 32 for r in ranks.values())


def test_12_both_patterns_have_the_maps_as_keys():
    made = method.patterns({"a.query": 2, "b.query": 3}, 8)
    assert made["target_modules"] == ["a.query", "b.query"]
    assert made["rank_pattern"].keys() == made["alpha_pattern"].keys()


def test_13_ranks_share_their_first_rows_whatever_their_rank():
    starts = []
    for rank in (2, 5):
        made = torch.empty(rank, 16)
        method.start_A(made, stream("A"))
        starts.append(made)
    assert torch.equal(starts[0], starts[1][:2]) and starts[1].abs().max() <= 0.25


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_adalora_needs_three_steps(tiny_bert, steps):
    names = list(method.adapted_maps(tiny_bert))
    if steps == 3:
        adapters.adalora(tiny_bert, names, 31, steps, "classifier")
        return
    with pytest.raises(runs.BadInput, match=f"{steps} training steps: .* at least 3; raise steps"):
        adapters.adalora(tiny_bert, names, 31, steps, "classifier")


def test_adalora_reaches_the_total_and_resumes_its_allocator(tiny_bert):
    names = list(method.adapted_maps(tiny_bert))
    runs.seed_global(0, "adalora")
    wrapped = adapters.adalora(tiny_bert, names, 31, 20, "classifier", dropout=0.0)
    allocator = adapters.Allocator(wrapped)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    ids, labels = torch.randint(50, (4, 6)), torch.tensor([0, 1, 2, 0])
    for step in range(20):
        loss = F.cross_entropy(wrapped(input_ids=ids).logits, labels)
        (loss + allocator.penalty()).backward()
        optimizer.step()
        allocator.prune(step + 1)
        optimizer.zero_grad()
        if step == 10:
            allocator.load_state_dict(allocator.state_dict())
    assert sum(allocator.ranks().values()) == 31
    wrapped.eval()
    # peft adds the penalty to a model's own loss
    penalised = wrapped.base_model(input_ids=ids, labels=labels).loss
    bare = F.cross_entropy(wrapped(input_ids=ids).logits, labels)
    assert torch.allclose(penalised, bare + allocator.penalty(), atol=1e-5)
