"""The few-example problems of this paper: examples, and a model with a fresh head that reads them.

Three families, one shape (`Problem`): digits (a small network pretrained on classes 0-4, finetuned
on 5-9), bundled sentences from film reviews (MiniLM), and GLUE (any encoder). With `top_blocks` the
lower blocks are frozen and what leaves them is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import bundled, glue, pretrained, runs
from shared.sources import Split

from . import rehearsal
from .config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENCODER = pretrained.Kind("an encoder", pretrained.BERT_LIKE, "google-bert/bert-large-cased")
METRIC = {"cola": "matthews", "mrpc": "f1", "stsb": "spearman"}  # else accuracy


@dataclass
class Items:
    """n examples. ids: for the record; inputs: name -> (n, ...); labels: (n,), int64 classes or
    float32 numbers."""

    ids: np.ndarray
    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Tensor) -> Items:
        """A batch; padding that no text of it needs is cut off."""
        inputs = {name: tensor[positions] for name, tensor in self.inputs.items()}
        if "attention_mask" in inputs:
            longest = int(inputs["attention_mask"].sum(1).max())
            inputs = {name: tensor[:, :longest] for name, tensor in inputs.items()}
        return Items(self.ids[positions.cpu().numpy()], inputs, self.labels[positions])

    def followed_by(self, other: Items) -> Items:
        """These examples, then the others."""
        inputs = {name: torch.cat([x, other.inputs[name]]) for name, x in self.inputs.items()}
        labels = torch.cat([self.labels, other.labels])
        return Items(np.concatenate([self.ids, other.ids]), inputs, labels)

    def __getitem__(self, part: slice) -> Items:
        inputs = {name: tensor[part] for name, tensor in self.inputs.items()}
        return Items(self.ids[part], inputs, self.labels[part])

    def to(self, device: torch.device) -> Items:
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Items(self.ids, inputs, self.labels.to(device))


def logits_of(model: nn.Module, items: Items) -> Tensor:
    """(n, classes), or (n, 1) for a regression."""
    out = model(**items.inputs)
    return out if isinstance(out, Tensor) else out.logits


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or the mean squared error where there is one output."""
    if logits.shape[1] == 1:
        return F.mse_loss(logits[:, 0], labels)
    return F.cross_entropy(logits, labels)


@dataclass
class Problem:
    """The model in its pretrained state with this seed's random head, and the parts of the data.

    extra: examples put aside (`Config.labels`). whole: puts frozen lower blocks back (for
    export)."""

    model: nn.Module
    train: Items
    validation: Items | None
    test: Items
    metric: str
    tokenizer: PreTrainedTokenizerBase | None = None
    whole: Callable[[nn.Module], nn.Module] = field(default=lambda model: model)
    extra: Items | None = None

    def ids(self) -> dict[str, np.ndarray]:
        """Of the parts that there are: full GLUE data leave no training example for validation."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        parts["extra"] = self.extra
        return {name: part.ids for name, part in parts.items() if part is not None}


def load(config: Config) -> Problem:
    if config.data == "digits":
        return digits(config.n, config.seed, config.extra)
    return texts(config)


def subset(n: int, size: int, generator: torch.Generator) -> np.ndarray:
    """Positions of `size` of n examples, unstratified (official); all of them for size 0."""
    if size > n:
        raise runs.BadInput(f"n = {size}: only {n} training examples are there; 0 takes all")
    return torch.randperm(n, generator=generator)[: size or n].numpy()


def draw_head(linear: nn.Linear, generator: torch.Generator, std: float) -> None:
    """A new head: weights N(0, std^2), biases zero. One per seed, for all arms and all searches."""
    with torch.no_grad():
        linear.weight.copy_(std * torch.randn(linear.weight.shape, generator=generator))
        linear.bias.zero_()


# ---------------------------------------------------------------------------------------- digits


class DigitsNet(nn.Module):
    """64-64-64 ReLU network: `layer` is pretrained and gated, the linear `classifier` is new."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.embeddings = nn.Identity()
        self.layer = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.classifier = nn.Linear(64, classes)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layer(self.embeddings(x)))


def pretrain_digits(x: Tensor, y: Tensor, epochs: int = 30) -> dict[str, Tensor]:
    """`layer` of a DigitsNet trained on classes 0-4: the pretrained model, one for all seeds."""
    runs.seed_global(0, "digits", "pretraining", "start")
    net = DigitsNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    generator = runs.stream(0, "digits", "pretraining", "batches")
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net.layer.state_dict()


