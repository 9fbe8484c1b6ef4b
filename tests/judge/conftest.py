"""What the tests of the judge share."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic_results
import toy as toy_paper
from commands import reproduce


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A checkout with made-up results of every sort, rendered once."""
    from benchmarks import report

    path = synthetic_results.tree(tmp_path_factory.mktemp("checkout"))
    report.render(path, runs=path / "runs")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The toy paper with all its runs, judged and reported; tests that begin there copy it."""
    root = tmp_path_factory.mktemp("finished")
    toy_paper.write(root)
    return root, reproduce(root)
