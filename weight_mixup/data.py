"""The few-example problems of this paper: items, a model with a fresh head, and where the lower blocks stop.

Three families, one shape (`Problem`): digits (a small network pretrained on classes 0-4, finetuned on 5-9), the
bundled documentation task (MiniLM, top block trained, activations below cached), and GLUE (any encoder).
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import bundled, glue, runs, sources
from shared.sources import Split

METRIC = {
    "cola": "matthews",
    "mrpc": "f1",
    "stsb": "spearman",
}  # accuracy otherwise (specification, section 6)
GLUE = ("cola", "mrpc", "rte", "stsb", "sst2", "qnli", "qqp", "mnli")
DATA = ("digits", "documentation", *GLUE)


@dataclass
class Items:
    """n items: `inputs` name -> (n, ...), `labels` (n,) int64 or float32 for regression, `ids` (n,) for the record."""

    ids: np.ndarray
    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Tensor) -> "Items":
        """A batch; padding that no text of it needs is cut off."""
        inputs = {name: tensor[positions] for name, tensor in self.inputs.items()}
        if "attention_mask" in inputs:
            longest = int(inputs["attention_mask"].sum(1).max())
            inputs = {name: tensor[:, :longest] for name, tensor in inputs.items()}
        return Items(self.ids[positions.cpu().numpy()], inputs, self.labels[positions])

    def to(self, device: torch.device) -> "Items":
        return Items(
            self.ids, {k: v.to(device) for k, v in self.inputs.items()}, self.labels.to(device)
        )


@dataclass
class Problem:
    """What a run needs: the model in its pretrained state with this seed's random head, and the three parts."""

    model: nn.Module
    train: Items
    validation: Items | None
    test: Items
    metric: str
    classes: int  # 1: regression
    whole: Callable[[nn.Module], nn.Module] = field(
        default=lambda model: model
    )  # the full model for export
    tokenizer: object = None


def load(config) -> Problem:
    """The problem of a run: `config.data`, `config.n`, `config.seed`, `config.model`."""
    if config.data == "digits":
        return digits(config.n, config.seed)
    if config.data not in DATA:
        raise runs.BadInput(f"unknown data {config.data!r}; it is one of {', '.join(DATA)}")
    return texts(config)


def subset(n: int, size: int, generator: torch.Generator) -> np.ndarray:
    """Positions of `size` of n examples, unstratified as in the official code; all of them for size 0."""
    if size > n:
        raise runs.BadInput(f"{size} training examples asked for, only {n} are there")
    return torch.randperm(n, generator=generator)[: size or n].numpy()


# ------------------------------------------------------------------------------------- digits


class DigitsNet(nn.Module):
    """64-64-64 ReLU network and a linear head: `layer` is pretrained and gated, `classifier` is new."""

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
    """`layer` of a DigitsNet trained on classes 0-4: the "pretrained model" of the digits tasks, one for all seeds."""
    runs.seed_global(0, "digits", "pretraining", "start")
    net = DigitsNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    generator = runs.stream(0, "digits", "pretraining", "batches")
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net.layer.state_dict()


def digits(n: int, seed: int) -> Problem:
    """Classes 5-9 of scikit-learn's digits: 400 test and 96 validation images fixed for all seeds, n others to learn from."""
    images, labels = bundled.digits()
    x, y = (
        torch.as_tensor(images, dtype=torch.float32).reshape(len(labels), 64),
        torch.as_tensor(labels),
    )
    x = x / x.max()
    old = y < 5
    state = runs.cached(
        ("weight_mixup digits 64-64-64", 30, 1e-3, 32), lambda: pretrain_digits(x[old], y[old])
    )

    new = torch.nonzero(~old).flatten()
    new = new[torch.randperm(len(new), generator=runs.stream(0, "digits", "parts"))]
    test, validation, pool = new[:400], new[400:496], new[496:]
    train = pool[subset(len(pool), n, runs.stream(seed, "subset"))]

    net = DigitsNet()
    net.layer.load_state_dict(state)
    draw_head(net.classifier, runs.stream(seed, "head"), std=1 / 8)
    parts = [Items(part.numpy(), {"x": x[part]}, y[part] - 5) for part in (train, validation, test)]
    return Problem(net, *parts, metric="accuracy", classes=5)


