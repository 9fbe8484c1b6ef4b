"""The published numbers of a paper: what each needs, how long that takes, what came of it so far.

    python -m benchmarks.list autolora [--find rte] [--scale paper]

`CELL=<id>` runs one. Hours are those of the runs that are left, on this machine: measured, or
derived from what the protocol states for the scale, divided evenly. A verdict so far is that of
the runs that stand: with fewer seeds than the protocol has it is a preview. A terminal shows the
beginning of each line.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import signal
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks import cells, reported
from benchmarks.cells import Cell
from benchmarks.plan import (
    NOT_MEASURED,
    ROOT,
    Plan,
    claims_and_published,
    cores,
    cuda_devices,
    say,
    with_nodes,
)
from benchmarks.plan import share as share_of
from benchmarks.pool import Key
from benchmarks.recorded import Reported, RunEntry
from benchmarks.reported import ReportedFile
from benchmarks.scores import Scores
from benchmarks.subset import Request
from benchmarks.words import duration
from shared import protocol, sources
from shared.protocol import BadInput, Pair, Protocol


def survey(paper: Protocol, scale: str, listed: Sequence[Cell]) -> Plan:
    """The runs of all these cells: which stand, and what a run takes."""
    jobs = paper.scale(scale).jobs * len(cuda_devices()) or cores()
    whole = Plan(paper, scale, "", "", listed, [], jobs, None, share_of(paper, scale))
    return with_nodes(whole, Request(cells=listed))


def verdicts_so_far(plan: Plan, published: ReportedFile) -> dict[str, Reported]:
    """id -> its row, from the records of the runs that stand."""
    waiting = {node.key for node in plan.left}
    runs: list[RunEntry] = []
    predictions: dict[Key, dict[str, np.ndarray]] = {}
    for node in plan.nodes:
        folder = plan.paper.run_directory(plan.scale, node.key)
        record = None if node.key in waiting else protocol.read_record(folder)
        if record and not node.stage:
            runs.append(RunEntry.model_validate(record))
        if record and (folder / "predictions.npz").exists():
            with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
                predictions[node.key] = dict(arrays)
    declared, _ = claims_and_published(plan.paper)
    scores = Scores(runs, predictions, lambda _: {}, {}, None, declared)
    entries = [cell.entry for cell in plan.cells]
    keys = {run.key for run in runs}
    rows = reported.judge_reported(entries, declared.targets, plan.scale, keys, scores)
    return {row.id: row for row in rows}


def needs_of(plan: Plan, cell: Cell) -> tuple[str, str]:
    """The runs and the inputs of a cell, each in a line's words."""
    nodes = plan.paper.nodes(plan.scale, pairs=cell.pairs)
    waiting = {node.key for node in plan.left}
    left = [node for node in nodes if node.key in waiting]
    seeds = len({node.seed for node in nodes})
    took = duration(plan.wall(left), NOT_MEASURED) if left else "done"
    measured = sum(node.key in plan.measured or node.key in plan.by_steps for node in left)
    if left and took != NOT_MEASURED:
        some = f"{measured} of {len(left)} measured" if measured else "derived"
        took += f" ({'measured' if measured == len(left) else some})"
    inputs = plan.paper.inputs(plan.scale, nodes)
    lacking = [need for need in inputs if not available(*need)]
    parts = [("has", [need for need in inputs if need not in lacking]), ("MISSING", lacking)]
    said = [
        f"{word} {', '.join(n.rpartition('/')[2] for _, n in part)}" for word, part in parts if part
    ]
    runs = f"{cell.runs}; {seeds} seeds, {len(left)} of {len(nodes)} runs left, {took}"
    return runs, "; ".join(said) or "needs nothing that is not bundled"


@functools.cache
def available(kind: str, name: str) -> str:
    return sources.available(kind, name)


def lines(paper: Protocol, scale: str, find: str) -> list[str]:
    """Three lines for each published number whose text has `find`, below the name of its table."""
    declared, published = claims_and_published(paper)
    entries = [e for e in published.entries if find.casefold() in text_of(e).casefold()]
    if not entries:
        raise BadInput(f"FIND={find}: no published number of {paper.paper} has this text")
    by_id = {cell.entry.id: cell for cell in cells.answered(published, declared.targets, scale)}
    listed = [by_id[entry.id] for entry in entries if entry.id in by_id]
    whole = survey(paper, scale, listed) if listed else None
    rows = verdicts_so_far(whole, published) if whole else {}
    needs: dict[tuple[Pair, ...], tuple[str, str]] = {}  # many numbers come from the same runs
    text, table = list[str](), None
    for entry in entries:
        text += [entry.table or "no table named"] if entry.table != table else []
        table = entry.table
        value = "not on file" if entry.value is None else f"{entry.value:g}"
        text.append(f"  {entry.id}  {value}")
        if whole is None or entry.id not in by_id:
            target = reported.target_of(entry.id, declared.targets)
            if target and target.arm:
                text.append(f"    {target.arm}, compared at scale {', '.join(target.scales)}")
            else:
                why = cells.why_unanswered(entry, declared.targets)
                text.append(f"    no arm answers it: {why}")
            continue
        cell, row = by_id[entry.id], rows[entry.id]
        if tuple(cell.pairs) not in needs:
            needs[tuple(cell.pairs)] = needs_of(whole, cell)
        runs, inputs = needs[tuple(cell.pairs)]
        n = f" (n = {len(row.scores)})" if row.scores else ""
        text += [f"    {runs}", f"    {row.verdict}{n}; {inputs}"]
    text.append(f"{len(entries)} published numbers, {len(listed)} with an arm at scale {scale}")
    return text


def text_of(entry: reported.Published) -> str:
    facts = (str(value) for value in entry.setting.values())
    return " ".join([entry.id, entry.table or "", entry.method, entry.metric, *facts])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.list", description=__doc__)
    parser.add_argument("paper")
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--find", default="", help="only numbers whose id, table or setting has it")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    try:
        paper = Protocol(ROOT / options.paper.replace("-", "_"))
        paper.scale(options.scale)
        for line in lines(paper, options.scale, options.find):
            say(line if len(line) <= width else line[: width - 1] + "…")
    except (BadInput, sources.MissingInput) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
