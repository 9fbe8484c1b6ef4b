"""One run of the PPO paper: an arm, a task, a seed.  Without a GPU an arm takes 5 to 30 seconds at scale cpu.

    python -m ppo_nlu.train --tiny                                        # 60 PPO batches on digits, no download
    python -m ppo_nlu.train --scale cpu --arm ppo --task digits --seed 0  # expect greedy accuracy far above chance
    accelerate launch --config_file configs/fsdp2.yaml -m ppo_nlu.train --scale paper --arm ppo --task rte  # several GPUs

Every arm starts from the same policy, sees the same labelled examples in the same order, and is judged by the same
strict parser, greedily and by sampling.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ppo_nlu import baselines, evaluate, method, models, official, prompts
from ppo_nlu.asking import Asker
from ppo_nlu.classifier import classify
from ppo_nlu.config import Config
from ppo_nlu.method import Policy, rollout
from ppo_nlu.processes import all_sum, load_trained, shard, trained_state
from ppo_nlu.starting import load_data, make_base, make_start, starting_policy, weights
from ppo_nlu.steps import count, make_optimizer, schedule_of_rows, set_rate, used_budget, with_steps
from shared import processes, runs
from shared.processes import shard

# of the decoder trained in the run


def run(config: Config) -> Path:
    with runs.start(config, __file__) as run:
        if not run.finished:
            {"base": make_base, "start": make_start, "classifier": classify}.get(
                config.method, train_and_answer
            )(config, run)
    return run.directory


# --- an arm with a score ----------------------------------------------------------------------------------------------


def train_and_answer(config: Config, run: runs.Run) -> None:
    """From the starting policy: learn by the arm's method, then answer every test question greedily and by sampling."""
    check(config)
    device = runs.device(config)
    items = load_data(config, run)
    task, seed = items.task, config.seed
    lm, tokenizer = starting_policy(config, run)
    models.check_pad(tokenizer)
    runs.seed_global(seed, "adapter")
    if config.lora_rank:
        lm = models.add_lora(
            lm, config.lora_rank, config.lora_alpha, True, config.lora_bias, config.lora_targets
        )
        for p in lm.parameters():  # a bf16 network under an fp32 adapter
            p.data = p.data.float() if p.requires_grad else p.data
    if config.checkpointing:
        lm.enable_input_require_grads()
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(lm.to(device)).to(device)
    if shard(policy):
        run.say(f"weights divided among {processes.world_size()} processes (FSDP2)")
    hyper = method.Hyper(config.gamma, config.lam, config.clip, config.clip_value, config.value_weight, config.inner_epochs,
                         config.minibatch, 10.0, config.kl_target, config.kl_horizon)  # fmt: skip
    asker = Asker(config, policy, tokenizer, task, items, run)
    budget = {
        "examples": 0,
        "tokens_forward": 0,
        "tokens_backward": 0,
        "gradient_steps": 0,
        **used_budget(config),
    }
    beta, trained = config.beta, [p for p in policy.parameters() if p.requires_grad]
    config = with_steps(config, len(asker.items.train))
    steps = config.steps if config.method != "prompt" else 0
    if config.method in ("grpo", "rloo"):
        steps = 0
        lines = asker.items.train
        log = baselines.trl_train(config.method, policy.lm, tokenizer, [asker.text(x) for x in lines], [x.label for x in lines],
                                  lambda text, y: asker.judge(text, y, config.parser)[1], str(run.directory / "trl"), config.steps, config.batch,
                                  config.lr, config.max_new, config.beta, config.seed)  # fmt: skip
        for step, line in enumerate(log):
            run.log(step=step, **line)
        budget["examples"] += config.steps * config.batch
    if steps:
        optimizer = make_optimizer(config, trained)
        order = schedule_of_rows(
            len(asker.items.train), config.batch, steps, runs.stream(seed, "batches")
        )
        saved = run.resume()
        if saved:
            load_trained(policy, optimizer, saved)
            beta, budget = saved["beta"], saved["budget"]
            run.gates[:] = saved["gates"]

        def save() -> dict:
            return trained_state(policy, optimizer) | {
                "beta": beta,
                "budget": budget,
                "gates": run.gates,
            }

        asker.check_identity(run)
        for step in run.steps(saved["step"] if saved else 0, steps, save):
            set_rate(optimizer, config, step)
            rows = shard(order[step]).tolist()
            if config.method == "sft":
                log = supervised_step(config, policy, optimizer, asker, rows, step, run, budget)
            else:
                log, beta = rewarded_step(
                    config, policy, optimizer, asker, rows, step, run, budget, beta, hyper
                )
            budget["examples"] += config.batch
            if config.probe_every and (step % config.probe_every == 0 or step == steps - 1):
                log |= asker.probe()
            run.log(step=step, **log)
        asker.check_reference(run)
    if config.examples and steps:
        seen = budget["examples"]
        run.gate(
            "budget",
            abs(seen / config.examples - 1) <= 0.01,
            f"{seen} labelled examples seen, {config.examples} declared",
        )
    exports = export(config, policy, tokenizer, run) if steps else []
    state = trained if steps else weights(lm)
    if config.stage:  # others build on it; it has no score of its own
        run.finish(
            state=state,
            gradient_evaluations=budget["gradient_steps"],
            exports=exports,
            budget=budget,
        )
        return
    validation = (
        evaluate.score(asker.answer_all(items.validation, "validation", 1))
        if items.validation
        else {}
    )
    answers = asker.answer_all(
        items.test, "test", config.samples, write=run.directory / "answers.jsonl"
    )
    run.predictions(**answers)
    run.finish(metrics=evaluate.score(answers), validation=validation, state=state,
               gradient_evaluations=budget["gradient_steps"], selection="last", chosen_step=steps, exports=exports, budget=budget,
               dropped_prompts=asker.dropped)  # fmt: skip


