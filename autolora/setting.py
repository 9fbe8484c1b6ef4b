"""What all arms of a seed share: the task and its two levels, the network, batches and the loss."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autolora import data, models, planted, rehearsal
from autolora.config import Config
from autolora.data import Part, Task
from autolora.method import Draw, Loss
from shared import bundled, pretrained, runs
from shared.runs import BadInput, Run


@dataclass
class Setting:
    """Rows are row numbers of the training set."""

    device: torch.device
    task: Task
    network: models.Network
    train: Encoded
    inner: np.ndarray  # rows of D_tr
    outer: np.ndarray  # rows of D_val
    draw: Draw  # stream of a map's A, by the map's name

    def loss(self, rows: np.ndarray, smoothing: float = 0.0) -> Loss:
        """The loss of the network on these training items, which are encoded once."""
        inputs, labels = self.train.batch(rows, self.device)
        model, kind = self.network.model, self.task.kind
        return lambda: task_loss(kind, model(**inputs).logits, labels, smoothing)


def prepare(config: Config, run: Run) -> Setting:
    """Read, split, build and encode; equal for all arms of a seed."""
    device = runs.device(config)
    searching = config.job == "search"
    # an exact hypergradient differentiates attention twice, which the fused kernels do not offer
    attention = "eager" if searching and config.hypergradient == "exact" else "sdpa"
    inputs = rehearsal.inputs() if config.scale == "rehearsal" else contextlib.nullcontext()
    with inputs:
        pad_to = config.pad_to if searching else 0
        if config.task in planted.TASKS:
            if config.export:
                raise BadInput(
                    "export = True: the planted network is no model to load; leave it out"
                )
            task, network = planted.problem(config.task, config.seed)
        else:
            task = data.read(config.task, runs.stream(config.seed, "items"), config.train_items)
            head, length = runs.stream(config.seed, "head"), max(config.max_length, pad_to)
            network = models.build(
                config.model, task.kind, task.outputs, head, config.upper_blocks, attention, length
            )
        inner, outer = data.levels(task, config.level_split, runs.stream(config.seed, "levels"))
        if task.kind == "generation":
            check_prompts(task.test, network, config.new_tokens)
    ids, more = task.train.ids, {}
    if task.validation is not None:
        more["validation"] = task.validation.ids
    run.splits(train_inner=ids[inner], train_outer=ids[outer], test=task.test.ids, **more)
    train = encode(task, task.train, network, config, pad_to)
    network.model.to(device).train()
    draw = functools.partial(runs.stream, config.seed, "adapter")
    return Setting(device, task, network, train, inner, outer, draw)


def task_loss(kind: data.Kind, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy per item, first word piece, or next token; mean squared error in regression.

    logits: (batch, outputs), or (batch, seq, outputs) in tagging and generation. Labels of -100 do
    not count."""
    if kind == "planted":
        return F.mse_loss(logits, labels)
    if kind == "regression":
        return F.mse_loss(logits.squeeze(-1).float(), labels)
    if kind == "generation":
        logits, labels = logits[:, :-1], labels[:, 1:]
    if kind in ("tagging", "generation"):
        logits, labels = logits.flatten(0, 1), labels.flatten()
        # a batch may have no label at all: of texts cut off, or of words without pieces
        total = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
        return total / (labels != -100).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


# --- from text to batches ------------------------------------------------------------------------


