"""The hash and the score: lists, permutations, z, its null distribution, what is refused."""

import math

import numpy as np
import pytest
import torch
from watermark_toys import V, brute_force, random_watermark

from ts_watermark import hashing, method
from ts_watermark.detect import Detector
from ts_watermark.watermark import WatermarkLogitsProcessor, tabulate


def test_constant_generators_are_kgw():
    """Zero weights: the same biased logits, the same counts and the same z as a plain KGW."""
    generators = method.Generators(8, (4,), 0.25, 2.0, zero_last_layer=True)
    watermark = tabulate(generators, torch.randn(V, 8))
    ids, scores = torch.randint(V, (3, 5)), torch.randn(3, V)
    biased = WatermarkLogitsProcessor(watermark)(ids, scores)
    expected = scores.clone()
    for row, p in zip(expected, ids[:, -1].tolist()):
        row[torch.from_numpy(hashing.permutation_of(p, V)[: int(V * 0.25)])] += 2.0
    torch.testing.assert_close(biased, expected, rtol=0, atol=1e-6)
    text = torch.randint(V, (60,)).tolist()
    result = hashing.z_score(text, 0.25, V)
    g, n = result.green_count, 59
    assert result.z == pytest.approx((g - 0.25 * n) / math.sqrt(n * 0.25 * 0.75), abs=1e-6)
    assert Detector(watermark).score(text).green_count == g


def test_z_score_is_pure_and_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, V, 40).tolist() for _ in range(4)]
    gammas = [rng.uniform(0.1, 0.5, 40).tolist() for _ in texts]
    first = hashing.z_score(texts[0], gammas[0], V)
    others = hashing.z_scores(texts, gammas, V)
    assert hashing.z_score(texts[0], gammas[0], V) == first == others[0]
    for text, g, result in zip(texts, gammas, others):
        z, green = brute_force(text, g, V)
        assert result.green_count == green and result.z == pytest.approx(z, abs=1e-12)
    assert first.p_value == pytest.approx(0.5 * math.erfc(first.z / math.sqrt(2)))


def test_null_distribution_is_standard_normal():
    """2,000 texts of 200 uniformly random tokens, gammas in [0.1, 0.5], V = 50272.

    Hashing 400,000 lists takes minutes, so 40 tokens serve as previous tokens: every second one is
    drawn from them and only the pairs that follow them are scored; ranks come from the hash.
    """
    from scipy import stats

    rng, n, size = np.random.default_rng(1), 200, 50272
    gamma = rng.uniform(0.1, 0.5, (2000, n - 1))
    previous, following = rng.integers(0, 40, gamma.shape), rng.integers(0, size, gamma.shape)
    rank_of = np.empty((40, size), np.int64)
    for p in range(40):
        rank_of[p, hashing.permutation_of(p, size)] = np.arange(size)
    green = rank_of[previous, following] < hashing.list_sizes(torch.from_numpy(gamma), size).numpy()
    z = (green.sum(1) - gamma.sum(1)) / np.sqrt((gamma * (1 - gamma)).sum(1))
    assert abs(z.mean()) < 0.1 and abs(z.std(ddof=1) - 1) < 0.05
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_known_permutation():
    order = hashing.permutation_of(4, 50272)
    assert order[:8].tolist() == [20108, 13197, 48124, 26352, 50173, 29647, 22586, 31391]
    assert np.array_equal(np.sort(order), np.arange(50272))
    assert hashing.key_bits(50272) == 34 and hashing.key_bits(32000) == 33


def test_ties_are_shuffled_and_counted_alike():
    """A permutation with equal keys: counting ranks and reading it agree; still a bijection."""
    n = 50272
    keys_of = {t: hashing.sort_keys(hashing.KEY * t, n) for t in range(1, 40)}
    token, keys = next((t, keys) for t, keys in keys_of.items() if len(np.unique(keys)) < n)
    values, counts = np.unique(keys, return_counts=True)
    tied = np.flatnonzero(keys == values[counts > 1][0])
    order = hashing.permutation_of(token, n)
    assert np.array_equal(np.sort(order), np.arange(n))
    ranks = hashing.ranks_in(token, tied, n, hashing.KEY, "philox_cuda")
    assert np.array_equal(order[ranks], tied)


def test_lists_nest_and_have_the_asked_size():
    for p in (0, 3, 77):
        order = hashing.permutation_of(p, V)
        for small, large in [(0.1, 0.25), (0.25, 0.5), (0.3, 0.3)]:
            a, b = (
                set(order[: int(s)])
                for s in hashing.list_sizes(torch.tensor([small, large]).double(), V)
            )
            assert a <= b and len(b) == math.floor(V * large)
    gamma = torch.tensor([0.2467041015625])
    assert hashing.list_sizes(gamma, 50272, "fp16").item() == 12400
    assert hashing.list_sizes(gamma, 50272, "floor").item() == 12402


