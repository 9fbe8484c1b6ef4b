"""Do the published numbers agree with each other? Relations of audit.yaml, checked without a run.

    python -m benchmarks.audit                 all papers
    python -m benchmarks.audit ppo_nlu         one
    python -m benchmarks.audit --write         (maintainers) and write it into docs/findings.md

A printed value v with d decimals stands for [v - h, v + h], h = 0.5 x 10^-d, and these intervals
are carried through. Outcomes: HOLDS (the intervals meet), OFF BY x, IMPOSSIBLE (no count of items
gives the percentage), NOT CHECKED (an input is missing). They never enter a verdict. Exit status 0
whatever they are, 2 for a file that cannot be read.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from benchmarks import PAPERS, ROOT, reported
from benchmarks.blocks import update_readme
from benchmarks.claims import one_of
from benchmarks.relations import NotAudited, Relation, Term, load
from benchmarks.reported import Published
from benchmarks.words import cell, table
from shared.protocol import BadInput
from shared.sources import MissingInput

OUTCOMES = ("HOLDS", "OFF BY", "IMPOSSIBLE", "NOT CHECKED")
EPSILON = 1e-9


# --- arithmetic with printed numbers --------------------------------------------------------------


class Interval(NamedTuple):
    low: float
    high: float

    def minus(self, other: Interval) -> Interval:
        return Interval(self.low - other.high, self.high - other.low)

    def gap(self, other: Interval) -> float:
        """How far the two are apart; 0 where they meet."""
        return max(0.0, self.low - other.high, other.low - self.high)

    @property
    def middle(self) -> float:
        return 0.5 * (self.low + self.high)

    @property
    def words(self) -> str:
        if self.high == math.inf:
            return f"at least {short(self.low)}"
        low, high = short(self.low), short(self.high)
        return low if low == high else f"{low} to {high}"


def short(value: float) -> str:
    text = f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def interval_of(entry: Published) -> Interval:
    if entry.value is None:
        raise Unchecked(f"{entry.id} has no value")
    low, high = entry.value - entry.half, entry.value + entry.half
    return Interval(low, math.inf if entry.setting.get("comparison") == "lower_bound" else high)


def mean_of(intervals: Sequence[Interval]) -> Interval:
    n = len(intervals)
    return Interval(sum(i.low for i in intervals) / n, sum(i.high for i in intervals) / n)


class Unchecked(Exception):
    """An input of a relation is missing."""


@dataclass(frozen=True)
class Finding:
    """What came of a relation, or of one entry of a relation about many."""

    relation: Relation
    outcome: str  # one of OUTCOMES
    words: str  # the numbers
    by: float = 0.0  # of OFF BY
    empty: bool = False  # holds whatever the number is

    @property
    def label(self) -> str:
        by = f"{self.by:.2f}" if self.by >= 0.01 else f"{self.by:.1g}"
        return f"OFF BY {by}" if self.outcome == "OFF BY" else self.outcome


class Numbers:
    """The entries of one file, and intervals of the terms over them."""

    def __init__(self, entries: Sequence[Published]):
        self.by_id = {entry.id: entry for entry in entries}

    def term(self, term: Term, minus: Term | None = None) -> Interval:
        if minus is not None:
            return self.term(term).minus(self.term(minus))
        if isinstance(term, str):
            return interval_of(self.by_id[term])
        return mean_of([self.term(part if isinstance(part, str) else [*part]) for part in term])

    def words(self, term: Term, minus: Term | None = None) -> str:
        """'84.8', '84.81 (mean of 9)', '84.8 - 78.5 = 6.3 (6.2 to 6.4)'."""
        interval = self.term(term, minus)
        if minus is not None:
            sides = f"{self.words(term)} - {self.words(minus)}"
            return f"{sides} = {interval.middle:.2f} ({interval.words})"
        if isinstance(term, str):
            return self.by_id[term].printed
        return f"{interval.middle:.2f} (mean of {len(term)})"

    def matching(self, patterns: Sequence[str]) -> list[Published]:
        hits = [e for p in patterns for n, e in self.by_id.items() if n == p or fnmatchcase(n, p)]
        return list({entry.id: entry for entry in hits}.values())


# --- the relations --------------------------------------------------------------------------------


def check(
    relation: Relation, numbers: Numbers, paper_dir: Path, data: Path | None
) -> list[Finding]:
    """One finding, or one per entry or group where the relation has several."""
    if relation.missing:
        value = numbers.by_id[relation.of].printed if relation.of else ""
        words = f"{value} printed; not on file: {relation.missing}"
        return [Finding(relation, "NOT CHECKED", words)]
    if relation.kind == "artifact":
        return artifact(relation, numbers, paper_dir, data)
    if relation.kind == "same":
        groups = relation.groups or []
        return [guarded(same, relation, numbers, group) for group in groups]
    if relation.kind == "granularity":
        entries = numbers.matching(relation.entries or [])
        return [guarded(granularity, relation, entry) for entry in entries]
    return [guarded(CHECKS[relation.kind], relation, numbers)]


def guarded(rule: Callable[..., Finding], relation: Relation, *rest: object) -> Finding:
    """What the rule finds; NOT CHECKED where a number that it needs is not on file."""
    try:
        return rule(relation, *rest)
    except Unchecked as missing:
        return Finding(relation, "NOT CHECKED", str(missing))


def compared(relation: Relation, left: Interval, right: Interval, words: str) -> Finding:
    """HOLDS where the two meet within `at_most`."""
    by = max(0.0, left.gap(right) - (relation.at_most or 0))
    return Finding(relation, "OFF BY" if by > EPSILON else "HOLDS", words, by)


def mean(relation: Relation, numbers: Numbers) -> Finding:
    of, parts = numbers.term(relation.of or ""), numbers.term(relation.parts or [])
    expected = Interval(relation.times * parts.low, relation.times * parts.high)
    count = f"{short(relation.times)} times " if relation.times != 1 else ""
    words = f"{numbers.words(relation.of or '')} printed ({of.words}); {count}the mean of "
    words += f"{len(relation.parts or [])} gives {expected.words}"
    return compared(relation, of, expected, words)


def difference(relation: Relation, numbers: Numbers) -> Finding:
    of = numbers.term(relation.of or "")
    expected = numbers.term(relation.minuend or "", relation.subtrahend)
    words = f"{numbers.words(relation.of or '')} printed ({of.words}); "
    words += numbers.words(relation.minuend or "", relation.subtrahend)
    return compared(relation, of, expected, words)


def between(relation: Relation, numbers: Numbers) -> Finding:
    first = numbers.term(relation.first or "", relation.first_minus)
    second = numbers.term(relation.second or "", relation.second_minus)
    words = (
        f"{numbers.words(relation.first or '', relation.first_minus)} and "
        f"{numbers.words(relation.second or '', relation.second_minus)}: "
        f"{short(abs(first.middle - second.middle))} apart, "
        f"at most {short(relation.at_most or 0)} expected"
    )
    return compared(relation, first, second, words)


def same(relation: Relation, numbers: Numbers, group: Sequence[str]) -> Finding:
    """The two that are farthest apart decide."""
    pairs = [(a, b) for i, a in enumerate(group) for b in group[i + 1 :]]
    apart = [numbers.term(a).gap(numbers.term(b)) for a, b in pairs]
    a, b = pairs[apart.index(max(apart))]
    words = " and ".join(f"{numbers.by_id[name].printed} ({name})" for name in (a, b))
    return compared(relation, numbers.term(a), numbers.term(b), words)


def granularity(relation: Relation, entry: Published) -> Finding:
    """GRIM: over N items and r runs only multiples of whole / (N r) can be printed."""
    items, whole, runs = relation.items or 1, relation.whole, relation.runs or 1
    low, high = interval_of(entry)
    step = whole / (items * runs)
    count, most = round((entry.value or 0) / step), items * runs
    least = max(0, math.ceil(low / step - EPSILON))
    possible = least <= min(most, math.floor(high / step + EPSILON))
    what = f"{entry.printed} ({entry.id}) of {items} items"
    if runs > 1:
        what += f" and {runs} runs"
    if possible:
        empty = step <= 2 * entry.half + EPSILON
        said = "any value is possible" if empty else f"{count} of {items * runs}"
        return Finding(relation, "HOLDS", f"{what}: {said}", empty=empty)
    if not 0 <= count <= most:
        words = f"{what}: no share is below 0 or above {whole}"
        return Finding(relation, "IMPOSSIBLE", words)
    below = math.floor(low / step)
    places = entry.decimals or 0
    next_ones = f"{below * step:.{places}f} and {(below + 1) * step:.{places}f}"
    words = f"{what}: no count gives it, {next_ones} are next"
    if (below + 1) * step < low + 4 * entry.half - EPSILON:  # printed 64.3 for 64.38
        words += f"; {below + 1} of {items * runs} does if cut off instead of rounded"
    if relation.runs is None:
        return Finding(
            relation, "NOT CHECKED", f"{words}; the number of runs averaged is not stated"
        )
    return Finding(relation, "IMPOSSIBLE", words)


def count(relation: Relation, numbers: Numbers) -> Finding:
    """k of n: in how many rows the first entry is the best, ties within rounding either way."""
    entry = numbers.by_id[relation.of or ""]
    said, total = interval_of(entry), relation.total or 0
    rows = relation.rows
    if rows is None:
        raise Unchecked(f"{entry.printed} of {total} printed; the cells are not on file")
    sure = possible = 0
    for ours, *others in rows:
        sign = 1 if numbers.by_id[ours].higher_is_better is not False else -1
        leads = [numbers.term(ours).minus(numbers.term(other)) for other in others]
        sure += all((i.low if sign > 0 else -i.high) > EPSILON for i in leads)
        possible += all((i.high if sign > 0 else -i.low) >= -EPSILON for i in leads)
    words = f"{entry.printed} of {total} printed; the {len(rows)} rows give "
    cells = Interval(sure, possible + total - len(rows))
    return compared(relation, said, cells, words + cells.words)


CHECKS = {"mean": mean, "difference": difference, "between": between, "count": count}


def artifact(
    relation: Relation, numbers: Numbers, paper_dir: Path, data: Path | None
) -> list[Finding]:
    """Each entry beside the value that the paper's own code derives from the official files."""
    entries = [e for e in numbers.matching(relation.entries or []) if e.value is not None]
    try:
        derived = derive(relation, entries, paper_dir, data)
    except MissingInput as missing:
        return [Finding(relation, "NOT CHECKED", str(missing)) for _ in entries]
    findings = []
    for entry in entries:
        words = f"{entry.printed} ({entry.id}) on file; "
        if (value := derived.get(entry.id)) is None:
            findings.append(Finding(relation, "NOT CHECKED", f"{words}no official file gives it"))
        else:
            words, point = f"{words}{value:.6g} derived", Interval(value, value)
            findings.append(compared(relation, numbers.term(entry.id), point, words))
    return findings


