"""Fixtures of the watermark's tests; `watermark_toys.py` beside it can be imported by them."""

import json
import sys
from pathlib import Path

import pytest

from ts_watermark import data

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def word_codec():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "<s>", *(a + b for a in "bcdfghklmnprstvz" for b in "aeiou")]
    bare = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    return data.Codec(
        PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]", bos_token="<s>")
    )


@pytest.fixture(scope="module")
def published(repro_data):
    folder = repro_data / "ts_watermark"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return lambda name: json.loads((folder / f"{name}.json").read_text())
