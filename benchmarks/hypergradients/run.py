"""Accuracy, precision, time and memory of hypergradient estimators: ours, by hand, and public libraries.

    python -m benchmarks.hypergradients.run            everything, to runs/hypergradients/cpu.json, with a table
    --rounds 9           timed rounds in each cell
    --models mlp gated   some models;  --parts cost   some parts;  --only betty   some rows: these replace what the file has
    --no-peers           without the environment of the peers (made once, under .venv-peers)
    --record             (maintainers) keep the result in benchmarks/hypergradients/results and write shared/README.md

About 10 CPU minutes of one core. The part for CUDA runs where torch sees a device, and says NOT RUN where it does not. A
library that fails to install or to run is a row FAILED with its message.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.hypergradients import precision, setup_peers, tables, tasks
from benchmarks.hypergradients.cell import PLAIN
from benchmarks.hypergradients.toy import CONDITIONS

ROOT = Path(__file__).parents[2]
PARTS = ("accuracy", "precision", "cost")
SIDES = ("hand", "ours", "peers")
ONLY_MLP = re.compile("5 steps|5[,)]")  # five graphs at once: one model is enough


def main() -> None:
    options = arguments()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    peers = {} if options.no_peers else peer_installs()
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            print("cuda: NOT RUN (torch sees no CUDA device)")
            continue
        folder = ROOT / (
            "benchmarks/hypergradients/results" if options.record else "runs/hypergradients"
        )
        path = folder / f"{device}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = (
            options.only
            or set(options.parts) != set(PARTS)
            or set(options.models) != set(tasks.MODELS)
        )
        result = json.loads(path.read_text()) if partial and path.exists() else {}
        result |= {"device": device, "machine": machine(device), "installs": peers}
        result["command"] = " ".join(["python -m", __spec__.name, *sys.argv[1:]])

        def keep(result: dict[str, Any] = result, path: Path = path) -> None:
            path.write_text(json.dumps(result, indent=1) + "\n")

        if "accuracy" in options.parts and device == "cpu":
            merge(result, "accuracy", accuracy(options.only, peers), ("toy", "name"))
            keep()
        if "precision" in options.parts and device == "cpu":
            print("\nradius of finite differences: relative error of the implicit term")
            result["precision"] = precision.measure()
            keep()
        for model in options.models if "cost" in options.parts else ():
            merge(result, "cost", cost(model, options, peers, device), ("model", "name"))
            keep()
        print(f"written: {path.relative_to(ROOT)}")
    if options.record:
        tables.write()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(tasks.MODELS), choices=tasks.MODELS)
    parser.add_argument("--only", default="")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def peer_installs() -> dict[str, str]:
    report = setup_peers.PLACE / "installs.json"
    return json.loads(report.read_text()) if report.exists() else setup_peers.make()


def machine(device: str) -> dict[str, Any]:
    model = "?"
    if Path("/proc/cpuinfo").exists():
        model = next(
            (
                x.split(":")[1].strip()
                for x in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in x
            ),
            "?",
        )
    found: dict[str, Any] = {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
    }
    found["torch"] = torch.__version__
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for name, arguments in setup_peers.PEERS.items():
        found[name] = arguments[-1].split("==")[1]
    return found


def cell(side: str, *arguments: str) -> Any:
    """The JSON of one cell, or {"failed": message}."""
    python = str(setup_peers.PYTHON) if side == "peers" else sys.executable
    what, *rest = arguments
    command = [python, "-m", "benchmarks.hypergradients.cell", what, side, *rest]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {
            "failed": (
                [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            )[-1][:200]
        }
    return json.loads(done.stdout.splitlines()[-1])


def accuracy(only: str, peers: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for condition in CONDITIONS:
        print(
            f"\naccuracy, condition of the features {condition}\n{'':50s}rel. error   rescaled       cosine"
        )
        for side in ("ours", "peers") if peers else ("ours",):
            for row in cell(side, "accuracy", str(condition), only):
                shown = f"{row.get('relative_error', 0):10.1e} {row.get('rescaled', 0):10.1e} {row.get('cosine', 0):12.8f}"
                print(
                    f"{row['name']:50s}{'FAILED ' + row['failed'] if 'failed' in row else shown}",
                    flush=True,
                )
                rows.append(row)
    return rows


def cost(
    model: str, options: argparse.Namespace, peers: dict[str, str], device: str
) -> list[dict[str, Any]]:
    print(
        f"\n{model} on {device}: one bilevel step over one plain SGD step\n{'':50s}time  [lowest, highest]  memory"
    )
    rounds = str(options.rounds)
    plain = cell("hand", "cost", model, PLAIN, rounds, device)
    rows = [{"model": model, "name": PLAIN, **plain, "time": 1.0, "memory": 1.0}]
    for side in SIDES if peers else SIDES[:-1]:
        for name in importlib.import_module(f"benchmarks.hypergradients.{side}").COST:
            if options.only not in name or (model != "mlp" and ONLY_MLP.search(name)):
                continue
            failed = peers.get(name.split(":")[0], "ok")
            row = (
                {"failed": f"install: {failed}"}
                if failed != "ok"
                else cell(side, "cost", model, name, rounds, device)
            )
            shown = "FAILED " + row.get("failed", "")
            if "failed" not in row:
                r = row["ratios"]
                row |= {
                    "time": statistics.median(r),
                    "memory": row["megabytes"] / plain["megabytes"],
                }
                shown = f"{row['time']:5.2f}  [{r[0]:.2f}, {r[-1]:.2f}]  {row['memory']:6.2f}"
            rows.append({"model": model, "name": name, **row})
            print(f"{name:50s}{shown}", flush=True)
    return rows


def merge(
    result: dict[str, Any], key: str, rows: list[dict[str, Any]], identity: tuple[str, ...]
) -> None:
    """Rows measured now replace rows of the same name."""
    new = {tuple(row[i] for i in identity): row for row in rows}
    kept = [new.pop(tuple(r[i] for i in identity), r) for r in result.get(key, [])]
    result[key] = kept + list(new.values())


if __name__ == "__main__":
    main()
