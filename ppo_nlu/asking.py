"""How the policy is asked and its answers are read: token ids, and the rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ppo_nlu import baselines, data, method, models, official, prompts
from ppo_nlu.config import Config
from ppo_nlu.data import Data, Item
from ppo_nlu.policy import Policy, Rollout, left_pad, whole
from ppo_nlu.prompts import Task
from shared import pretrained, runs
from shared.protocol import BadInput

LONGEST = 31  # tokens of an answer where its length is drawn
ASKED = 4  # items whose probability of a readable answer is looked at before training
LEAST_MASS = 0.05  # below this sampling hardly ever meets an answer that can be paid


@dataclass(frozen=True)
class Questions:
    """The questions of a task as token ids, and the rule that pays for answers to them.

    train: training items whose prompt is not too long. paid: the row whose label pays for the
    answer to row i, which is i but in the control. shown: solved examples in front of each
    question. row: where prompts are computed once, the row of each item's; it is the question."""

    config: Config
    tokenizer: Any
    task: Task
    train: list[Item]
    paid: list[int]
    shown: list[tuple[dict[str, str], float]]
    encoded: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    row: dict[int, int] = field(default_factory=dict)

    def text(self, item: Item) -> str:
        task = data.task_of(item, self.task)
        if self.config.form == "chat" and not task.plain:
            return models.chat(self.tokenizer, prompts.messages(task, item.fields, self.shown))
        return prompts.prompt(task, item.fields, self.shown)

    def ids(self, item: Item) -> tuple[list[int], list[int]]:
        """The question (token ids, or its row) and the ids that a supervised model learns to
        write."""
        if item.id not in self.encoded:
            self.encoded[item.id] = self.encode(item, self.target(item))
        question, target = self.encoded[item.id]
        return ([self.row[item.id]] if self.row else question), target

    def length(self, item: Item) -> int:
        """Tokens of the question, also where it stands for them by its row."""
        self.ids(item)
        return len(self.encoded[item.id][0])

    def encode(self, item: Item, answer: str) -> tuple[list[int], list[int]]:
        special = self.config.form == "tags"
        return models.encode(self.tokenizer, self.text(item), answer, special)

    def target(self, item: Item) -> str:
        task = data.task_of(item, self.task)
        if self.config.targets == "official":
            return official.sft_target(task, item.label)
        return prompts.target(task, item.label, self.config.form)

    def ask(
        self, policy: Policy, items: list[Item], max_new: int, uniforms: Tensor | None
    ) -> Rollout:
        """Answers to `items`, sampled with `uniforms` (n, max_new), else greedy."""
        config = self.config
        stop = prompts.CLOSE if config.stop_at_tag and config.form == "tags" else None
        questions = [self.ids(x)[0] for x in items]
        return policy.answers(
            self.tokenizer, questions, max_new, uniforms, stop, config.temperature
        )

    def judge(
        self,
        text: str,
        item: Item,
        label: float,
        parser: Literal["strict", "official"],
        guess: torch.Generator | None = None,
    ) -> tuple[float | None, float]:
        """(answer or None, reward) of the answer to an item; label: that which pays.

        guess: the official reader of a test draws what it cannot read."""
        task = data.task_of(item, self.task)
        if parser == "strict":
            answer = prompts.parse(task, text, self.config.form)
        elif guess is None:
            answer = official.parse_in_training(task, text)
        else:
            answer = official.parse_in_test(task, text, guess)
        return answer, prompts.reward(task, text, answer, label, self.config.reward)


def questions_of(
    config: Config, tokenizer: Any, items: Data, context: int, say: Callable[[str], None]
) -> Questions:
    """`Questions` of a task. A training prompt that is too long is left out, and said.

    context: tokens that the model takes. Raises BadInput where a prompt and an answer exceed it."""
    tasks = [data.task_of(x, items.task) for x in items.train]
    texts = [prompts.prompt(task, x.fields) for task, x in zip(tasks, items.train)]
    pretrained.check_texts(tokenizer, texts)
    shown = _shown(config, items.train, config.shots)
    questions = Questions(config, tokenizer, items.task, items.train, [], shown)
    train = items.train
    if config.job != "prompt":
        train = [x for x in train if questions.length(x) <= config.max_prompt]
    limit = f"max_prompt = {config.max_prompt} tokens"
    if not train:
        remedy = "raise --max-prompt"
        raise BadInput(f"{items.task.name}: every training prompt exceeds {limit}; {remedy}")
    if dropped := len(items.train) - len(train):
        say(f"{dropped} of {len(items.train)} training prompts exceed {limit} and are left out")
    longest = max(questions.length(x) for x in [*train, *items.test, *items.validation])
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


