"""What PPO is compared with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ppo_nlu import baselines, method, official
from ppo_nlu.config import Config
from shared.protocol import BadInput


def test_group_advantages_by_hand():
    R = torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert torch.allclose(
        baselines.group_advantages(R, "rloo", 2), torch.tensor([2.0, -2.0, 0.0, 0.0])
    )
    assert torch.allclose(baselines.group_advantages(R, "reinforce", 2), R - (R.sum() - R) / 3)
    a = baselines.group_advantages(R, "grpo", 2)
    assert float(a[0]) == pytest.approx(1 / (2**0.5 + 1e-4)) and float(a[2]) == 0


def test_sft_loss_counts_the_answer_only(tiny_policy):
    policy, tokenizer = tiny_policy()
    q, a = [[8, 9, 2], [10, 11, 12, 2]], [[4, 3, 1], [5, 3]]
    loss = method.sft_loss(policy, q, a, tokenizer.pad_token_id)
    total = 0.0
    for prompt, target in zip(q, a):
        ids = torch.tensor([prompt + target])
        log_p = policy.lm(input_ids=ids).logits.log_softmax(-1)[0]
        total += sum(-float(log_p[len(prompt) + t - 1, x].detach()) for t, x in enumerate(target))
    assert float(loss.detach()) == pytest.approx(total / 5, abs=1e-4)


def test_few_shot_examples_are_balanced():
    rows = baselines.examples([0] * 50 + [1] * 50, 5, torch.Generator().manual_seed(0))
    ones = sum(r >= 50 for r in rows)
    assert len(set(rows)) == 5 and ones in (2, 3)
    assert official.first_rows([0] * 9, 5) == [0, 1, 2, 3, 4]


def test_without_trl_its_arms_are_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(BadInput, match="arm grpo skipped"):
        baselines.trl_train(Config(job="grpo"), None, None, Path(), 1)
