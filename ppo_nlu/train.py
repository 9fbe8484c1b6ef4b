"""One run: an arm, a task, a seed. Without a GPU an arm takes 5 to 30 seconds at scale cpu.

    python -m ppo_nlu.train --tiny                                        # 60 PPO batches, no download
    python -m ppo_nlu.train --scale cpu --arm ppo --task digits --seed 0  # expect 65 % greedy, chance 50
    accelerate launch --config_file configs/fsdp2.yaml -m ppo_nlu.train --scale paper --arm ppo --task rte

The last one divides a 7B model among several GPUs; a batch of PPO takes about 10 s on one of the H200 class. Every arm
starts from the same policy, sees the same labelled examples in the same order, and is judged by the same strict
parser, greedily and by sampling.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppo_nlu import asking, baselines, data, evaluate, method, models, official, sharding, stages
from ppo_nlu.asking import Questions
from ppo_nlu.classifier import classify
from ppo_nlu.config import Config
from ppo_nlu.policy import Policy, Rollout, left_pad
from shared import processes, runs
from shared.protocol import BadInput


def run(config: Config) -> Path:
    """Train the arm (or stage) of `config` and judge it; returns the run's directory."""
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        if config.job == "base":
            stages.make_base(config, run)
        elif config.job == "start":
            stages.make_start(config, run)
        elif config.job == "classifier":
            classify(config, run)
        else:
            train_and_answer(config, run)
    return run.directory


def train_and_answer(config: Config, run: runs.Run) -> None:
    """From the starting policy: learn as the arm does, then answer test questions, greedily and by sampling."""
    items = data.load(config)
    run.splits(**items.ids())
    lm, tokenizer = models.starting_policy(config, run)
    policy = adapted(config, lm, runs.device(config))
    if sharding.divide_frozen(policy):
        run.say(f"weights divided among {processes.world_size()} processes (FSDP2)")
    questions = asking.questions_of(config, tokenizer, items, models.context(policy.lm), run.say)
    optimizer = models.make_optimizer(config, trained(policy))
    learner = Learner(policy, optimizer, config.beta, used_budget(config))
    steps = 0 if config.job == "prompt" else config.batches(len(questions.train))
    before = None

    if config.job in ("grpo", "rloo"):
        for _ in run.phase("training", 1, learner):
            by_trl(config, run, learner, questions, steps)
    elif steps:
        before = reference(policy, questions)
        generator = runs.stream(config.seed, "batches")
        order = data.rows_of_steps(len(questions.train), config.batch, steps, generator)
        learn = supervised if config.job == "sft" else rewarded
        for step in run.phase("training", steps, learner):
            models.set_rate(optimizer, config, step, steps)
            facts = learn(
                config, run, learner, questions, processes.shard(order[step]).tolist(), step
            )
            learner.spent["examples"] += config.batch
            if config.probe_every and (step % config.probe_every == 0 or step == steps - 1):
                facts |= asking.probe(policy, questions, items.validation)
            run.log(step=step, **facts)
    scores = {} if config.stage else answer(config, run, policy, questions, items)
    if before:
        check(config, run, learner, before, reference(policy, questions))
    run.finish(
        **scores,
        state=trained(policy) if before else map(sharding.whole, models.weights(policy.lm)),
        gradient_evaluations=learner.spent["gradient_steps"],
        chosen_step=steps,
        exports=export(config, policy, tokenizer, run) if before else [],
        budget=dict(learner.spent),
        dropped_prompts=len(items.train) - len(questions.train),
    )


# --- learning ----------------------------------------------------------------------------------------------------