# ------------------------------------------------------------------------------------- texts


def texts(config) -> Problem:
    """The documentation task or a GLUE task, and `config.model` with a new classification head."""
    if config.data == "documentation":
        task = bundled.documentation(runs.stream(config.seed, "subset"), per_class=config.n // 10)
        train, validation, test, classes = task.train, task.validation, task.test, len(task.labels)
    else:
        train, validation, test, classes = glue_parts(config)
    if config.scale == "rehearsal":
        model, tokenizer = tiny_classifier(config.model, train.texts, classes, config.attention)
    else:
        model, tokenizer = classifier(config.model, classes, config.attention)
    for i, linear in enumerate(m for m in model.classifier.modules() if isinstance(m, nn.Linear)):
        draw_head(linear, runs.stream(config.seed, "head", i), std=model.config.initializer_range)

    parts = [
        part and encode(tokenizer, part, config.max_length, classes)
        for part in (train, validation, test)
    ]
    problem = Problem(
        model, *parts, METRIC.get(config.data, "accuracy"), classes, tokenizer=tokenizer
    )
    if config.top_blocks:
        problem.train, problem.validation, problem.test = (
            part and below(model, part, config.top_blocks, config.model) for part in parts
        )
        problem.whole = keep_top(model, config.top_blocks)
    return problem


def classifier(name: str, classes: int, attention: str) -> tuple[nn.Module, object]:
    """(`...ForSequenceClassification` with `classes` outputs, tokenizer): the bundled MiniLM, or a model found by name."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if name == "minilm":
        encoder, tokenizer = bundled.minilm(attention=attention)
        encoder.config.num_labels = classes
        with torch.device("meta"):  # only its shell is needed
            model = AutoModelForSequenceClassification.from_config(encoder.config)
        model.bert, model.classifier = encoder, nn.Linear(encoder.config.hidden_size, classes)
        return model, tokenizer
    folder, _ = sources.find_model(name)
    settings = AutoConfig.from_pretrained(folder, num_labels=classes)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, config=settings, attn_implementation=attention, dtype=torch.float32
    )
    return model, AutoTokenizer.from_pretrained(folder)


def glue_parts(config) -> tuple[Split, Split | None, Split, int]:
    """(train, validation, test, outputs). The subset is unstratified and drawn by the seed. Validation: n / 6 of the
    training examples that were left, as in the official code; it chooses nothing, and on full data there is none.
    Test: the task's development set, as in the paper (GLUE's test labels are not public)."""
    with rehearsal_data(config.data, config.n) if config.scale == "rehearsal" else nullcontext():
        parts = glue.load(config.data)
    everything = parts["train"]
    order = subset(len(everything), len(everything), runs.stream(config.seed, "subset"))
    n = config.n or len(everything)
    if n > len(everything):
        raise runs.BadInput(f"{n} training examples asked for, only {len(everything)} are there")
    rest = order[n : n + max(1, n // 6)]
    outputs = len(glue.spec(config.data).labels) or 1
    dev = parts["validation"]
    test = Split(
        dev.ids + len(everything), dev.texts, dev.labels
    )  # rows of another file, numbered on
    return rows(everything, order[:n]), rows(everything, rest) if len(rest) else None, test, outputs


def rows(split: Split, positions: np.ndarray) -> Split:
    return Split(split.ids[positions], [split.texts[i] for i in positions], split.labels[positions])


@contextmanager
def rehearsal_data(task: str, n: int) -> Iterator[None]:
    """Within the block the loader finds made-up rows of this task, in the task's own layout."""
    with tempfile.TemporaryDirectory() as folder:
        glue.write_sample(Path(folder), task, 2 * n, runs.stream(0, "rehearsal", task))
        with sources.pointed_at(REPRO_DATA=folder):
            yield


