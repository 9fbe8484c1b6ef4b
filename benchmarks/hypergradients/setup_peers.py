"""Make `.venv-peers`: the peers beside the very torch that is measured here, each installed by plain pip.

The environment sees the packages of the interpreter that runs this script through a .pth file, and a constraint keeps pip from
replacing torch. An install that fails is a result: its last lines go to `.venv-peers/installs.json`, and run.py prints them.

Run: python -m benchmarks.hypergradients.setup_peers
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".venv-peers"
PYTHON = PLACE / "bin" / "python"
PEERS = {
    # 0.2.x declares Requires-Python < 3.11; without the flag pip silently installs 0.1.1, which does not restore weights
    "betty": ["--ignore-requires-python", "betty-ml==0.2.1"],
    "torchopt": ["torchopt==0.7.3"],
    "higher": ["higher==0.2.1"],
}


def make() -> dict[str, str]:
    """name -> "ok" or the message of the failed install."""
    venv.create(PLACE, with_pip=True, clear=True)
    inside = subprocess.run(
        [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(inside) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    version = metadata.version("torch")
    constraint = PLACE / "constraint.txt"
    constraint.write_text(f"torch=={version.split('+')[0]}\n")
    outcome = {}
    for name, arguments in PEERS.items():
        print(f"installing {arguments[-1]} into {PLACE.name}", flush=True)
        done = subprocess.run(
            [PYTHON, "-m", "pip", "install", "--quiet", "--no-input", "-c", constraint, *arguments],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            done = subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True, text=True)
        lines = [
            line for line in done.stderr.splitlines() if line.strip() and "[notice]" not in line
        ]
        outcome[name] = "ok" if done.returncode == 0 else (lines or ["no message"])[-1][:300]
    (PLACE / "installs.json").write_text(json.dumps(outcome, indent=1) + "\n")
    return outcome


if __name__ == "__main__":
    failed = {name: text for name, text in make().items() if text != "ok"}
    for name, text in failed.items():
        print(f"FAILED {name}: {text}")
    sys.exit(0)
