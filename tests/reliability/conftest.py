"""A method with its tiny runs finished, and one stopped in the middle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from reliable import Method, by_hand, stopped

from benchmarks import PAPERS


@pytest.fixture(scope="package", params=PAPERS)
def method(request, tmp_path_factory):
    """A method with its tiny runs finished; made once, whatever the number of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "reliability"
    home.mkdir(exist_ok=True)
    method = Method(request.param, home)
    method.finish()
    return method


@pytest.fixture(autouse=True)
def _by_hand():
    with by_hand():
        yield


@pytest.fixture(scope="package")
def half(method, tmp_path_factory):
    """(node, directory) of the method's last run with steps enough, stopped in its middle."""
    node = next(n for n in reversed(method.nodes) if method.steps[n.arm] >= 4)
    out = tmp_path_factory.mktemp("half")
    with by_hand():
        assert stopped(method, node, out, method.steps[node.arm] // 2), node.arm
    return node, out


@pytest.fixture
def continued(half, tmp_path):
    """A copy of the half run, to be spoiled or continued."""
    node, out = half
    return node, Path(shutil.copytree(out, tmp_path / "copy"))