def derive(
    relation: Relation, entries: Sequence[Published], paper_dir: Path, data: Path | None
) -> dict[str, float]:
    """id -> value by the function `derivation` of the paper's artifacts.py, which reads the clone
    of the official repository. MissingInput, with the command, where there is none."""
    name = (relation.repository or "").rsplit("/", 1)[-1]
    folder = data / "official" / name if data else None
    if folder is None or not folder.is_dir():
        command = f"git clone {relation.repository} $REPRO_DATA/official/{name}"
        raise MissingInput(f"the official files are not here; {command}")
    module = importlib.import_module(f"{paper_dir.name}.artifacts")
    if not hasattr(module, relation.derivation or ""):
        raise BadInput(f"{paper_dir.name}/artifacts.py has no function {relation.derivation!r}")
    sources = {entry.id: entry.source for entry in entries}
    values: dict[str, float] = getattr(module, relation.derivation or "")(folder, sources)
    return values


# --- papers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    paper: str
    findings: list[Finding]
    not_audited: list[NotAudited]

    @property
    def tally(self) -> dict[str, int]:
        counted = Counter(finding.outcome for finding in self.findings)
        return {outcome: counted[outcome] for outcome in OUTCOMES}

    @property
    def empty(self) -> int:
        return sum(finding.empty for finding in self.findings)

    @property
    def odd(self) -> list[Finding]:
        """Those that do not hold, the contradictions first."""
        rest = [finding for finding in self.findings if finding.outcome != "HOLDS"]
        return sorted(rest, key=lambda finding: finding.outcome == "NOT CHECKED")

    @property
    def headlines(self) -> list[Finding]:
        """For the first page of the report, in the file's order."""
        return [finding for finding in self.findings if finding.relation.headline]

    @property
    def lines(self) -> list[tuple[Finding, int]]:
        """What does not hold, findings in the same words as one with their number."""
        return grouped(self.odd)