def supervised_step(config, policy, optimizer, asker, rows, step, run, budget) -> dict:
    """`gradient_steps` steps of -log pi(answer) on one batch."""
    pairs = [asker.pair(i) for i in rows]
    world = processes.world_size()
    method.quiet(
        policy
    )  # dropout is 0 in the adapter; a base network with dropout keeps it off, as in PPO
    for _ in range(config.gradient_steps):
        loss = 0.0
        optimizer.zero_grad(set_to_none=True)
        answer_tokens = torch.tensor(
            float(sum(len(a) for _, a in pairs)), device=policy.value.weight.device
        )
        total = float(all_sum(answer_tokens))
        for part in range(
            0, len(pairs), config.minibatch
        ):  # one token mean over the batch, whatever the minibatch
            some = pairs[part : part + config.minibatch]
            share_of = sum(len(a) for _, a in some) / total
            one = (
                baselines.sft_loss(policy, *map(list, zip(*some)), asker.tokenizer.pad_token_id)
                * share_of
            )
            run.finite(one.detach(), "sft", step, [asker.items.train[i].id for i in rows])
            (one * world).backward()
            loss += float(one.detach())
        optimizer.step()
    tokens = sum(len(q) + len(a) for q, a in pairs) * config.gradient_steps
    count(budget, tokens, tokens, config.gradient_steps)
    return {"loss": loss}


def rewarded_step(
    config, policy, optimizer, asker, rows, step, run, budget, beta, hyper
) -> tuple[dict, float]:
    """Sample, let the rule pay, update."""
    asked = [i for i in rows for _ in range(config.responses)]
    max_new = config.max_new or official.answer_length(runs.stream(config.seed, "length", step))
    draws = torch.rand(
        config.batch * config.responses,
        max_new,
        generator=runs.stream(config.seed, "answers", step),
    )
    own = shard(draws.view(config.batch, config.responses, max_new)).reshape(-1, max_new)
    with memory_remedy("sampling answers", "lower --max-prompt or --batch"):
        batch = rollout(policy, asker.tokenizer, [asker.pair(i)[0] for i in asked], max_new, own,
                        prompts.CLOSE if config.stop_at_tag else None, config.temperature, asker.cache)  # fmt: skip
    judged = [
        asker.judge(text, asker.paid_label(i), config.parser) for text, i in zip(batch.texts, asked)
    ]
    scores = torch.tensor([r for _, r in judged], dtype=torch.float32, device=batch.ids.device)
    run.finite(scores, "reward", step, [asker.items.train[i].id for i in asked])
    tokens = int(batch.mask.sum())
    if config.method == "reinforce":
        log = baselines.group_update(
            policy, optimizer, batch, scores, "reinforce", config.responses, beta
        )
        count(budget, 3 * tokens, tokens, 1)
    else:
        log, beta = asker.update(
            optimizer,
            batch,
            scores,
            beta,
            replace(hyper, minibatch=min(hyper.minibatch, len(batch))),
        )
        if step == 0:
            exact = max(
                abs(log["ratio_first"] - 1), log["clip_fraction_first"], log["kl_old_new_first"]
            )
            run.gate("ratio-one", exact < (1e-5 if config.precision == "float32" else 5e-2), f"ratio, clip fraction, KL(old, new) before the first step: off by {exact:.1e}")  # fmt: skip
        count(
            budget,
            (2 + config.inner_epochs) * tokens,
            config.inner_epochs * tokens,
            config.inner_epochs,
        )
    run.finite(log["policy_loss"], "policy", step, [asker.items.train[i].id for i in rows])
    return log | {"invalid": float(np.mean([a is None for a, _ in judged]))}, beta


def check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    answers = config.batch * config.responses
    if config.method in ("ppo", "sft") and answers % min(config.minibatch, answers):
        raise runs.BadInput(f"batch x responses = {answers} is not a multiple of minibatch = {config.minibatch}; set --minibatch {math.gcd(answers, config.minibatch)}")  # fmt: skip
    prompts.task(config.task) if config.task != "documentation" else None
    if config.lr <= 0:
        raise runs.BadInput(f"lr = {config.lr} must be above 0; the official value is 9e-6")


@contextmanager
def memory_remedy(what: str, remedy: str) -> Iterator[None]:
    """Out of memory becomes an error that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise runs.BadInput(f"out of memory while {what}: {remedy}") from error


def export(config: Config, policy: Policy, tokenizer, run: runs.Run) -> list[str]:
    """export/: the adapter for `PeftModel.from_pretrained(base, DIR)`; export/model/: the whole model where all trained."""
    folder = run.directory / "export"
    if config.lora_rank:
        policy.lm.save_pretrained(str(folder))
        how = f"LoRA adapter; base model: {config.model}. Load with peft.PeftModel.from_pretrained(base, this_folder)."
    else:
        models.save(policy.lm, tokenizer, folder / "model")
        how = "The whole model. Load with transformers.AutoModelForCausalLM.from_pretrained(this_folder + '/model')."
    about = f"{config.arm} on {config.task}, scale {config.scale}, seed {config.seed}. {how}\n\nLicence: that of the base model and of the data.\n"
    (folder / "README.md").write_text(about)
    return ["export"]


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