def tiny_classifier(
    name: str, texts: list, outputs: int, attention: str
) -> tuple[nn.Module, object]:
    """For rehearsals: a random model of the class of `name`, two blocks of width 32, and a tokenizer of these texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import (
        AutoModelForSequenceClassification,
        BertConfig,
        PreTrainedTokenizerFast,
        RobertaConfig,
    )

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.train_from_iterator(
        (t for pair in texts for t in pair),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    kind = RobertaConfig if "roberta" in name else BertConfig
    settings = kind(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=160, type_vocab_size=2, pad_token_id=0, num_labels=outputs, attn_implementation=attention,
    )  # fmt: skip
    runs.seed_global(0, "rehearsal", name)
    return AutoModelForSequenceClassification.from_config(settings), tokenizer


def encode(tokenizer, part, max_length: int, classes: int) -> Items:
    """Token ids and mask, padded to the longest text of the part (at most `max_length`)."""
    pairs = [t if isinstance(t, tuple) else (t,) for t in part.texts]
    columns = [list(column) for column in zip(*pairs)]
    encoded = tokenizer(
        *columns, truncation=True, max_length=max_length, padding="longest", return_tensors="pt"
    )
    labels = torch.as_tensor(
        np.asarray(part.labels), dtype=torch.float32 if classes == 1 else torch.int64
    )
    return Items(np.asarray(part.ids), dict(encoded), labels)


def draw_head(linear: nn.Linear, generator: torch.Generator, std: float) -> None:
    """A new head: weights N(0, std^2), biases zero. One per seed, shared by all arms and all K searches."""
    with torch.no_grad():
        linear.weight.copy_(std * torch.randn(linear.weight.shape, generator=generator))
        linear.bias.zero_()


# ------------------------------------------------------------------------------------- frozen lower blocks


class Stored(nn.Module):
    """Stands where the embeddings were: hands on activations that were computed before (`inputs_embeds`)."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Identity()  # where R3F adds its noise

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: object
    ) -> Tensor:
        return self.word_embeddings(inputs_embeds)


@torch.no_grad()
def below(model: nn.Module, items: Items, top: int, name: str) -> Items:
    """Replace token ids by what enters the top blocks: (n, seq, d), evaluation mode, cached per model and texts."""
    encoder = model.base_model
    depth = len(encoder.encoder.layer)
    if not 1 <= top <= depth:
        raise runs.BadInput(
            f"top_blocks {top} of a model with {depth} blocks; choose 1..{depth}, or 0 for all with embeddings"
        )
    key = ("weight_mixup activations", name, depth - top, runs.state_sha256(items.inputs.values()))

    def make() -> Tensor:
        encoder.eval()
        chunks = [items.take(c) for c in torch.arange(len(items)).split(64)]
        width = items.inputs["input_ids"].shape[1]
        hidden = [
            encoder(**c.inputs, output_hidden_states=True).hidden_states[depth - top]
            for c in chunks
        ]
        return torch.cat([F.pad(h, (0, 0, 0, width - h.shape[1])) for h in hidden])

    hidden = runs.cached(key, make)
    return Items(
        items.ids,
        {"inputs_embeds": hidden, "attention_mask": items.inputs["attention_mask"]},
        items.labels,
    )


def keep_top(model: nn.Module, top: int) -> Callable[[nn.Module], nn.Module]:
    """Cut embeddings and lower blocks off, in place; returns the function that puts them back (for export)."""
    encoder = model.base_model
    embeddings, lower = encoder.embeddings, encoder.encoder.layer[:-top]
    encoder.embeddings, encoder.encoder.layer = Stored(), encoder.encoder.layer[-top:]

    def whole(trained: nn.Module) -> nn.Module:
        base = trained.base_model
        base.embeddings, base.encoder.layer = (
            embeddings,
            nn.ModuleList([*lower, *base.encoder.layer]),
        )
        return trained

    return whole
