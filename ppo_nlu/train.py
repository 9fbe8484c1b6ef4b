"""One run of the PPO paper: an arm, a task, a seed.  Without a GPU an arm takes 5 to 30 seconds at scale cpu.

    python -m ppo_nlu.train --tiny                                        # 60 PPO batches on digits, no download
    python -m ppo_nlu.train --scale cpu --arm ppo --task digits --seed 0  # expect greedy accuracy far above chance
    accelerate launch -m ppo_nlu.train --scale paper --arm ppo --task rte # several GPUs: the model is sharded (FSDP2)

Every arm starts from the same policy, sees the same labelled examples in the same order, and is judged by the same
strict parser, greedily and by sampling.
"""

import json
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ppo_nlu import bandit, baselines, data, evaluate, method, models, official, prompts
from ppo_nlu.method import Policy, rollout
from shared import runs, sources


@dataclass(frozen=True)
class Config(runs.RunConfig):
    method: Literal["ppo", "sft", "prompt", "reinforce", "grpo", "rloo", "classifier", "start", "base"] = "ppo"
    # how the arm learns; "prompt" does not; "base" and "start" make what the others use
    model: str = "digits"
    # digits, minilm, decoder (trained in the run), tiny-llama, tiny-qwen2, tiny-mpt, or a hub id
    steps: int = 300
    # batches
    batch: int = 16
    # labelled examples in a batch (official scripts)
    examples: int = 0
    # labelled examples an arm may see, those of runs it uses included: the currency of the comparison; 0: not declared
    lr: float = 9e-6
    # learning rate (official scripts)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    # the official PPO uses Adafactor without its own step sizes
    schedule: Literal["constant", "linear"] = "linear"
    # linear: 5 % warm-up, then down to a tenth; the official code is constant
    gradient_steps: int = 1
    # supervised steps on each batch (PPO takes inner_epochs)
    shots: int = 0
    # solved examples in the prompt
    flip: float = 0.0
    # share of training labels replaced by another label
    shuffle: bool = False
    # control: the rule pays for the labels of other training examples
    train_limit: int = 0
    # first training items only; 0: all
    test_limit: int = 0
    # first test items only (rehearsal); 0: all
    samples: int = 4
    # sampled answers per test item
    probe_every: int = 30
    # batches between two looks at validation items; 0: never
    max_new: int = 4
    # longest answer in tokens; 0: drawn from 12..31 per batch, as the official code does
    max_prompt: int = 650
    # longer training prompts are left out and counted (the official rule never fires)
    temperature: float = 1.0
    # of sampling; 0.7 repeats the official accident (log-probabilities stay at 1)
    stop_at_tag: bool = True
    # an answer ends with its closing tag; the official code writes on
    parser: Literal["strict", "official"] = "strict"
    # how an answer is read in training
    targets: Literal["words", "official"] = "words"
    # what the supervised arm learns to write
    few: Literal["balanced", "first"] = "balanced"
    # which solved examples; the official code takes the first rows
    invalid: float = -3.0
    # what an unreadable answer earns
    responses: int = 1
    # answers per prompt
    beta: float = 0.2
    # weight of the KL to the reference at the start
    kl_target: float = 6.0
    # nats per answer the controller steers to
    kl_horizon: float = 10000.0
    # answers after which beta may have doubled; 0: fixed
    gamma: float = 1.0
    # discount
    lam: float = 0.95
    # lambda of generalised advantage estimation
    clip: float = 0.2
    # epsilon
    clip_value: float = 0.2
    # epsilon of the value
    value_weight: float = 0.1
    # c_v
    inner_epochs: int = 4
    # optimiser steps on one batch of answers
    minibatch: int = 16
    # answers in one forward pass: bounds memory, moves nothing
    lora_rank: int = 16
    # 0: all weights train, the reference is a copy
    lora_alpha: int = 32
    # scale alpha / sqrt(rank) = 8 (rank-stabilised)
    lora_bias: Literal["none", "all"] = "none"
    # the official "all" moves the reference (D13)
    lora_targets: Literal["default", "all"] = "default"
    # default: query and value projections
    precision: Literal["float32", "bfloat16"] = "float32"
    # of the frozen network; adapter and value head stay fp32
    checkpointing: bool = False
    # recompute activations in the backward pass
    start_right: float = 0.6
    # start: share of right labels among well-formed answers
    start_malformed: float = 0.15
    # start: share of answers that break the format
    width: int = 32
    # of the decoder trained in the run
    layers: int = 2
    # of the decoder trained in the run
    vocabulary: int = 600
    # of its tokenizer
    context: int = 128
    # of the decoder trained in the run


