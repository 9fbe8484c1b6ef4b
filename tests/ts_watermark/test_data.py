"""Texts and prompts."""

import pytest
import torch

from shared.protocol import BadInput
from ts_watermark import data, stand_ins


def test_c4_sample_is_read_back(tmp_path, word_codec):
    root = stand_ins.sample("c4", 5, torch.Generator().manual_seed(0), tmp_path)
    texts = list(data.c4("train", root))
    assert len(texts) == 5 and texts != list(data.c4("validation", root))
    import gzip

    with gzip.open(root / "c4-train.00000-of-00001.json.gz", "at", encoding="utf-8") as file:
        file.write("{no json}\n")
    with pytest.raises(ValueError, match="row 6"):
        list(data.c4("train", root))


def test_passages_are_cut_as_the_paper_does(word_codec):
    texts = [
        " ".join(word_codec.pieces([2 + (i + k) % 70 for i in range(n)]))
        for k, n in enumerate((10, 30, 60, 25))
    ]
    how = {"tokens": 8, "min_prompt": 15, "max_prompt": 20, "max_total": 50}
    passages, names = data.cut(texts, word_codec, limit=2, **how)
    assert passages.ids == [data.name_of(texts[1]), data.name_of(texts[3])] and len(names) == 4
    whole = word_codec.encode(texts[1])
    assert passages.human[0] == whole[-8:] and passages.prompts[0] == whole[:-8][-20:]
    alike, _ = data.cut([texts[1], "bi " + texts[1], texts[3]], word_codec, limit=2, **how)
    assert alike.ids == passages.ids  # of texts that end alike the first
    with pytest.raises(data.sources.MissingInput, match="only 2 of 9"):
        data.cut(texts, word_codec, limit=9, **how)


def test_editorials_are_running_text():
    """498 of them, each its sentences in their order, in words that a reader knows."""
    try:
        texts = data.corpus("editorials")
    except data.sources.MissingInput as error:
        pytest.skip(str(error))
    assert len(texts) == 498 and texts == data.corpus("editorials")
    assert 150 < sum(len(text.split()) for text in texts) / len(texts) < 250
    (santa,) = [text for text in texts if text.startswith("On Dec. 19, around noon, New York")]
    places = [santa.index(words) for words in ("Events include", "mainly a holiday", "American y")]
    assert places == sorted(places) and not any("&amp" in text for text in texts)


def test_a_stream_that_fails_says_what_to_do(monkeypatch):
    """Offline, refused at once, broken after a row: each is a MissingInput with the remedy."""
    import datasets

    monkeypatch.delenv("REPRO_DATA", raising=False)
    place = data.C4_HUB
    remedy = r"(?s)'c4/realnewslike' are missing.*fetch:   hf download"
    monkeypatch.setattr(data.sources, "find_data", lambda *_: place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(data.sources.MissingInput, match=remedy + ".*unset HF_HUB_OFFLINE"):
        next(data.c4("train"))

    def refused(*_, **__):
        raise OSError("403: a gated dataset")

    def broken(*_, **__):
        yield {"text": "one"}
        raise EOFError("the stream ended before its end marker")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    monkeypatch.setattr(datasets, "load_dataset", refused)
    with pytest.raises(data.sources.MissingInput, match=remedy + ".*hf auth login.*403"):
        next(data.c4("train"))
    monkeypatch.setattr(datasets, "load_dataset", broken)
    rows = data.c4("train")
    assert next(rows) == "one"
    with pytest.raises(data.sources.MissingInput, match=remedy + ".*after 1 rows.*end marker"):
        next(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"words": "one"}])
    with pytest.raises(BadInput, match="allenai/c4, part train row 0"):
        next(data.c4("train"))