@dataclass
class Learner:
    """All that a step of training changes. spent: examples, tokens and gradient steps, those of used runs included."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    beta: float
    spent: dict[str, int]

    def state(self) -> dict[str, Any]:
        return {
            "trained": trained(self.policy),
            "optimizer": self.optimizer.state_dict(),
            "beta": self.beta,
            "spent": self.spent,
        }

    def load(self, state: dict[str, Any]) -> None:
        for parameter, value in zip(trained(self.policy), state["trained"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.beta, self.spent = state["beta"], state["spent"]

    def spend(self, tokens: int, forward: int, backward: int) -> None:
        """`forward` and `backward` passes over `tokens` tokens, a gradient step for each backward pass."""
        self.spent["tokens_forward"] += forward * tokens
        self.spent["tokens_backward"] += backward * tokens
        self.spent["gradient_steps"] += backward


def adapted(config: Config, lm: nn.Module, device: torch.device) -> Policy:
    """The policy: `lm` under a fresh adapter, or whole where lora_rank is 0."""
    runs.seed_global(config.seed, "adapter")
    if config.lora_rank:
        lm = models.add_lora(
            lm, config.lora_rank, config.lora_alpha, config.lora_bias, config.lora_targets
        )
        for p in lm.parameters():  # a bf16 network under an fp32 adapter
            p.data = p.data.float() if p.requires_grad else p.data
    if config.checkpointing:
        whole: Any = lm
        whole.enable_input_require_grads()
        whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(lm.to(device)).to(device)


def trained(policy: Policy) -> list[nn.Parameter]:
    return [p for p in policy.parameters() if p.requires_grad]


def rewarded(
    config: Config,
    run: runs.Run,
    learner: Learner,
    questions: Questions,
    rows: list[int],
    step: int,
) -> dict[str, float]:
    """One PPO batch (`method.cycle`), or one step without a value function: ask, let the rule pay, learn."""
    policy, optimizer = learner.policy, learner.optimizer
    asked = [i for i in rows for _ in range(config.responses)]
    items = [questions.train[i] for i in asked]
    labels = [questions.train[questions.paid[i]].label for i in asked]
    facts: dict[str, float] = {}

    def ask() -> Rollout:
        length = runs.stream(config.seed, "length", step)
        max_new = config.max_new or official.answer_length(length)
        stream = runs.stream(config.seed, "answers", step)
        uniforms = torch.rand(config.batch, config.responses, max_new, generator=stream)
        part = processes.shard(uniforms).reshape(-1, max_new)
        try:
            return questions.ask(policy, items, max_new, part)
        except torch.OutOfMemoryError as error:
            remedy = "lower --max-prompt or --batch"
            raise BadInput(f"out of memory while sampling answers: {remedy}") from error

    def pay(answers: Rollout) -> Tensor:
        judged = [questions.judge(t, y, config.parser) for t, y in zip(answers.texts, labels)]
        facts["invalid"] = float(np.mean([answer is None for answer, _ in judged]))
        R = torch.tensor([r for _, r in judged], dtype=torch.float32, device=answers.ids.device)
        run.finite(R, "reward", step, [x.id for x in items])
        inner = 1 if config.job == "reinforce" else config.inner_epochs
        learner.spend(int(answers.mask.sum()), 2 + inner, inner)
        return R

    if config.job == "reinforce":
        answers = ask()
        log = baselines.group_update(
            policy, optimizer, answers, pay(answers), "reinforce", config.responses, learner.beta
        )
    else:
        log, learner.beta = method.cycle(policy, optimizer, ask, pay, learner.beta, config)
        if step == 0:
            moved = (log["ratio_first"] - 1, log["clip_fraction_first"], log["kl_old_new_first"])
            off = max(map(abs, moved))
            exact = 1e-5 if config.precision == "float32" else 5e-2
            detail = "ratio, clip fraction, KL(old, new) before the first step: off by"
            run.gate("ratio-one", off < exact, f"{detail} {off:.1e}")
    run.finite(log["policy_loss"], "policy", step, [questions.train[i].id for i in rows])
    return log | facts


def supervised(
    config: Config,
    run: runs.Run,
    learner: Learner,
    questions: Questions,
    rows: list[int],
    step: int,
) -> dict[str, float]:
    """`gradient_steps` steps of -log pi(answer) on one batch."""
    items = [questions.train[i] for i in rows]
    pairs = [questions.ids(x) for x in items]
    pad = questions.tokenizer.pad_token_id

    def check(loss: Tensor) -> None:
        run.finite(loss, "sft", step, [x.id for x in items])

    for _ in range(config.gradient_steps):
        loss = baselines.supervised_step(
            learner.policy, learner.optimizer, pairs, pad, config.minibatch, check
        )
        learner.spend(sum(len(q) + len(a) for q, a in pairs), 1, 1)
    return {"loss": loss}


def by_trl(
    config: Config, run: runs.Run, learner: Learner, questions: Questions, steps: int
) -> None:
    """All steps at once: trl's trainer has its own loop."""
    log = baselines.trl_train(
        config,
        learner.policy.lm,
        questions.tokenizer,
        [questions.text(x) for x in questions.train],
        [x.label for x in questions.train],
        lambda text, y: questions.judge(text, y, config.parser)[1],
        str(run.directory / "trl"),
        steps,
    )
    for step, facts in enumerate(log):
        run.log(step=step, **facts)
    learner.spent["examples"] += steps * config.batch


