"""Sheets of answers: to validation and test items, while training, and for evaluation servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_nlu import data, evaluate, official, prompts, server
from ppo_nlu.asking import LONGEST, Questions, with_shots
from ppo_nlu.data import Item
from ppo_nlu.policy import Policy
from shared import runs

PROBES = ("accuracy_greedy", "accuracy_sampled", "invalid_sampled", "reward_sampled")


class Sheet:
    """Answers of a policy to n items: one greedy and k sampled ones each, filled batch by batch.

    `name` is that of the stream of random numbers, the same for all arms of a seed."""

    def __init__(self, questions: Questions, items: list[Item], name: str, k: int):
        self.questions, self.items, self.name = questions, items, name
        self.texts = [[""] * len(items) for _ in range(1 + k)]  # greedy first
        self.kl = 0.0  # sum over the answers of the first sampled column
        lengths = torch.tensor([questions.length(x) for x in items])
        size = 64 if questions.config.from_hub else 512
        self.rows = [
            rows.tolist() for rows in lengths.argsort(stable=True).split(size) if len(rows)
        ]
        self.batches = len(self.texts) * len(self.rows)

    def state(self) -> dict[str, Any]:
        return {"texts": self.texts, "kl": self.kl}

    def load(self, state: dict[str, Any]) -> None:
        self.texts, self.kl = state["texts"], state["kl"]

    @torch.no_grad()
    def fill(self, policy: Policy, batch: int, moved: bool = False) -> None:
        """Ask one batch of one column; where the policy has `moved`, of the first sampled one also
        the KL."""
        part, column = divmod(batch, len(self.texts))
        config, rows = self.questions.config, self.rows[part]
        max_new = config.max_new or LONGEST
        uniforms = None
        if column:
            stream = runs.stream(config.seed, self.name, column - 1)
            uniforms = torch.rand(len(self.items), max_new, generator=stream)[rows]
        out = self.questions.ask(policy, [self.items[i] for i in rows], max_new, uniforms)
        for i, text in zip(rows, out.texts):
            self.texts[column][i] = text
        if column == 1 and moved:
            mask = out.answer_mask()
            log_pi = policy(out.ids, out.mask, out.T)[0]
            log_ref = policy(out.ids, out.mask, out.T, reference=True)[0]
            self.kl += float(((log_pi - log_ref) * mask).sum())

    def arrays(self) -> dict[str, np.ndarray]:
        """The filled sheet as the arrays of predictions.npz (evaluate.py)."""
        config, items = self.questions.config, self.items
        guess = runs.stream(config.seed, "guess", self.name)
        answers, rewards = [], []
        for texts in self.texts:
            judged = [
                self.questions.judge(text, x, x.label, config.test_parser, guess)
                for text, x in zip(texts, items)
            ]
            answers.append([evaluate.UNREADABLE if a is None else a for a, _ in judged])
            rewards.append([r for _, r in judged])
        answer, reward = np.array(answers, np.float32), np.array(rewards, np.float32)
        return {
            "id": np.array([x.id for x in items]),
            "label": np.array([x.label for x in items], np.float32),
            "greedy": answer[0],
            "greedy_reward": reward[0],
            "sampled": answer[1:].T.copy(),
            "sampled_reward": reward[1:].T.copy(),
            "group": np.array([x.group for x in items]),
            "value": np.array([x.value for x in items], np.float32),
            "_metric": np.array([self.questions.task.metric]),
        }

    def scores(self) -> dict[str, float]:
        """Metrics of the filled sheet; none of an empty one."""
        return evaluate.score(self.arrays()) if self.items else {}

    def server_answers(self) -> list[float]:
        """The first sampled answer to each item, read as the official test does: a file for the
        evaluation server has a label in every row."""
        task, guess = self.questions.task, runs.stream(self.questions.config.seed, "server")
        read = (prompts.parse(task, text, self.questions.config.form) for text in self.texts[1])
        return [
            official.parse_in_test(task, text, guess) if answer is None else answer
            for text, answer in zip(self.texts[1], read)
        ]

    def write(self, path: Path) -> None:
        """The texts themselves, one question a line."""
        lines = [
            {
                "id": x.id,
                "question": prompts.instance(data.task_of(x, self.questions.task), x.fields),
                "label": x.label,
                "greedy": greedy,
                "sampled": sampled,
            }
            for x, greedy, *sampled in zip(self.items, *self.texts)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def probe(policy: Policy, questions: Questions, validation: list[Item]) -> dict[str, float]:
    """What a figure over time needs, the same for every arm: two answers to each item."""
    sheet = Sheet(questions, validation[: questions.config.probed], "probe", 1)
    for batch in range(sheet.batches):
        sheet.fill(policy, batch, moved=True)
    scores = sheet.scores()
    facts = {f"probe_{name}": scores[name] for name in PROBES}
    return facts | {"probe_kl": sheet.kl / len(sheet.items)}


def for_server(run: runs.Run, policy: Policy, questions: Questions) -> None:
    """Sampled answers to the benchmark's own test part, as the file that its server takes."""
    sheet = Sheet(questions, server.test_items(run.config.task), "server", 1)
    for batch in run.phase("server", sheet.batches, sheet):
        sheet.fill(policy, batch)
    if sheet.items:
        server.write(run.directory / "server", questions.task, sheet.server_answers())


def choose_shots(
    run: runs.Run, policy: Policy, questions: Questions, items: data.Data
) -> Questions:
    """The number of solved examples that scores best on validation items, 1 to `shots` tried."""
    tried: list[float] = []
    for shots in run.phase("shots", questions.config.shots, runs.Parts(tried=tried)):
        asked = with_shots(questions, items, 1 + shots)
        looked_at = items.validation[: questions.config.validation_limit or None]
        sheet = Sheet(asked, looked_at, "shots", 0)
        for batch in range(sheet.batches):
            sheet.fill(policy, batch)
        tried.append(evaluate.greedy_score(sheet.arrays()))
    best = 1 + tried.index(max(tried))
    run.say(f"shots: {best} of {len(tried)} tried, {[round(x, 3) for x in tried]} on validation")
    return with_shots(questions, items, best)
