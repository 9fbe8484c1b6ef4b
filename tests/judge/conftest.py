"""What the tests of the judge share."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic_results


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A checkout with made-up results of every sort, rendered once."""
    from benchmarks import report

    path = synthetic_results.tree(tmp_path_factory.mktemp("checkout"))
    report.render(path, runs=path / "runs")
    return path
