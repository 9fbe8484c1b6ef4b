"""Trains recorded runs again, from nothing, and says how far they agree with what is committed."""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import recorded
from benchmarks.claims import Arms, load_claims
from benchmarks.predictions import Arrays, Predictions, unpack_predictions
from benchmarks.recorded import Results, RunEntry, result_path, run_name
from benchmarks.scores import split_arm
from shared import protocol
from shared.machine import cuda_devices

TOLERANCE = 1e-3  # absolute and relative, of numbers: as far as they are stored


def drawn(
    paper_dir: Path, scale: str, result: Results, predictions: Predictions, number: int, seed: str
) -> list[RunEntry]:
    """`number` runs (0: all) by the reviewer's seed, the method's arm of a primary claim first."""
    runs = sorted((run for run in result.runs if run.key in predictions), key=lambda r: r.key)
    if not number:
        return runs
    primary = [
        claim
        for claim in load_claims(paper_dir / "claims.yaml").claims
        if claim.role == "primary" and scale in claim.scales
    ]
    methods = {split_arm(method_of(claim.arms))[0] for claim in primary}
    draw = random.Random(f"{seed} {paper_dir.name} {scale}")
    first = draw.choice([run for run in runs if run.arm in methods] or runs)
    others = [run for run in runs if run.key != first.key]
    return [first, *draw.sample(others, min(number - 1, len(others)))]


def method_of(arms: Arms) -> str:
    """The arm that a claim is about: for a weighted sum, the first that counts in favour."""
    if arms.weights:
        return next((arm for arm, weight in arms.weights.items() if weight > 0), "")
    return next(iter(arms.methods), "")


def rerun(paper_dir: Path, scale: str, number: int, seed: str) -> list[str]:
    """Problems; a line is printed for every run. Neither runs nor caches made before are used."""
    result = recorded.read(result_path(paper_dir, scale))
    predictions = unpack_predictions(paper_dir / "results" / f"{scale}.predictions.npz")
    chosen = drawn(paper_dir, scale, result, predictions, number, seed)
    of = f"{len(chosen)} of {len(predictions)} runs"
    print(f"{paper_dir.name} {scale}: training {of} again, drawn by SEED={seed}", flush=True)
    device = str(result.environment.get("device", "cpu"))
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for run in chosen:
            before = predictions[run.key]
            said, agrees = repeat(paper_dir, scale, run, before, Path(folder), device)
            print(f"  {run_name(run.key)}: {said}", flush=True)
            if not agrees:
                problems.append(f"run {run_name(run.key)} trained again {said}")
    return problems


def repeat(
    paper_dir: Path, scale: str, run: RunEntry, before: Arrays, folder: Path, device: str
) -> tuple[str, bool]:
    """How far the run agrees with `before` when it is made again below `folder`, in words.

    device: that of the record. A run recorded on a CPU is repeated on one wherever a GPU is.
    """
    if device != "cpu" and not cuda_devices():
        return f"was not repeated: it was recorded on {device}, and no CUDA device is here", False
    words = ["--scale", scale, "--arm", run.arm, "--task", run.task, "--seed", str(run.seed)]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    empty = hidden | {"REPRO_RUNS": str(folder / "runs"), "REPRO_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", f"{paper_dir.name}.train", *words],
        cwd=paper_dir.parent,
        env={**os.environ, **empty},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"could not be repeated: {(done.stderr or done.stdout).strip()[-300:]}", False
    place = folder / "runs" / paper_dir.name / scale / run.task / f"seed{run.seed}" / run.arm
    record = protocol.read_record(place) or {}
    if record.get("predictions_sha256") == run.predictions_sha256:
        weights = record.get("state_sha256") == run.state_sha256
        return f"equal bits{', and the same weights' if weights else ' of its predictions'}", True
    with np.load(place / "predictions.npz", allow_pickle=False) as archive:
        again = {key: archive[key] for key in archive.files}
    moved = [line for name in sorted({*again, *before}) if (line := distance(name, again, before))]
    if moved:
        return f"differs: {'; '.join(moved)}", False
    return f"within tolerance ({TOLERANCE:g}; classes equal)", True


def distance(name: str, again: Arrays, before: Arrays) -> str:
    """How far one array is from the committed one; '' where they agree.

    Classes and ids exactly; numbers as far as they are stored and as processors agree.
    """
    if name not in again or name not in before:
        return f"{name} is only {'here' if name in again else 'in the record'}"
    new, old = again[name], before[name]
    if new.shape != old.shape:
        return f"{name} has the shape {new.shape}, recorded {old.shape}"
    if new.dtype.kind != "f":
        apart = int(np.sum(new != old))
        return f"{name} in {apart} of {new.size}" if apart else ""
    if np.allclose(new, old, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return ""
    return f"{name} by up to {np.nanmax(np.abs(new - old)):.3g}"


def parse(text: str) -> int:
    """RERUN=1, 5 or all as a number, 0 for all."""
    if text != "all" and not re.fullmatch("[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"RERUN={text}: expected a number of runs, or all")
    return 0 if text == "all" else int(text)