def used_budget(config: Config) -> dict[str, int]:
    """What the runs this one builds on have spent, `start` apart: every arm has that."""
    names = ("examples", "tokens_forward", "tokens_backward", "gradient_steps")
    total = dict.fromkeys(names, 0)
    for arm, folder in config.uses.items():
        details = json.loads((Path(folder) / "record.json").read_text())["details"]
        if arm != "start":
            for name, value in details.get("budget", {}).items():
                total[name] += value
    return total


# --- judging -----------------------------------------------------------------------------------------------------


def answer(
    config: Config, run: runs.Run, policy: Policy, questions: Questions, items: data.Data
) -> dict[str, dict[str, float]]:
    """Metrics on validation and test items; texts and predictions of the test items are stored."""
    validation = asking.Sheet(questions, items.validation, "validation", 1)
    for k in run.phase("validation", validation.batches, validation):
        validation.fill(policy, k)
    test = asking.Sheet(questions, items.test, "test", config.samples)
    for k in run.phase("test", test.batches, test):
        test.fill(policy, k)
    test.write(run.directory / "answers.jsonl")
    answers = test.arrays()
    run.predictions(**answers)
    chosen_by = evaluate.score(validation.arrays()) if items.validation else {}
    return {"metrics": evaluate.score(answers), "validation": chosen_by}


def reference(policy: Policy, questions: Questions) -> tuple[str, Tensor]:
    """(sha256 of the frozen weights, the reference's log-probabilities at one question)."""
    source = policy.frozen[0] if policy.frozen else policy
    frozen = [p for _, p in sorted(source.named_parameters()) if not p.requires_grad]
    sha256 = runs.state_sha256(map(sharding.whole, frozen))
    question = questions.ids(questions.train[0])[0]
    device = policy.value.weight.device
    ids, mask = left_pad([question], questions.tokenizer.pad_token_id, device)
    policy.eval()
    with torch.no_grad():
        return sha256, policy(ids, mask, 1, reference=True)[0]


def check(
    config: Config,
    run: runs.Run,
    learner: Learner,
    before: tuple[str, Tensor],
    after: tuple[str, Tensor],
) -> None:
    """The reference still is what was loaded, bit for bit, and the arm saw as many examples as it declared."""
    same = torch.equal(before[1], after[1])
    shas = f"sha256 of the frozen weights {before[0][:12]} -> {after[0][:12]}"
    detail = f"{shas}; same log-probabilities: {same}"
    run.gate("reference-kept", before[0] == after[0] and same, detail)
    if config.examples:
        seen = learner.spent["examples"]
        detail = f"{seen} labelled examples seen, {config.examples} declared"
        run.gate("budget", abs(seen / config.examples - 1) <= 0.01, detail)


def export(config: Config, policy: Policy, tokenizer: Any, run: runs.Run) -> list[str]:
    """export/: the adapter for `PeftModel.from_pretrained(base, DIR)`, or in export/model/ a model that trained whole."""
    folder = run.directory / "export"
    if config.lora_rank:
        policy.lm.save_pretrained(str(folder))
        what = f"LoRA adapter; base model: {config.model}"
        how = "peft.PeftModel.from_pretrained(base, this_folder)"
    else:
        models.save(policy.lm, tokenizer, folder / "model")
        what = "The whole model"
        how = "transformers.AutoModelForCausalLM.from_pretrained(this_folder + '/model')"
    origin = f"{config.arm} on {config.task}, scale {config.scale}, seed {config.seed}"
    licence = "Licence: that of the base model and of the data."
    (folder / "README.md").write_text(f"{origin}. {what}. Load with {how}.\n\n{licence}\n")
    return ["export"]


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
