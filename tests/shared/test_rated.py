"""Rated sentences and MNIST on the real files: fixed parts, nothing near in two of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from shared import bundled, package_data, rated, sources

COUNTS = {"movie": 10_605, "amazon": 3_708, "nyt": 5_190, "tweets": 4_200}  # lines of the files


def stream(seed):
    return torch.Generator().manual_seed(seed)


def real(name):
    try:
        return package_data.path_of(name)
    except sources.MissingInput as error:
        pytest.skip(str(error).splitlines()[0].split(": not in")[0])


@pytest.fixture(params=rated.FILES)
def domain(request):
    real(rated.FILES[request.param])
    return request.param


def parts_of(task):
    return {"train": task.train, "validation": task.validation, "test": task.test}


def test_parts_are_fixed_and_training_items_are_drawn(domain):
    first, second = bundled.ratings(domain, stream(0)), bundled.ratings(domain, stream(1))
    for task in (first, second):
        assert [len(part) for part in parts_of(task).values()] == [300, 300, 600]
        assert task.labels == () and task.test.labels.dtype == np.float32
        assert np.abs(task.train.labels).max() <= 4 and task.test.labels.std() > 0.5
    assert first.test.texts == second.test.texts
    assert first.validation.texts == second.validation.texts
    assert set(first.train.ids.tolist()) != set(second.train.ids.tolist())
    assert bundled.ratings(domain, stream(0)).train.texts == first.train.texts
    small = bundled.ratings(domain, stream(0), items=40)
    assert small.train.texts == first.train.texts[:40]


def test_the_binary_view_is_balanced_and_of_the_same_parts(domain):
    task, mean = bundled.ratings(domain, stream(0), binary=True), bundled.ratings(domain)
    ratings = {}
    for part in rated.parts(domain).values():
        ratings.update(zip(part.ids.tolist(), part.labels.tolist()))
    for name, part in parts_of(task).items():
        assert np.bincount(part.labels).tolist() == [{"test": 300}.get(name, 150)] * 2
        for number, label in zip(part.ids.tolist(), part.labels.tolist()):
            assert ratings[number] >= 0.4 if label else ratings[number] <= -0.4
    pool = set(mean.train.ids.tolist())
    assert set(task.train.ids.tolist()) < pool
    assert not pool & {*task.test.ids.tolist(), *task.validation.ids.tolist()}
    small = bundled.ratings(domain, stream(0), items=40, binary=True)
    assert small.train.texts == task.train.texts[:40]


def test_neither_a_review_nor_a_near_duplicate_is_in_two_parts(domain):
    lines = real(rated.FILES[domain]).read_text("utf-8").splitlines()
    assert len(lines) == COUNTS[domain]
    part_of: dict[str, str] = {}
    total = 0
    for name, part in rated.parts(domain).items():
        total += len(part)
        for number, text in zip(part.ids.tolist(), part.texts):
            review = lines[number - 1].split("\t")[0].rpartition("_")[0]
            letters = re.sub(r"[\W\d_]+", "", text.lower())
            words = " ".join(sorted(set(re.findall(r"[^\W\d_]+", text.lower()))))
            for key in {f"review {review}" if review else letters, letters, f"words {words}"}:
                assert part_of.setdefault(key, name) == name, text
    assert total > 0.95 * len(lines)  # the rest are duplicates


def test_texts_are_clean(domain):
    for part in rated.parts(domain).values():
        for text in part.texts:
            assert text == " ".join(text.split()) and not re.search("&(amp|lt|gt|quot);|Ã|�", text)


def test_what_was_read_is_noted_and_the_impossible_refused():
    real(rated.FILES["tweets"])
    with sources.recording() as log:
        bundled.ratings("tweets", stream(0))
    name = "vaderSentiment tweets_GroundTruth.txt"
    assert log[name]["sha256"] == package_data.MEMBERS["tweets_GroundTruth.txt"].sha256
    for words, message in (
        (("films", stream(0)), "unknown domain 'films'; choose one of: movie"),
        (("tweets", stream(0), 10**6), r"items=1000000: tweets has \d+"),
        (("tweets", stream(0), 10**6, True), r"per_class=500000: negative has \d+"),
        (("tweets", stream(0), 31, True), r"items=31: half of them"),
    ):
        with pytest.raises(ValueError, match=message):
            bundled.ratings(*words)


def test_families_join_reviews_and_variations():
    texts = [
        "Yay! Another good interview today!",
        "YAY!!! Another GOOD interview today",
        "A plain sentence about boats.",
        "Nothing in common with others here.",
        "Super yay! Another good interview today!",
        "Boats again, of the same review.",
    ]
    families = rated._families(texts, ["", "", "7", "8", "", "7"])
    assert families[0] == families[1] == families[4] and families[2] == families[5]
    assert len(set(families)) == 3


# --- MNIST ----------------------------------------------------------------------------------------


def test_mnist_parts_are_fixed_balanced_and_apart():
    real("mnist_5k.csv.gz")
    first, second = bundled.mnist(stream(0)), bundled.mnist(stream(1))
    whole, small = bundled.mnist(), bundled.mnist(stream(0), per_class=10)
    for name, count in (("train", 100), ("validation", 50), ("test", 100)):
        part = first[name]
        assert part.labels.bincount().tolist() == [count] * 10
        assert part.images.shape == (10 * count, 1, 28, 28) and part.images.dtype == torch.uint8
        assert (part.ids.tolist() == second[name].ids.tolist()) == (name != "train")
    assert whole["train"].labels.bincount().tolist() == [350] * 10
    assert set(small["train"].ids.tolist()) < set(first["train"].ids.tolist())
    images = [image.numpy().tobytes() for part in whole.values() for image in part.images]
    assert len(images) == len(set(images)) == 5_000
    ids = torch.cat([part.ids for part in whole.values()])
    assert sorted(ids.tolist()) == list(range(1, 5_001))
    # digits they are: the mean image of each class tells most of the others
    means = torch.stack(
        [first["train"].images[first["train"].labels == d].float().mean(0) for d in range(10)]
    )
    distance = torch.cdist(first["test"].images.float().flatten(1), means.flatten(1))
    assert (distance.argmin(1) == first["test"].labels).float().mean() > 0.7
    with pytest.raises(ValueError, match=r"per_class=400: digit 0 has 350"):
        bundled.mnist(stream(0), per_class=400)
