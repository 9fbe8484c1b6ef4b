"""One PPO update on real networks: the old policy, the reference, minibatches, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppo_nlu import method, models
from ppo_nlu.config import PPO, Network
from ppo_nlu.policy import Policy
from shared.protocol import BadInput


@pytest.mark.parametrize("lora", [True, False])
def test_the_first_inner_pass_has_ratio_one(lora, tiny_policy, some_answers):
    policy, tokenizer = tiny_policy(lora)
    answers = some_answers(policy, tokenizer)
    optimizer = torch.optim.AdamW(policy.trained(), lr=1e-2)
    for minibatch in (8, 4):  # with and without a separate pass for the old policy
        ppo = PPO(minibatch=minibatch)
        log, _ = method.update(policy, optimizer, answers, torch.randn(8), 0.2, ppo)
        assert log["ratio_first"] == pytest.approx(1, abs=1e-5)
        assert log["clip_fraction_first"] == 0 and log["kl_old_new_first"] == pytest.approx(
            0, abs=1e-10
        )
    assert log["ratio"] != pytest.approx(1, abs=1e-6) or log["kl_old_new"] > 0


def test_dropout_of_the_base_model_acts_nowhere(some_answers):
    """Answers are sampled, and both sides of the ratio computed, without dropout, whatever mode the
    policy came in."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    half = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    lm = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=2, n_head=2, **half)
    )
    policy = Policy(lm)
    answers = []
    for training in (True, False):
        policy.train(training)
        answers.append(some_answers(policy, tokenizer))
    assert torch.equal(answers[0].ids, answers[1].ids)
    policy.train()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)
    log, _ = method.update(policy, optimizer, answers[0], torch.randn(8), 0.2, PPO(minibatch=4))
    assert log["ratio_first"] == pytest.approx(1, abs=1e-5) and log["clip_fraction_first"] == 0
    shipped = models.add_lora(models.tiny("llama", 32), Network())
    assert shipped.peft_config["default"].lora_dropout == 0


def test_reference_is_the_loaded_model(tiny_policy, some_answers):
    policy, tokenizer = tiny_policy()
    answers = some_answers(policy, tokenizer)
    args = (answers.ids, answers.mask, answers.T)
    with torch.no_grad():
        before = policy(*args, reference=True)[0]
        assert torch.allclose(policy(*args)[0], before, atol=1e-5)
    weights = {n: p.clone() for n, p in policy.named_parameters()}
    optimizer = torch.optim.AdamW(policy.trained(), lr=1e-2)
    for _ in range(3):
        method.update(policy, optimizer, answers, torch.randn(8), 0.2, PPO(minibatch=8))
    with torch.no_grad():
        assert torch.equal(policy(*args, reference=True)[0], before)
        assert not torch.allclose(policy(*args)[0], before, atol=1e-5)
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, weights[n])}
    assert moved and all("lora_" in n or n.startswith("value.") for n in moved)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in policy.trained()
    }
    scales = {
        m.scaling["default"]
        for m in policy.modules()
        if isinstance(getattr(m, "scaling", None), dict)
    }
    assert scales == {8.0}


def test_trained_biases_are_warned_about():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    lm = Qwen2ForCausalLM(Qwen2Config(**small, **heads))
    with pytest.warns(UserWarning, match="reference"):
        lm = models.add_lora(lm, Network(lora_rank=4, lora_bias="all"))
    trained = [n for n, p in lm.named_parameters() if p.requires_grad]
    assert any(n.endswith(".bias") for n in trained)
    assert all("lora_" in n or n.endswith(".bias") for n in trained)


def test_minibatches_change_memory_only(tiny_policy, some_answers):
    gradients = []
    for size in (8, 4, 1):
        policy, tokenizer = tiny_policy()
        answers = some_answers(policy, tokenizer)
        optimizer = torch.optim.SGD(policy.trained(), lr=1e-2)
        ppo = PPO(minibatch=size, inner_epochs=1)
        method.update(policy, optimizer, answers, torch.linspace(-1, 1, 8), 0.2, ppo)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trained()]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5) and torch.allclose(
        gradients[0], gradients[2], atol=1e-5
    )


def test_out_of_memory_halves_the_minibatch(monkeypatch, tiny_policy, some_answers):
    """The same update in smaller pieces; at one row the remedy is named."""
    trained, sizes, real = [], [], Policy.forward
    for limit in (8, 2, 0):

        def scarce(policy, ids, mask, T, reference=False, limit=limit):
            sizes.append(len(ids))
            if len(ids) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(policy, ids, mask, T, reference)

        policy, tokenizer = tiny_policy()
        answers = some_answers(policy, tokenizer)
        optimizer = torch.optim.SGD(policy.trained(), lr=0.1)
        monkeypatch.setattr(Policy, "forward", scarce)
        parts = (policy, optimizer, answers, torch.linspace(-1, 1, 8), 0.2, PPO(minibatch=8))
        if limit:
            method.update(*parts)
            trained.append(torch.cat([p.detach().flatten() for p in policy.trained()]))
        else:
            with pytest.raises(BadInput, match="max-prompt"):
                method.update(*parts)
        monkeypatch.setattr(Policy, "forward", real)
    assert torch.allclose(*trained, atol=1e-5) and {8, 4, 2, 1} == set(sizes)


def test_a_pass_that_runs_out_of_memory_counts_once(monkeypatch, tiny_policy, some_answers):
    """The pass that fails has left part of a gradient; the halved one begins anew."""
    trained = []
    for fails in (False, True):
        policy, tokenizer = tiny_policy()
        answers = some_answers(policy, tokenizer)
        optimizer = torch.optim.SGD(policy.trained(), lr=0.1)
        passes, real = [], method.value_loss

        def scarce(*inputs, fails=fails, passes=passes, real=real):
            passes.append(1)
            if fails and len(passes) == 2:  # the second minibatch of the first step
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*inputs)

        monkeypatch.setattr(method, "value_loss", scarce)
        R = torch.linspace(-1, 1, 8)
        method.update(policy, optimizer, answers, R, 0.2, PPO(minibatch=4))
        trained.append(torch.cat([p.detach().flatten() for p in policy.trained()]))
        monkeypatch.setattr(method, "value_loss", real)
    assert torch.allclose(*trained, atol=1e-5)


def results_of(world: int, root: Path, out: Path, *words: str) -> list:
    """What process 0 of `world` processes of two_processes.py writes; none is left behind."""
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), str(root), str(out), *words]
    started = []
    for rank in range(world):
        env = {**os.environ, "WORLD_SIZE": str(world), "RANK": str(rank)}
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE))
    try:
        for process in started:
            _, error = process.communicate(timeout=240)
            assert process.returncode == 0, error.decode()[-2000:]
    finally:
        for process in started:
            process.kill()
    return torch.load(out)


def test_two_processes_equal_one(tmp_path, root):
    one, facts_one, beta_one = results_of(1, root, tmp_path / "1.pt")
    two, facts_two, beta_two = results_of(2, root, tmp_path / "2.pt")
    assert torch.allclose(one, two, atol=1e-5) and beta_one == pytest.approx(beta_two)
    for key, value in facts_one.items():
        if key not in ("skipped", "skipped_first"):
            assert facts_two[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.slow
def test_fsdp_update_runs_on_two_processes(tmp_path, root):
    """Sharded base and adapter (FSDP2 over gloo): the first update equals that of one process."""
    one, two = (results_of(n, root, tmp_path / f"{n}.pt", "fsdp")[0] for n in (1, 2))
    assert torch.allclose(one, two, atol=1e-5)