def test_one_token_changes_one_list():
    """Changing token t changes gamma and list of t + 1 only (and whether t itself is green)."""
    watermark = random_watermark()
    detector = Detector(watermark)
    ids = np.random.default_rng(2).integers(0, V, 30)
    other = ids.copy()
    other[10] = (other[10] + 1) % V
    a, b = detector.score(ids), detector.score(other)
    assert np.flatnonzero(a.evidence.gamma != b.evidence.gamma).tolist() == [
        10
    ]  # entry 10 governs token 11
    assert set(np.flatnonzero(a.evidence.green != b.evidence.green)) <= {9, 10}
    assert a.evidence.gamma[0] == pytest.approx(float(watermark.gamma[ids[0]]))
    assert a.scored == 29  # the first is not


def test_cache_is_bounded_and_changes_nothing():
    watermark = random_watermark()
    small, large = watermark.green_lists(max_bytes=8 * V), watermark.green_lists()
    for step in range(20):
        p = torch.randint(
            V, (4 if step % 2 else 12,), generator=torch.Generator().manual_seed(step)
        )
        assert torch.equal(small.masks(p), large.masks(p))
        assert torch.equal(large.masks(p).sum(1), large.sizes[p])
    assert len(small.table) == 8
    assert (small.slot_of >= 0).sum() <= 8


@pytest.mark.parametrize(
    ("ids", "gammas", "more", "words"),
    [
        ([], 0.25, {}, "0 token"),
        ([5], 0.25, {}, "1 token"),
        ([1, V], 0.25, {}, "outside"),
        ([1, -1], 0.25, {}, "outside"),
        ([1, 2], 0.0, {}, "inside"),
        ([1, 2], 1.0, {}, "inside"),
        ([1, 2], math.nan, {}, "inside"),
        ([1, 2, 3], [0.2] * 7, {}, "3 tokens"),
        ([1, 2], 0.25, {"permutation": "md5"}, "philox_cuda"),
        ([1, 2], 0.25, {"size_rounding": "up"}, "floor"),
        ([1.5, 2.0], 0.25, {}, "integers"),
    ],
)
def test_bad_input_is_refused(ids, gammas, more, words):
    with pytest.raises(ValueError, match=words):
        hashing.z_score(ids, gammas, V, **more)


@pytest.mark.parametrize("permutation", hashing.PERMUTATIONS)
@pytest.mark.parametrize("vocab_size", [V, 4000, 50_272])
def test_green_pairs_are_those_of_the_lists(vocab_size, permutation):
    rng = np.random.default_rng(2)
    gamma = torch.rand(vocab_size) * 0.5 + 0.001
    gamma[:2] = torch.tensor([0.001, 0.999])  # also nearly empty and nearly full lists
    sizes = hashing.list_sizes(gamma, vocab_size)
    is_green = hashing.GreenPairs(sizes, vocab_size, hashing.KEY, permutation)
    previous = np.repeat([0, 1, *rng.integers(2, vocab_size, 4)], 1000)
    following = rng.integers(0, vocab_size, len(previous))
    lists = hashing.GreenLists(sizes, vocab_size, permutation=permutation)
    masks = lists.masks(torch.from_numpy(previous[::1000])).numpy()
    assert np.array_equal(
        is_green(previous, following), np.repeat(masks, 1000, 0)[range(len(previous)), following]
    )


def test_a_list_that_ends_between_equal_keys(monkeypatch):
    """Keys of 10 bits tie often: there the whole permutation decides."""
    monkeypatch.setattr(hashing, "key_bits", lambda n: 10)
    sizes = torch.full((V,), V // 4)
    is_green = hashing.GreenPairs(sizes, V, hashing.KEY, "philox_cuda")
    lists = hashing.GreenLists(sizes, V)
    for p in range(40):
        row = is_green(np.full(V, p), np.arange(V))
        assert np.array_equal(row, lists.masks(torch.tensor([p]))[0].numpy())
    assert is_green.lists and is_green.last  # both ways were taken


def test_exact_tails():
    from scipy import stats

    rng = np.random.default_rng(3)
    for n, k in ((7, 7), (300, 110), (3000, 900)):
        exact = hashing.exact_tail(np.full(n, 0.25), k)
        assert exact == pytest.approx(stats.binom.sf(k - 1, n, 0.25), rel=1e-10)
    assert hashing.exact_tail(np.full(300, 0.25), 300) == pytest.approx(0.25**300)  # no floor
    coins = rng.uniform(0.1, 0.5, (3, 40))
    coins[2, 25:] = 0  # a shorter row
    green = np.array([20, 8, 11])
    tails, more = hashing.exact_tails(coins, green, rows=2)
    assert more == pytest.approx(hashing.exact_tails(coins, green + 1)[0])
    for row, k, tail in zip(coins, green, tails):
        assert tail == pytest.approx(stats.poisson_binom.sf(k - 1, row), abs=1e-12)
        assert tail == pytest.approx(hashing.exact_tail(row[row > 0], int(k)), rel=1e-12)
    assert hashing.exact_tails(coins, np.zeros(3))[0] == pytest.approx([1, 1, 1])
