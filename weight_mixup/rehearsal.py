"""Stand-ins for a rehearsal: made-up GLUE rows, and a tiny random model of the same class."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import glue, runs, sources

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Texts = list[str] | list[tuple[str, ...]]


@contextmanager
def glue_rows(task: str, n: int) -> Iterator[None]:
    """Within the block the loader finds 2 n made-up rows of this task, in the task's own layout."""
    with tempfile.TemporaryDirectory() as folder:
        glue.write_sample(Path(folder), task, 2 * n, runs.stream(0, "rehearsal", task))
        with sources.pointed_at(REPRO_DATA=folder):
            yield


def classifier(
    name: str, texts: Texts, outputs: int, attention: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random model of the class of `name`, two blocks of width 32; a tokenizer of these texts."""
    from transformers import AutoModelForSequenceClassification, BertConfig, RobertaConfig

    kind = RobertaConfig if "roberta" in name else BertConfig
    sizes: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 160, "type_vocab_size": 2,
        "pad_token_id": 0, "num_labels": outputs, "attn_implementation": attention,
    }  # fmt: skip
    settings = kind(**sizes)
    runs.seed_global(0, "rehearsal", name)
    model = AutoModelForSequenceClassification.from_config(settings)
    return model, tokenizer_of(texts)


def tokenizer_of(texts: Texts) -> PreTrainedTokenizerBase:
    """The 300 most frequent words of these texts; ties by alphabet, so the same ones each time."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    rows = ((row,) if isinstance(row, str) else row for row in texts)
    core.train_from_iterator((text for row in rows for text in row), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)
