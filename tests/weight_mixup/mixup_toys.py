"""What the tests of weight mixup share: small maps, a small BERT, a run of a tenth of a second."""

import contextlib
import copy
from pathlib import Path

import torch
from torch import nn

from shared import protocol
from weight_mixup import data, gates, schedule, train
from weight_mixup.config import Config
from weight_mixup.method import factored

PAPER = protocol.Protocol(Path(train.__file__).parent)


def linear(d_in=6, d_out=5, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(d_in, d_out, dtype=dtype)


def gated(form=factored, rank=1, value=1.0):
    """(holder, Linear moved away from W0 and gated at `value`, a plain Linear with its W, W0)."""
    plain = linear()
    holder = nn.ModuleDict({"layer": nn.ModuleList([copy.deepcopy(plain)])})
    gates.attach(holder, rank, form)
    module = holder["layer"][0]
    W, W0 = module.parametrizations.weight.original, plain.weight.detach().clone()
    with torch.no_grad():
        W.add_(0.1 * torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
        plain.weight.copy_(W)
        for factor in gates.alpha_of(holder):
            factor.fill_(value)
    return holder, module, plain, W0


def bert(layers=2):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48}
    blocks = {"num_hidden_layers": layers, "num_attention_heads": 2, "num_labels": 3}
    more = {"max_position_embeddings": 16, "attn_implementation": "eager"}
    return BertForSequenceClassification(BertConfig(**sizes, **blocks, **more))


def tokens(n=4, length=7):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 50, (n, length), generator=generator)
    labels = torch.randint(0, 3, (n,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


def config(tmp_path, name="run", **changes):
    """A digits run of a tenth of a second."""
    settings = {"scale": "cpu", "arm": "mixup", "task": "digits30", "data": "digits", "n": 30}
    settings |= {"lr": 1e-3, "epochs": 2, "search_epochs": 2, "K": 2, "job": "bilevel"}
    settings |= {"device": "cpu", "out": str(tmp_path / name)}
    return Config(**{**settings, **changes})


def record_of(settings):
    """Train, and read the record."""
    return protocol.read_record(train.run(settings))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Enough(Exception):
    """The steps that a test wants are taken."""


class Steps:
    """Stands in for a run: phases of at most `at_most` steps; `after(step)` looks at each."""

    def __init__(self, at_most=None, after=lambda step: None):
        self.at_most, self.after, self.lines = at_most, after, []

    def phase(self, name, steps, work):
        for step in range(steps):
            if step == self.at_most:
                raise Enough
            yield step
            self.after(step)

    def finite(self, value, *where):
        assert torch.isfinite(torch.as_tensor(value)).all(), where

    def log(self, **line):
        self.lines.append(line)


class Training:
    """A digits run taken apart: its settings, network, training items and plan."""

    def __init__(self, tmp_path, problem=None, **changes):
        self.config = config(tmp_path, **changes)
        problem = problem or data.load(self.config)
        self.items = schedule.examples(self.config, problem)
        self.plan = schedule.plan_of(self.config, schedule.own(self.config, self.items))
        self.network = train.prepare(self.config, problem.model)
        self.w, self.alpha = list(self.network.w.values()), self.network.alpha

    def search(self, at_most=None, after=lambda step: None):
        return self._go(train.search, Steps(at_most, after))

    def finetune(self, at_most=None, after=lambda step: None):
        return self._go(train.finetune, Steps(at_most, after))

    def _go(self, phase, steps):
        with contextlib.suppress(Enough):
            phase(self.config, steps, self.network, self.items, self.plan)
        return steps.lines
