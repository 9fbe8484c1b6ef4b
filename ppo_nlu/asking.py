"""Questions to the policy: prompts as token ids, sampled and greedy answers, the rule that pays for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppo_nlu import baselines, data, evaluate, method, models, official, prompts
from ppo_nlu.method import Policy, rollout
from ppo_nlu.processes import full
from ppo_nlu.starting import is_hub
from shared import runs


def frozen_weights(policy: Policy) -> list[Tensor]:
    source = policy.frozen[0] if policy.frozen else policy
    return [full(p) for _, p in sorted(source.named_parameters()) if not p.requires_grad]


class Asker:
    """Asks the policy questions and has the answers judged: prompts as token ids, parser, rule, probes."""

    def __init__(
        self,
        config: runs.RunConfig,
        policy: Policy,
        tokenizer,
        task: prompts.Task,
        items: data.Data,
        run: runs.Run,
    ):
        self.config, self.policy, self.tokenizer, self.task = config, policy, tokenizer, task
        self.cache = not isinstance(models.base_of(policy.lm), models.PrefixLM)
        labels = [x.label for x in items.train]
        pick = (
            baselines.examples
            if config.few == "balanced"
            else lambda ys, k, _: official.first_rows(ys, k)
        )
        chosen = (
            pick(labels, config.shots, runs.stream(config.seed, "shots")) if config.shots else []
        )
        self.shown = [(items.train[i].fields, items.train[i].label) for i in chosen]
        keep = range(len(items.train))
        self.encoded: dict[int, tuple[list[int], list[int]]] = {}
        limit = models.context(policy.lm)
        if config.method != "prompt":
            keep = [i for i in keep if len(self._encode(items.train[i])[0]) <= config.max_prompt]
            if not keep:
                raise runs.BadInput(
                    f"{task.name}: every training prompt is longer than max_prompt = {config.max_prompt} tokens"
                )
        self.dropped = len(items.train) - len(keep)
        if self.dropped:
            run.say(
                f"{self.dropped} of {len(items.train)} training prompts exceed {config.max_prompt} tokens and are left out"
            )
        self.items = replace(items, train=[items.train[i] for i in keep])
        longest = max(len(self._encode(x)[0]) for x in [*items.test, *items.validation])
        if longest + (config.max_new or 31) > limit:
            raise ValueError(f"{task.name}: a prompt of {longest} tokens and an answer of {config.max_new or 31} do not fit the model's context of {limit}; use fewer shots or a model with a longer context")  # fmt: skip
        order = torch.randperm(
            len(self.items.train), generator=runs.stream(config.seed, "shuffled labels")
        ).tolist()
        self.paid = order if config.shuffle else list(range(len(order)))

    def _encode(self, item: data.Item) -> tuple[list[int], list[int]]:
        """Token ids of a question and of its answer."""
        if item.id not in self.encoded:
            write = official.sft_target if self.config.targets == "official" else prompts.target
            target = write(data.task_of(item, self.task), item.label)
            self.encoded[item.id] = models.encode(self.tokenizer, self.text(item), target)
        return self.encoded[item.id]

    def text(self, item: data.Item) -> str:
        return prompts.prompt(data.task_of(item, self.task), item.fields, self.shown)

    def pair(self, i: int) -> tuple[list[int], list[int]]:
        """Token ids of training question i and of its answer."""
        return self._encode(self.items.train[i])

    def paid_label(self, i: int) -> float:
        return self.items.train[self.paid[i]].label

    def judge(
        self, text: str, label: float, parser: str, guess: torch.Generator | None = None
    ) -> tuple[float | None, float]:
        """(answer or None, reward); guess: the official reader of test answers, which draws what it cannot read."""
        if parser == "strict":
            answer = prompts.parse(self.task, text)
        elif guess is None:
            answer = official.parse_in_training(self.task, text)
        else:
            answer = official.parse_in_test(self.task, text, guess)
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
    def answer(
        self, items: list[data.Item], name: str | None, column: int = 0
    ) -> tuple[list[str], Tensor, Tensor]:
        """(texts, KL to the reference, entropy) of one answer per item; greedy where `name` is None."""
        config, asked = self.config, [self._encode(x)[0] for x in items]
        n, T = len(items), config.max_new or 31
        draws = torch.rand(n, T, generator=runs.stream(config.seed, name, column)) if name else None
        texts, kl, entropy = [""] * n, torch.zeros(n), torch.zeros(n)
        size = 64 if is_hub(config.model) else 512
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

    def answer_all(
        self, items: list[data.Item], name: str, k: int, write: Path | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of predictions.npz (see evaluate.py); `write`: the texts themselves, one question a line."""
        guess = runs.stream(self.config.seed, "guess", name)

        def read(texts):
            judged = [
                self.judge(t, x.label, self.config.test_parser, guess) for t, x in zip(texts, items)
            ]
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
        ids, mask = method.left_pad(
            [self.pair(0)[0]], self.tokenizer.pad_token_id, next(self.policy.parameters()).device
        )
        self.seen_by_reference = ids, mask
        with torch.no_grad():
            self.policy.eval()
            self.reference_before = self.policy(ids, mask, 1, reference=True)[0]

    def check_reference(self, run: runs.Run) -> None:
        """After training the reference still is what was loaded, bit for bit."""
        after = runs.state_sha256(frozen_weights(self.policy))
        with torch.no_grad():
            self.policy.eval()
            same = torch.equal(
                self.policy(*self.seen_by_reference, 1, reference=True)[0], self.reference_before
            )
        run.gate("reference-kept", after == self.before and same, f"sha256 of the frozen weights {self.before[:12]} -> {after[:12]}; same log-probabilities: {same}")  # fmt: skip