def audit_paper(paper_dir: Path, data: Path | None = None) -> Audit:
    """`data`: the folder of REPRO_DATA; None: what no file of this repository gives is left
    NOT CHECKED, so that the same files always give the same findings."""
    published = reported.load(paper_dir / "reported.yaml")
    file = load(paper_dir / "audit.yaml", published)
    numbers = Numbers(published.entries)
    findings = [
        one for relation in file.every() for one in check(relation, numbers, paper_dir, data)
    ]
    return Audit(paper_dir.name, findings, file.not_audited)


def data_folder() -> Path | None:
    root = os.environ.get("REPRO_DATA", "")
    return Path(root).expanduser() if root else None


def grouped(findings: Sequence[Finding]) -> list[tuple[Finding, int]]:
    """Findings of one relation in the same words are one, with their number."""
    distinct = list({id(one): one for one in findings}.values())
    counted = Counter((one.relation.id, one.words) for one in distinct)
    first = {(one.relation.id, one.words): one for one in reversed(distinct)}
    return [(first[key], n) for key, n in counted.items()]


def said(finding: Finding, n: int = 1) -> str:
    """What and how many, the numbers, and the relation's note."""
    many = f" ({n} entries)" if n > 1 else ""
    note = f" [{finding.relation.note}]" if finding.relation.note else ""
    return f"{finding.relation.id}{many}: {finding.words}{note}"


