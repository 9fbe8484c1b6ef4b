"""audit.yaml: how the published numbers of a paper hang together. `benchmarks.audit` checks it.

Every entry of reported.yaml is named by a relation or by a line of `not_audited`; an entry that is
computed from others (a mean, a difference, a count) is what some relation checks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from benchmarks.claims import Declared, Number, one_of
from benchmarks.reported import Published, ReportedFile, Text
from shared.protocol import BadInput, load_yaml, read_as, unknown

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
COMPUTED = re.compile(r"(?<![a-z])(averages?|mean|minus|difference|gain|sum|number of)(?![a-z])")

# what may hold a `Term`
SIDES = ("parts", "minuend", "subtrahend", "first", "second", "first_minus", "second_minus")
# An id of reported.yaml, or the mean of ids, or a mean of means (tasks with two metrics).
Term = str | list[str | list[str]]


class Relation(Declared):
    """Something that published numbers must satisfy; which keys are there depends on its kind.

    `each` writes the relation once per word: `{}` in an id stands for the word.
    """

    id: Text
    kind: Kind
    source: Text
    note: Text | None = None
    each: list[str] = Field(default=[""])
    headline: bool = False  # shown on the first page of the report
    missing: Text | None = None  # what is not on file, so that nothing can be checked
    of: str | None = None  # the entry that the others must give
    parts: Term | None = None
    # the entry is so many times the mean of its parts (a sum)
    times: Annotated[Number, Field(gt=0)] = 1
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
        if len({*value}) < len(value):
            raise ValueError("names a word twice")
        return value

    @field_validator(*SIDES, "entries", "groups", "rows")
    @classmethod
    def _not_empty(cls, value: Term | list[list[str]] | None) -> Term | list[list[str]] | None:
        """What holds of nothing is no relation."""
        if value is not None and not (value and all(value)):
            raise ValueError("is empty, or a part of it; name entries, or leave it out")
        return value

    @field_validator("groups", "rows")
    @classmethod
    def _two_or_more(cls, value: list[list[str]] | None) -> list[list[str]] | None:
        if any(len({*group}) < 2 for group in value or []):
            raise ValueError("compares an entry with nothing; each of them names two or more")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Relation:
        allowed = ALWAYS | NEEDED[self.kind] | OPTIONAL.get(self.kind, set())
        for name in sorted(self.model_fields_set - allowed):
            raise unknown(name, allowed, f"kind {self.kind}")
        lacking = {name for name in NEEDED[self.kind] if getattr(self, name) is None}
        if lacking and not (self.missing and self.of):
            raise ValueError(f"kind {self.kind} lacks {', '.join(sorted(lacking))}")
        if self.kind in ("mean", "difference") and self.of in self.named()[1:]:
            raise ValueError(f"compares {self.of!r} with itself")
        if self.rows and self.total and len(self.rows) > self.total:
            raise ValueError(f"has {len(self.rows)} rows of a total of {self.total}")
        if "{}" not in self.id and len(self.each) > 1:
            raise ValueError("has `each` but no {} in its id; write one")
        return self

    def answered(self) -> list[str]:
        """Ids and patterns of the computed entries that this relation checks."""
        return [*([self.of] if self.of else []), *flat(self.groups or []), *(self.entries or [])]

    def named(self) -> list[str]:
        terms = [getattr(self, side) for side in SIDES]
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
    relations: list[Relation] = Field(default=[])
    not_audited: list[NotAudited] = Field(default=[])

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


def load(path: Path, published: ReportedFile) -> AuditFile:
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
