"""Retraining: plain LoRA with given ranks (or an opponent) from the pretrained weights, then predictions on the test set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autolora import baselines, data, evaluate, method, official
from autolora.setting import Batches, Setting, draws, prepare, task_loss
from shared import protocol, runs

ORTHOGONALITY = 0.5  # AdaLoRA's weight of |P P^T - I|


def retrain(config: Any, run: Any) -> None:
    """`config`: train.Config, `run`: runs.Run. Trained on `inner` (D_tr), the run is a stage: D_val scores it, no test."""
    at = prepare(config, run)
    rows = np.arange(len(at.train)) if config.train_on == "all" else at.inner
    batches = Batches(rows, config.batch, config.seed, "batches")
    total = config.steps or math.ceil(config.epochs * batches.per_epoch)
    shapes = {
        name: base.weight.shape for name, base in method.adapted_maps(at.network.model).items()
    }
    model, ranks = adapted(config, run, at, total)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    frozen_before = runs.state_sha256(frozen)
    optimiser = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    adalora = config.adapter == "adalora"
    test = scorer(config, at, at.task.test) if config.train_on == "all" else None
    epochs: list[np.ndarray] = []
    saved = run.resume()
    if saved:
        for p, value in zip(trained, saved["trained"], strict=True):
            p.data.copy_(value)
        optimiser.load_state_dict(saved["optimiser"])
        epochs = [e.numpy() for e in saved["epochs"]]
        if adalora:
            baselines.restore_allocator(model, saved["allocator"], at.device)

    def save() -> dict[str, Any]:
        return {
            "trained": [p.detach().cpu() for p in trained], "optimiser": optimiser.state_dict(),
            "epochs": [torch.from_numpy(e) for e in epochs],
            "allocator": baselines.allocator_state(model) if adalora else {},
        }  # fmt: skip

    for step in run.steps(saved["step"] if saved else 0, total, save, "retrain"):
        inputs, labels = at.train.batch(batches(step), at.device)
        runs.seed_global(config.seed, "dropout", step)
        with torch.autocast(at.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = task_loss(at.task.kind, model(**inputs).logits, labels, config.label_smoothing)
        run.finite(loss, level="lower", step=step, batch=at.train.ids[batches(step)])
        optimiser.param_groups[0]["lr"] = config.lr * schedule(step, total, config.warmup)
        (loss + ORTHOGONALITY * baselines.orthogonality(model) if adalora else loss).backward()
        optimiser.step()
        if adalora:
            model.base_model.update_and_allocate(step + 1)  # reads the gradients
        optimiser.zero_grad()
        if step % config.record_every == 0 or step == total - 1:
            run.log(step=step, loss=float(loss.detach()))
        if config.best_epoch and test and (step + 1) % batches.per_epoch == 0:
            epochs.append(test(model)["prediction"])

    if config.adapter != "full":
        run.gate(
            "frozen-unchanged",
            bool(frozen) and frozen_before == runs.state_sha256(frozen),
            f"{len(frozen)} frozen tensors",
        )
    if adalora:
        ranks, wanted = baselines.adalora_ranks(model), baselines.read_ranks(used(config))["budget"]
        run.gate(
            "adalora-budget",
            sum(ranks.values()) == wanted,
            f"{sum(ranks.values())} triplets left, {wanted} wanted",
        )
    if config.export:
        model.save_pretrained(run.directory / "export")
        (run.directory / "export" / "README.md").write_text(EXPORTED.format(**vars(config)))
    details = {"ranks": ranks, "trained_parameters": sum(p.numel() for p in trained)}
    ended = {"state": trained, "gradient_evaluations": total, "chosen_step": total, **details}
    held_out = at.task.train.rows(at.held) if config.train_on == "inner" else at.task.validation
    validation = (
        evaluate.score(scorer(config, at, held_out)(model))
        if held_out and config.score_validation
        else {}
    )
    if test is None:
        if config.adapter == "lora":
            spectral = baselines.spectral_ranks(model)
            runs.write_json(
                run.directory / "ranks.json", {"ranks": spectral, "budget": sum(spectral.values())}
            )
        run.finish(validation=validation, **ended)
        return
    predictions = test(model)
    if epochs:
        predictions["best_epoch"] = np.stack(epochs, axis=1)
    if ranks:
        predictions["_ranks"] = np.array([ranks[name] for name in shapes])
        predictions["_rank_total"] = np.array(sum(ranks.values()))
        predictions["_parameters"] = np.array(
            sum(ranks[name] * sum(shape) for name, shape in shapes.items())
        )
    cost = total + sum(record(d)["gradient_evaluations_with_uses"] for d in config.uses.values())
    predictions["_cost"] = predictions["_cost_all_ranks"] = np.array(cost)
    run.predictions(**predictions)
    run.finish(
        metrics=evaluate.score(predictions),
        validation=validation,
        exports=["export"] * config.export,
        **ended,
    )


def adapted(config: Any, run: Any, at: Setting, total: int) -> tuple[nn.Module, dict[str, int]]:
    """The network with what this arm trains, and the rank of every map ({} where there is none)."""
    model, head = at.network.model, at.network.head
    maps = method.adapted_maps(model)
    if config.adapter == "full":
        baselines.unfreeze(model)
        return model, {}
    if config.adapter == "adalora":
        budget = baselines.read_ranks(used(config))["budget"]
        runs.seed_global(config.seed, "adalora")
        wrapped = baselines.adalora(
            model, list(maps), budget, total, head, config.c, config.lora_dropout
        )
        return wrapped.to(at.device).train(), {}
    if config.adapter != "lora":
        raise runs.BadInput(f"adapter = '{config.adapter}' must be lora, adalora or full")
    found = (
        json.loads((used(config) / "ranks.json").read_text())
        if config.uses and config.ranks != "grid"
        else None
    )
    rule = best_of(config)[1] if config.ranks == "grid" else config.ranks
    ranks = baselines.choose(
        rule, found, list(maps), runs.stream(config.seed, "control ranks", config.ranks)
    )
    method.check_ranks(ranks, maps)
    wrapped = baselines.lora(
        model,
        ranks,
        config.k,
        head,
        draws(config.seed, "adapter"),
        config.c,
        config.scale_rule,
        config.lora_dropout,
        config.bias,
    )
    back = baselines.ranks_read_back(wrapped)
    run.gate(
        "ranks-read-back",
        back == ranks,
        f"wanted {list(ranks.values())}, built {list(back.values())}",
    )
    if config.ranks in ("permuted", "equal"):
        learned, mine = sorted(found["ranks"].values()), sorted(ranks.values())
        same = learned == mine if config.ranks == "permuted" else sum(learned) == sum(mine)
        run.gate("equal-budget", same, f"{config.ranks}: {mine}, learned: {learned}")
    if config.ranks == "permuted":
        alike = ranks == found["ranks"] and len(set(learned)) > 1
        run.gate(
            "permutation-differs",
            not alike,
            f"learned {list(found['ranks'].values())}, permuted {list(ranks.values())}",
        )
    return wrapped.to(at.device).train(), ranks


def used(config: Any) -> Path:
    """Directory of the one run that this one uses."""
    if len(config.uses) != 1:
        raise runs.BadInput(
            f"arm '{config.arm}' needs exactly one run to read ranks from, it has {list(config.uses) or 'none'}"
        )
    return Path(next(iter(config.uses.values())))


def record(directory: str | Path) -> dict[str, Any]:
    return protocol.read_record(Path(directory)) or {}


def schedule(step: int, total: int, warmup: float) -> float:
    """Linear rise over the first `warmup` of the steps, then linear decay to 0."""
    rise = max(1, round(warmup * total))
    return (step + 1) / rise if step < rise else (total - step) / max(1, total - rise)


# --- grid of uniform ranks -------------------------------------------------------------------------------------------


def best_of(config: Any) -> tuple[Path, str]:
    """Of the runs used, the one with the best score on held-out items (the smallest rank on a tie), and its rank."""
    found = []
    for directory in map(Path, config.uses.values()):
        kept = record(directory)
        if "score" not in kept.get("validation", {}):
            raise runs.BadInput(
                f"{directory} has no score on held-out items; train it with --score_validation True"
            )
        found.append((-kept["validation"]["score"], int(kept["config"]["ranks"]), directory))
    _, rank, directory = min(found)
    return directory, str(rank)


def keep_best(config: Any, run: Any) -> None:
    """The uniform rank that did best on validation items; its predictions are this arm's. Costs what the grid cost."""
    directory, rank = best_of(config)
    predictions = evaluate.read(directory)
    kept = [record(d) for d in config.uses.values()]
    predictions["_cost"] = np.array(sum(r["gradient_evaluations_with_uses"] for r in kept))
    predictions["_cost_all_ranks"] = np.array(
        config.k * kept[0]["gradient_evaluations"]
    )  # every uniform rank 1..k once
    with np.load(directory / "splits.npz") as splits:
        kept_splits = {name: splits[name] for name in splits.files}
    run.splits(**kept_splits)
    run.predictions(**predictions)
    chosen = record(directory)
    run.finish(metrics=evaluate.score(predictions), validation=chosen["validation"], state=[torch.tensor(int(rank)), *map(torch.from_numpy, kept_splits.values())],
               selection="validation", chosen_step=chosen["chosen_step"], chosen_rank=int(rank))  # fmt: skip