@dataclass
class Encoded:
    """A part ready for the network: token `columns`, padded per batch; cached `hidden`; or `x`."""

    ids: np.ndarray
    labels: np.ndarray | list[list[int]]  # (n,); or per token, -100 where none counts
    columns: dict[str, list[list[int]]] = field(default_factory=dict)
    hidden: Tensor | None = None  # (n, seq, width)
    mask: Tensor | None = None  # (n, seq) bool
    x: Tensor | None = None  # (n, d)
    pads: dict[str, int] = field(default_factory=dict)
    pad_to: int = 0  # 0: to the longest of the batch

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """(network inputs, labels) of these rows."""
        if self.x is not None:
            inputs = {"x": self.x[rows]}
        elif self.hidden is not None and self.mask is not None:
            mask = self.mask[rows]
            longest = int(mask.sum(1).max())
            inputs = {"hidden": self.hidden[rows][:, :longest], "attention_mask": mask[:, :longest]}
        else:
            inputs = {
                name: self._padded([values[i] for i in rows], self.pads[name])
                for name, values in self.columns.items()
            }
        if isinstance(self.labels, np.ndarray):
            labels = torch.from_numpy(self.labels[rows])
        else:
            labels = self._padded([self.labels[i] for i in rows], -100)
        return {name: t.to(device) for name, t in inputs.items()}, labels.to(device)

    def _padded(self, rows: list[list[int]], value: int) -> Tensor:
        longest = max(max(map(len, rows)), self.pad_to)
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def encode(
    task: Task, part: Part, network: models.Network, config: Config, pad_to: int = 0
) -> Encoded:
    """Tokens of a part, at most `max_length` of a text; for upper blocks the states below them."""
    tokenizer, max_length = network.tokenizer, config.max_length
    if task.kind == "planted":
        vectors = torch.from_numpy(np.stack(part.texts))
        return Encoded(part.ids, np.asarray(part.labels), x=vectors)
    labels: np.ndarray | list[list[int]]
    pretrained.check_texts(tokenizer, part.texts)
    if config.upper_blocks:
        return _cached_states(task, part, tokenizer, config)
    if task.kind == "tagging":
        columns, labels = tagged_tokens(part, tokenizer, max_length)
    elif task.kind == "generation":
        columns, labels = _continued_tokens(part, tokenizer, max_length)
    else:
        columns = dict(tokenizer(*fields(part), truncation=True, max_length=max_length))
        labels = numbers(task, part)
    pads = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    return Encoded(part.ids, labels, columns, pads=pads, pad_to=pad_to)


def fields(part: Part) -> list[list[str]]:
    """The texts of a part as the tokenizer takes them: one list, or one for each of a pair."""
    texts = [[text] if isinstance(text, str) else list(text) for text in part.texts]
    return [list(column) for column in zip(*texts, strict=True)]


def numbers(task: Task, part: Part) -> np.ndarray:
    return np.asarray(part.labels, np.float32 if task.kind == "regression" else np.int64)


def check_prompts(part: Part, network: models.Network, new_tokens: int) -> None:
    """BadInput if a prompt of the test, which is not cut, and its answer exceed the network."""
    longest = max(map(len, network.tokenizer(part.texts, verbose=False)["input_ids"]))
    what = "prompt, end of text and new_tokens"
    pretrained.check_length(network.model, longest + 1 + new_tokens, what)


Columns = dict[str, list[list[int]]]


def tagged_tokens(part: Part, tokenizer: Any, max_length: int) -> tuple[Columns, list[list[int]]]:
    """The first piece of a word carries its tag, the others and special tokens -100."""
    tokens = tokenizer(part.texts, is_split_into_words=True, truncation=True, max_length=max_length)
    labels = [
        [-100 if word is None else tags[word] for word in words_of_pieces(tokens.word_ids(row))]
        for row, tags in enumerate(part.labels)
    ]
    return dict(tokens), labels


def words_of_pieces(words: list[int | None]) -> list[int | None]:
    """The word of each piece that is the first of one, None for the others."""
    return [None if word == before else word for before, word in zip([None, *words], words)]


def _continued_tokens(
    part: Part, tokenizer: Any, max_length: int
) -> tuple[Columns, list[list[int]]]:
    """Meaning, end of text, reference, end of text; the loss is on the reference and its end."""
    end = tokenizer.eos_token_id
    ids, labels = [], []
    for meaning, references in zip(part.texts, part.labels):
        prompt = [*tokenizer(meaning)["input_ids"], end]
        answer = [*tokenizer(" " + references[0])["input_ids"], end]
        ids.append((prompt + answer)[:max_length])
        labels.append(([-100] * len(prompt) + answer)[:max_length])
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}, labels


def _cached_states(task: Task, part: Part, tokenizer: Any, config: Config) -> Encoded:
    """States of the frozen lower blocks in evaluation mode: computed once per text set, cached."""
    blocks, max_length = config.upper_blocks, config.max_length
    if task.kind not in ("classification", "regression"):
        limit = f"is offered for texts with one label each, not for {task.kind}; use 0"
        raise BadInput(f"upper_blocks = {blocks} {limit}")

    padding = {"padding": "max_length", "return_tensors": "pt"}
    tokens = dict(tokenizer(*fields(part), truncation=True, max_length=max_length, **padding))

    def make() -> Tensor:
        encoder = bundled.minilm()[0]
        return models.lower_states(encoder, tokens, encoder.config.num_hidden_layers - blocks)

    key = ("autolora lower states", runs.state_sha256(tokens.values()), blocks)
    hidden, mask = runs.cached(key, make), tokens["attention_mask"].bool()
    return Encoded(part.ids, numbers(task, part), hidden=hidden, mask=mask)