def printed(audit: Audit) -> str:
    tally = ", ".join(f"{n} {outcome}" for outcome, n in audit.tally.items())
    empty = f" ({audit.empty} of those that hold could not fail)" if audit.empty else ""
    lines = [f"  {one.label}  {said(one, n)}" for one, n in audit.lines]
    return "\n".join([f"{audit.paper}: {tally}{empty}", *lines])


def audit_tables(root: Path) -> str:
    """Block `audit` of docs/findings.md: the tally, then every headline and contradiction."""
    audits = [audit_paper(root / paper) for paper in PAPERS]
    rows = [
        [audit.paper, *map(str, audit.tally.values()), str(audit.empty), str(len(audit.findings))]
        for audit in audits
    ]
    counts = table(["paper", *OUTCOMES, "hold whatever is printed", "in all"], rows)
    odd = [
        [audit.paper, f"**{one.label}**", cell(said(one, n))]
        for audit in audits
        for one, n in grouped([*audit.headlines, *audit.odd])
        if one.outcome != "NOT CHECKED"
    ]
    return f"{counts}\n\n{table(['paper', 'outcome', 'the numbers'], odd)}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paper", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help="write docs/findings.md")
    options = parser.parse_args(arguments)
    names = [name.replace("-", "_").strip("/") for name in options.paper] or list(PAPERS)
    try:
        for name in names:
            one_of(name, PAPERS, "paper")
            print(printed(audit_paper(root / name, data_folder())))
        if options.write:
            update_readme(root / "docs" / "findings.md", {"audit": audit_tables(root)})
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
