"""Which runs a call asks for, by its settings; what cannot be meant is refused before a run."""

from __future__ import annotations

import argparse
import contextlib
import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from benchmarks import PAPERS, cells, recorded, reported
from benchmarks.cells import Cell
from benchmarks.claims import Claims
from benchmarks.reported import ReportedFile
from shared.protocol import BadInput, Node, Protocol

MOST_NAMES = 12  # of a list of valid words; watermarks have 1,600 published numbers
USUAL = ("score", "accuracy")  # what a number is of where METRIC is not given


def words(text: str | None, name: str, what: str) -> list[str]:
    """'a, b' as a list, each once; given without a word it is refused: it would run everything."""
    if text is None:
        return []
    listed = list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    if not listed:
        raise BadInput(
            f"{name}={text} names no {what}; give {what}s separated by commas, or leave it out"
        )
    return listed


def nearest(word: str, valid: Collection[str]) -> str:
    """What may have been meant, whatever its case, else some of the words that are valid."""
    folded = {name.casefold(): name for name in sorted(valid)}
    if near := difflib.get_close_matches(word.casefold(), folded, 1, 0.4):
        return f"did you mean '{folded[near[0]]}'?"
    names = sorted(valid)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"valid: {', '.join(names[:MOST_NAMES])}{more}"


@dataclass(frozen=True)
class Request:
    """Which runs a call asks for, by their settings."""

    arms: str = "core"
    only: Sequence[str] = ()
    tasks: Sequence[str] = ()
    seeds: int | None = None
    cells: Sequence[Cell] = ()

    def nodes(self, paper: Protocol, scale: str) -> list[Node]:
        pairs = [pair for cell in self.cells for pair in cell.pairs] if self.cells else None
        return paper.nodes(scale, self.arms, self.only, self.seeds, self.tasks, pairs)

    def covers(self, cell: Cell) -> bool:
        """Whether ONLY and TASK, where they are given, name all that a published number needs."""
        arms, tasks = set(self.only or cell.arms), set(self.tasks or cell.target.tasks)
        return arms >= set(cell.arms) and tasks >= set(cell.target.tasks)


def fewer_than_asked(nodes: Sequence[Node], seeds: int | None) -> tuple[str, ...]:
    """A line where SEEDS asks for more than the protocol has."""
    most = len({node.seed for node in nodes})
    if seeds is None or seeds <= most:
        return ()
    return (f"SEEDS={seeds}: the protocol has {most}, and all of them are taken",)


def settings(options: argparse.Namespace, has_core: bool) -> str:
    """The settings of a call that choose a subset or add to it, as make takes them."""
    names = ("CELL", "TASK", "ONLY", "SEEDS", "BUDGET", "PUBLISHED", "METRIC")
    chosen = {name: getattr(options, name.lower()) for name in names}
    chosen["ARMS"] = options.arms if options.arms == "all" and has_core else None
    return " ".join(f"{name}={value}" for name, value in chosen.items() if value is not None)


def read_request(
    paper: Protocol, options: argparse.Namespace, declared: Claims, published: ReportedFile
) -> Request:
    """The request of a call; BadInput for a word that the paper does not have."""
    request = Request(
        options.arms or "core",
        words(options.only, "ONLY", "arm"),
        words(options.task, "TASK", "task"),
        options.seeds,
        chosen(paper, words(options.cell, "CELL", "number"), declared, published),
    )
    if request.cells and (request.only or request.tasks):
        raise BadInput("CELL names its arms and tasks itself: leave ONLY and TASK out")
    arms = set(paper.document.arms)
    tasks = {task for scale in paper.document.scales for task in paper.tasks(scale)}
    check_names(paper.paper, "ONLY", request.only, arms, "an arm", tasks, "a task", "TASK")
    check_names(paper.paper, "TASK", request.tasks, tasks, "a task", arms, "an arm", "ONLY")
    return request


