"""The BERT rows of the claims: an encoder with a classification head, fine-tuned on the same examples."""

import numpy as np
import torch
from torch import Tensor

from ppo_nlu import baselines, data, evaluate, models, prompts
from ppo_nlu.starting import load_data, weights
from ppo_nlu.steps import make_optimizer, schedule_of_rows, set_rate, with_steps
from shared import runs
from shared.processes import shard


def classify(config: runs.RunConfig, run: runs.Run) -> None:
    """An encoder with a classification head: the BERT rows of the claims.  Greedy and sampled answers are the same."""
    device, items = runs.device(config), load_data(config, run)
    task, config = items.task, with_steps(config, len(items.train))
    runs.seed_global(config.seed, "model")
    encoder, tokenizer = models.classifier(config.model, max(len(task.words), 1), [prompts.instance(task, x.fields) for x in items.train], config.vocabulary)  # fmt: skip
    encoder.to(device)
    optimizer = make_optimizer(config, list(encoder.parameters()))
    order = schedule_of_rows(
        len(items.train), config.batch, config.steps, runs.stream(config.seed, "batches")
    )

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
        some = [items.train[i] for i in shard(order[step]).tolist()]
        loss = baselines.classifier_loss(
            logits(some), torch.tensor([float(x.label) for x in some], device=device)
        )
        run.finite(loss.detach(), "classifier", step, [x.id for x in some])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.log(step=step, loss=float(loss.detach()))
    encoder.eval()
    with torch.no_grad():
        out = torch.cat(
            [logits(items.test[i : i + 64]).float().cpu() for i in range(0, len(items.test), 64)]
        )
    answer = (out[:, 0] if task.number else out.argmax(1)).numpy().astype(np.float32)
    label = np.array([x.label for x in items.test], dtype=np.float32)
    paid = np.array(
        [prompts.reward(task, prompts.CLOSE, float(a), float(y)) for a, y in zip(answer, label)],
        dtype=np.float32,
    )
    zero = np.zeros(len(label), dtype=np.float32)
    answers = {"id": np.array([x.id for x in items.test]), "label": label, "greedy": answer, "greedy_reward": paid,
               "sampled": answer[:, None], "sampled_reward": paid[:, None], "kl": zero, "entropy": zero,
               "group": np.array([x.group for x in items.test]), "value": np.array([x.value for x in items.test], dtype=np.float32),
               "_metric": np.array([task.metric])}  # fmt: skip
    run.predictions(**answers)
    run.finish(metrics=evaluate.score(answers), state=weights(encoder), gradient_evaluations=config.steps,
               selection="last", chosen_step=config.steps)  # fmt: skip
