"""A trained network's predictions, batch by batch, as `evaluate.py` reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autolora import evaluate
from autolora.config import Config
from autolora.data import Part
from autolora.evaluate import Predictions
from autolora.setting import Setting, encode, words_of_pieces
from shared import runs
from shared.runs import Run

OFFICIAL_BATCH = 16  # its loader drops the last batch (docs/papers/autolora.md, section 4)

Row = tuple[Any, Any]  # label and prediction of one item


class Items:
    """The items of one part, scored in `len(items)` batches by the network of `setting`."""

    def __init__(self, config: Config, setting: Setting, part: Part):
        n = len(part)
        if config.drop_last_eval:
            n -= n % OFFICIAL_BATCH
        self.config, self.setting, self.part = config, setting, part.rows(np.arange(n))
        self.kind, self.network = setting.task.kind, setting.network
        if self.kind != "generation":
            self.encoded = encode(setting.task, self.part, setting.network, config)
        if self.kind == "tagging":
            self.words = self._words()
        if self.kind == "planted":
            self.centre = torch.from_numpy(np.mean(np.asarray(part.labels), axis=0))

    def __len__(self) -> int:
        return -(-len(self.part) // self.config.eval_batch)

    @torch.no_grad()
    def predict(self, k: int) -> list[Row]:
        """Rows of batch k. The network is left in the mode that it was in."""
        size = self.config.eval_batch
        chosen = np.arange(k * size, min((k + 1) * size, len(self.part)))
        model = self.network.model
        training = model.training
        model.eval()
        rows = self._generated(chosen) if self.kind == "generation" else self._labelled(chosen)
        model.train(training)
        return rows

    def _labelled(self, chosen: np.ndarray) -> list[Row]:
        inputs, labels = self.encoded.batch(chosen, self.setting.device)
        logits = self.network.model(**inputs).logits
        if self.kind == "planted":
            parts = labels - self.centre.to(labels.device), labels - logits
            spread, error = (part.square().sum(-1).tolist() for part in parts)
            return list(zip(spread, error))
        truth = labels.tolist()
        if self.kind == "regression":
            return list(zip(truth, logits.squeeze(-1).tolist()))
        guesses = logits.argmax(-1).tolist()
        if self.kind == "classification":
            return list(zip(truth, guesses))
        return [self._entities(int(i), guess) for i, guess in zip(chosen, guesses)]

    def _words(self) -> list[list[int | None]]:
        """Of each sentence the words of its pieces. Says how many entities have none."""
        tokens = self.setting.network.tokenizer(
            self.part.texts,
            is_split_into_words=True,
            truncation=True,
            max_length=self.config.max_length,
        )
        words = [words_of_pieces(tokens.word_ids(row)) for row in range(len(self.part))]
        lost = entities = 0
        for labels, read in zip(self.part.labels, words):
            tags, present = [self.setting.task.labels[t] for t in labels], set(read)
            visible = [tag if i in present else "O" for i, tag in enumerate(tags)]
            whole, _, actual = evaluate.tagging_row(tags, visible)
            lost, entities = lost + actual - whole, entities + actual
        if lost:
            where = f"words beyond max_length {self.config.max_length} or without word pieces"
            print(f"note: {lost} of {entities:,} entities have {where}: missed", flush=True)
        return words

    def _entities(self, i: int, guess: list[int]) -> Row:
        """Over all words of sentence i: those that the network does not see are predicted O."""
        tags, labels = self.setting.task.labels, self.part.labels[i]
        predicted = ["O"] * len(labels)
        for word, tag in zip(self.words[i], guess):
            if word is not None:
                predicted[word] = tags[tag]
        right, count, actual = evaluate.tagging_row([tags[t] for t in labels], predicted)
        return actual, (right, count)

    def _generated(self, chosen: np.ndarray) -> list[Row]:
        rows = []
        for i, text in zip(chosen, self._texts([self.part.texts[i] for i in chosen])):
            prediction, reference_length = evaluate.generation_row(text, self.part.labels[i])
            rows.append((reference_length, prediction))
        return rows

    def _texts(self, meanings: list[str]) -> list[str]:
        """Beam search after each meaning representation; prompts are padded on the left."""
        tokenizer, device = self.network.tokenizer, self.setting.device
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        prompts = [[*tokenizer(meaning)["input_ids"], end] for meaning in meanings]
        longest = max(map(len, prompts))
        ids = [[pad] * (longest - len(p)) + p for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        model: Any = self.network.model
        out = model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            num_beams=self.config.beams,
            length_penalty=0.8,
            no_repeat_ngram_size=4,
            max_new_tokens=self.config.new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )
        return [tokenizer.decode(r[longest:], skip_special_tokens=True).strip() for r in out]

    def arrays(self, rows: list[Row]) -> Predictions:
        """The rows of all batches as `evaluate.score` takes them."""
        label, prediction = (np.array(column) for column in zip(*rows))
        if self.kind == "planted":
            label, prediction = label.astype(np.float32), prediction.astype(np.float32)
        arrays = {"id": self.part.ids, "label": label, "prediction": prediction}
        if self.part.parts is not None:
            arrays["part"] = self.part.parts
        headline = np.array(self.setting.task.headline)
        return {**arrays, "_kind": np.array(self.kind), "_headline": headline}


def of_phase(run: Run, name: str, items: Items) -> Predictions:
    """Predict in a phase of its own, so that a stop is obeyed after a batch."""
    rows: list[Row] = []
    for k in run.phase(name, len(items), runs.Parts(rows=rows)):
        rows += items.predict(k)
    return items.arrays(rows)
