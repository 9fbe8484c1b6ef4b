"""The section "Differences" of a README, and the effects that runs measure of its rows."""

from __future__ import annotations

import pytest
import synthetic_results
import yaml

from benchmarks import PAPERS
from benchmarks.arms import scores
from benchmarks.claims import load_claims
from benchmarks.differences import EFFECT, blocks, effects
from benchmarks.words import number

SECTION = """# A
## Differences: paper, official code, ours

Default in **bold**; `a\\|b` <i>stays</i>.

| # | paper | ours |
| --- | --- | --- |
| 1 | \\|x\\|² | **`rule=a`**, or `b`. Effect: `permuted` - `autolora` |
| 2 | w\\* | [a link](other.md). Effect: `never_run` - `autolora` |
| 3 | key * p * q | - |

1. first,
   going on
2. second

## Next
not this
"""


def test_differences_are_read_from_the_readme_and_measured_from_runs(checkout):
    result, declared = synthetic_results.result(), load_claims(checkout / "autolora/claims.yaml")
    read = blocks(SECTION, lambda line: effects(line, result, declared, "cpu"))
    text, table, items = read
    said = "Default in <strong>bold</strong>; <code>a|b</code> &lt;i&gt;stays&lt;/i&gt;."
    assert text.rows[0].cells == [said] and table.measured
    first, second, third = table.rows
    assert [str(cell) for cell in first.cells[:2]] == ["1", "|x|²"]
    assert "<strong><code>rule=a</code>" in first.cells[2]
    assert str(second.cells[1]) == "w*" and "href" not in second.cells[2]
    assert "a link" in second.cells[2] and second.effect == ["not run at scale cpu"]
    assert str(third.cells[1]) == "key * p * q" and third.effect == []
    points = scores(result, declared)
    assert len(first.effect) == 2  # two tasks
    for line in first.effect:
        task, metric = line.partition(":")[0].split(", ")
        pairs = zip(points[task, metric, "permuted"], points[task, metric, "autolora"])
        d = [ours.value - theirs.value for ours, theirs in pairs]
        mean = number(sum(d) / len(d), signed=True).replace("-", "−")
        assert mean in line and " points (" in line and f"n {len(d)}" in line
    numbered = [(row.id, str(row.cells[0])) for row in items.rows]
    assert numbered == [("1", "first, going on"), ("2", "second")]
    assert blocks("# no such heading\n", lambda line: []) == []
    unmeasured = blocks(SECTION, lambda line: effects(line, None, None, "cpu"))
    assert unmeasured[1].rows[0].effect == ["not run at scale cpu"]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_has_its_numbered_differences(root, paper):
    text = (root / paper / "README.md").read_text()
    read = blocks(text, lambda line: [])
    rows = [row for block in read if block.kind != "text" for row in block.rows]
    assert len(rows) >= 10 and len({row.id for row in rows}) == len(rows)
    for block in read:
        if block.kind == "table":
            assert {len(row.cells) for row in block.rows} == {len(block.head)}
    arms = yaml.safe_load((root / paper / "protocol.yaml").read_text())["arms"]
    for pair in EFFECT.findall(text):
        for side in pair:
            assert side.partition(":")[0] in arms, f"{paper}: {side} is no arm"
