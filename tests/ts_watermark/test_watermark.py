"""The watermark as a tool: inside generate(), over another vocabulary, in a folder."""

import json

import numpy as np
import pytest
import torch
from watermark_toys import Letters, V, prompts_of, random_watermark, tiny_opt

from shared.protocol import BadInput
from ts_watermark import watermark as module
from ts_watermark.detect import Detector
from ts_watermark.watermark import (
    ConvertedLogitsProcessor,
    Converter,
    Watermark,
    WatermarkLogitsProcessor,
)


def written(model, prompt, watermark, **how):
    processor = WatermarkLogitsProcessor(watermark)
    return model.generate(**prompt, **how, pad_token_id=0, logits_processor=[processor])


def test_processor_inside_generate():
    """Batched, left-padded, sampled and with beams: every row's list follows its own last token."""
    model, watermark = tiny_opt(V, dtype=torch.float32), random_watermark()
    strong = Watermark(watermark.gamma, torch.full((V,), 50.0), V)  # every token is green
    prompt = prompts_of([[5, 6, 7], [9, 10, 11, 12, 13, 14]])
    for how in ({"do_sample": True, "top_k": 50}, {"num_beams": 3}, {"do_sample": False}):
        out = written(model, prompt, strong, max_new_tokens=12, **how)
        for row in out[:, 5:].tolist():
            assert Detector(strong).score(row).evidence.green.all()
    greedy = {"do_sample": False, "max_new_tokens": 8}
    alone = written(model, prompts_of([[5, 6, 7]]), watermark, **greedy)[0, 3:]
    padded = written(model, prompt, watermark, **greedy)[0, 6:]
    assert torch.equal(alone, padded)
    ids, logits = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, V + 1)
    with pytest.raises(ValueError, match="different vocabularies"):
        WatermarkLogitsProcessor(watermark)(ids, logits)


def test_vocabulary_conversion():
    same = Converter(Letters(), Letters())
    assert [same(row) for row in ([1, 2, 3], [7], [25])] == [3, 7, 25]
    assert Converter(Letters(), Letters(5))([1, 2]) == 7 and same([30]) == -1
    assert same([4, 30, 30, 30, 30]) == 4 and same([4, 30, 30, 30, 30, 30]) == -1  # a window of 5
    watermark = random_watermark(31)
    ids = np.random.default_rng(5).integers(0, 26, 40)
    plain = Detector(watermark).score(ids)
    converted = Detector(watermark, converter=same).score(ids)
    assert plain.z == converted.z and converted.evidence.counted.sum() == 39
    skipping = Detector(watermark, converter=same).score([30, 1, 2, 3])
    assert (
        skipping.scored == 2 and not skipping.evidence.counted[0]
    )  # nothing precedes token 2 that converts
    scores = torch.randn(2, 31)
    out = ConvertedLogitsProcessor(watermark, same)(torch.tensor([[3, 4], [30, 30]]), scores)
    assert torch.equal(out[1], scores[1])
    assert torch.equal(
        out[0], WatermarkLogitsProcessor(watermark)(torch.tensor([[4]]), scores[:1])[0]
    )


def test_folder_round_trip_and_tampering(tmp_path, word_codec):
    watermark = random_watermark(
        len(word_codec), key=7919, size_rounding="fp16", about={"arm": "ts"}
    )
    folder = watermark.save(tmp_path / "w", word_codec)
    again = Watermark.load(folder)
    assert torch.equal(again.gamma, watermark.gamma) and torch.equal(again.delta, watermark.delta)
    assert (again.key, again.size_rounding, again.about) == (7919, "fp16", {"arm": "ts"})
    text = " ".join(word_codec.pieces(range(2, 40))).strip()
    assert Detector.load(folder).score(text).z == Detector(watermark, word_codec).score(text).z
    with_bos = Detector.load(folder).score([1, *range(2, 40)])  # a leading BOS is ignored
    assert with_bos.z == Detector(watermark).score(list(range(2, 40))).z
    for bad, words in [("", "empty"), ("ba", "1 token"), ("qqq xxx yyy www", "vocabulary")]:
        with pytest.raises(ValueError, match=words):
            Detector.load(folder).score(bad)
    # still valid JSON, but another key, another token
    for file in ("watermark.json", "tokenizer/tokenizer.json"):
        good = (folder / file).read_text()
        (folder / file).write_text(good.replace("7919", "7920").replace('"ba"', '"bax"'))
        with pytest.raises(ValueError, match=f"{file} changed after"):
            Watermark.load(folder)
        (folder / file).write_text(good)
    Watermark.load(folder)
    payload = bytearray((folder / "watermark.safetensors").read_bytes())
    payload[-3] ^= 1
    (folder / "watermark.safetensors").write_bytes(payload)
    with pytest.raises(ValueError, match="changed after"):
        Watermark.load(folder)
    (folder / "watermark.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Watermark.load(folder)
    with pytest.raises(FileNotFoundError, match="no watermark folder"):
        Watermark.load(tmp_path / "nowhere")


def stamped(folder, **settings):
    """Other settings, with the sha256 that `save` would write for them."""
    kept = json.loads((folder / "watermark.json").read_text()) | settings
    kept = {k: v for k, v in kept.items() if k != "sha256" and v != "absent"}
    kept["sha256"] = module._hashes(folder, kept)
    (folder / "watermark.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(("settings", "said"), [
    ({"vocab_size": "99"}, "not whole numbers"), ({"key": None}, "not whole numbers"),
    ({"vocab_size": 10**6}, "steer lists of 1000000"), ({"permutation": "x"}, "choose from"),
    ({"vocab_size": "absent"}, "another version's"), ({"more": 1}, "another version's"),
])  # fmt: skip
def test_settings_that_fit_no_watermark(settings, said, tmp_path, word_codec):
    folder = random_watermark(len(word_codec)).save(tmp_path / "w", word_codec)
    stamped(folder, **settings)
    with pytest.raises(BadInput, match=said):
        Detector.load(folder)


@pytest.mark.parametrize("keep", ["{", "{}", "[]", "[-1]", "[99999]", "[1, 1]", '["a"]', "[true]"])
def test_pieces_that_are_no_part_of_the_tokenizer(keep, tmp_path, word_codec):
    folder = random_watermark(len(word_codec)).save(tmp_path / "w", word_codec)
    (folder / "tokenizer" / "keep.json").write_text(keep)
    stamped(folder)
    with pytest.raises(BadInput, match=r"keep\.json"):
        Detector.load(folder)
