"""Data and models of a run, and the two stages that make what every arm starts from.

`base`   once for all: the bandit whose best answer is known, and at scale gpu a language model from plain text
`start`  for each task and seed: a policy that has heard of the format and half knows the task
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ppo_nlu import bandit, baselines, data, models, prompts
from ppo_nlu.method import Policy
from ppo_nlu.steps import schedule_of_rows, set_rate
from shared import processes, runs, sources


def is_hub(name: str) -> bool:
    return "/" in name


def weights(lm) -> list[Tensor]:
    return [p for _, p in sorted(lm.named_parameters())]


def base_model(config: runs.RunConfig, run: runs.Run):
    """(model, tokenizer) before any run of ours has touched it."""
    runs.seed_global(config.seed, "model")
    if config.model == "digits":
        tokenizer = models.digits_tokenizer()
        return models.llama(
            len(tokenizer), config.width, config.layers, 2, 3 * config.width, config.context
        ), tokenizer
    if config.model == "minilm":
        return models.prefix_minilm()
    if config.model == "decoder":
        return models.restore(Path(config.uses["base"]) / "model")
    if config.model.startswith("tiny-"):
        items = load_data(config, run)
        texts = [
            prompts.prompt(items.task, x.fields) + prompts.target(items.task, x.label)
            for x in items.train
        ]
        tokenizer = models.trained_tokenizer(texts, config.vocabulary)
        return models.tiny(config.model.removeprefix("tiny-"), len(tokenizer)), tokenizer
    folder, _ = sources.find_model(config.model)
    return models.load(folder, getattr(torch, config.precision))


def starting_policy(config: runs.RunConfig, run: runs.Run):
    """(model, tokenizer) of the starting stage, whose weights must be those it recorded; a used SFT adapter is merged in."""
    start = next(
        (Path(folder) for name, folder in config.uses.items() if name in ("start", "text_start")),
        None,
    )
    if start and (start / "model").exists():
        lm, tokenizer = models.restore(start / "model", getattr(torch, config.precision))
    else:
        lm, tokenizer = base_model(config, run)
    if start:
        found, told = (
            runs.state_sha256(weights(lm)),
            json.loads((start / "record.json").read_text())["state_sha256"],
        )
        run.gate(
            "same-start",
            found == told,
            f"sha256 of the starting weights {found[:12]}, of the stage {told[:12]}",
        )
    for name, folder in config.uses.items():
        if (Path(folder) / "export" / "model").exists():
            lm, tokenizer = models.restore(
                Path(folder) / "export" / "model", getattr(torch, config.precision)
            )
        elif (Path(folder) / "export" / "adapter_config.json").exists():
            from peft import PeftModel

            run.say(f"{name}: its adapter is merged; the reference is the merged model")
            lm = PeftModel.from_pretrained(lm, str(Path(folder) / "export")).merge_and_unload()
    return lm, tokenizer


def load_data(config: runs.RunConfig, run: runs.Run) -> data.Data:
    """The items of the run's task, or of its mixture; which item is in which part goes into the record."""
    seed, sample = config.seed, config.scale == "rehearsal"

    def one(name: str) -> data.Data:
        noise, split = runs.stream(seed, "flip"), runs.stream(seed, "split")
        return data.load(
            name, split, noise, config.flip, config.train_limit, sample, not is_hub(config.model)
        )

    if config.mixture:
        least = 30_000 if is_hub(config.model) else 0
        items = data.mixed(
            [one(name) for name in config.mixture], runs.stream(seed, "mixture"), least
        )
    else:
        items = one(config.task)
    some = config.test_limit or None
    items = replace(items, test=items.test[:some], validation=items.validation[:some])
    parts = {
        "train": items.train,
        "validation": items.validation,
        "test": items.test,
        "start": items.start,
    }
    run.splits(**{name: sorted({x.id for x in part}) for name, part in parts.items() if part})
    return items


# --- stages -----------------------------------------------------------------------------------------------------------


