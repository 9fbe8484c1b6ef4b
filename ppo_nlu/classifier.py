"""The BERT rows of the claims: an encoder with a classification head, on the same examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_nlu import data, evaluate, models, prompts
from ppo_nlu.config import Config
from ppo_nlu.data import Item
from shared import pretrained, processes, runs

ENCODER = pretrained.Kind("an encoder", pretrained.BERT_LIKE, "google-bert/bert-base-uncased")
ASKED = 64  # test items in one pass


def classify(config: Config, run: runs.Run) -> None:
    """Train the encoder and answer the test items; greedy and sampled answers are the same."""
    device, items = runs.device(config), data.load(config)
    run.splits(**items.ids())
    task, steps = items.task, config.batches(len(items.train))
    runs.seed_global(config.seed, "model")
    texts = [prompts.instance(task, x.fields) for x in items.train]
    outputs = max(len(task.words), 1)
    encoder, tokenizer = network(config.model, outputs, texts, config.vocabulary)
    encoder.to(device)
    pretrained.check_texts(tokenizer, texts)
    length = min(config.max_prompt, pretrained.positions(encoder) or config.max_prompt)
    optimizer = models.make_optimizer(config, list(encoder.parameters()))
    generator = runs.stream(config.seed, "batches")
    order = data.rows_of_steps(len(items.train), config.batch, steps, generator)

    def logits(asked: list[Item]) -> Tensor:
        texts = [prompts.instance(task, x.fields) for x in asked]
        ids = tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        return encoder(**ids.to(device)).logits

    work = runs.Parts(model=encoder, optimizer=optimizer)
    for step in run.phase("training", steps, work):
        models.set_rate(optimizer, config, step, steps)
        encoder.train()
        runs.seed_global(config.seed, "dropout", step)
        batch = [items.train[i] for i in processes.shard(order[step]).tolist()]
        labels = torch.tensor([float(x.label) for x in batch], device=device)
        loss = classifier_loss(logits(batch), labels)
        run.finite(loss.detach(), "classifier", step, [x.id for x in batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.log(step=step, loss=float(loss.detach()))
    encoder.eval()
    out = torch.zeros(len(items.test), outputs)
    for k in run.phase("test", -(-len(out) // ASKED), runs.Parts(out=[out])):
        rows = slice(k * ASKED, (k + 1) * ASKED)
        with torch.no_grad():
            out[rows] = logits(items.test[rows]).float().cpu()
    answers = arrays(items, (out[:, 0] if task.number else out.argmax(1)).numpy())
    run.predictions(**answers)
    run.finish(
        metrics=evaluate.score(answers),
        state=models.weights(encoder),
        gradient_evaluations=steps,
        chosen_step=steps,
    )


def arrays(items: data.Data, answer: np.ndarray) -> dict[str, np.ndarray]:
    """Answers (n,) to the test items as the arrays of predictions.npz (evaluate.py)."""
    test, task = items.test, items.task
    answer = answer.astype(np.float32)
    label = np.array([x.label for x in test], np.float32)
    pairs = zip(answer.tolist(), label.tolist())
    reward = np.array([prompts.reward(task, "", a, y) for a, y in pairs], np.float32)
    return {
        "id": np.array([x.id for x in test]),
        "label": label,
        "greedy": answer,
        "greedy_reward": reward,
        "sampled": answer[:, None],
        "sampled_reward": reward[:, None],
        "group": np.array([x.group for x in test]),
        "value": np.array([x.value for x in test], np.float32),
        "_metric": np.array([task.metric]),
    }


def classifier_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or squared error where the answer is a number (one output)."""
    if logits.shape[1] == 1:
        return (logits[:, 0] - labels).square().mean()
    return torch.nn.functional.cross_entropy(logits, labels.long())


def network(name: str, outputs: int, texts: list[str], vocabulary: int) -> tuple[Any, Any]:
    """(encoder with a classification head, tokenizer); `tiny-bert` in rehearsals, else a hub id."""
    from transformers import (
        AutoModelForSequenceClassification,
        BertConfig,
        BertForSequenceClassification,
    )

    if name == "tiny-bert":
        tokenizer = models.trained_tokenizer(texts, vocabulary)
        small = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
        small.num_labels = outputs
        return BertForSequenceClassification(small), tokenizer
    cls = AutoModelForSequenceClassification
    encoder, tokenizer = pretrained.load(name, cls, ENCODER, "classifier", num_labels=outputs)
    for module in encoder.classifier.modules():  # a head that somebody trained is drawn anew, too
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=encoder.config.initializer_range)
            torch.nn.init.zeros_(module.bias)
    return encoder, tokenizer