def digit_images() -> tuple[Tensor, Tensor]:
    """Images (1797, 64) in [0, 1] and classes (1797,) of scikit-learn's digits."""
    images, labels = bundled.digits()
    x = torch.as_tensor(images, dtype=torch.float32).reshape(len(labels), 64)
    return x / x.max(), torch.as_tensor(labels)


def digits(
    n: int, seed: int, extra: int = 0, images: tuple[Tensor, Tensor] | None = None
) -> Problem:
    """Classes 5-9: 400 test and 96 validation images, the same for all seeds; of the others the
    seed draws n to learn from and `extra` to put aside. images: `digit_images()`, if at hand."""
    x, y = images or digit_images()
    old = y < 5
    key = ("weight_mixup digits", runs.state_sha256([x[old], y[old]]))
    state = runs.cached(key, lambda: pretrain_digits(x[old], y[old]))

    new = torch.nonzero(~old).flatten()
    new = new[torch.randperm(len(new), generator=runs.stream(0, "digits", "parts"))]
    test, validation, pool = new[:400], new[400:496], new[496:]
    drawn = pool[subset(len(pool), n + extra, runs.stream(seed, "subset"))]
    train, aside = drawn[: len(drawn) - extra], drawn[len(drawn) - extra :]

    net = DigitsNet()
    net.layer.load_state_dict(state)
    draw_head(net.classifier, runs.stream(seed, "head"), std=1 / 8)

    def items(part: Tensor) -> Items:
        return Items(part.numpy(), {"x": x[part]}, y[part] - 5)

    parts = items(train), items(validation), items(test)
    return Problem(net, *parts, "accuracy", extra=items(aside) if extra else None)


# ----------------------------------------------------------------------------------------- texts


def texts(config: Config) -> Problem:
    """Film reviews or a GLUE task, and `config.model` with a new classification head."""
    train, validation, test, outputs = splits(config)  # train: those put aside come last
    if config.scale == "rehearsal":
        made = rehearsal.classifier(config.model, train.texts, outputs, config.attention)
    else:
        made = classifier(config.model, outputs, config.attention)
    model, tokenizer = made
    pretrained.check_length(model, config.max_length, "max_length")
    std = model.config.initializer_range
    head = model.get_submodule("classifier").modules()
    for i, linear in enumerate(m for m in head if isinstance(m, nn.Linear)):
        draw_head(linear, runs.stream(config.seed, "head", i), std)

    def encoded(part: Split) -> Items:
        items = encode(tokenizer, part, config.max_length, regression=outputs == 1)
        return below(model, items, config.top_blocks) if config.top_blocks else items

    held_out = encoded(validation) if validation is not None else None
    metric = METRIC.get(config.data, "accuracy")
    drawn = encoded(train)
    own = slice(0, len(drawn) - config.extra)
    problem = Problem(model, drawn[own], held_out, encoded(test), metric, tokenizer)
    if config.extra:
        problem.extra = drawn[len(drawn) - config.extra :]
    if config.top_blocks:
        problem.whole = keep_top(model, config.top_blocks)
    return problem


def splits(config: Config) -> tuple[Split, Split | None, Split, int]:
    """(train, validation, test, number of outputs)."""
    if config.data != "movie":
        return glue_splits(config)
    stream = runs.stream(config.seed, "subset")
    task = bundled.ratings("movie", stream, items=config.n, binary=True)
    return task.train, task.validation, task.test, len(task.labels)


