"""The section "Differences" of a paper's README as the report shows it, with measured effects.

A row names what measures it: ``Effect: `convex` - `mixup` `` is arm minus arm, and
``Effect: `ppo:score_sampled` - `ppo:score_greedy` `` one metric minus another. The numbers come out
of the result; a README never holds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from benchmarks.arms import factors, metrics_of, scores
from benchmarks.claims import Claims
from benchmarks.recorded import Results
from benchmarks.rules import t_interval
from benchmarks.words import interval, number

HEADING = re.compile(r"^## Differences\b.*$", re.MULTILINE)
EFFECT = re.compile(r"Effect: `([^`]+)` - `([^`]+)`")
CELLS = re.compile(r"(?<!\\)\|")
ITEM = re.compile(r"(\d+)\. (.*)")
SPAN = re.compile(
    r"`(?P<code>[^`]+)`|\\(?P<char>[^\w\s])|\*\*(?P<bold>.+?)\*\*"
    r"|\*(?P<italic>[^*\s][^*]*)\*|\[(?P<link>[^\]]+)\]\([^)]+\)"
)


@dataclass(frozen=True)
class Row:
    id: str
    cells: list[Markup]
    effect: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """`kind`: text (one row of one cell), list or table; `head` of a table alone."""

    kind: str
    rows: list[Row]
    head: list[Markup] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether the table gets a last column with measured effects."""
        return any(row.effect for row in self.rows)


def inline(text: str) -> Markup:
    """Code, bold, italics and escaped characters of one line.

    A link becomes its words, since the report's pages load nothing.
    """
    parts, at = [], 0
    for match in SPAN.finditer(text):
        parts.append(escape(text[at : match.start()]))
        if match["code"]:
            parts.append(Markup("<code>{}</code>").format(match["code"].replace("\\|", "|")))
        elif match["bold"]:
            parts.append(Markup("<strong>{}</strong>").format(inline(match["bold"])))
        elif match["italic"]:
            parts.append(Markup("<em>{}</em>").format(inline(match["italic"])))
        else:
            parts.append(inline(match["link"]) if match["link"] else escape(match["char"]))
        at = match.end()
    return Markup("").join([*parts, escape(text[at:])])


def section(text: str) -> str:
    """What stands in a README below its heading "Differences ...", "" without one."""
    heading = HEADING.search(text)
    if heading is None:
        return ""
    return re.split(r"^## ", text[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def cells(line: str) -> list[Markup]:
    return [inline(cell.strip()) for cell in CELLS.split(line.strip().strip("|"))]


def blocks(text: str, measure: Callable[[str], list[str]]) -> list[Block]:
    """Paragraphs, tables and numbered lists of the section; `measure`: the effects of a row."""
    result = []
    for block in re.split(r"\n\s*\n", section(text).strip()):
        lines = block.splitlines()
        if block.startswith("|"):
            rows = [cells(line) for line in lines[2:]]
            measured = [Row(str(r[0]), r, measure(line)) for r, line in zip(rows, lines[2:])]
            result.append(Block("table", measured, cells(lines[0])))
        elif ITEM.match(block):
            items: list[tuple[str, list[str]]] = []
            for line in lines:
                if start := ITEM.match(line):
                    items.append((start[1], [start[2]]))
                else:
                    items[-1][1].append(line.strip())
            rows_ = [Row(number, [inline(" ".join(parts))]) for number, parts in items]
            result.append(Block("list", rows_))
        elif block:
            result.append(Block("text", [Row("", [inline(" ".join(lines))])]))
    return result


def effects(line: str, result: Results | None, declared: Claims | None, scale: str) -> list[str]:
    """A line per task: mean difference over the seeds that both arms ran, and its t interval."""
    named = EFFECT.search(line)
    if not named:
        return []
    lines = []
    if result is not None:
        points, factor = scores(result, declared), factors(result)
        for task, metrics in metrics_of(result).items():
            (arm, metric), (other, base) = (side.partition(":")[::2] for side in named.groups())
            metric, base = metric or metrics[0], base or metrics[0]
            ours = {p.seed: p.value for p in points.get((task, metric, arm), [])}
            theirs = {p.seed: p.value for p in points.get((task, base, other), [])}
            d = np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs)])
            if len(d):
                size, ends = number(float(d.mean()), signed=True), interval(t_interval(d))
                measure = metric if metric == base else f"{metric} − {base}"
                points_ = " points" if factor[task, metric] == 100 else ""
                said = f"{size}{points_} ({ends}, n {len(d)})".replace("-", "−")
                lines.append(f"{task}, {measure}: {said}")
    return lines or [f"not run at scale {scale}"]