# --- predictions -----------------------------------------------------------------------------------------------------


def scorer(
    config: Any, at: Setting, part: data.Part
) -> Callable[[nn.Module], dict[str, np.ndarray]]:
    """A function that turns a trained model into the predictions of `part` (rows of `evaluate.py`)."""
    part = part.rows(np.arange(official.scored_items(len(part), 16, config.drop_last_eval)))
    kind, tokenizer = at.task.kind, at.network.tokenizer
    encoded = (
        None
        if kind == "generation"
        else data.encode(at.task, part, at.network, config.max_length, config.upper_blocks)
    )
    tags = at.task.labels

    @torch.no_grad()
    def predict(model: nn.Module) -> dict[str, np.ndarray]:
        training = model.training
        model.eval()
        label, prediction = [], []
        for start in range(0, len(part), config.eval_batch):
            chosen = np.arange(start, min(start + config.eval_batch, len(part)))
            if kind == "generation":
                for text, i in zip(
                    generate(model, tokenizer, [part.texts[i] for i in chosen], config, at.device),
                    chosen,
                ):
                    row, length = evaluate.generation_row(text, part.labels[i])
                    prediction.append(row)
                    label.append(length)
                continue
            inputs, labels = encoded.batch(chosen, at.device)
            logits = model(**inputs).logits
            if kind == "tagging":
                for guess, truth in zip(logits.argmax(-1).tolist(), labels.tolist()):
                    pairs = [(tags[t], tags[g]) for t, g in zip(truth, guess) if t != -100]
                    right, found, there = evaluate.tagging_row(*zip(*pairs))
                    prediction.append((right, found))
                    label.append(there)
            else:
                prediction += (
                    logits.squeeze(-1) if kind == "regression" else logits.argmax(-1)
                ).tolist()
                label += labels.tolist()
        model.train(training)
        found = {"id": part.ids, "label": np.array(label), "prediction": np.array(prediction)}
        if part.parts is not None:
            found["part"] = part.parts
        return {**found, "_kind": np.array(kind), "_headline": np.array(at.task.headline)}

    return predict