def classifier(
    name: str, outputs: int, attention: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`...ForSequenceClassification`, of the bundled MiniLM or of a model that is found by name."""
    from transformers import AutoModelForSequenceClassification

    if name == "minilm":
        encoder, tokenizer = bundled.minilm(attention=attention)
        encoder.config.num_labels = outputs
        with torch.device("meta"):  # only its shell is needed
            model = AutoModelForSequenceClassification.from_config(encoder.config)
        model.bert, model.classifier = encoder, nn.Linear(encoder.config.hidden_size, outputs)
        return model, tokenizer
    options: dict[str, Any] = {
        "num_labels": outputs,
        "attn_implementation": attention,
        "dtype": torch.float32,
    }
    return pretrained.load(
        name, AutoModelForSequenceClassification, ENCODER, "classifier", **options
    )


def glue_splits(config: Config) -> tuple[Split, Split | None, Split, int]:
    """The subset, and `extra` examples after it, are unstratified and drawn by the seed.

    Validation: n / 6 of the training examples that were left (official); it chooses nothing, and on
    full data there is none. Test: the task's development set, as in the paper, since GLUE's test
    labels are not public."""
    made_up = rehearsal.glue_rows(config.data, config.n)
    with made_up if config.scale == "rehearsal" else nullcontext():
        parts = glue.load(config.data)
    train, development = parts["train"], parts["validation"]
    order = subset(len(train), len(train), runs.stream(config.seed, "subset"))
    n = config.n + config.extra if config.n else len(train)
    if n > len(train):
        raise runs.BadInput(f"n = {n}: only {len(train)} training examples are there; 0 takes all")
    rest = order[n : n + max(1, (n - config.extra) // 6)]
    validation = rows(train, rest) if len(rest) else None
    ids = development.ids + len(train)  # rows of another file, numbered on
    test = Split(ids, development.texts, development.labels)
    return rows(train, order[:n]), validation, test, len(glue.spec(config.data).labels) or 1


def rows(split: Split, positions: np.ndarray) -> Split:
    return Split(split.ids[positions], [split.texts[i] for i in positions], split.labels[positions])


def encode(
    tokenizer: PreTrainedTokenizerBase, part: Split, max_length: int, regression: bool
) -> Items:
    """Token ids and mask, padded to the longest text of the part (at most `max_length`)."""
    pretrained.check_texts(tokenizer, part.texts)
    pairs = [t if isinstance(t, tuple) else (t,) for t in part.texts]
    columns = [list(column) for column in zip(*pairs)]
    encoded = tokenizer(
        *columns, truncation=True, max_length=max_length, padding="longest", return_tensors="pt"
    )
    kind = torch.float32 if regression else torch.int64
    labels = torch.as_tensor(np.asarray(part.labels), dtype=kind)
    return Items(np.asarray(part.ids), dict(encoded), labels)


# --------------------------------------------------------------------------- frozen lower blocks


class Stored(nn.Module):
    """Stands where the embeddings were: hands on activations that were computed before."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Identity()  # where R3F adds its noise

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: object
    ) -> Tensor:
        return self.word_embeddings(inputs_embeds)


@torch.no_grad()
def below(model: PreTrainedModel, items: Items, top: int) -> Items:
    """Token ids become what enters the top blocks: (n, seq, d), evaluation mode, cached."""
    encoder: Any = model.base_model  # of any class: BERT, RoBERTa
    depth = len(encoder.encoder.layer)
    if not 1 <= top <= depth:
        limit = f"the model has {depth} blocks; choose 1..{depth}, or 0 for all with embeddings"
        raise runs.BadInput(f"top_blocks = {top}: {limit}")
    tensors = [*encoder.state_dict().values(), *items.inputs.values()]
    key = ("weight_mixup activations", depth - top, runs.state_sha256(tensors))

    def make() -> Tensor:
        encoder.eval()
        width, padded = items.inputs["input_ids"].shape[1], []
        for positions in torch.arange(len(items)).split(64):
            inputs = items.take(positions).inputs
            h = encoder(**inputs, output_hidden_states=True).hidden_states[depth - top]
            padded.append(F.pad(h, (0, 0, 0, width - h.shape[1])))
        return torch.cat(padded)

    mask = items.inputs["attention_mask"]
    inputs = {"inputs_embeds": runs.cached(key, make), "attention_mask": mask}
    return Items(items.ids, inputs, items.labels)


def keep_top(model: PreTrainedModel, top: int) -> Callable[[nn.Module], nn.Module]:
    """Cut embeddings and lower blocks off, in place; returns the function that puts them back."""
    encoder: Any = model.base_model
    embeddings, lower = encoder.embeddings, encoder.encoder.layer[:-top]
    encoder.embeddings, encoder.encoder.layer = Stored(), encoder.encoder.layer[-top:]

    def whole(trained: nn.Module) -> nn.Module:
        encoder.embeddings = embeddings
        encoder.encoder.layer = nn.ModuleList([*lower, *encoder.encoder.layer])
        return trained

    return whole
