"""The judge as a command, on a repository with the toy paper."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def reproduce(root, *words, **environ):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environ}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.reproduce", "toy", *words],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )


def results(root, name="results"):
    result = json.loads((root / "runs" / "toy" / "cpu" / f"{name}.json").read_text())
    # records_sha256 is of seconds and memory too; the hash of each run's record is compared
    for key in ("created", "commit", "environment", "seconds", "records_sha256"):
        result.pop(key)
    for run in result["runs"]:
        for key in ("seconds", "peak_memory_mb"):
            run.pop(key, None)
    return result
