"""Do the published numbers agree with each other? Relations of audit.yaml, checked without a run.

    python -m benchmarks.audit                 all papers
    python -m benchmarks.audit ppo_nlu         one

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
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator, model_validator

from benchmarks import PAPERS, ROOT, reported
from benchmarks.claims import Declared, Number, one_of
from benchmarks.reported import Published, Text
from shared.protocol import BadInput, load_yaml, read_as, unknown
from shared.sources import MissingInput

OUTCOMES = ("HOLDS", "OFF BY", "IMPOSSIBLE", "NOT CHECKED")
EPSILON = 1e-9
Kind = Literal["mean", "difference", "same", "between", "granularity", "count", "artifact"]
NEEDED = {
    "mean": {"of", "parts"},
    "difference": {"of", "minuend", "subtrahend"},
    "same": {"groups"},
    "between": {"first", "second", "at_most", "note"},
    "granularity": {"entries", "items"},
    "count": {"of", "total"},
    "artifact": {"entries", "repository", "derivation"},
}
OPTIONAL = {
    "mean": {"times"},
    "between": {"first_minus", "second_minus"},
    "granularity": {"runs", "whole"},
    "count": {"rows"},
    "artifact": {"at_most"},
}
ALWAYS = {"id", "kind", "source", "note", "each", "headline", "missing"}
# words of an entry that is computed from others, and so needs a relation of its own
COMPUTED = re.compile(r"(?<![a-z])(average|averages|mean|minus|difference|gain|sum|number of)(?![a-z])")  # fmt: skip

# An id of reported.yaml, or the mean of ids, or a mean of means (tasks with two metrics).
Term = str | list[str | list[str]]


# --- the file -------------------------------------------------------------------------------------


class Relation(Declared):
    """Something that published numbers must satisfy; which keys are there depends on its kind.

    `each` writes the relation once per word: `{}` in an id stands for the word.
    """

    id: Text
    kind: Kind
    source: Text
    note: Text | None = None
    each: list[str] = [""]
    headline: bool = False  # shown on the first page of the report
    missing: Text | None = None  # what is not on file, so that nothing can be checked
    of: str | None = None  # the entry that the others must give
    parts: Term | None = None
    times: Number = 1  # the entry is so many times the mean of its parts (a sum)
    minuend: Term | None = None
    subtrahend: Term | None = None
    groups: list[list[str]] | None = None  # each a list of entries that are one quantity
    first: Term | None = None
    second: Term | None = None
    first_minus: Term | None = None
    second_minus: Term | None = None
    at_most: Annotated[Number, Field(ge=0)] | None = None
    entries: list[str] | None = None  # ids or patterns
    items: Annotated[int, Field(ge=1)] | None = None
    runs: Annotated[int, Field(ge=1)] | None = None  # averaged; none: not stated
    whole: Literal[1, 100] = 100  # of fractions, of percentages
    total: Annotated[int, Field(ge=1)] | None = None
    rows: list[list[str]] | None = None  # ours first, then those it is compared with
    repository: Annotated[str, Field(pattern=r"^https://")] | None = None
    derivation: str | None = None  # a function of the paper's artifacts.py

    @field_validator("each")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("is empty; leave `each` out or name a word")
        return value

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Relation:
        allowed = ALWAYS | NEEDED[self.kind] | OPTIONAL.get(self.kind, set())
        for name in sorted(self.model_fields_set - allowed):
            raise unknown(name, allowed, f"kind {self.kind}")
        lacking = {name for name in NEEDED[self.kind] if getattr(self, name) is None}
        if lacking and not (self.missing and self.of):
            raise ValueError(f"kind {self.kind} lacks {', '.join(sorted(lacking))}")
        if "{}" not in self.id and len(self.each) > 1:
            raise ValueError("has `each` but no {} in its id; write one")
        return self

    def answered(self) -> list[str]:
        """Ids and patterns of the computed entries that this relation checks."""
        return [*([self.of] if self.of else []), *flat(self.groups or []), *(self.entries or [])]

    def named(self) -> list[str]:
        terms = (self.parts, self.minuend, self.subtrahend, self.first, self.second)
        terms += (self.first_minus, self.second_minus)
        below = [name for term in terms if term for name in flat(term)]
        return [*self.answered(), *below, *flat(self.rows or [])]

    def once(self, word: str) -> Relation:
        """The relation for one word of `each`."""
        if not word:
            return self
        return self.model_validate({
            name: filled(getattr(self, name), word)
            for name in self.model_fields_set - {"each"}
        })  # fmt: skip


class NotAudited(Declared):
    reported: Text  # an id, or a pattern of ids
    reason: Text


class AuditFile(Declared):
    paper: str
    relations: list[Relation] = []
    not_audited: list[NotAudited] = []

    def every(self) -> list[Relation]:
        """All relations, those with `each` once per word."""
        return [relation.once(word) for relation in self.relations for word in relation.each]


def flat(term: str | Sequence[str | list[str]]) -> list[str]:
    """The ids in a term."""
    if isinstance(term, str):
        return [term]
    return [name for part in term for name in ([part] if isinstance(part, str) else part)]


def filled(value: object, word: str) -> object:
    """`value` with `word` for every {} in its texts."""
    if isinstance(value, str):
        return value.replace("{}", word)
    return [filled(part, word) for part in value] if isinstance(value, list) else value


def load(path: Path, published: reported.ReportedFile) -> AuditFile:
    """audit.yaml; BadInput for a word, an id or an entry that it does not answer."""
    name = f"{path.parent.name}/{path.name}"
    audit = read_as(AuditFile, load_yaml(path, name) or {}, name)
    ids = [entry.id for entry in published.entries]
    known = set(ids)
    answered, named = set(), set()

    def matching(pattern: str, place: str) -> set[str]:
        hits = {pattern} & known or {entry for entry in ids if fnmatchcase(entry, pattern)}
        if not hits:
            one_of(pattern, ids, place)
        return hits

    for relation in audit.every():
        place = f"{name}: relations.{relation.id}"
        for pattern in relation.named():
            named |= matching(pattern, place)
        for pattern in relation.answered():
            if relation.kind != "granularity":
                answered |= matching(pattern, place)
    for line in audit.not_audited:
        hits = matching(line.reported, f"{name}: not_audited")
        named, answered = named | hits, answered | hits
    for entry in published.entries:
        if entry.id not in named:
            raise BadInput(f"{name}: no relation names {entry.id!r}; {REMEDY}")
        if is_computed(entry) and entry.id not in answered:
            raise BadInput(f"{name}: {entry.id!r} is computed from others, unchecked; {REMEDY}")
    return audit


REMEDY = "add a relation, or a line of not_audited with the reason"


def is_computed(entry: Published) -> bool:
    """Whether its words say that it is a mean, a difference or a count of other numbers."""
    places = [entry.setting.get(key) for key in ("task", "dataset", "split", "benchmark")]
    words = " ".join(map(str, [entry.metric, entry.method, entry.table, *places])).lower()
    return entry.table == "abstract" or bool(COMPUTED.search(words))


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
        """'84.8', 'mean of 9 (84.76 to 84.86)', '84.8 - 78.5 = 6.2 to 6.4'."""
        if minus is not None:
            value = self.term(term, minus).words
            return f"{self.words(term)} - {self.words(minus)} = {value}"
        if isinstance(term, str):
            return self.by_id[term].printed
        return f"mean of {len(term)} cells ({self.term(term).words})"

    def matching(self, patterns: Sequence[str]) -> list[Published]:
        hits = [e for p in patterns for n, e in self.by_id.items() if n == p or fnmatchcase(n, p)]
        return list({entry.id: entry for entry in hits}.values())


# --- the relations --------------------------------------------------------------------------------


def check(relation: Relation, numbers: Numbers, paper_dir: Path) -> list[Finding]:
    """One finding, or one per entry or group where the relation has several."""
    try:
        if relation.missing:
            printed = numbers.by_id[relation.of].printed if relation.of else ""
            raise Unchecked(f"{printed} printed; not on file: {relation.missing}")
        if relation.kind == "same":
            return [same(relation, group, numbers) for group in relation.groups or []]
        if relation.kind == "granularity":
            entries = numbers.matching(relation.entries or [])
            return [granularity(relation, entry) for entry in entries]
        if relation.kind == "artifact":
            return artifact(relation, numbers, paper_dir)
        return [CHECKS[relation.kind](relation, numbers)]
    except Unchecked as missing:
        return [Finding(relation, "NOT CHECKED", str(missing))]


def compared(relation: Relation, left: Interval, right: Interval, words: str) -> Finding:
    """HOLDS where the two meet within `at_most`."""
    by = max(0.0, left.gap(right) - (relation.at_most or 0))
    return Finding(relation, "OFF BY" if by > EPSILON else "HOLDS", words, by)


def mean(relation: Relation, numbers: Numbers) -> Finding:
    of, parts = numbers.term(relation.of or ""), numbers.term(relation.parts or [])
    expected = Interval(relation.times * parts.low, relation.times * parts.high)
    count = f"{short(relation.times)} times " if relation.times != 1 else ""
    words = f"{numbers.words(relation.of or '')} printed ({of.words}); {count}the mean of "
    words += f"{len(relation.parts or [])} cells gives {expected.words}"
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


def same(relation: Relation, group: Sequence[str], numbers: Numbers) -> Finding:
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
    count = round((entry.value or 0) / step)
    possible = math.floor(high / step + EPSILON) >= math.ceil(low / step - EPSILON)
    what = f"{entry.printed} ({entry.id}) of {items} items"
    if runs > 1:
        what += f" and {runs} runs"
    if possible:
        empty = step <= 2 * entry.half + EPSILON
        said = "any value is possible" if empty else f"{count} of {items * runs}"
        return Finding(relation, "HOLDS", f"{what}: {said}", empty=empty)
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


def artifact(relation: Relation, numbers: Numbers, paper_dir: Path) -> list[Finding]:
    """Each entry beside the value that the paper's own code derives from the official files."""
    entries = numbers.matching(relation.entries or [])
    try:
        derived = derive(relation, entries, paper_dir)
    except MissingInput as missing:
        return [Finding(relation, "NOT CHECKED", str(missing)) for _ in entries]
    findings = []
    for entry in entries:
        words = f"{entry.printed} ({entry.id}) on file; "
        if (value := derived.get(entry.id)) is None:
            findings.append(Finding(relation, "NOT CHECKED", f"{words}no official file gives it"))
        else:
            words, point = f"{words}{value:.6g} derived", Interval(value, value)
            findings.append(compared(relation, interval_of(entry), point, words))
    return findings


