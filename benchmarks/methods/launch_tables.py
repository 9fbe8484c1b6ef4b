"""Tables of what a step asks of a GPU, from `results/launches.json`: see launches.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import PAPERS
from benchmarks.papers import paper
from benchmarks.words import cell, table
from shared.protocol import BadInput, Protocol

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path("benchmarks/methods/results/launches.json")
NOTHING = "Nothing is counted yet: `python -m benchmarks.methods.launches`."
LAUNCH_US = 8.0  # of the host, for one operator with its autograd, in Python [assumed]

Row = Mapping[str, Any]


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"papers": {}}


def searches(s: Mapping[str, Any]) -> int:
    """Steps of weight mixup's K searches, of 13 batches in 240 of 300 texts, say."""
    batches = math.ceil(s["n"] * s["train_share"] / s["batch"])
    return s["K"] * s["search_epochs"] * batches


# phase -> how many steps a run of the protocol takes in it; a training that is not here is small
STEPS: dict[str, dict[str, Callable[[Mapping[str, Any]], int]]] = {
    "autolora": {"search": lambda s: s["search_steps"], "training": lambda s: s["steps"]},
    "tapweight": {"pretraining": lambda s: s["base_steps" if s["job"] == "base" else "steps"]},
    "weight_mixup": {"search": searches},
    "dasgm": {"generator": lambda s: s["gan_steps"],
              "search": lambda s: s["epochs"] * (25_000 // s["batch"])},
    "ppo_nlu": {"text": lambda s: s["steps"], "start": lambda s: s["steps"],
                "training": lambda s: s["steps"]},
    "ts_watermark": {"language model": lambda s: s["lm_steps"],
                     "generators": lambda s: s["train_steps"]},
    "mlo_mae": {"pretraining": lambda s: s["steps"] // s["k1"]},
}  # fmt: skip


def steps(name: str, row: Row) -> int | None:
    """Steps of a phase in one run of scale gpu; None where they are not listed, or not any more."""
    counts = STEPS.get(name, {})
    count = counts.get(row["phase"]) or counts.get(row["phase"].split(" ")[0])
    try:
        protocol = Protocol(ROOT / name)
        settings = protocol.defaults | protocol.settings("gpu", row["arm"], row["task"])
        return count(settings) if count else None
    except (BadInput, KeyError):
        return None


def minutes(name: str, row: Row) -> float | None:
    count = steps(name, row)
    return None if count is None else count * row["launches"] * LAUNCH_US * 1e-6 / 60


def trainings(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Row], list[Row]]]:
    """(paper, rows of the method and what it uses, rows of its opponent)."""
    for name in PAPERS:
        if rows := result["papers"].get(name, {}).get("rows", []):
            last = rows[-1]["arm"]
            yield name, [r for r in rows if r["arm"] != last], [r for r in rows if r["arm"] == last]


def launch_table(result: Mapping[str, Any]) -> str:
    """Block `launches`: a step of each training phase at scale gpu."""
    if not result["papers"]:
        return NOTHING
    lines = []
    for name, ours, theirs in trainings(result):
        budget = paper(name).waits
        for row in [*ours, *theirs]:
            waits = ", ".join(f"{n} {what}" for what, n in row["waits_of"].items())
            lines.append([
                f"[{cell(name)}](../{name}/README.md): `{row['arm']}`, {cell(row['phase'])}",
                f"{row['launches']:,}", f"{row['launches'] / theirs[-1]['launches']:.2f}",
                f"{row['waits']}" + (f" ({cell(waits)})" if waits else ""),
                "" if budget is None or row in theirs else f"{budget}",
                f"{row['products_16'] / 1e9:,.1f}", f"{row['products_32'] / 1e9:,.1f}",
            ])  # fmt: skip
    head = ["arm of scale `gpu`, phase", "launches a step", "over the opponent's", "waits a step"]
    head += ["most waits", "GFLOP, 16 bits", "GFLOP, 32 bits"]
    made = ", ".join(f"`{commit}`" for commit in commits(result))
    about = (
        "Counted with `python -m benchmarks.methods.launches` on a pretended CUDA device, commit "
        f"{made}, batches of 4, texts of at most 32 tokens; nothing was timed. The last arm of a "
        "paper is the opponent. *most waits*: the budget of the method's steps, in its "
        "`paper.yaml`, which a test keeps."
    )
    return "\n\n".join([table(head, lines, right=(1, 2, 4, 5, 6)), about])


def hours_table(result: Mapping[str, Any]) -> str:
    """Block `hours`: from launches to hours of scale gpu, the arithmetic shown."""
    if not result["papers"]:
        return NOTHING
    lines = []
    for name, ours, _ in trainings(result):
        counted = [row for row in ours if steps(name, row) is not None]
        if not counted:
            continue
        terms = " + ".join(f"{steps(name, row):,} x {row['launches']:,}" for row in counted)
        one = sum(minutes(name, row) or 0 for row in counted)
        protocol = Protocol(ROOT / name)
        runs = sum(not node.stage for node in protocol.nodes("gpu"))
        scale = protocol.scale("gpu")
        lines.append([
            f"[{cell(name)}](../{name}/README.md)", cell(terms), f"{one:.1f}", f"{runs:,}",
            f"{one * runs / 60:.1f}", f"{scale.jobs}",
            "" if scale.hours is None else f"{scale.hours:g}",
        ])  # fmt: skip
    head = ["paper", "one run of the method with what it uses: steps x launches", "minutes"]
    head += ["runs with a score", "hours if all were as long, one after another"]
    head += ["runs at a time", "hours in the protocol"]
    about = (
        f"Minutes: {LAUNCH_US:g} microseconds a launch, assumed. Where the products of a full "
        "batch take longer than the launches, or a step makes more tokens than were counted, a "
        "run takes longer."
    )
    return "\n\n".join([table(head, lines, right=(2, 3, 4, 5, 6)), about])


def commits(result: Mapping[str, Any]) -> list[str]:
    return sorted({str(measured["commit"])[:10] for measured in result["papers"].values()})


def blocks(root: Path = ROOT) -> dict[str, str]:
    result = load(root / RESULT)
    return {"launches": launch_table(result), "hours": hours_table(result)}


def write() -> None:
    from benchmarks.blocks import update_readme

    changed = update_readme(ROOT / "docs" / "gpu.md", blocks())
    print("docs/gpu.md:", "changed" if changed else "as it was")
