"""Make `.venv-peers`: the peers beside the very torch that is measured, installed by plain pip.

The environment sees the packages of this interpreter through a .pth file, and a constraint keeps
pip from replacing torch. An install that fails is a result: its last line goes to
`.venv-peers/installs.json`, and `run` prints it.
"""

from __future__ import annotations

import json
import subprocess
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".venv-peers"
PYTHON = PLACE / "bin" / "python"
PEERS = {
    # 0.2.x declares Requires-Python < 3.11; without the flag pip silently installs 0.1.1, which
    # does not restore weights
    "betty": ["--ignore-requires-python", "betty-ml==0.2.1"],
    "torchopt": ["torchopt==0.7.3"],
    "higher": ["higher==0.2.1"],
}


def inside(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The environment's Python with these words."""
    return subprocess.run([PYTHON, *words], capture_output=True, text=True)


def last_line(errors: str) -> str:
    lines = [x for x in errors.splitlines() if x.strip() and "[notice]" not in x]
    return (lines or ["no message"])[-1]


def make() -> dict[str, str]:
    """name -> "ok" or the message of the failed install."""
    venv.create(PLACE, with_pip=True, clear=True)
    packages = inside("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    (Path(packages) / "beside.pth").write_text(
        sysconfig.get_path("purelib") + "\n", encoding="utf-8"
    )
    constraint = PLACE / "constraint.txt"
    constraint.write_text(f"torch=={metadata.version('torch').split('+')[0]}\n", encoding="utf-8")
    outcome = {}
    for name, words in PEERS.items():
        print(f"installing {words[-1]} into {PLACE.name}", flush=True)
        done = inside("-m", "pip", "install", "--quiet", "--no-input", "-c", constraint, *words)
        if done.returncode == 0:
            done = inside("-c", f"import {name}")
        outcome[name] = last_line(done.stderr)[:300] if done.returncode else "ok"
    (PLACE / "installs.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    return outcome
