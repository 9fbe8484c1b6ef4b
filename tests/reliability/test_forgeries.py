"""A forger edits a recorded result, judges it again, writes every hash, stamps and commits."""

from __future__ import annotations

import forged
import pytest

from benchmarks import PAPERS, check, scores


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """The forger and the check draw as many: what is compared stays the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "RESAMPLES", 10)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_a_forged_result_is_found(paper, tmp_path, record_property):
    one = forged.Forged(paper, tmp_path)
    assert check.check_paper(one.folder)[1] == []  # as it was recorded it passes
    missed = []
    for forgery in forged.FORGERIES:
        forged.forge(one, forgery)
        if not check.check_paper(one.folder)[1]:
            missed.append(forgery.__name__)
        one.restore()
    record_property("figure", f"{len(forged.FORGERIES) - len(missed)}/{len(forged.FORGERIES)}")
    assert not missed