def make_base(config: runs.RunConfig, run: runs.Run) -> None:
    """Once for all seeds and tasks: the known answer PPO must find, and at scale gpu a language model from plain text."""
    device, L = runs.device(config), config.context
    rewards = [bandit.solve("ppo", seed) for seed in (0, 1, 2)]
    run.gate(
        "bandit",
        min(rewards) > 0.9,
        f"mean reward after 200 batches, seeds 0, 1, 2: {rewards}; best is 1",
    )
    if config.model != "decoder":
        run.finish(state=[torch.tensor(rewards)])
        return
    from shared import bundled

    texts = bundled.english()
    tokenizer = models.trained_tokenizer(texts[:4000], config.vocabulary)
    ids = torch.tensor(
        [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    )
    rows = ids[: len(ids) // L * L].view(-1, L)
    runs.seed_global(config.seed, "model")
    lm = models.llama(
        len(tokenizer), config.width, config.layers, config.width // 64 or 1, 4 * config.width, 2048
    ).to(device)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=config.lr, weight_decay=0.1)
    order = schedule_of_rows(
        len(rows), config.batch, config.steps, runs.stream(config.seed, "text")
    )
    saved = run.resume()
    if saved:
        lm.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    save = lambda: {"model": lm.state_dict(), "optimizer": optimizer.state_dict()}  # noqa: E731
    for step in run.steps(saved["step"] if saved else 0, config.steps, save):
        set_rate(optimizer, config, step)
        batch = rows[processes.shard(order[step])].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = lm(input_ids=batch, labels=batch, use_cache=False).loss
        run.finite(loss, "language model", step, order[step])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.mean_gradients(lm.parameters())
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            run.log(step=step, loss=float(loss.detach()))
    models.save(lm.cpu(), tokenizer, run.directory / "model")
    run.finish(state=list(lm.parameters()), gradient_evaluations=config.steps)


def make_start(config: runs.RunConfig, run: runs.Run) -> None:
    """The policy every arm starts from: it has heard of the format and half knows the task, like a chat model.

    Half of the steps show solved examples in front, so that few-shot prompting is not asked of a model that never saw
    it.  Only the last answer is learned.  With a hub model nothing is trained: the run notes its weights' hash."""
    device = runs.device(config)
    lm, tokenizer = base_model(config, run)
    lm.to(device)
    if config.steps:
        items = load_data(config, run)
        told = data.half_knowing(
            items.task,
            items.start,
            config.start_right,
            config.start_malformed,
            runs.stream(config.seed, "teacher"),
        )
        tasks = [data.task_of(x, items.task) for x in items.start]
        answers = [
            prompts.parse(t, text) for t, text in zip(tasks, told)
        ]  # shown examples are well formed, right or not
        examples = [(x.fields, x.label if a is None else a) for x, a in zip(items.start, answers)]
        policy = Policy(lm)  # only its forward pass is used
        policy.frozen.clear()
        optimizer = torch.optim.AdamW(lm.parameters(), lr=config.lr)
        order = schedule_of_rows(
            len(told), config.batch, config.steps, runs.stream(config.seed, "start")
        )
        shown = runs.stream(config.seed, "shown")
        saved = run.resume()
        if saved:
            lm.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            runs.restore_generators(saved["generators"], shown)

        def save() -> dict:
            state = {"model": lm.state_dict(), "optimizer": optimizer.state_dict()}
            return state | {"generators": runs.generator_states(shown)}

        for step in run.steps(saved["step"] if saved else 0, config.steps, save):
            set_rate(optimizer, config, step)
            rows = processes.shard(order[step]).tolist()
            pairs = []
            for i in rows:
                k = config.shots if step % 2 else 0
                others = torch.randint(len(told), (k,), generator=shown).tolist()
                text = prompts.prompt(
                    tasks[i],
                    items.start[i].fields,
                    [examples[j] for j in others if tasks[j] is tasks[i]],
                )
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
