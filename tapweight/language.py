"""The language domain: encoders (whole models, or MiniLM's top blocks on cached states), heads, and what they are shown."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import bundled, runs, sources
from shared.processes import noise_names

from . import data, objectives, rehearsal
from .method import squared_error

NAMES = ("CL", "MLM", "SOP")
COPIES = 4  # masked copies of a text that the cached lower states are kept for

# ------------------------------------------------------------------------------------------------------- encoders


class Whole(nn.Module):
    """A transformers encoder. Result: the first token's state (B, d), or the states at the places `at` (B, M, d)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor], at: Tensor | None = None) -> Tensor:
        hidden = self.model(**inputs).last_hidden_state
        return (
            hidden[:, 0]
            if at is None
            else hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
        )

    def embedding(self) -> Tensor:
        """The matrix that the MLM head is tied to, (V, d); a parameter of the encoder."""
        return self.model.get_input_embeddings().weight


class TopBlocks(nn.Module):
    """The last blocks of a BERT encoder, fed with what the frozen blocks below put out (cached).

    The last block is computed only where somebody looks: at the first token, or at the masked places. That is the same
    function, at about a quarter of that block's cost."""

    def __init__(self, encoder: Any, n: int, vocabulary: Tensor):
        super().__init__()
        blocks = encoder.encoder.layer
        if not 1 <= n < len(blocks):
            raise runs.BadInput(
                f"top_blocks = {n} must lie in 1..{len(blocks) - 1}, or be 0 for the whole encoder"
            )
        self.blocks = nn.ModuleList(blocks[-n:])
        self.heads = encoder.config.num_attention_heads
        # a constant here, for the embeddings lie below the cached states
        self.register_buffer(
            "frequent", encoder.get_input_embeddings().weight.detach()[vocabulary].clone()
        )

    def forward(self, inputs: dict[str, Tensor], at: Tensor | None = None) -> Tensor:
        hidden, mask = inputs["hidden"], inputs["attention_mask"].bool()
        for block in self.blocks[:-1]:
            hidden = self._block(block, hidden, hidden, mask)
        if at is None:
            return self._block(self.blocks[-1], hidden[:, :1], hidden, mask)[:, 0]
        looked_at = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
        return self._block(self.blocks[-1], looked_at, hidden, mask)

    def _block(self, block: Any, query: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """transformers' BertLayer with queries of its own. query: (B, M, d), hidden: (B, S, d) -> (B, M, d)"""
        attention = block.attention.self

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        p = attention.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(
            split(attention.query(query)),
            split(attention.key(hidden)),
            split(attention.value(hidden)),
            attn_mask=mask[:, None, None],
            dropout_p=p,
        )
        x = block.attention.output(context.transpose(1, 2).flatten(2), query)
        return block.output(block.intermediate(x), x)

    def embedding(self) -> Tensor:
        return self.frequent


def load_model(name: str) -> tuple[Any, Any]:
    """(encoder without pooler, tokenizer): the bundled MiniLM, or a model of REPRO_MODELS or the hub."""
    if name == "minilm":
        model, tokenizer = bundled.minilm()
    else:
        from transformers import AutoModel, AutoTokenizer

        folder, _ = sources.find_model(name)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # the raw first-token state is used; a pooler would be an encoder parameter without gradient
    return model, tokenizer


# ---------------------------------------------------------------------------------------------------------- heads


class MLMHead(nn.Module):
    """Dense, GELU, LayerNorm, then scores against the encoder's own embeddings."""

    def __init__(self, d: int, V: int):
        super().__init__()
        self.dense, self.norm, self.bias = (
            nn.Linear(d, d),
            nn.LayerNorm(d),
            nn.Parameter(torch.zeros(V)),
        )

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(states))) @ embedding.T + self.bias


def two_layers(d: int, outputs: int, p: float) -> nn.Sequential:
    """Dense, tanh, dropout, linear: the head of SOP and of every downstream task."""
    return nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Dropout(p), nn.Linear(d, outputs))


@torch.no_grad()
def draw(module: nn.Module, *names: object) -> nn.Module:
    """Weights N(0, 0.02^2), biases 0, from the stream `names` (seed first), the same for all arms."""
    g = runs.stream(int(names[0]), *names[1:])  # type: ignore[call-overload]
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.copy_(0.02 * torch.randn(part.weight.shape, generator=g))
            part.bias.zero_()
    return module


# ----------------------------------------------------------------------------------------------------- the domain


