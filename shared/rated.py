"""Sentences that people rated, cut into parts that share no review and no near duplicate.

Hutto and Gilbert 2014: film reviews (Rotten Tomatoes), product reviews (Amazon), editorials (New
York Times) and tweets, each sentence with the mean of about 20 people's ratings from -4 to 4.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import html
import re
from pathlib import Path

import numpy as np

from shared import package_data, sources
from shared.sources import Split

FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
CLEAR = 0.4  # a mean rating this far from 0 has a sign
SIZES = {"test": 600, "validation": 300}
_PLACEHOLDERS = {"anonymous", "http", "url", "removed"}


def parts(domain: str) -> dict[str, Split]:
    """All items of a domain cut into `test`, `validation` (more than SIZES) and `pool`.

    ids are line numbers. Families go to the parts whole, in the order of a hash of their text."""
    if domain not in FILES:
        raise ValueError(f"unknown domain '{domain}'; choose one of: {', '.join(FILES)}")
    path = package_data.path_of(FILES[domain])
    sources.note(f"vaderSentiment {path.name}", path, "bundled")
    return _cut(path)


@functools.cache
def _cut(path: Path) -> dict[str, Split]:
    lines = path.read_text("utf-8").splitlines()
    rows: dict[str, tuple[int, str, float, str]] = {}  # one item per near-duplicate key
    for number, line in enumerate(lines, 1):
        name, rating, text = line.split("\t")
        text = re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
        if key := _letters(text):
            rows.setdefault(key, (number, text, float(rating), name))
    items = list(rows.values())
    families = collections.defaultdict(list)
    reviews = [name.rpartition("_")[0] for *_, name in items]
    for row, family in enumerate(_families([text for _, text, _, _ in items], reviews)):
        families[family].append(row)
    keys = list(rows)
    order = sorted(
        families.values(), key=lambda members: hashlib.sha256(keys[members[0]].encode()).hexdigest()
    )
    labels = np.array([rating for _, _, rating, _ in items], dtype=np.float32)
    parts: dict[str, list[int]] = {"test": [], "validation": [], "pool": []}
    for members in order:
        part = next((p for p, n in SIZES.items() if not _full(labels[parts[p]], n)), "pool")
        parts[part] += members
    parts["pool"].sort()
    return {
        name: Split(
            np.array([items[row][0] for row in chosen]),
            [items[row][1] for row in chosen],
            labels[chosen],
        )
        for name, chosen in parts.items()
    }


def _full(ratings: np.ndarray, n: int) -> bool:
    """Whether a part has n items for regression and n / 2 of each clear sign."""
    signs = min((ratings >= CLEAR).sum(), (ratings <= -CLEAR).sum())
    return len(ratings) >= n and signs >= n // 2


def _letters(text: str) -> str:
    return re.sub(r"[\W\d_]+", "", text.lower())


def _families(texts: list[str], reviews: list[str]) -> list[int]:
    """Number of the family of each text: one review, or at least 7 of 10 words in common.

    The tweets hold variations of one text ("Yay!", "YAY!!!", "Super yay!")."""
    words = [frozenset(re.findall(r"[^\W\d_]+", t.lower())) - _PLACEHOLDERS for t in texts]
    counts = collections.Counter(word for of_text in words for word in of_text)
    family = list(range(len(texts)))

    def first(row: int) -> int:
        while family[row] != row:
            family[row] = row = family[family[row]]
        return row

    firsts: dict[str, int] = {}
    with_word: dict[str, list[int]] = collections.defaultdict(list)
    for row, of_text in enumerate(words):
        if reviews[row]:
            family[first(row)] = first(firsts.setdefault(reviews[row], row))
        # texts that share 7 of 10 words share one of the rarest 3 in 10, and one more, of either
        rare = sorted(of_text, key=lambda word: (counts[word], word))
        rare = rare[: len(rare) - -(-7 * len(rare) // 10) + 1]
        for other in {other for word in rare for other in with_word[word]}:
            shared, union = len(of_text & words[other]), len(of_text | words[other])
            if 10 * shared >= 7 * union:
                family[first(row)] = first(other)
        for word in rare:
            with_word[word].append(row)
    return [first(row) for row in range(len(texts))]
