"""How the policy is asked and its answers are read: token ids, the rule, sheets of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppo_nlu import baselines, data, evaluate, models, official, prompts
from ppo_nlu.config import Config
from ppo_nlu.data import Data, Item
from ppo_nlu.policy import Policy, Rollout, left_pad, rollout, whole
from ppo_nlu.prompts import Task
from shared import pretrained, runs
from shared.protocol import BadInput

LONGEST = 31  # tokens of an answer where its length is drawn
PROBED = 150  # validation items of a look while training
PROBES = (
    "accuracy_greedy",
    "accuracy_sampled",
    "invalid_sampled",
    "reward_sampled",
    "kl",
    "entropy",
)


@dataclass(frozen=True)
class Questions:
    """The questions of a task as token ids, and the rule that pays for answers to them.

    train: training items whose prompt is not too long. paid: the row whose label pays for the
    answer to row i, which is i but in the control. shown: solved examples in front of each
    question."""

    config: Config
    tokenizer: Any
    task: Task
    train: list[Item]
    paid: list[int]
    shown: list[tuple[dict[str, str], float]]
    encoded: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)

    def text(self, item: Item) -> str:
        return prompts.prompt(data.task_of(item, self.task), item.fields, self.shown)

    def ids(self, item: Item) -> tuple[list[int], list[int]]:
        """Token ids of a question and of the answer that a supervised model learns to write."""
        if item.id not in self.encoded:
            write = official.sft_target if self.config.targets == "official" else prompts.target
            target = write(data.task_of(item, self.task), item.label)
            self.encoded[item.id] = models.encode(self.tokenizer, self.text(item), target)
        return self.encoded[item.id]

    def ask(
        self, policy: Policy, items: list[Item], max_new: int, uniforms: Tensor | None
    ) -> Rollout:
        """Answers to `items`, sampled with `uniforms` (n, max_new), else greedy."""
        config = self.config
        stop = prompts.CLOSE if config.stop_at_tag else None
        questions = [self.ids(x)[0] for x in items]
        return rollout(
            policy, self.tokenizer, questions, max_new, uniforms, stop, config.temperature
        )

    def judge(
        self,
        text: str,
        label: float,
        parser: Literal["strict", "official"],
        guess: torch.Generator | None = None,
    ) -> tuple[float | None, float]:
        """(answer or None, reward). guess: the official reader of a test draws what it cannot."""
        if parser == "strict":
            answer = prompts.parse(self.task, text)
        elif guess is None:
            answer = official.parse_in_training(self.task, text)
        else:
            answer = official.parse_in_test(self.task, text, guess)
        return answer, prompts.reward(self.task, text, answer, label, self.config.invalid)


def questions_of(
    config: Config, tokenizer: Any, items: Data, context: int, say: Callable[[str], None]
) -> Questions:
    """`Questions` of a task. A training prompt that is too long is left out, and said.

    context: tokens that the model takes. Raises BadInput where a prompt and an answer exceed it."""
    texts = [prompts.prompt(items.task, x.fields) for x in items.train]
    pretrained.check_texts(tokenizer, texts)
    shown = _shown(config, items.train)
    questions = Questions(config, tokenizer, items.task, items.train, [], shown)
    train = items.train
    if config.job != "prompt":
        train = [x for x in train if len(questions.ids(x)[0]) <= config.max_prompt]
    limit = f"max_prompt = {config.max_prompt} tokens"
    if not train:
        remedy = "raise --max-prompt"
        raise BadInput(f"{items.task.name}: every training prompt exceeds {limit}; {remedy}")
    if dropped := len(items.train) - len(train):
        say(f"{dropped} of {len(items.train)} training prompts exceed {limit} and are left out")
    longest = max(len(questions.ids(x)[0]) for x in [*train, *items.test, *items.validation])
    answer = config.max_new or LONGEST
    if longest + answer > context:
        what = f"{items.task.name}: a prompt of {longest} tokens and an answer of {answer}"
        remedy = "use fewer shots or a model with a longer context"
        raise BadInput(f"{what} do not fit the model's context of {context}; {remedy}")
    paid = list(range(len(train)))
    if config.shuffle:
        stream = runs.stream(config.seed, "shuffled labels")
        paid = torch.randperm(len(train), generator=stream).tolist()
    return replace(questions, train=train, paid=paid)


def _shown(config: Config, train: list[Item]) -> list[tuple[dict[str, str], float]]:
    """The solved examples of a few-shot prompt."""
    if not config.shots:
        return []
    labels = [x.label for x in train]
    if config.few == "balanced":
        rows = baselines.examples(labels, config.shots, runs.stream(config.seed, "shots"))
    else:
        rows = official.first_rows(labels, config.shots)
    return [(train[i].fields, train[i].label) for i in rows]


class Sheet:
    """Answers of a policy to n items: one greedy and k sampled ones each, filled batch by batch.

    `name` is that of the stream of random numbers, the same for all arms of a seed."""

    def __init__(self, questions: Questions, items: list[Item], name: str, k: int):
        self.questions, self.items, self.name = questions, items, name
        self.texts = [[""] * len(items) for _ in range(1 + k)]  # greedy first
        self.kl, self.entropy = torch.zeros(len(items)), torch.zeros(len(items))
        lengths = torch.tensor([len(questions.ids(x)[0]) for x in items])
        size = 64 if questions.config.from_hub else 512
        self.rows = [
            rows.tolist() for rows in lengths.argsort(stable=True).split(size) if len(rows)
        ]
        self.batches = len(self.texts) * len(self.rows)

    def state(self) -> dict[str, Any]:
        return {"texts": self.texts, "kl": self.kl, "entropy": self.entropy}

    def load(self, state: dict[str, Any]) -> None:
        self.texts, self.kl, self.entropy = (state[k] for k in ("texts", "kl", "entropy"))

    @torch.no_grad()
    def fill(self, policy: Policy, batch: int) -> None:
        """Ask one batch of one column; of the first sampled one also KL and entropy."""
        column, part = divmod(batch, len(self.rows))
        config, rows = self.questions.config, self.rows[part]
        max_new = config.max_new or LONGEST
        uniforms = None
        if column:
            stream = runs.stream(config.seed, self.name, column - 1)
            uniforms = torch.rand(len(self.items), max_new, generator=stream)[rows]
        out = self.questions.ask(policy, [self.items[i] for i in rows], max_new, uniforms)
        for i, text in zip(rows, out.texts):
            self.texts[column][i] = text
        if column == 1:
            mask = out.answer_mask()
            log_pi, _, entropy = policy(out.ids, out.mask, out.T)
            log_ref = policy(out.ids, out.mask, out.T, reference=True)[0]
            self.kl[rows] = ((log_pi - log_ref) * mask).sum(1).cpu()
            self.entropy[rows] = (entropy * mask).sum(1).cpu()

    def arrays(self) -> dict[str, np.ndarray]:
        """The filled sheet as the arrays of predictions.npz (evaluate.py)."""
        config, items = self.questions.config, self.items
        guess = runs.stream(config.seed, "guess", self.name)
        answers, rewards = [], []
        for texts in self.texts:
            judged = [
                self.questions.judge(text, x.label, config.test_parser, guess)
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
            "kl": self.kl.numpy(),
            "entropy": self.entropy.numpy(),
            "group": np.array([x.group for x in items]),
            "value": np.array([x.value for x in items], np.float32),
            "_metric": np.array([self.questions.task.metric]),
        }

    def scores(self) -> dict[str, float]:
        """Metrics of the filled sheet; none of an empty one."""
        return evaluate.score(self.arrays()) if self.items else {}

    def write(self, path: Path) -> None:
        """The texts themselves, one question a line."""
        lines = [
            {"id": x.id, "label": x.label, "greedy": greedy, "sampled": sampled}
            for x, greedy, *sampled in zip(self.items, *self.texts)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def probe(policy: Policy, questions: Questions, validation: list[Item]) -> dict[str, float]:
    """What a figure over time needs, the same for every arm: two answers to each item."""
    sheet = Sheet(questions, validation[:PROBED], "probe", 1)
    for batch in range(sheet.batches):
        sheet.fill(policy, batch)
    scores = sheet.scores()
    return {f"probe_{name}": scores[name] for name in PROBES}


def reference(policy: Policy, questions: Questions) -> tuple[str, Tensor]:
    """(sha256 of the frozen weights, the reference's log-probabilities at one question)."""
    source = policy.frozen[0] if policy.frozen else policy
    frozen = [p for _, p in sorted(source.named_parameters()) if not p.requires_grad]
    sha256 = runs.state_sha256(map(whole, frozen))
    question = questions.ids(questions.train[0])[0]
    device = policy.value.weight.device
    ids, mask = left_pad([question], questions.tokenizer.pad_token_id, device)
    policy.eval()
    with torch.no_grad():
        return sha256, policy(ids, mask, 1, reference=True)[0]