@dataclass
class Encoded:
    """Padded tokens of n texts, or the cached states below the top blocks. columns: name -> (n, S, ...)"""

    columns: dict[str, Tensor]

    def batch(self, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
        """These rows; padding that none of them needs is cut off."""
        mask = self.columns["attention_mask"][rows]
        longest = int(mask.sum(1).max())
        found = {name: t[rows][:, :longest] for name, t in self.columns.items()}
        return {
            name: (t.long() if t.dtype == torch.int32 else t).to(device)
            for name, t in found.items()
        }


class Language:
    """Data, networks and losses of one run (see `train.Domain`)."""

    names = NAMES

    def __init__(self, config: Any, device: torch.device, full: bool):
        """full: also what pretraining needs (D_u and its masked copies)."""
        self.seed, self.device, self.max_length = config.seed, device, config.max_length
        self.rate, self.temperature, self.eval_batch = (
            config.mask_rate,
            config.temperature,
            config.eval_batch,
        )
        with rehearsal.inputs(config.scale):
            self.task = data.read(
                config.task, config.seed, config.per_class, config.level_split, config.train_items
            )
            model, self.tokenizer = load_model(config.model)
        self.model_name = config.model
        self.kind = "regression" if self.task.outputs == 1 else "classification"
        self.metric, self.outputs = self.task.metric, self.task.outputs
        task = self.task
        ids = task.labelled.ids
        self.items = {
            "train": ids[task.inner],
            "validation": ids[task.validation],
            "test": task.test.ids,
        }
        if task.held is not None:
            self.items["held"] = task.held.ids
        self.u_ids, self.u_texts = task.unlabelled
        if np.isin(self.u_ids, task.test.ids).any():
            raise runs.BadInput(
                f"task '{task.name}': D_u holds test items; unlabelled texts come from the training set"
            )
        self.vocabulary = vocabulary(self.tokenizer, config.vocabulary)
        self.below = copy.copy(model).eval() if config.top_blocks else None
        self.depth = len(model.encoder.layer) - config.top_blocks if config.top_blocks else 0
        self.encoder = (
            TopBlocks(model, config.top_blocks, self.vocabulary)
            if config.top_blocks
            else Whole(model)
        )
        self.encoder = self.encoder.to(device)
        d, self.dropout = model.config.hidden_size, float(model.config.hidden_dropout_prob)
        self.d = d
        V = len(self.encoder.embedding())
        column = torch.full((len(self.tokenizer),), objectives.IGNORED)
        column[self.vocabulary] = (
            torch.arange(len(self.vocabulary)) if config.top_blocks else self.vocabulary
        )
        self.column = column
        self.parts = {
            "labelled": self._encode(task.labelled.texts),
            "test": self._encode(task.test.texts),
        }
        if task.held is not None and config.score_held:
            self.parts["held"] = self._encode(task.held.texts)
        labels = torch.as_tensor(task.labelled.labels)
        self.labels = (labels.float() if self.kind == "regression" else labels.long()).to(device)
        if full:
            self.heads = nn.ModuleDict(
                {
                    "CL": nn.Sequential(nn.Linear(d, d), nn.Tanh()),
                    "MLM": MLMHead(d, V),
                    "SOP": two_layers(d, 2, self.dropout),
                }
            )
            for name, head in self.heads.items():
                draw(head, 0, "objective head", name)
            self.heads.to(device)
            self._show()

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.u_texts), len(self.task.inner), len(self.task.validation)

    # -- what the encoder is shown

    def _encode(self, texts: Sequence[Any]) -> Encoded:
        columns = list(zip(*[data._sentences(t) for t in texts]))
        found = self.tokenizer(
            *map(list, columns),
            truncation=True,
            max_length=self.max_length,
            padding="longest",
            return_tensors="pt",
        )
        return self._finish({k: v.int() for k, v in found.items()})

    def _finish(self, columns: dict[str, Tensor]) -> Encoded:
        """Tokens as they are, or the states that the frozen blocks make of them."""
        if self.below is None:
            return Encoded(columns)
        key = ("tapweight states", self.model_name, self.depth, runs.state_sha256(columns.values()))
        hidden = runs.cached(key, lambda: lower_states(self.below, columns, self.depth))
        return Encoded({"hidden": hidden, "attention_mask": columns["attention_mask"]})

    def _show(self) -> None:
        """D_u as it is, in halves, and (for cached states) in `COPIES` masked copies drawn once."""
        tokens = self.tokenizer(
            self.u_texts,
            truncation=True,
            max_length=self.max_length,
            padding="longest",
            return_tensors="pt",
        )
        tokens.pop("token_type_ids", None)
        self.ids, attention = tokens["input_ids"].int(), tokens["attention_mask"].int()
        special = torch.isin(self.ids, torch.tensor(self.tokenizer.all_special_ids))
        # a token outside the head's vocabulary cannot be predicted, so it is never asked for
        self.maskable = attention.bool() & ~special & (self.column[self.ids.long()] >= 0)
        self.plain = self._finish({"input_ids": self.ids, "attention_mask": attention})
        self.halves = self._halves()
        self.copies: list[tuple[Encoded, Tensor, Tensor]] = []
        if self.below is not None:
            for copy_ in range(COPIES):
                altered, at, targets = self._mask(
                    torch.arange(len(self.ids)), runs.stream(self.seed, "mask", copy_)
                )
                made = self._finish({"input_ids": altered.int(), "attention_mask": attention})
                self.copies.append((made, at, targets))

    def _halves(self) -> Encoded:
        """[bos] a [eos] b [eos], a and b in order or swapped; labels are drawn once, texts that are too short have none."""
        t = self.tokenizer
        bos = t.cls_token_id if t.cls_token_id is not None else t.bos_token_id
        eos = t.sep_token_id if t.sep_token_id is not None else t.eos_token_id
        right = objectives.order_labels(len(self.u_texts), runs.stream(self.seed, "order")).tolist()
        made, labels = [], []
        room = self.max_length - 3
        texts = t(self.u_texts, add_special_tokens=False, truncation=True, max_length=room)[
            "input_ids"
        ]
        for text, label in zip(texts, right):
            cut = objectives.halves(text, room)
            a, b = cut or ([], [])
            first, second = (a, b) if label else (b, a)
            made.append([bos, *first, eos, *second, eos])
            labels.append(label if cut else objectives.IGNORED)
        longest = max(map(len, made))
        ids = torch.tensor(
            [m + [t.pad_token_id] * (longest - len(m)) for m in made], dtype=torch.int32
        )
        mask = torch.tensor(
            [[1] * len(m) + [0] * (longest - len(m)) for m in made], dtype=torch.int32
        )
        self.order = torch.tensor(labels)
        return self._finish({"input_ids": ids, "attention_mask": mask})

    def _mask(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        mask_id = self.tokenizer.mask_token_id
        return objectives.mask_tokens(
            self.ids[rows], self.maskable[rows], mask_id, self.vocabulary, generator, self.rate
        )

    def _masked_copies(
        self, rows: Tensor, step: int, micro: int
    ) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Two independently masked versions of these texts: fresh ones, or two different ones of the stored copies."""
        if not self.copies:
            found = []
            for k in range(2):
                g = runs.stream(self.seed, "mask", step, micro, k, *noise_names())
                altered, at, targets = self._mask(rows, g)
                inputs = self.plain.batch(rows, self.device)
                longest = inputs["input_ids"].shape[1]
                inputs["input_ids"] = altered[:, :longest].long().to(self.device)
                found.append((inputs, at.to(self.device), targets.to(self.device)))
            return found
        chosen = torch.randperm(
            len(self.copies), generator=runs.stream(self.seed, "copies", step, micro)
        )[:2]
        found = []
        for k in chosen.tolist():
            made, at, targets = self.copies[k]
            found.append(
                (
                    made.batch(rows, self.device),
                    at[rows].to(self.device),
                    targets[rows].to(self.device),
                )
            )
        return found

    # -- losses

    def losses(
        self, encoder: Any, heads: nn.ModuleDict, rows: Tensor, step: int, micro: int
    ) -> list[Tensor]:
        """[CL, MLM, SOP] on these texts of D_u. Masks are a function of seed, step and micro-batch, dropout is torch's."""
        plain = self.plain.batch(rows, self.device)
        twice = {
            name: torch.cat([t, t]) for name, t in plain.items()
        }  # one pass, two dropout masks
        a, b = heads["CL"](encoder(twice)).chunk(2)
        losses = [objectives.contrastive(a, b, self.temperature)]
        states, targets = [], []
        for inputs, at, wanted in self._masked_copies(rows, step, micro):
            there = wanted != objectives.IGNORED
            at = at[:, : max(1, int(there.sum(1).max()))]
            there = there[:, : at.shape[1]]
            states.append(encoder(inputs, at)[there])
            targets.append(self.column.to(self.device)[wanted[:, : at.shape[1]][there].long()])
        logits = heads["MLM"](torch.cat(states), encoder.embedding())
        losses.append(objectives.masked_lm(logits, torch.cat(targets)))
        losses.append(
            objectives.order(
                heads["SOP"](encoder(self.halves.batch(rows, self.device))),
                self.order[rows].to(self.device),
            )
        )
        return losses

    def head(self, *names: object) -> nn.Module:
        """A fresh head of the downstream task, drawn from the stream `names` (without the arm's name)."""
        return draw(two_layers(self.d, self.outputs, self.dropout), *names).to(self.device)

    def task_loss(
        self,
        encoder: nn.Module,
        head: nn.Module,
        part: str,
        rows: Tensor,
        squared_error: Any = squared_error,
    ) -> Tensor:
        """part: train (D_tr), validation (D_val), labelled (both); rows: places within it; squared_error: see official.py."""
        task = self.task
        if part != "labelled":
            rows = torch.as_tensor(task.inner if part == "train" else task.validation)[rows]
        out = head(encoder(self.parts["labelled"].batch(rows, self.device)))
        labels = self.labels[rows.to(self.device)]
        if self.kind == "regression":
            return squared_error(out.squeeze(-1).float(), labels)
        return F.cross_entropy(out.float(), labels)

    @torch.no_grad()
    def predict(self, encoder: nn.Module, head: nn.Module, part: str) -> dict[str, Any]:
        """part: test, held, or validation (D_val)."""
        if part == "validation":
            split, which = self.task.labelled, torch.as_tensor(self.task.validation)
            encoded = self.parts["labelled"]
        else:
            split = self.task.test if part == "test" else self.task.held
            encoded, which = self.parts[part], torch.arange(len(split))
        out = torch.cat(
            [
                head(encoder(encoded.batch(rows, self.device))).float().cpu()
                for rows in which.split(self.eval_batch)
            ]
        )
        guess = out.squeeze(-1) if self.kind == "regression" else out.argmax(1)
        return {
            "id": split.ids[which.numpy()],
            "label": split.labels[which.numpy()],
            "prediction": guess,
        }

    # -- export

    def export(self, encoder: Any, head: nn.Module, directory: Path) -> None:
        """A transformers checkpoint of the encoder and, beside it, the head that was trained on it."""
        from safetensors.torch import save_file

        if isinstance(encoder, TopBlocks):
            model = self.below
            for i, block in enumerate(
                encoder.blocks
            ):  # the lower blocks are those of the checkpoint
                model.encoder.layer[self.depth + i] = block
        else:
            model = encoder.model
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        save_file(
            {k: v.contiguous().cpu() for k, v in head.state_dict().items()},
            directory / "head.safetensors",
        )


@torch.no_grad()
def lower_states(model: Any, columns: dict[str, Tensor], depth: int, batch: int = 64) -> Tensor:
    """Hidden states after the first `depth` blocks in evaluation mode, (n, S, d)."""
    parts = []
    layers = model.encoder.layer
    model.encoder.layer = layers[:depth]
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: setattr(model.encoder, "layer", layers))
        for start in range(0, len(columns["input_ids"]), batch):
            inputs = {name: t[start : start + batch].long() for name, t in columns.items()}
            parts.append(model(**inputs).last_hidden_state)
    return torch.cat(parts)


def vocabulary(tokenizer: Any, size: int) -> Tensor:
    """The `size` most frequent word pieces of the documentation texts, sorted; 0: all but special tokens. (V,) int64"""
    special = set(tokenizer.all_special_ids)
    if size == 0:
        return torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    if not 0 < size <= len(tokenizer) - len(special):
        raise runs.BadInput(
            f"vocabulary = {size}: the tokenizer has {len(tokenizer) - len(special)} word pieces"
        )

    def count() -> Tensor:
        texts = bundled.documentation_texts()
        counts = torch.zeros(len(tokenizer), dtype=torch.int64)
        for start in range(0, len(texts), 1000):
            ids = tokenizer(texts[start : start + 1000], add_special_tokens=False)["input_ids"]
            counts += torch.bincount(
                torch.tensor([i for text in ids for i in text]), minlength=len(tokenizer)
            )
        return counts

    counts = runs.cached(
        ("tapweight word pieces", len(tokenizer), bundled.other_corpus() or bundled.CORPUS_SHA256),
        count,
    )
    counts[list(special)] = -1
    return counts.argsort(descending=True, stable=True)[:size].sort().values