def run(config: Config) -> Path:
    rank = join_processes(config)
    if rank:  # other processes work along and write nothing that counts
        config = replace(config, out=str(runs.Run(config, __file__).directory / f"process{rank}"))
    with runs.start(config, __file__) as run:
        if not run.finished:
            {"base": make_base, "start": make_start, "classifier": classify}.get(config.method, train_and_answer)(config, run)
    return run.directory


# --- the runs that others use -----------------------------------------------------------------------------------------


def make_base(config: Config, run: runs.Run) -> None:
    """Once for all seeds and tasks: the known answer PPO must find, and at scale gpu a language model from plain text."""
    rewards = [bandit.solve("ppo", seed) for seed in (0, 1, 2)]
    run.gate("bandit", min(rewards) > 0.9, f"mean reward after 200 batches, seeds 0, 1, 2: {rewards}; best is 1")
    if config.model != "decoder":
        run.finish(state=[torch.tensor(rewards)])
        return
    from shared import bundled

    device, L = runs.device(config), config.context
    texts = bundled.english()
    tokenizer = models.trained_tokenizer(texts[:4000], config.vocabulary)
    ids = torch.tensor([t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    rows = ids[: len(ids) // L * L].view(-1, L)
    runs.seed_global(config.seed, "model")
    lm = models.llama(len(tokenizer), config.width, config.layers, config.width // 64 or 1, 4 * config.width, 2048).to(device)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=config.lr, weight_decay=0.1)
    order = schedule_of_rows(len(rows), config.batch, config.steps, runs.stream(config.seed, "text"))
    saved = run.resume()
    if saved:
        lm.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    save = lambda: {"model": lm.state_dict(), "optimizer": optimizer.state_dict()}  # noqa: E731
    for step in run.steps(saved["step"] if saved else 0, config.steps, save):
        set_rate(optimizer, config, step)
        batch = rows[order[step]].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = lm(input_ids=batch, labels=batch, use_cache=False).loss
        run.finite(loss, "language model", step, order[step])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            run.log(step=step, loss=float(loss.detach()))
    models.save(lm.cpu(), tokenizer, run.directory / "model")
    run.finish(state=list(lm.parameters()), gradient_evaluations=config.steps)


def make_start(config: Config, run: runs.Run) -> None:
    """The policy every arm starts from: it has heard of the format and half knows the task, like a chat model.

    Half of the steps show solved examples in front, so that few-shot prompting is not asked of a model that never saw
    it.  Only the last answer is learned.  With a hub model nothing is trained: the run notes its weights' hash."""
    device = runs.device(config)
    lm, tokenizer = base_model(config, run)
    lm.to(device)
    if config.steps:
        items = load_data(config, run)
        told = data.half_knowing(items.task, items.start, config.start_right, config.start_malformed, runs.stream(config.seed, "teacher"))
        policy = Policy(lm)  # only its forward pass is used
        policy.frozen.clear()
        optimizer = torch.optim.AdamW(lm.parameters(), lr=config.lr)
        order = schedule_of_rows(len(told), config.batch, config.steps, runs.stream(config.seed, "start"))
        shown = runs.stream(config.seed, "shown")
        saved = run.resume()
        if saved:
            lm.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            runs.restore_generators(saved["generators"], shown)
        save = lambda: {"model": lm.state_dict(), "optimizer": optimizer.state_dict(), "generators": runs.generator_states(shown)}  # noqa: E731, E501
        for step in run.steps(saved["step"] if saved else 0, config.steps, save):
            set_rate(optimizer, config, step)
            rows = order[step].tolist()
            pairs = []
            for i in rows:
                k = config.shots if step % 2 else 0
                others = torch.randint(len(told), (k,), generator=shown).tolist()
                front = "".join(f"{prompts.prompt(items.task, items.start[j].fields)}{told[j]} " for j in others)
                text = front + prompts.prompt(items.task, items.start[i].fields)
                pairs.append(models.encode(tokenizer, text, told[i]))
            loss = baselines.sft_loss(policy, *map(list, zip(*pairs)), tokenizer.pad_token_id)
            run.finite(loss, "start", step, [items.start[i].id for i in rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            run.log(step=step, loss=float(loss.detach()))
    if is_hub(config.model):
        (run.directory / "model.txt").write_text(config.model + "\n")
    else:
        models.save(lm.cpu(), tokenizer, run.directory / "model")
    run.finish(state=weights(lm), gradient_evaluations=config.steps)


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
        lm = models.add_lora(lm, config.lora_rank, config.lora_alpha, True, config.lora_bias, config.lora_targets)
        for p in lm.parameters():  # a bf16 network under an fp32 adapter
            p.data = p.data.float() if p.requires_grad else p.data
    if config.checkpointing:
        lm.enable_input_require_grads()
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(lm.to(device)).to(device)
    shard(config, policy)
    hyper = method.Hyper(config.gamma, config.lam, config.clip, config.clip_value, config.value_weight, config.inner_epochs,
                         config.minibatch, 10.0, config.kl_target, config.kl_horizon)  # fmt: skip
    asker = Asker(config, policy, tokenizer, task, items, run)
    budget = {"examples": 0, "tokens_forward": 0, "tokens_backward": 0, "gradient_steps": 0, **used_budget(config)}
    beta, trained = config.beta, [p for p in policy.parameters() if p.requires_grad]
    steps = config.steps if config.method != "prompt" else 0
    if config.method in ("grpo", "rloo"):
        steps = 0
        lines = asker.items.train
        log = baselines.trl_train(config.method, policy.lm, tokenizer, [asker.text(x) for x in lines], [x.label for x in lines],
                                  lambda text, y: asker.judge(text, y)[1], str(run.directory / "trl"), config.steps, config.batch,
                                  config.lr, config.max_new, config.beta, config.seed)  # fmt: skip
        for step, line in enumerate(log):
            run.log(step=step, **line)
        budget["examples"] += config.steps * config.batch
    if steps:
        optimizer = make_optimizer(config, trained)
        order = schedule_of_rows(len(items.train), config.batch, steps, runs.stream(seed, "batches"))
        saved = share(run.resume())
        if saved:
            load_trained(policy, optimizer, saved)
            beta, budget = saved["beta"], saved["budget"]
        save = lambda: {**trained_state(policy, optimizer), "beta": beta, "budget": budget}  # noqa: E731
        asker.check_identity(run)
        for step in run.steps(saved["step"] if saved else 0, steps, save):
            set_rate(optimizer, config, step)
            rows = mine(order[step])
            if config.method == "sft":
                log = supervised_step(config, policy, optimizer, asker, rows, step, run, budget)
            else:
                log, beta = rewarded_step(config, policy, optimizer, asker, rows, step, run, budget, beta, hyper)
            budget["examples"] += config.batch
            if config.probe_every and (step % config.probe_every == 0 or step == steps - 1):
                log |= asker.probe()
            run.log(step=step, **log)
        asker.check_reference(run)
    if config.examples and steps:
        seen = budget["examples"]
        run.gate("budget", abs(seen / config.examples - 1) <= 0.01, f"{seen} labelled examples seen, {config.examples} declared")
    validation = evaluate.score(asker.answer_all(items.validation, "validation", 1)) if items.validation else {}
    answers = asker.answer_all(items.test, "test", config.samples, write=run.directory / "answers.jsonl")
    run.predictions(**answers)
    exports = export(config, policy, tokenizer, run) if steps else []
    run.finish(metrics=evaluate.score(answers), validation=validation, state=[full(p) for p in trained] if steps else weights(lm),
               gradient_evaluations=budget["gradient_steps"], selection="last", chosen_step=steps, exports=exports, budget=budget,
               dropped_prompts=asker.dropped)  # fmt: skip


def supervised_step(config, policy, optimizer, asker, rows, step, run, budget) -> dict:
    """`gradient_steps` steps of -log pi(answer) on one batch."""
    pairs = [asker.pair(i) for i in rows]
    world = dist.get_world_size() if dist.is_initialized() else 1
    policy.train()
    for k in range(config.gradient_steps):
        runs.seed_global(config.seed, "dropout", step, k)
        loss = 0.0
        optimizer.zero_grad(set_to_none=True)
        total = float(method.all_sum(torch.tensor(float(sum(len(a) for _, a in pairs)))))
        for part in range(0, len(pairs), config.minibatch):  # a token mean over the batch, whatever the minibatch
            some = pairs[part : part + config.minibatch]
            share_of = sum(len(a) for _, a in some) / total
            one = baselines.sft_loss(policy, *map(list, zip(*some)), asker.tokenizer.pad_token_id) * share_of
            run.finite(one.detach(), "sft", step, [asker.items.train[i].id for i in rows])
            (one * world).backward()
            loss += float(one.detach())
        method.average_gradients(policy)
        optimizer.step()
    tokens = sum(len(q) + len(a) for q, a in pairs) * config.gradient_steps
    count(budget, tokens, tokens, config.gradient_steps)
    return {"loss": loss}


def rewarded_step(config, policy, optimizer, asker, rows, step, run, budget, beta, hyper) -> tuple[dict, float]:
    """Sample, let the rule pay, update."""
    asked = [i for i in rows for _ in range(config.responses)]
    max_new = config.max_new or official.answer_length(runs.stream(config.seed, "length", step))
    draws = torch.rand(config.batch * config.responses, max_new, generator=runs.stream(config.seed, "answers", step))
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    own = draws.view(config.batch, config.responses, max_new)[rank::world].reshape(-1, max_new)
    with memory_remedy("sampling answers", "lower --max-prompt or --batch"):
        batch = rollout(policy, asker.tokenizer, [asker.pair(i)[0] for i in asked], max_new, own,
                        prompts.CLOSE if config.stop_at_tag else None, config.temperature, asker.cache)  # fmt: skip
    judged = [asker.judge(text, asker.paid_label(i)) for text, i in zip(batch.texts, asked)]
    scores = torch.tensor([r for _, r in judged], dtype=torch.float32, device=batch.ids.device)
    run.finite(scores, "reward", step, [asker.items.train[i].id for i in asked])
    tokens = int(batch.mask.sum())
    if config.method == "reinforce":
        log = baselines.group_update(policy, optimizer, batch, scores, "reinforce", config.responses, beta)
        count(budget, 3 * tokens, tokens, 1)
    else:
        log, beta = asker.update(optimizer, batch, scores, beta, replace(hyper, minibatch=min(hyper.minibatch, len(batch))))
        if step == 0:
            exact = max(abs(log["ratio_first"] - 1), log["clip_fraction_first"], log["kl_old_new_first"])
            run.gate("ratio-one", exact < (1e-5 if config.precision == "float32" else 5e-2), f"ratio, clip fraction, KL(old, new) before the first step: off by {exact:.1e}")  # fmt: skip
        count(budget, (2 + config.inner_epochs) * tokens, config.inner_epochs * tokens, config.inner_epochs)
    run.finite(log["policy_loss"], "policy", step, [asker.items.train[i].id for i in rows])
    return log | {"invalid": float(np.mean([a is None for a, _ in judged]))}, beta


def classify(config: Config, run: runs.Run) -> None:
    """An encoder with a classification head: the BERT rows of the claims.  Greedy and sampled answers are the same."""
    device, items = runs.device(config), load_data(config, run)
    task = items.task
    runs.seed_global(config.seed, "model")
    encoder, tokenizer = models.classifier(config.model, max(len(task.words), 1), [prompts.instance(task, x.fields) for x in items.train], config.vocabulary)  # fmt: skip
    encoder.to(device)
    optimizer = make_optimizer(config, list(encoder.parameters()))
    order = schedule_of_rows(len(items.train), config.batch, config.steps, runs.stream(config.seed, "batches"))

    def logits(some: list[data.Item]) -> Tensor:
        texts = [prompts.instance(task, x.fields) for x in some]
        return encoder(**tokenizer(texts, padding=True, truncation=True, max_length=min(512, config.max_prompt), return_tensors="pt").to(device)).logits  # fmt: skip

    saved = run.resume()
    if saved:
        encoder.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    save = lambda: {"model": encoder.state_dict(), "optimizer": optimizer.state_dict()}  # noqa: E731
    for step in run.steps(saved["step"] if saved else 0, config.steps, save):
        set_rate(optimizer, config, step)
        encoder.train()
        runs.seed_global(config.seed, "dropout", step)
        some = [items.train[i] for i in order[step].tolist()]
        loss = baselines.classifier_loss(logits(some), torch.tensor([float(x.label) for x in some], device=device))
        run.finite(loss.detach(), "classifier", step, [x.id for x in some])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.log(step=step, loss=float(loss.detach()))
    encoder.eval()
    with torch.no_grad():
        out = torch.cat([logits(items.test[i : i + 64]).float().cpu() for i in range(0, len(items.test), 64)])
    answer = (out[:, 0] if task.number else out.argmax(1)).numpy().astype(np.float32)
    label = np.array([x.label for x in items.test], dtype=np.float32)
    paid = np.array([prompts.reward(task, prompts.CLOSE, float(a), float(y)) for a, y in zip(answer, label)], dtype=np.float32)
    zero = np.zeros(len(label), dtype=np.float32)
    answers = {"id": np.array([x.id for x in items.test]), "label": label, "greedy": answer, "greedy_reward": paid,
               "sampled": answer[:, None], "sampled_reward": paid[:, None], "kl": zero, "entropy": zero,
               "group": np.array([x.group for x in items.test]), "value": np.array([x.value for x in items.test], dtype=np.float32),
               "_metric": np.array([task.metric])}  # fmt: skip
    run.predictions(**answers)
    run.finish(metrics=evaluate.score(answers), state=weights(encoder), gradient_evaluations=config.steps,
               selection="last", chosen_step=config.steps)  # fmt: skip


class Asker:
    """Asks the policy questions and has the answers judged: prompts as token ids, parser, rule, probes."""

    def __init__(self, config: Config, policy: Policy, tokenizer, task: prompts.Task, items: data.Data, run: runs.Run):
        self.config, self.policy, self.tokenizer, self.task = config, policy, tokenizer, task
        self.cache = not isinstance(base_of(policy.lm), models.PrefixLM)
        labels = [x.label for x in items.train]
        pick = baselines.examples if config.few == "balanced" else lambda ys, k, _: official.first_rows(ys, k)
        chosen = pick(labels, config.shots, runs.stream(config.seed, "shots")) if config.shots else []
        self.shown = [(items.train[i].fields, items.train[i].label) for i in chosen]
        keep = range(len(items.train))
        self.pairs: dict[int, tuple[list[int], list[int]]] = {}
        limit = models.context(policy.lm)
        if config.method != "prompt":
            keep = [i for i in keep if len(self._encode(items.train[i])[0]) <= config.max_prompt]
            if not keep:
                raise runs.BadInput(f"{task.name}: every training prompt is longer than max_prompt = {config.max_prompt} tokens")
        self.dropped = len(items.train) - len(keep)
        if self.dropped:
            run.say(f"{self.dropped} of {len(items.train)} training prompts exceed {config.max_prompt} tokens and are left out")
        self.items = replace(items, train=[items.train[i] for i in keep])
        longest = max(len(self._encode(x)[0]) for x in [*items.test, *items.validation])
        if longest + (config.max_new or 31) > limit:
            raise ValueError(f"{task.name}: a prompt of {longest} tokens and an answer of {config.max_new or 31} do not fit the model's context of {limit}; use fewer shots or a model with a longer context")  # fmt: skip
        order = torch.randperm(len(self.items.train), generator=runs.stream(config.seed, "shuffled labels")).tolist()
        self.paid = order if config.shuffle else list(range(len(order)))

    def _encode(self, item: data.Item) -> tuple[list[int], list[int]]:
        target = (official.sft_target if self.config.targets == "official" else prompts.target)(self.task, item.label)
        return models.encode(self.tokenizer, self.text(item), target)

    def text(self, item: data.Item) -> str:
        return prompts.prompt(self.task, item.fields, self.shown)

    def pair(self, i: int) -> tuple[list[int], list[int]]:
        """Token ids of training question i and of its answer."""
        if i not in self.pairs:
            self.pairs[i] = self._encode(self.items.train[i])
        return self.pairs[i]

    def paid_label(self, i: int) -> float:
        return self.items.train[self.paid[i]].label

    def judge(self, text: str, label: float) -> tuple[float | None, float]:
        read = official.parse_in_training if self.config.parser == "official" else prompts.parse
        answer = read(self.task, text)
        return answer, prompts.reward(self.task, text, answer, label, self.config.invalid)

    def update(self, optimizer, batch, scores, beta, hyper) -> tuple[dict, float]:
        """`method.update`; out of memory, the minibatch is halved for this batch, which changes nothing but speed."""
        while True:
            try:
                return method.update(self.policy, optimizer, batch, scores, beta, hyper)
            except torch.OutOfMemoryError as error:
                if hyper.minibatch == 1 or hyper.minibatch % 2:
                    raise runs.BadInput(f"out of memory with minibatches of {hyper.minibatch}; lower --max-prompt, or --checkpointing True") from error  # fmt: skip
                optimizer.zero_grad(set_to_none=True)
                hyper = replace(hyper, minibatch=hyper.minibatch // 2)

    @torch.no_grad()
    def answer(self, items: list[data.Item], name: str | None, column: int = 0) -> tuple[list[str], Tensor, Tensor]:
        """(texts, KL to the reference, entropy) of one answer per item; greedy where `name` is None."""
        config, asked = self.config, [self._encode(x)[0] for x in items]
        n, T = len(items), config.max_new or 31
        draws = torch.rand(n, T, generator=runs.stream(config.seed, name, column)) if name else None
        texts, kl, entropy = [""] * n, torch.zeros(n), torch.zeros(n)
        size = 512 if config.width <= 64 and not is_hub(config.model) else 64
        for rows in torch.tensor([len(q) for q in asked]).argsort(stable=True).split(size):
            rows = rows.tolist()
            out = rollout(self.policy, self.tokenizer, [asked[i] for i in rows], T, draws[rows] if name else None,
                          prompts.CLOSE if config.stop_at_tag else None, config.temperature, self.cache)  # fmt: skip
            for i, text in zip(rows, out.texts):
                texts[i] = text
            if name and column == 0:
                mask = out.answer_mask()
                log_pi, _, H = self.policy(out.ids, out.mask, out.T)
                log_ref = self.policy(out.ids, out.mask, out.T, reference=True)[0]
                kl[rows] = ((log_pi - log_ref) * mask).sum(1).cpu()
                entropy[rows] = (H * mask).sum(1).cpu()
        return texts, kl, entropy

    def answer_all(self, items: list[data.Item], name: str, k: int, write: Path | None = None) -> dict[str, np.ndarray]:
        """The arrays of predictions.npz (see evaluate.py); `write`: the texts themselves, one question a line."""
        def read(texts):
            judged = [self.judge(t, x.label) for t, x in zip(texts, items)]
            answers = np.array([evaluate.UNREADABLE if a is None else a for a, _ in judged])
            return answers, np.array([r for _, r in judged], dtype=np.float32)

        greedy = self.answer(items, None)[0]
        sampled = [self.answer(items, name, j) for j in range(k)]
        g, g_reward = read(greedy)
        s = [read(texts) for texts, _, _ in sampled]
        if write:
            lines = [{"id": x.id, "label": x.label, "greedy": t, "sampled": list(more)} for x, t, more in zip(items, greedy, zip(*(r[0] for r in sampled)))]  # fmt: skip
            write.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {
            "id": np.array([x.id for x in items]), "label": np.array([x.label for x in items], dtype=np.float32),
            "greedy": g.astype(np.float32), "greedy_reward": g_reward,
            "sampled": np.stack([a for a, _ in s], 1).astype(np.float32), "sampled_reward": np.stack([r for _, r in s], 1),
            "kl": sampled[0][1].numpy().astype(np.float32), "entropy": sampled[0][2].numpy().astype(np.float32),
            "group": np.array([x.group for x in items]), "value": np.array([x.value for x in items], dtype=np.float32),
            "_metric": np.array([self.task.metric]),
        }  # fmt: skip

    def probe(self) -> dict[str, float]:
        """What a figure over time needs, the same for every arm: validation items, one sampled and one greedy answer."""
        found = self.answer_all(self.items.validation[:150], "probe", 1)
        m = evaluate.score(found)
        return {f"probe_{k}": m[k] for k in ("accuracy_greedy", "accuracy_sampled", "invalid_sampled", "reward_sampled", "kl", "entropy")}  # fmt: skip

    def check_identity(self, run: runs.Run) -> None:
        """A fresh adapter changes nothing: log pi = log pi_ref; noted so that the check after training means something."""
        self.before = runs.state_sha256(frozen_weights(self.policy))
        ids, mask = method.left_pad([self.pair(0)[0]], self.tokenizer.pad_token_id, next(self.policy.parameters()).device)
        self.seen_by_reference = ids, mask
        with torch.no_grad():
            self.policy.eval()
            self.reference_before = self.policy(ids, mask, 1, reference=True)[0]

    def check_reference(self, run: runs.Run) -> None:
        """After training the reference still is what was loaded, bit for bit."""
        after = runs.state_sha256(frozen_weights(self.policy))
        with torch.no_grad():
            self.policy.eval()
            same = torch.equal(self.policy(*self.seen_by_reference, 1, reference=True)[0], self.reference_before)
        run.gate("reference-kept", after == self.before and same, f"sha256 of the frozen weights {self.before[:12]} -> {after[:12]}; same log-probabilities: {same}")  # fmt: skip


# --- models, data, small things ---------------------------------------------------------------------------------------


def is_hub(name: str) -> bool:
    return "/" in name


def base_of(lm):
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def weights(lm) -> list[Tensor]:
    return [p for _, p in sorted(lm.named_parameters())]


def frozen_weights(policy: Policy) -> list[Tensor]:
    source = policy.frozen[0] if policy.frozen else policy
    return [full(p) for _, p in sorted(source.named_parameters()) if not p.requires_grad]


def base_model(config: Config, run: runs.Run):
    """(model, tokenizer) before any run of ours has touched it."""
    runs.seed_global(config.seed, "model")
    if config.model == "digits":
        tokenizer = models.digits_tokenizer()
        return models.llama(len(tokenizer), config.width, config.layers, 2, 3 * config.width, config.context), tokenizer
    if config.model == "minilm":
        return models.prefix_minilm()
    if config.model == "decoder":
        return models.restore(Path(config.uses["base"]) / "model")
    if config.model.startswith("tiny-"):
        items = load_data(config, run)
        texts = [prompts.prompt(items.task, x.fields) + prompts.target(items.task, x.label) for x in items.train]
        tokenizer = models.trained_tokenizer(texts, config.vocabulary)
        return models.tiny(config.model.removeprefix("tiny-"), len(tokenizer)), tokenizer
    folder, _ = sources.find_model(config.model)
    return models.load(folder, getattr(torch, config.precision))


def starting_policy(config: Config, run: runs.Run):
    """(model, tokenizer) of stage `start`, whose weights must be those it recorded; a used SFT adapter is merged in."""
    start = Path(config.uses["start"]) if "start" in config.uses else None
    if start and (start / "model").exists():
        lm, tokenizer = models.restore(start / "model", getattr(torch, config.precision))
    else:
        lm, tokenizer = base_model(config, run)
    if start:
        found, told = runs.state_sha256(weights(lm)), json.loads((start / "record.json").read_text())["state_sha256"]
        run.gate("same-start", found == told, f"sha256 of the starting weights {found[:12]}, of the stage {told[:12]}")
    for name, folder in config.uses.items():
        if (Path(folder) / "export" / "adapter_config.json").exists():
            from peft import PeftModel

            run.say(f"{name}: its adapter is merged; the reference is the merged model")
            lm = PeftModel.from_pretrained(lm, str(Path(folder) / "export")).merge_and_unload()
    return lm, tokenizer


def load_data(config: Config, run: runs.Run) -> data.Data:
    items = data.load(config.task, runs.stream(config.seed, "split"), runs.stream(config.seed, "flip"), config.flip,
                      config.train_limit, sample=config.scale == "rehearsal")  # fmt: skip
    items = replace(items, test=items.test[: config.test_limit or None], validation=items.validation[: config.test_limit or None])
    parts = {"train": items.train, "validation": items.validation, "test": items.test, "start": items.start}
    run.splits(**{name: [x.id for x in part] for name, part in parts.items() if part})
    return items


def check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    answers = config.batch * config.responses
    if config.method in ("ppo", "sft") and answers % min(config.minibatch, answers):
        raise runs.BadInput(f"batch x responses = {answers} is not a multiple of minibatch = {config.minibatch}; set --minibatch {math.gcd(answers, config.minibatch)}")  # fmt: skip
    prompts.task(config.task) if config.task != "documentation" else None
    if config.lr <= 0:
        raise runs.BadInput(f"lr = {config.lr} must be above 0; the official value is 9e-6")


def schedule_of_rows(n: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """(steps, batch) rows: shuffled epochs one after the other.  What an epoch leaves over (1 to batch - 1 rows) is
    left out of it; the official trainer stops with an error when 1 to 8 rows remain (D19)."""
    if n < batch:
        raise ValueError(f"{n} training items do not fill one batch of {batch}; set --batch {n} or give more data")
    per = n // batch
    epochs = [torch.randperm(n, generator=generator)[: per * batch].view(per, batch) for _ in range(-(-steps // per))]
    return torch.cat(epochs)[:steps]


def make_optimizer(config: Config, parameters: list[Tensor]):
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=config.lr, scale_parameter=False, relative_step=False, warmup_init=False)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)


def set_rate(optimizer, config: Config, step: int) -> None:
    share_done = step / config.steps
    factor = 1.0 if config.schedule == "constant" else min((step + 1) / (0.05 * config.steps + 1), 1 - 0.9 * share_done)
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def count(budget: dict, forward: int, backward: int, steps: int) -> None:
    budget["tokens_forward"] += forward
    budget["tokens_backward"] += backward
    budget["gradient_steps"] += steps


def used_budget(config: Config) -> dict:
    """What the runs this one builds on have spent, `start` apart: every arm has that."""
    total: dict[str, int] = {}
    for name, folder in config.uses.items():
        spent = json.loads((Path(folder) / "record.json").read_text()).get("details", {}).get("budget") if name != "start" else None
        for key, value in (spent or {}).items():
            total[key] = total.get(key, 0) + value
    return total


def memory_remedy(what: str, remedy: str):
    class Remedy(nullcontext):
        def __exit__(self, kind, error, trace):
            if isinstance(error, torch.OutOfMemoryError):
                raise runs.BadInput(f"out of memory while {what}: {remedy}") from error

    return Remedy()


def export(config: Config, policy: Policy, tokenizer, run: runs.Run) -> list[str]:
    """The adapter for `PeftModel.from_pretrained(base, DIR)`, or the whole model where no adapter was used."""
    folder = run.directory / "export"
    if dist.is_initialized() and dist.get_rank():
        return []
    if config.lora_rank and not any(hasattr(p, "full_tensor") for p in policy.parameters()):
        policy.lm.save_pretrained(str(folder))
        (folder / "README.md").write_text(
            f"LoRA adapter of {config.arm} on {config.task} (scale {config.scale}, seed {config.seed}).\n\nBase model: {config.model}; "
            "load with `peft.PeftModel.from_pretrained(base, this_folder)`. Licence: that of the base model and data.\n"
        )
        return ["export"]
    return []


# --- several processes ------------------------------------------------------------------------------------------------


def join_processes(config: Config) -> int:
    """Rank of this process; joins the group that `accelerate launch` or `torchrun` describes in the environment."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() and config.device != "cpu" else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return dist.get_rank()


def shard(config: Config, policy: Policy) -> None:
    """FSDP2: each block's weights are divided among the processes; the value head stays whole."""
    if dist.is_initialized() and is_hub(config.model):
        from torch.distributed.fsdp import fully_shard

        for block in base_of(policy.lm).get_decoder().layers:
            fully_shard(block)
        fully_shard(policy.lm)


def mine(rows: Tensor) -> list[int]:
    """This process's share of a batch."""
    return rows[dist.get_rank() :: dist.get_world_size()].tolist() if dist.is_initialized() else rows.tolist()


def share(saved):
    """The checkpoint that process 0 read, on all processes."""
    if not dist.is_initialized():
        return saved
    box = [saved]
    dist.broadcast_object_list(box)
    return box[0]


def full(p: Tensor) -> Tensor:
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def trained_state(policy: Policy, optimizer) -> dict:
    """Trainable tensors and the optimiser, whole also when they are divided among processes."""
    return {
        "trained": {n: full(p).detach() for n, p in policy.named_parameters() if p.requires_grad},
        "optimizer": {
            k: {m: full(v) if isinstance(v, Tensor) else v for m, v in state.items()}
            for k, state in enumerate(optimizer.state_dict()["state"].values())
        },
    }


def load_trained(policy: Policy, optimizer, saved: dict) -> None:
    from torch.distributed.tensor import distribute_tensor

    def like(p, value):
        return distribute_tensor(value.to(p.device), p.device_mesh, p.placements) if hasattr(p, "device_mesh") else value.to(p.device)

    trained = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for n, p in trained:
            p.copy_(like(p, saved["trained"][n]))
    for k, (_, p) in enumerate(trained):
        state = saved["optimizer"].get(k, {})
        optimizer.state[p] = {m: like(p, v) if isinstance(v, Tensor) and v.shape == p.shape else v for m, v in state.items()}


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
