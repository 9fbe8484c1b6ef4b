"""Accuracy, precision, time and memory of hypergradient estimators: ours, by hand, and libraries.

    python -m benchmarks.hypergradients.run     everything, to runs/hypergradients/, with a table
    --rounds 9           timed rounds in each cell
    --models mlp gated   some models;  --parts cost  some parts;  --only betty  some rows: these
                         replace what the file has
    --no-peers           without the environment of the peers (made once, under .venv-peers)
    --record             (maintainers) keep the result in results/ and write shared/README.md

About 10 CPU minutes of one core. The part for CUDA runs where torch sees a device, and says NOT RUN
where it does not. A library that fails to install or to run is a row FAILED with its message.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
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
from shared.machine import environment

ROOT = Path(__file__).parents[2]
PARTS, MODELS = {"accuracy", "precision", "cost"}, set(tasks.MODELS)
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
        folder = "benchmarks/hypergradients/results" if options.record else "runs/hypergradients"
        path = ROOT / folder / f"{device}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = (options.only, set(options.parts), set(options.models)) == ("", PARTS, MODELS)
        result = json.loads(path.read_text(encoding="utf-8")) if not whole and path.exists() else {}
        result |= {"device": device, "machine": machine(device), "installs": peers}
        result["command"] = " ".join(["python -m", __spec__.name, *sys.argv[1:]])

        def save(result: dict[str, Any] = result, path: Path = path) -> None:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

        if "accuracy" in options.parts and device == "cpu":
            merge(result, "accuracy", accuracy(options.only, peers), ("toy", "name"))
            save()
        if "precision" in options.parts and device == "cpu":
            print("\nradius of finite differences: relative error of the implicit term")
            result["precision"] = precision.measure()
            save()
        for model in options.models if "cost" in options.parts else ():
            merge(result, "cost", cost(model, options, peers, device), ("model", "name"))
            save()
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
    parser.add_argument("--parts", nargs="+", default=sorted(PARTS), choices=sorted(PARTS))
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def peer_installs() -> dict[str, str]:
    report = setup_peers.PLACE / "installs.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else setup_peers.make()


def machine(device: str) -> dict[str, Any]:
    """The processor and the versions that a result was measured with."""
    here = environment("auto")
    facts = {"cpu": here["processor"], "cores": os.cpu_count(), "threads": 1}
    facts |= {"python": here["python"], "torch": torch.__version__}
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts | {name: words[-1].split("==")[1] for name, words in setup_peers.PEERS.items()}


def cell(side: str, *arguments: str) -> Any:
    """The JSON of one cell, or {"failed": message}."""
    python = str(setup_peers.PYTHON) if side == "peers" else sys.executable
    what, *rest = arguments
    command = [python, "-m", "benchmarks.hypergradients.cell", what, side, *rest]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": setup_peers.last_line(done.stderr)[:200]}
    return json.loads(done.stdout.splitlines()[-1])


def accuracy(only: str, peers: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for condition in CONDITIONS:
        print(f"\naccuracy, condition of the features {condition}")
        print(f"{'':50s}rel. error   rescaled       cosine")
        for side in ("ours", "peers") if peers else ("ours",):
            for row in cell(side, "accuracy", str(condition), only):
                shown = "FAILED " + row.get("failed", "")
                if "failed" not in row:
                    errors = f"{row['relative_error']:10.1e} {row['rescaled']:10.1e}"
                    shown = f"{errors} {row['cosine']:12.8f}"
                print(f"{row['name']:50s}{shown}", flush=True)
                rows.append(row)
    return rows


def cost(
    model: str, options: argparse.Namespace, peers: dict[str, str], device: str
) -> list[dict[str, Any]]:
    print(f"\n{model} on {device}: one bilevel step over one plain SGD step")
    print(f"{'':50s}time  [lowest, highest]  memory")
    rounds = str(options.rounds)
    plain = cell("hand", "cost", model, PLAIN, rounds, device)
    rows = [{"model": model, "name": PLAIN, **plain, "time": 1.0, "memory": 1.0}]
    for side in SIDES if peers else SIDES[:-1]:
        for name in importlib.import_module(f"benchmarks.hypergradients.{side}").COST:
            if options.only not in name or (model != "mlp" and ONLY_MLP.search(name)):
                continue
            if (message := peers.get(name.split(":")[0], "ok")) != "ok":
                row: dict[str, Any] = {"failed": f"install: {message}"}
            else:
                row = cell(side, "cost", model, name, rounds, device)
            shown = "FAILED " + row.get("failed", "")
            if "failed" not in row:
                low, *_, high = row["ratios"]
                memory = row["megabytes"] / plain["megabytes"]
                row |= {"time": statistics.median(row["ratios"]), "memory": memory}
                shown = f"{row['time']:5.2f}  [{low:.2f}, {high:.2f}]  {memory:6.2f}"
            rows.append({"model": model, "name": name, **row})
            print(f"{name:50s}{shown}", flush=True)
    return rows


def merge(
    result: dict[str, Any], key: str, rows: list[dict[str, Any]], identity: tuple[str, ...]
) -> None:
    """Rows measured now replace rows of the same name."""
    new = {tuple(row[i] for i in identity): row for row in rows}
    old = [new.pop(tuple(row[i] for i in identity), row) for row in result.get(key, [])]
    result[key] = old + list(new.values())


if __name__ == "__main__":
    main()
