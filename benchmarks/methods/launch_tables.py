"""Tables of what a step asks of a GPU, from `results/launches.json`: see launches.py."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import PAPERS
from benchmarks.papers import paper
from benchmarks.words import cell, table
from shared.protocol import BadInput, Node, Protocol

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path("benchmarks/methods/results/launches.json")
NOTHING = "Nothing is counted yet: `python -m benchmarks.methods.launches`."
LAUNCH_US = 8.0  # of the host, for one operator with its autograd, in Python [assumed]
# FLOPs a second of products: about 40 % of what an H200 is sold with, 989 and 67 TFLOP/s [assumed]
RATES = {"products_16": 400e12, "products_32": 25e12}
COLA = 8_551  # sentences, on which TapWeight is counted
CIFAR = 50_000

Row = Mapping[str, Any]


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"papers": {}}


def searches(s: Mapping[str, Any]) -> int:
    """Steps of weight mixup's K searches, an epoch being one batch longer than whole ones fill."""
    batches = int(s["n"] * s["train_share"] + 1e-9) // s["batch"] + 1
    return s["K"] * s["search_epochs"] * batches


def texts(s: Mapping[str, Any]) -> int:
    """Batches of texts that a watermark's arm writes."""
    return len(s["strengths"] or s["inits"]) * math.ceil(s["test_prompts"] / s["eval_batch"])