def _shown(config: Config, train: list[Item], shots: int) -> list[tuple[dict[str, str], float]]:
    """The solved examples of a few-shot prompt, the same for all seeds."""
    if not shots:
        return []
    train = sorted(train, key=lambda x: x.id)
    labels = [x.label for x in train]
    if config.few == "balanced":
        rows = baselines.examples(labels, shots, runs.stream(0, "shots"))
    else:
        rows = official.first_rows(labels, shots)
    return [(train[i].fields, train[i].label) for i in rows]


def with_shots(questions: Questions, items: Data, shots: int) -> Questions:
    """The same questions after `shots` solved examples."""
    shown = _shown(questions.config, items.train, shots)
    return replace(questions, shown=shown, encoded={}, row={})


def cached_prompts(questions: Questions, items: Data) -> list[list[int]]:
    """The prompts of all items in the order of their ids, which is the same for all seeds and arms;
    from here on a question is a row of them. With solved examples in front nothing is trained."""
    asked = [*items.validation, *items.test] if questions.shown else items.everything
    ordered = sorted(asked, key=lambda x: x.id)
    ids = [questions.ids(x)[0] for x in ordered]
    questions.row.update({x.id: row for row, x in enumerate(ordered)})
    return ids


@torch.no_grad()
def readable_mass(policy: Policy, questions: Questions, items: list[Item]) -> float:
    """Mean probability of answers that the rule can read: each word, as written and in small
    letters (numbers: 0 to 5), in a chat also with a full stop. A lower bound of the share of
    readable sampled answers."""
    task, form = questions.task, questions.config.form
    words = [str(n) for n in range(6)] if task.number else [*task.words]
    asked = {w for word in words for w in (word, word.lower())}
    if form == "chat":
        asked |= {f"{w}." for w in asked}
    mass = 0.0
    for item in items[:ASKED]:
        close = f" {prompts.CLOSE}"
        answers = [w if form == "chat" else f" {w}{close}" for w in sorted(asked)]
        pairs = [questions.encode(item, answer) for answer in answers]
        question = questions.ids(item)[0] if questions.row else None
        log_pi, real = method.log_pi_of(
            policy,
            [question or q for q, _ in pairs],
            [a for _, a in pairs],
            questions.tokenizer.pad_token_id,
        )
        mass += float((log_pi * real).sum(1).exp().sum())
    return mass / len(items[:ASKED])


def check_mass(
    policy: Policy, questions: Questions, items: list[Item], say: Callable[[str], None]
) -> None:
    """Say how likely a readable answer is before anything is trained; warn where hardly at all."""
    mass = readable_mass(policy, questions, items)
    say(f"probability of a readable answer before training: at least {100 * mass:.1f} %")
    if mass < LEAST_MASS:
        rare = "sampling will hardly ever meet an answer that earns anything but the least"
        say(f"warning: {rare}; change the prompt (--form chat or tags), or take another model")


def reference(policy: Policy, questions: Questions) -> tuple[str, Tensor]:
    """(sha256 of the frozen weights, the reference's log-probabilities at one question)."""
    source = policy.frozen[0] if policy.frozen else policy
    frozen = [p for _, p in sorted(source.named_parameters()) if not p.requires_grad]
    sha256 = runs.state_sha256(map(whole, frozen))
    question, target = questions.ids(questions.train[0])
    device = policy.value.weight.device
    ids, mask = left_pad([[*question, *target]], questions.tokenizer.pad_token_id, device)
    policy.eval()
    with torch.no_grad():
        return sha256, policy(ids, mask, len(target), reference=True)[0]