def generate(
    model: nn.Module, tokenizer: Any, meanings: list[str], config: Any, device: torch.device
) -> list[str]:
    """Beam search after each meaning representation; prompts are padded on the left."""
    end = tokenizer.eos_token_id
    prompts = [[*tokenizer(meaning)["input_ids"], end] for meaning in meanings]
    longest = max(map(len, prompts))
    ids = torch.tensor(
        [[tokenizer.pad_token_id] * (longest - len(p)) + p for p in prompts], device=device
    )
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    out = model.generate(
        input_ids=ids, attention_mask=mask, num_beams=config.beams, length_penalty=0.8, no_repeat_ngram_size=4,
        max_new_tokens=config.new_tokens, do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return [tokenizer.decode(row[longest:], skip_special_tokens=True).strip() for row in out]


EXPORTED = """# AutoLoRA adapter: {arm}, task {task}, seed {seed}

A peft adapter (`adapter_config.json`, `adapter_model.safetensors`) for the base model `{model}`, trained at scale `{scale}`
({upper_blocks} upper blocks adapted; 0 means all). Ranks differ between maps: see `rank_pattern`. Load it with
`peft.PeftModel.from_pretrained(base, folder)`, the base built as `autolora/models.py` does (a GPT-2's fused projection is
split there). Weights: Apache-2.0 for the adapter; the base model keeps its own licence.
"""
