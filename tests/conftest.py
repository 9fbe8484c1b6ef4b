"""Fixtures for all tests: where the data are, a toy paper, one thread, no network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402  (after the threads are set)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def repro_data() -> Path:
    """Folder of real data sets: REPRO_DATA, or `../shared/data` beside the checkout; else skip."""
    for place in (os.environ.get("REPRO_DATA"), ROOT.parent / "shared" / "data"):
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("real data: set REPRO_DATA to a folder laid out as README says")


@pytest.fixture
def toy(tmp_path):
    """A small repository with the paper `toy`; returns the repository's folder."""
    import toy as toy_paper

    toy_paper.write(tmp_path)
    return tmp_path


def pytest_terminal_summary(terminalreporter):
    """The last lines count what was skipped, by reason."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] = reasons.get(text.removeprefix("Skipped: "), 0) + 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")
