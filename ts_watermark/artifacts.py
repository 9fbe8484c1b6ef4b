"""Published values again, out of the files of the official repository (a clone of it).

The judge calls these with the clone and {id of reported.yaml: its source}; they read git's objects
at fixed commits, so the clone's working tree does not matter.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shared.sources import MissingInput
from ts_watermark.evaluate import auroc, best_f1, threshold_at

NEWEST = "1dbc7b46031f"  # May 2025
HISTORY = "1ef6d567f61b"  # March 2024, with the outputs that were removed later
VOCABULARY, TOKENS = 50272, 200  # of OPT; in a stored sequence


def shown(folder: Path, name: str) -> bytes | None:
    """What git has as `name` (a commit, or commit:path); None if it has no such thing."""
    command = ["git", "-C", str(folder), "show", "--no-patch", name]
    done = subprocess.run(command, capture_output=True)
    return None if done.returncode else done.stdout


@cache
def stored(folder: Path, commit: str, path: str) -> Any:
    """A JSON file of the clone; None if that commit has none. MissingInput without the commit."""
    text = shown(folder, f"{commit}:{path}")
    if text is None and shown(folder, commit) is None:
        remedy = "clone it again, whole and with its history"
        raise MissingInput(f"{folder} lacks the commit {commit}; {remedy}")
    return None if text is None else json.loads(text)


def outputs(folder: Path, sources: Mapping[str, str]) -> dict[str, float]:
    """Values from the official outputs: z, TPR, F1 and AUROC from the z of every text."""
    values = {}
    for name, source in sources.items():
        path = re.search(r"outputs: (\S+\.(?:json|ipynb))", source)
        commit = HISTORY if "history" in source else NEWEST
        document = stored(folder, commit, path[1]) if path else None
        if document is None:
            continue
        value = demo_value(document, name) if name.startswith("demo.") else value_of(document, name)
        if value is not None:
            values[name] = value
    return values


def value_of(document: dict[str, Any], name: str) -> float | None:
    """The value whose id ends on its metric, as `opt.kgw.0.25_2.0.setting_2.tpr0`."""
    what = name.rsplit(".", 1)[1]
    part = setting_of(document, name)
    if part is None:
        return None
    marked = next((part[key] for key in ("wm", "wm_bs", "para", "para_bs") if key in part), None)
    reference = next(part[key] for key in ("human", "human_bs") if key in part)["z"]
    human = np.array(reference["full"])
    # SWEET skips texts without a token of high entropy; the official threshold counts them
    ranked = np.append(human, np.full(reference.get("skip", 0), -np.inf))
    if name.startswith("human."):
        thresholds = {"thr0": 0.0, "thr1": 0.01}
        return threshold_at(ranked, thresholds[what]) if what in thresholds else float(human.mean())
    if marked is None:
        return None
    z = np.array(marked["z"]["full"])
    if what in ("simcse", "ppl", "gamma", "delta"):
        return float(marked[what]) if what in marked else None
    if what == "z":
        return float(z.mean())
    if what in ("tpr0", "tpr1"):
        return float((z > threshold_at(ranked, 0.01 if what == "tpr1" else 0.0)).mean())
    return {"bestf1": best_f1, "auroc": auroc}[what](z, human)


def setting_of(document: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The part about the decoding setting of `name`; files of several checkpoints name each."""
    setting = re.search(r"setting_\d", name)
    key = setting[0] if setting else "setting_2"
    if key in document:
        return document[key]  # type: ignore[no-any-return]
    checkpoints = {k: v for k, v in document.items() if isinstance(v, dict) and key in v}
    if len(checkpoints) > 1:
        strength = re.search(r"(\d\.\d+)_(\d\.\d+)\.\w+$", name)
        gamma, delta = map(float, strength.groups()) if strength else (0.0, 0.0)
        wanted = [k for k in checkpoints if strength_of(k) == (gamma, delta)]
        return checkpoints[wanted[0]][key] if len(wanted) == 1 else None  # type: ignore[no-any-return]
    return next(iter(checkpoints.values()))[key] if checkpoints else None


def strength_of(checkpoint: str) -> tuple[float, float] | None:
    """(gamma, delta) of 'result/mlp_1_0.1/checkpoint.pth'; 'result/mlp_1.5/...' has gamma 0.25."""
    match = re.search(r"mlp_([\d.]+?)(?:_([\d.]+))?/", checkpoint)
    return (float(match[2] or 0.25), float(match[1])) if match else None


def demo_value(notebook: dict[str, Any], name: str) -> float | None:
    """A number that the notebook's stored cells show: z alone, then (perplexity, cosine)."""
    shown = [
        "".join(output["data"]["text/plain"])
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "text/plain" in output.get("data", {})
    ]
    numbers = [re.findall(r"\d+\.\d+", text) for text in shown if re.match(r"\(?[\d.]+[,)]*", text)]
    flat = [float(number) for group in numbers for number in group]
    order = ("z", "ppl", "simcse")
    return flat[order.index(name.rsplit(".", 1)[1])] if len(flat) == len(order) else None


def stored_texts(folder: Path, sources: Mapping[str, str]) -> dict[str, float]:
    """Mean z that our detector gives the ten sequences stored with their gamma, per entry.

    Takes a second of CPU: a permutation of the vocabulary for each distinct token.
    """
    from ts_watermark.hashing import z_scores  # torch: not for those without a clone

    gamma, _, _, _, _, ids = stored(folder, NEWEST, "eval/pos_tag/delta_gamma.json")
    starts = range(0, len(ids), TOKENS)
    texts, gammas = ([row[i : i + TOKENS] for i in starts] for row in (ids, gamma))
    scores = z_scores(texts, gammas, VOCABULARY, size_rounding="fp16")
    return dict.fromkeys(sources, float(np.mean([score.z for score in scores])))