Settings = Mapping[str, Any]
# phase -> how many steps a run of the protocol takes in it; a phase that is not here is small
STEPS: dict[str, dict[str, Callable[[Settings], int]]] = {
    "autolora": {"search": lambda s: s["search_steps"], "training": lambda s: s["steps"]},
    "tapweight": {"pretraining": lambda s: s["base_steps" if s["job"] == "base" else "steps"],
                  "finetuning": lambda s:
                  round(s["finetune_epochs"] * (COLA // s["finetune_batch"]))},
    "weight_mixup": {"search": searches,
                     "finetuning": lambda s: s["epochs"] * math.ceil(s["n"] / s["batch"])},
    "dasgm": {"generator": lambda s: s["gan_steps"], "reference": lambda s: s["reference_steps"],
              "search": lambda s: s["epochs"] * (CIFAR // 2 // s["batch"])},
    "ppo_nlu": {"start": lambda s: s["steps"], "training": lambda s: s["steps"]},
    "ts_watermark": {"language model": lambda s: s["lm_steps"],
                     "generators": lambda s: s["train_steps"] * len(s["inits"]), "test": texts},
    "mlo_mae": {"pretraining": lambda s: s["steps"] // s["k1"],
                "finetuning 0": lambda s: s["finetune_epochs"] * (CIFAR // s["finetune_batch"]),
                "finetuning": lambda s:
                s["finetune_epochs"] * (s["finetune_labels"][-1] // s["finetune_batch"])},
}  # fmt: skip
# phase -> settings with which a step's products grow; of the longest level, where there are several
SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "autolora": {"search": ("search_batch", "max_length"), "training": ("batch", "max_length")},
    "tapweight": {"pretraining": ("batch_I", "max_length"),
                  "finetuning": ("finetune_batch", "max_length")},
    "weight_mixup": {"search": ("batch", "max_length"), "finetuning": ("batch", "max_length")},
    "dasgm": {"generator": ("gan_batch",), "reference": ("batch",), "search": ("batch",)},
    "ppo_nlu": {"start": ("batch",), "training": ("batch",)},
    "ts_watermark": {"language model": ("lm_batch", "lm_length"), "generators": ("batch",),
                     "test": ("eval_batch",)},
    "mlo_mae": {"pretraining": ("batch",), "finetuning": ("finetune_batch",)},
}  # fmt: skip
# and with which its launches grow, too: a token is drawn after the other
TOKENS = {"ts_watermark": {"generators": ("train_tokens",), "test": ("new_tokens",)}}


def of_phase(listed: Mapping[str, Any], row: Row) -> Any:
    """What is listed for a phase: under its name, or under the name's beginning."""
    names = sorted((n for n in listed if f"{row['phase']} ".startswith(f"{n} ")), key=len)
    return listed[names[-1]] if names else None


def is_listed(name: str, row: Row) -> bool:
    return of_phase(STEPS.get(name, {}), row) is not None


@dataclass(frozen=True)
class Part:
    """A phase of one run of scale gpu: steps, and what one of them asks for in full."""

    row: Row
    steps: int
    launches: float
    flop: Mapping[str, float]  # as in RATES

    @property
    def launching(self) -> float:
        """Seconds of the host."""
        return self.steps * self.launches * LAUNCH_US * 1e-6

    @property
    def computing(self) -> float:
        """Seconds of the device."""
        return self.steps * sum(self.flop[bits] / rate for bits, rate in RATES.items())


def part(name: str, row: Row) -> Part | None:
    """None where the steps of a phase are not listed, or the arm is not there any more."""
    count = of_phase(STEPS.get(name, {}), row)
    try:
        protocol = Protocol(ROOT / name)
        s = protocol.defaults | protocol.settings("gpu", row["arm"], row["task"])
        if count is None:
            return None
        sizes = of_phase(SIZES[name], row)
        more, cut = of_phase(TOKENS.get(name, {}), row) or (), row.get("cut", {})
        longer, larger = (
            math.prod(s[x] / cut.get(x, s[x]) for x in names) for names in (more, sizes)
        )
        flop = {bits: row[bits] * larger * longer for bits in RATES}
        return Part(row, count(s), row["launches"] * longer, flop)
    except (BadInput, KeyError):
        return None


def trainings(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Row], list[Row]]]:
    """(paper, rows of the method and what it uses, rows of its opponent and what that one uses)."""
    for name in PAPERS:
        if rows := result["papers"].get(name, {}).get("rows", []):
            ours, theirs = ([r for r in rows if r["opponent"] == side] for side in (False, True))
            yield name, ours, theirs


def launch_table(result: Mapping[str, Any]) -> str:
    """Block `launches`: a step of each training phase at scale gpu."""
    if not result["papers"]:
        return NOTHING
    lines = []
    for name, ours, theirs in trainings(result):
        budget = paper(name).waits
        for row in [row for row in [*ours, *theirs] if row["trains"]]:
            waits = ", ".join(f"{n} {what}" for what, n in row["waits_of"].items())
            lines.append([
                f"[{cell(name)}](../{name}/README.md): `{row['arm']}`, {cell(row['phase'])}",
                f"{row['launches']:,}", f"{row['launches'] / beside(row, theirs)['launches']:.2f}",
                f"{row['waits']}" + (f" ({cell(waits)})" if waits else ""),
                "" if budget is None or row in theirs else f"{budget}",
                f"{row['products_16'] / 1e9:,.1f}", f"{row['products_32'] / 1e9:,.1f}",
            ])  # fmt: skip
    head = ["arm of scale `gpu`, phase", "launches a step", "over the opponent's", "waits a step"]
    head += ["most waits", "GFLOP, 16 bits", "GFLOP, 32 bits"]
    made = ", ".join(f"`{commit}`" for commit in commits(result))
    about = (
        "Counted with `python -m benchmarks.methods.launches` on a pretended CUDA device, commit "
        f"{made}, batches of 4, texts of at most 32 tokens; nothing was timed. The opponent's step "
        "is that of the same phase, or its last. *most waits*: the budget of the method's steps, "
        "in its `paper.yaml`, which a test keeps."
    )
    return "\n\n".join([table(head, lines, right=(1, 2, 4, 5, 6)), about])


def beside(row: Row, theirs: list[Row]) -> Row:
    """The opponent's training step to compare a row with."""
    steps = [other for other in theirs if other["trains"]]
    return next((other for other in steps if other["phase"] == row["phase"]), steps[-1])


def like_counted(nodes: Sequence[Node], arms: Sequence[str]) -> Counter[str]:
    """Runs by the counted arm that they are like: their own, else a stage the last counted stage,
    every other run and a stage without that the method, which is the first of the others."""
    stages = {node.arm for node in nodes if node.stage}
    runs = [arm for arm in arms if arm not in stages]
    method = runs[0] if runs else ""
    like = {True: [method, *(arm for arm in arms if arm in stages)][-1], False: method}
    return Counter(node.arm if node.arm in arms else like[node.stage] for node in nodes)


def hours_table(result: Mapping[str, Any]) -> str:
    """Block `hours`: from launches and FLOPs to hours of scale gpu, the arithmetic shown."""
    if not result["papers"]:
        return NOTHING
    lines, sums = [], []
    for name, ours, theirs in trainings(result):
        protocol = Protocol(ROOT / name)
        scale, nodes = protocol.scale("gpu"), protocol.nodes("gpu")
        of_arm: dict[str, list[Part]] = {}
        for made in (part(name, row) for row in [*ours, *theirs]):
            if made is not None:
                of_arm.setdefault(made.row["arm"], []).append(made)
        if not of_arm:
            continue
        runs = like_counted(nodes, list(of_arm))
        launching = computing = 0.0
        for arm, parts in of_arm.items():
            for made in parts:
                launching += runs[arm] * made.launching
                computing += runs[arm] * made.computing
                lines.append([
                    f"{cell(name)}: `{arm}`, {cell(made.row['phase'])}", f"{made.steps:,}",
                    f"{made.launches:,.0f}", f"{made.launching:.1f}",
                    *(f"{made.flop[bits] / 1e12:,.2f}" for bits in RATES),
                    f"{made.computing:.1f}", f"{runs[arm]:,}",
                ])  # fmt: skip
        hours = max(launching / scale.jobs, computing) / 3600
        sums.append([
            f"[{cell(name)}](../{name}/README.md)", f"{len(nodes):,}", f"{launching / 3600:.2f}",
            f"{computing / 3600:.2f}", f"{scale.jobs}", f"{hours:.2f}",
            "" if scale.hours is None else f"{scale.hours:g}",
        ])  # fmt: skip
    head = ["a run of scale `gpu`: arm, phase", "steps", "launches a step", "launches, s"]
    head += ["TFLOP a step, 16 bits", "TFLOP a step, 32 bits", "products, s", "runs"]
    rates = [f"{rate / 1e12:g}" for rate in RATES.values()]
    about = (
        f"*launches, s*: steps x launches x {LAUNCH_US:g} microseconds. *products, s*: steps x "
        f"TFLOP at {rates[0]} TFLOP/s in 16 and {rates[1]} in 32 bits, about 40 % of what the "
        "device is sold with. Both rates are assumed. The counted FLOPs of a step are multiplied "
        "by batch and length of the protocol over those that were counted; where tokens are drawn "
        "one after another, launches and FLOPs also by their number. *runs*: those of the arm and "
        "of all arms that were not counted, which are taken to be like the method, a stage like "
        "the last stage. Phases of one task stand for those of all."
    )
    total = ["paper", "runs", "launches, h", "products, h", "runs at a time", "hours"]
    total.append("hours in the protocol")
    end = (
        "Sums over the runs. *hours*: launches of runs at a time go side by side, products do not; "
        "the longer of the two. Loading, evaluation and memory come on top, except for the texts "
        "that a watermark writes."
    )
    first, second = table(head, lines, right=range(1, 8)), table(total, sums, right=range(1, 7))
    return "\n\n".join([first, about, second, end])


def commits(result: Mapping[str, Any]) -> list[str]:
    return sorted({str(measured["commit"])[:10] for measured in result["papers"].values()})


def blocks(root: Path = ROOT) -> dict[str, str]:
    result = load(root / RESULT)
    return {"launches": launch_table(result), "hours": hours_table(result)}


def write() -> None:
    from benchmarks.blocks import update_readme

    changed = update_readme(ROOT / "docs" / "gpu.md", blocks())
    print("docs/gpu.md:", "changed" if changed else "as it was")