def derive(relation: Relation, entries: Sequence[Published], paper_dir: Path) -> dict[str, float]:
    """id -> value by the function `derivation` of the paper's artifacts.py, which reads the clone
    of the official repository. MissingInput, with the command, where there is none."""
    name = (relation.repository or "").rsplit("/", 1)[-1]
    root = os.environ.get("REPRO_DATA", "")
    folder = Path(root).expanduser() / "official" / name
    if not root or not folder.is_dir():
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
        return [finding for finding in self.findings if finding.relation.headline]


def audit_paper(paper_dir: Path) -> Audit:
    published = reported.load(paper_dir / "reported.yaml")
    file = load(paper_dir / "audit.yaml", published)
    numbers = Numbers(published.entries)
    findings = [one for relation in file.every() for one in check(relation, numbers, paper_dir)]
    return Audit(paper_dir.name, findings, file.not_audited)


def grouped(findings: Sequence[Finding]) -> list[tuple[Finding, int]]:
    """Findings of one relation in the same words are one, with their number."""
    counted = Counter((one.relation.id, one.words) for one in findings)
    first = {(one.relation.id, one.words): one for one in reversed(findings)}
    return [(first[key], n) for key, n in counted.items()]


def printed(audit: Audit) -> str:
    tally = ", ".join(f"{n} {outcome}" for outcome, n in audit.tally.items())
    lines = [f"{audit.paper}: {tally}"]
    if audit.empty:
        lines[0] += f" ({audit.empty} of those that hold could not fail)"
    for finding, n in grouped(audit.odd):
        many = f" ({n} entries)" if n > 1 else ""
        lines.append(f"  {finding.label}  {finding.relation.id}{many}: {finding.words}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paper", nargs="*", help="default: all")
    names = [
        name.replace("-", "_").strip("/") for name in parser.parse_args(arguments).paper
    ] or list(PAPERS)
    try:
        for name in names:
            one_of(name, PAPERS, "paper")
            print(printed(audit_paper(root / name)))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
