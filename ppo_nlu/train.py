"""One run: an arm, a task, a seed. At scale cpu an arm takes up to three minutes.

    python -m ppo_nlu.train --tiny                                       # a toy of its own, seconds
    python -m ppo_nlu.train --scale cpu --arm ppo --task movie --seed 0  # SmolLM2, chance 50
    accelerate launch --config_file configs/fsdp2.yaml -m ppo_nlu.train --scale paper --arm ppo \\
        --task rte                              # 7B among several GPUs; about 10 s a batch of PPO

All arms share the starting policy, the labelled examples, their order and the strict parser.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppo_nlu import asking, baselines, data, method, models, official, sharding, sheets, stages
from ppo_nlu.arm import Arm, used_budget
from ppo_nlu.classifier import classify
from ppo_nlu.config import Config
from ppo_nlu.policy import Rollout, whole
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
    """Learn as the arm does, then answer every test question, greedily and by sampling."""
    device = runs.device(config)
    items = data.load(config)
    run.splits(**items.ids())
    lm, tokenizer = models.starting_policy(config, run)
    questions = asking.questions_of(config, tokenizer, items, models.context(lm), run.say)
    opening, computed = [], []
    if config.cached:
        opening = models.opening(tokenizer)[-config.opening :]
        computed = asking.cached_prompts(questions, items)
    policy = models.adapted(config, lm, device, computed, opening)
    if processes.world_size() > 1 and sharding.divide_frozen(policy):
        run.say(f"weights divided among {processes.world_size()} processes (FSDP2)")
    asking.check_mass(policy, questions, items.validation, run.say)
    if config.choose_shots:
        questions = sheets.choose_shots(run, policy, questions, items)
    optimizer = models.make_optimizer(config, policy.trained())
    arm = Arm(config, run, questions, policy, optimizer, config.beta, used_budget(config))
    steps = 0 if config.job == "prompt" else config.batches(len(questions.train))
    watched = steps > 0 and config.job not in ("grpo", "rloo")
    references = [asking.reference(policy, questions)] if watched else []  # before and after
    start = [p.detach().clone() for p in policy.trained()] if config.attempts > 1 else []
    validation = train(arm, items, steps)
    while steps and validation.get("constant_share") == 1 and arm.attempt < config.attempts:
        arm.begin_anew(start)
        validation = train(arm, items, steps)
    references += [asking.reference(policy, questions)] if watched else []

    metrics = {}
    if not config.stage:  # others build on a stage; it has no score of its own
        sheet = sheets.Sheet(questions, items.test, "test", config.samples)
        for batch in run.phase("test", sheet.batches, sheet):
            sheet.fill(policy, batch)
        sheet.write(run.directory / "answers.jsonl")
        run.predictions(**sheet.arrays())
        metrics = sheet.scores()
        if config.server:
            sheets.for_server(run, policy, questions)
    if references:
        check(arm, steps, *references)
    run.finish(
        metrics=metrics,
        validation=validation,
        state=policy.trained() if references else map(whole, models.weights(policy.lm)),
        gradient_evaluations=arm.spent["gradient_steps"],
        chosen_step=steps,
        exports=models.export(config, policy.lm, tokenizer, run.directory) if references else [],
        budget=arm.spent,
        attempts=arm.attempt,
        dropped_prompts=len(items.train) - len(questions.train),
    )


def train(arm: Arm, items: data.Data, steps: int) -> dict[str, float]:
    """One attempt: `steps` batches, then scores on validation items; none of a stage."""
    config, questions, run = arm.config, arm.questions, arm.run
    if config.job in ("grpo", "rloo"):
        for _ in run.phase(arm.phase("training"), 1, arm):
            by_trl(arm, steps)
    elif steps:
        order = data.rows_of_steps(len(questions.train), config.batch, steps, arm.draws("batches"))
        learn = supervised if config.job == "sft" else rewarded
        for step in run.phase(arm.phase("training"), steps, arm):
            models.set_rate(arm.optimizer, config, step, steps)
            facts = learn(arm, processes.shard(order[step]).tolist(), step)
            arm.spent["examples"] += config.batch
            facts |= {key: arm.spent[key] for key in ("examples", "gradient_steps")}
            if config.probe_every and (step % config.probe_every == 0 or step == steps - 1):
                facts |= sheets.probe(arm.policy, questions, items.validation)
            run.log(step=(arm.attempt - 1) * steps + step, attempt=arm.attempt, **facts)
    if config.stage:
        return {}
    limited = items.validation[: config.validation_limit or None]
    sheet = sheets.Sheet(questions, limited, "validation", 1)
    for batch in run.phase(arm.phase("validation"), sheet.batches, sheet):
        sheet.fill(arm.policy, batch)
    return sheet.scores()


# --- one step -------------------------------------------------------------------------------------


def rewarded(arm: Arm, rows: list[int], step: int) -> dict[str, float]:
    """One PPO batch (`method.cycle`), or one step without a value function (`reinforce`)."""
    config, questions = arm.config, arm.questions
    asked = [i for i in rows for _ in range(config.responses)]
    items = [questions.train[i] for i in asked]
    labels = [questions.train[questions.paid[i]].label for i in asked]
    facts: dict[str, float] = {}

    def ask() -> Rollout:
        max_new = config.max_new or official.answer_length(arm.draws("length", step))
        stream = arm.draws("answers", step)
        uniforms = torch.rand(config.batch, config.responses, max_new, generator=stream)
        part = processes.shard(uniforms).reshape(-1, max_new)
        try:
            return questions.ask(arm.policy, items, max_new, part)
        except torch.OutOfMemoryError as error:
            remedy = "lower --max-prompt or --batch"
            raise BadInput(f"out of memory while sampling answers: {remedy}") from error

    def pay(answers: Rollout) -> Tensor:
        asked_and_paid = zip(answers.texts, items, labels)
        judged = [questions.judge(t, x, y, config.parser) for t, x, y in asked_and_paid]
        facts["invalid"] = float(np.mean([answer is None for answer, _ in judged]))
        R = torch.tensor([r for _, r in judged], dtype=torch.float32, device=answers.ids.device)
        arm.run.finite(R, "reward", step, [x.id for x in items])
        inner = 1 if config.job == "reinforce" else config.inner_epochs
        arm.spend(int(answers.mask.sum()), 2 + inner, inner)
        return R

    if config.job == "reinforce":
        size = config.responses
        parts = (arm.policy, arm.optimizer, ask, pay)
        log = baselines.group_cycle(*parts, "reinforce", size, arm.beta)
    else:
        log, arm.beta = method.cycle(arm.policy, arm.optimizer, ask, pay, arm.beta, config)
        if step == 0:
            moved = (log["ratio_first"] - 1, log["clip_fraction_first"], log["kl_old_new_first"])
            off = max(map(abs, moved))
            exact = 1e-5 if config.precision == "float32" else 5e-2
            detail = "ratio, clip fraction, KL(old, new) before the first step: off by"
            arm.run.gate("ratio-one", off < exact, f"{detail} {off:.1e}")
    arm.run.finite(log["policy_loss"], "policy", step, [questions.train[i].id for i in rows])
    return log | facts


def supervised(arm: Arm, rows: list[int], step: int) -> dict[str, float]:
    """`gradient_steps` steps of -log pi(answer) on one batch."""
    items = [arm.questions.train[i] for i in rows]
    pairs = [arm.questions.ids(x) for x in items]
    pad, size = arm.questions.tokenizer.pad_token_id, arm.config.minibatch

    def check(loss: Tensor) -> None:
        arm.run.finite(loss, "sft", step, [x.id for x in items])

    for _ in range(arm.config.gradient_steps):
        loss = baselines.supervised_step(arm.policy, arm.optimizer, pairs, pad, size, check)
        arm.spend(sum(len(q) + len(a) for q, a in pairs), 1, 1)
    return {"loss": loss}


def by_trl(arm: Arm, steps: int) -> None:
    """All steps at once: trl's trainers have loops of their own."""
    log = baselines.trl_train(arm.config, arm.policy.lm, arm.questions, arm.run.directory, steps)
    for step, facts in enumerate(log):
        arm.run.log(step=step, **facts)
    arm.spent["examples"] += steps * arm.config.batch


# --- after training -------------------------------------------------------------------------------


def check(arm: Arm, steps: int, before: tuple[str, Tensor], after: tuple[str, Tensor]) -> None:
    """The reference still is what was loaded, bit for bit; the arm saw the examples it declared,
    in each attempt."""
    same = torch.equal(before[1], after[1])
    detail = f"sha256 of the frozen weights {before[0][:12]} -> {after[0][:12]}"
    passed = before[0] == after[0] and same
    arm.run.gate("reference-kept", passed, f"{detail}; same log-probabilities: {same}")
    if declared := arm.config.examples:
        examples = arm.spent["examples"] - (arm.attempt - 1) * steps * arm.config.batch
        detail = f"{examples} labelled examples seen, {declared} declared"
        arm.run.gate("budget", abs(examples / declared - 1) <= 0.01, detail)


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