def check_names(
    paper: str,
    setting: str,
    names: Sequence[str],
    valid: Collection[str],
    what: str,
    others: Collection[str],
    other: str,
    instead: str,
) -> None:
    """BadInput for a word that is not there, or that is one of the other setting's."""
    for name in names:
        if name in valid:
            continue
        if name in others:
            mixed = f"{name} is {other}, not {what}; did you mean {instead}={name}?"
            raise BadInput(f"{setting}={name}: {mixed}")
        raise BadInput(f"{setting}={name} is not {what} of {paper}; {nearest(name, valid)}")


def chosen(
    paper: Protocol, names: Sequence[str], declared: Claims, published: ReportedFile
) -> list[Cell]:
    """The cells of these ids; an id that is unknown, or that no arm answers, is refused."""
    if not names:
        return []
    by_id = {cell.entry.id: cell for cell in cells.answered(published, declared.targets)}
    entries = {entry.id: entry for entry in published.entries}
    shows = f"`make list-{paper.paper}` shows the numbers"
    for name in names:
        if name not in entries:
            home = paper_of(paper, name)
            hint = f"it is one of {home}" if home else nearest(name, entries)
            raise BadInput(f"CELL={name} is no number of {paper.paper}; {hint}; {shows}")
        if name not in by_id:
            why = cells.why_unanswered(entries[name], declared.targets)
            raise BadInput(
                f"CELL={name}: no arm answers this number ({why}); {shows} that have one"
            )
    return [by_id[name] for name in names]


def paper_of(paper: Protocol, name: str) -> str | None:
    """The other paper that has a published number of this id."""
    for other in PAPERS:
        with contextlib.suppress(BadInput):
            if other != paper.paper:
                file = reported.load(paper.directory.parent / other / "reported.yaml")
                if any(entry.id == name for entry in file.entries):
                    return other
    return None


# --- a number of the reader's own -----------------------------------------------------------------


def check_given(
    paper: Protocol, request: Request, options: argparse.Namespace, declared: Claims
) -> None:
    """PUBLISHED stands beside the scores of one arm on one task, or of one CELL."""
    if options.published is None:
        if options.metric is not None:
            raise BadInput("METRIC says what PUBLISHED is a value of: give PUBLISHED as well")
        return
    if len(request.cells) == 1:
        if options.metric is not None:
            raise BadInput("CELL has a metric of its own: leave METRIC out")
        return
    if request.cells or not len(request.only) == len(request.tasks) == 1:
        raise BadInput(
            "PUBLISHED needs CELL=<id>, or TASK= and ONLY= that name one task and one arm"
        )
    arm, task = request.only[0], request.tasks[0]
    if paper.arm(arm).stage:
        raise BadInput(f"ONLY={arm} is a stage: it has no score")
    known = metrics_of(paper, declared)
    anywhere = {name for names in known.values() for name in names}
    if options.metric is not None and anywhere and options.metric not in anywhere:
        raise BadInput(
            f"METRIC={options.metric} is nothing that {paper.paper} measures; "
            f"{nearest(options.metric, anywhere)}"
        )
    here = known.get(("", task), set()) | known.get((arm, task), set())
    if options.metric is None and here and not here.intersection(USUAL):
        lacks = f"{arm} on {task} has no {' and no '.join(USUAL)}"
        raise BadInput(f"METRIC= is missing: {lacks}; {nearest('', here)}")


def metrics_of(paper: Protocol, declared: Claims) -> dict[tuple[str, str], set[str]]:
    """(arm, task) -> metrics that a target or a recorded run names; arm "": those of the task."""
    known = {("", task): set(declared.chance(task)) for task in declared.tasks}
    named = [(t.arm, task, t.metric) for t in declared.targets for task in t.tasks]
    for result in recorded.all_recorded(paper.directory).values():
        named += [(run.arm, run.task, metric) for run in result.runs for metric in run.metrics]
    for arm, task, metric in named:
        if arm and metric:
            known.setdefault((arm, task), set()).add(metric)
    return known
