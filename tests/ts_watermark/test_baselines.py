"""Opponents, controls and attacks."""

import math

import pytest
import torch
from watermark_toys import V, random_watermark, tiny_opt

from ts_watermark import attacks, baselines
from ts_watermark.detect import Detector
from ts_watermark.synthid import NGRAM, SynthID
from ts_watermark.watermark import ConvertedLogitsProcessor, WatermarkLogitsProcessor


def test_sweet_leaves_certain_positions_alone():
    processor = baselines.SweetLogitsProcessor(baselines.kgw(0.25, 2.0, V), threshold=2.0)
    scores = torch.zeros(2, V)
    scores[0, 3] = 30.0  # entropy near 0
    out = processor(torch.tensor([[1], [1]]), scores)
    assert torch.equal(out[0], scores[0]) and (out[1] != scores[1]).sum() == V // 4
    assert baselines.entropy(torch.zeros(7)).item() == pytest.approx(math.log(7), abs=1e-5)


def test_sweet_entropies_know_their_place():
    """Row by row equal to a plain pass; without a prompt the first token has none."""
    model = tiny_opt(V, dtype=torch.float32)
    prompts, texts = [[3, 4, 5, 6], [7, 8]], [[9, 10, 11], [12, 13, 14]]
    for p, t, result in zip(prompts, texts, baselines.entropies(model, prompts, texts)):
        logits = model(torch.tensor([p + t])).logits[0, len(p) - 1 : -1]
        torch.testing.assert_close(result, baselines.entropy(logits), rtol=1e-3, atol=1e-4)
    blind = baselines.entropies(model, [[], []], texts)
    assert all(len(e) == 3 and e[0].isnan() and not e[1:].isnan().any() for e in blind)


def test_permuted_keeps_the_values_and_matched_their_mean():
    watermark = random_watermark()
    other = baselines.permuted(watermark, torch.Generator().manual_seed(0))
    assert torch.equal(
        other.gamma.sort().values, watermark.gamma.sort().values
    ) and not torch.equal(other.gamma, watermark.gamma)
    pairs = set(zip(watermark.gamma.tolist(), watermark.delta.tolist()))
    assert set(zip(other.gamma.tolist(), other.delta.tolist())) == pairs
    assert baselines.constant_like(watermark, 0.2, 1.5).gamma.unique().tolist() == pytest.approx(
        [0.2]
    )


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5])
def test_kgw_is_that_of_transformers(gamma):
    """With a CPU generator: the same logits, green tokens and z as `WatermarkingConfig`."""
    from transformers import WatermarkDetector, WatermarkingConfig

    model = tiny_opt(V, dtype=torch.float32)
    config = WatermarkingConfig(greenlist_ratio=gamma, bias=2.0)
    theirs = config.construct_processor(V, "cpu")
    watermark = baselines.kgw(gamma, 2.0, V, permutation="torch")
    ids, scores = torch.randint(V, (4, 6)), torch.randn(4, V)
    torch.testing.assert_close(
        WatermarkLogitsProcessor(watermark)(ids, scores), theirs(ids, scores.clone())
    )
    text = torch.randint(V, (1, 80))
    model.config.bos_token_id = V  # their detector asks for one; this is no token
    detector = WatermarkDetector(model.config, "cpu", config)
    out = detector(text, return_dict=True)
    ours = Detector(watermark).score(text[0].tolist())
    assert ours.z == pytest.approx(out.z_score[0], abs=1e-6)
    assert ours.evidence.green.sum() == out.num_green_tokens[0]


def test_unigram_has_one_list():
    watermark = baselines.unigram(0.25, 2.0, V, key=7919)
    one = baselines.OneList()
    scores = torch.zeros(3, V)
    added = ConvertedLogitsProcessor(watermark, one)(torch.tensor([[1], [50], [299]]), scores)
    assert torch.equal(added[0], added[1]) and torch.equal(added[0], added[2])
    assert (added[0] == 2).sum() == V // 4
    green = added[0].nonzero()[:30, 0].tolist()
    detector = Detector(watermark, converter=one)
    assert detector.score(green).evidence.green.all()
    assert detector.score(green[:3] * 9).scored == 3  # a token counts once
    other = baselines.unigram(0.25, 2.0, V, key=7921)
    assert not torch.equal(
        ConvertedLogitsProcessor(other, one)(torch.tensor([[1]]), scores)[0], added[0]
    )


def test_synthid_is_found_in_its_own_texts_only():
    model, opponent = tiny_opt(V, dtype=torch.float32), SynthID(8, key=3)
    prompt = {"input_ids": torch.randint(V, (6, 5)), "attention_mask": torch.ones(6, 5).long()}
    how = {"do_sample": True, "max_new_tokens": 50, "pad_token_id": 0}
    rows = {}
    for name, processors in {"plain": [], "marked": [opponent.processor()]}.items():
        rows[name] = model.generate(**prompt, **how, logits_processor=processors)[:, 5:].tolist()
    assert opponent.z_all(rows["marked"]).mean() > 4 > abs(opponent.z_all(rows["plain"]).mean())
    assert opponent.evidence_all(rows["marked"]).mean() > 4
    assert abs(SynthID(8, key=4).z_all(rows["marked"]).mean()) < 2  # another key
    assert math.isnan(opponent.z_all([[1] * (NGRAM - 1)])[0])
    assert opponent.evidence_all([[1] * (NGRAM - 1)])[0] == pytest.approx(0, abs=1e-9)


def test_attacks():
    draws = torch.Generator().manual_seed(0)
    host, text = " ".join(f"h{i}" for i in range(30)), " ".join(f"w{i}" for i in range(9))
    for pieces in (1, 3):
        words = attacks.copy_paste(text, host, pieces, draws).split()
        assert [w for w in words if w[0] == "h"] == host.split() and [
            w for w in words if w[0] == "w"
        ] == text.split()
        runs_ = sum(w[0] == "w" and (i == 0 or words[i - 1][0] == "h") for i, w in enumerate(words))
        assert runs_ <= pieces
    ids = list(range(1000))
    rest = attacks.delete(ids, 0.2, draws)
    assert rest == sorted(rest) and 720 < len(rest) < 880
    changed = attacks.substitute(ids, 0.3, torch.ones(1000), draws)
    assert len(changed) == 1000 and 600 < sum(a == b for a, b in zip(ids, changed)) < 800
