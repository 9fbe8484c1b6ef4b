"""The language domain: what encoders of texts are shown, and their losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import pretrained, runs
from shared.processes import noise_names
from tapweight import data, encoders, objectives, rehearsal
from tapweight.config import Config
from tapweight.encoders import Columns

NAMES = ("CL", "MLM", "SOP")
COPIES = 4  # masked copies of a text that the cached lower states are made of
SCORED_AT_ONCE = 100  # items; changes no score
Masked = tuple[Columns, Tensor, Tensor]  # inputs, masked places (B, M), the tokens there (B, M)


class Language:
    """Data, networks and losses of one run (see `domain.Domain`)."""

    names: tuple[str, ...] = NAMES

    def __init__(self, config: Config, device: torch.device):
        self.config, self.seed, self.device = config, config.seed, device
        with rehearsal.inputs(config.scale):
            self.task = data.read(
                config.task, config.seed, config.level_split, config.labelled, config.unlabelled
            )
            model, self.tokenizer = encoders.load_model(config.model)
        pretrained.check_length(model, config.max_length, "max_length")
        self.metric = self.task.metric
        self.items = self.task.items
        self.vocabulary = encoders.vocabulary(self.tokenizer, config.vocabulary)
        self.below = copy.copy(model).eval() if config.top_blocks else None  # shares its weights
        top = config.top_blocks
        self.depth = len(model.encoder.layer) - top if top else 0
        self.encoder: nn.Module = (
            encoders.TopBlocks(model, top, self.vocabulary) if top else encoders.Whole(model)
        ).to(device)
        self.d, self.dropout = model.config.hidden_size, float(model.config.hidden_dropout_prob)
        self.texts = {"labelled": self._encoded(self.task.labelled.texts)}
        self.texts["test"] = self._encoded(self.task.test.texts)
        if self.task.spare is not None and config.score_spare:
            self.texts["spare"] = self._encoded(self.task.spare.texts)
        labels = torch.as_tensor(self.task.labelled.labels)
        self.labels = (labels.float() if self.task.outputs == 1 else labels.long()).to(device)
        if config.job != "finetune":
            V = len(self.embedding())
            self.heads = encoders.objective_heads(self.d, V, self.dropout).to(device)
            self._prepare_unlabelled()

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.task.unlabelled[0]), len(self.task.inner), len(self.task.validation)

    def embedding(self) -> Tensor:
        assert isinstance(self.encoder, encoders.Whole | encoders.TopBlocks)
        return self.encoder.embedding()

    # -- what the encoder is shown

    def _tokens(self, *texts: Sequence[str]) -> Columns:
        limits = {"truncation": True, "max_length": self.config.max_length}
        columns = list(map(list, texts))
        pretrained.check_texts(self.tokenizer, list(zip(*columns)))
        made = self.tokenizer(*columns, **limits, padding="longest", return_tensors="pt")
        return {name: column.int() for name, column in made.items()}

    def _encoded(self, texts: Sequence[Any]) -> Columns:
        return self._finished(self._tokens(*zip(*map(data.sentences, texts))))

    def _finished(self, tokens: Columns) -> Columns:
        """Tokens as they are, or the states that the frozen blocks make of them."""
        if self.below is None:
            return tokens
        sha256 = runs.state_sha256([*self.below.state_dict().values(), *tokens.values()])
        key = ("tapweight states", self.depth, sha256)
        hidden = runs.cached(key, lambda: encoders.lower_states(self.below, tokens, self.depth))
        return {"hidden": hidden, "attention_mask": tokens["attention_mask"]}

    def _rows(self, columns: Columns, rows: Tensor) -> Columns:
        """These rows on the device; padding that none of them needs is cut off."""
        longest = int(columns["attention_mask"][rows].sum(1).max())
        cut = {name: column[rows][:, :longest] for name, column in columns.items()}
        return {
            name: (column.long() if column.dtype == torch.int32 else column).to(self.device)
            for name, column in cut.items()
        }

    def _prepare_unlabelled(self) -> None:
        """D_u as it is, in halves, and (for cached states) in `COPIES` masked copies drawn once."""
        ids, texts = self.task.unlabelled
        if np.isin(ids, self.task.test.ids).any():
            remedy = "unlabelled texts come from the training set"
            raise runs.BadInput(f"task '{self.task.name}': D_u holds test items; {remedy}")
        tokens = self._tokens(texts)
        tokens.pop("token_type_ids", None)
        self.ids = tokens["input_ids"]
        special = torch.isin(self.ids, torch.tensor(self.tokenizer.all_special_ids))
        # where a token stands among the scores of the MLM head; one outside its vocabulary cannot
        # be predicted, so it is never asked for
        self.column = torch.full((len(self.tokenizer),), objectives.IGNORED)
        every = torch.arange(len(self.vocabulary)) if self.below is not None else self.vocabulary
        self.column[self.vocabulary] = every
        in_vocabulary = self.column[self.ids.long()] >= 0
        self.maskable = tokens["attention_mask"].bool() & ~special & in_vocabulary
        self.plain = self._finished(tokens)
        self.halves = self._halved(texts)
        self.copies: list[Masked] = []
        for number in range(COPIES if self.below is not None else 0):
            g = runs.stream(self.seed, "mask", number)
            altered, at, targets = self._masked(torch.arange(len(self.ids)), g)
            inputs = self._finished({**tokens, "input_ids": altered.int()})
            self.copies.append((inputs, at, targets))

    def _halved(self, texts: Sequence[str]) -> Columns:
        """[bos] a [eos] b [eos], a and b in order or swapped, as `self.order` says.

        Labels are drawn once; texts that are too short have none."""
        t, room = self.tokenizer, self.config.max_length - 3
        bos = t.cls_token_id if t.cls_token_id is not None else t.bos_token_id
        eos = t.sep_token_id if t.sep_token_id is not None else t.eos_token_id
        right = objectives.order_labels(len(texts), runs.stream(self.seed, "order")).tolist()
        pieces = t(texts, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        halved, labels = [], []
        for text, label in zip(pieces, right):
            cut = objectives.halves(text, room)
            a, b = cut or ([], [])
            first, second = (a, b) if label else (b, a)
            halved.append([bos, *first, eos, *second, eos])
            labels.append(label if cut else objectives.IGNORED)
        longest = max(map(len, halved))
        ids = [x + [t.pad_token_id] * (longest - len(x)) for x in halved]
        mask = [[1] * len(x) + [0] * (longest - len(x)) for x in halved]
        self.order = torch.tensor(labels)
        columns = {"input_ids": ids, "attention_mask": mask}
        return self._finished({k: torch.tensor(v, dtype=torch.int32) for k, v in columns.items()})

    def _masked(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        ids, maskable, mask_id = self.ids[rows], self.maskable[rows], self.tokenizer.mask_token_id
        rate = self.config.mask_rate
        return objectives.mask_tokens(ids, maskable, mask_id, self.vocabulary, generator, rate)

    def _two_masked(self, rows: Tensor, step: int, micro: int) -> list[Masked]:
        """Two independently masked versions: two of the stored copies, or fresh ones."""
        pairs = []
        if self.copies:
            g = runs.stream(self.seed, "copies", step, micro)
            for k in torch.randperm(len(self.copies), generator=g)[:2].tolist():
                inputs, at, targets = self.copies[k]
                pairs.append((self._rows(inputs, rows), at[rows], targets[rows]))
        else:
            for k in range(2):
                g = runs.stream(self.seed, "mask", step, micro, k, *noise_names())
                altered, at, targets = self._masked(rows, g)
                inputs = self._rows(self.plain, rows)
                longest = inputs["input_ids"].shape[1]
                inputs["input_ids"] = altered[:, :longest].long().to(self.device)
                pairs.append((inputs, at, targets))
        return [(x, at.to(self.device), targets.to(self.device)) for x, at, targets in pairs]

    # -- losses

    def losses(self, rows: Tensor, step: int, micro: int) -> list[Tensor]:
        """[CL, MLM, SOP] on these texts of D_u. Masks depend on seed, step and micro-batch, dropout
        is torch's."""
        encoder, heads = self.encoder, self.heads
        plain = self._rows(self.plain, rows)
        twice = {name: torch.cat([x, x]) for name, x in plain.items()}  # one pass, two masks
        a, b = heads["CL"](encoder(twice)).chunk(2)
        contrast = objectives.contrastive(a, b, self.config.temperature)
        states, targets = [], []
        for inputs, at, tokens in self._two_masked(rows, step, micro):
            there = tokens != objectives.IGNORED
            most = max(1, int(there.sum(1).max()))
            at, there, tokens = at[:, :most], there[:, :most], tokens[:, :most]
            states.append(encoder(inputs, at)[there])
            targets.append(self.column.to(self.device)[tokens[there].long()])
        logits = heads["MLM"](torch.cat(states), self.embedding())
        masked = objectives.masked_lm(logits, torch.cat(targets))
        logits = heads["SOP"](encoder(self._rows(self.halves, rows)))
        return [contrast, masked, objectives.order(logits, self.order[rows].to(self.device))]

    def head(self, *names: object) -> nn.Module:
        module = encoders.two_layers(self.d, self.task.outputs, self.dropout)
        return encoders.draw(module, *names).to(self.device)

    def task_loss(
        self,
        encoder: nn.Module,
        head: nn.Module,
        part: str,
        rows: Tensor,
        squared_error: Callable[[Tensor, Tensor], Tensor] = objectives.squared_error,
    ) -> Tensor:
        """squared_error: see official.py."""
        columns, places = self._part(part)
        rows = places[rows]
        out = head(encoder(self._rows(columns, rows)))
        labels = self.labels[rows.to(self.device)]
        if self.task.outputs == 1:
            return squared_error(out.squeeze(-1).float(), labels)
        return F.cross_entropy(out.float(), labels)

    def _part(self, part: str) -> tuple[Columns, Tensor]:
        """Texts, and which rows of them belong to the part."""
        if part in ("train", "validation"):
            rows = self.task.inner if part == "train" else self.task.validation
            return self.texts["labelled"], torch.as_tensor(rows)
        return self.texts[part], torch.arange(len(self.texts[part]["attention_mask"]))

    # -- scoring

    def batches(self, part: str) -> Sequence[Tensor]:
        return torch.arange(len(self._part(part)[1])).split(SCORED_AT_ONCE)

    def outputs(self, head: nn.Module, part: str, rows: Tensor) -> Tensor:
        columns, places = self._part(part)
        return head(self.encoder(self._rows(columns, places[rows]))).float().cpu()

    def predictions(self, part: str, outputs: Tensor) -> dict[str, Tensor | np.ndarray]:
        task = self.task
        split = {"test": task.test, "spare": task.spare}.get(part, task.labelled)
        assert split is not None
        rows = self._part(part)[1].numpy()
        guess = outputs.squeeze(-1) if task.outputs == 1 else outputs.argmax(1)
        return {"id": split.ids[rows], "label": split.labels[rows], "prediction": guess}

    def export(self, head: nn.Module, directory: Path) -> None:
        """A transformers checkpoint of the encoder and, beside it, the head trained on it."""
        from safetensors.torch import save_file

        model: Any = self.below or self.encoder.model
        if isinstance(self.encoder, encoders.TopBlocks):
            for i, block in enumerate(self.encoder.blocks):  # those below are the checkpoint's
                model.encoder.layer[self.depth + i] = block
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        state = {k: v.contiguous().cpu() for k, v in head.state_dict().items()}
        save_file(state, directory / "head.safetensors")
