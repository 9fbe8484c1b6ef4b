"""The pictures of docs/verdicts.md are what the report's own drawing makes of their cases."""

from __future__ import annotations

import pytest

from benchmarks.verdict_pictures import CASES, draw

WORDS = {"for": "SUPPORTED", "within": "NO MATERIAL DIFFERENCE", "cannot-tell": "INCONCLUSIVE"}


@pytest.mark.parametrize("name", CASES)
def test_a_committed_picture_is_current_and_stands_alone(root, name):
    committed = (root / "docs" / "pictures" / f"verdict-{name}.svg").read_text(encoding="utf-8")
    assert committed == draw(name), "python -m benchmarks.verdict_pictures"
    assert f'aria-label="{WORDS[name]}: ' in committed and "prefers-color-scheme:dark" in committed
    page = (root / "docs" / "verdicts.md").read_text(encoding="utf-8")
    assert f"](pictures/verdict-{name}.svg)" in page
