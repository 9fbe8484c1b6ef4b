"""The section "Differences" of a paper's README as the report shows it, with the measured effect of a row where runs tell it.

A row names what measures it: ``Effect: `convex` - `mixup` `` is arm minus arm, ``Effect: `ppo:score_sampled` - `ppo:score_greedy` ``
one metric minus another. The numbers come out of the result; a README never holds them.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from benchmarks import readme, rules

HEADING = re.compile(r"^## Differences\b.*$", re.MULTILINE)
EFFECT = re.compile(r"Effect: `([^`]+)` - `([^`]+)`")
CELLS = re.compile(r"(?<!\\)\|")
ITEM = re.compile(r"(\d+)\. (.*)")
SPAN = re.compile(
    r"`(?P<code>[^`]+)`|\\(?P<char>[^\w\s])|\*\*(?P<bold>.+?)\*\*|\*(?P<italic>[^*\s][^*]*)\*|\[(?P<link>[^\]]+)\]\([^)]+\)"
)


def inline(text: str) -> Markup:
    """Code, bold, italics and escaped characters of one line; a link becomes its words, since pages load nothing."""
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
    """What stands in a README between its heading "Differences ..." and the next one; "" without such a heading."""
    heading = HEADING.search(text)
    return (
        re.split(r"^## ", text[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0]
        if heading
        else ""
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in CELLS.split(line.strip().strip("|"))]


def blocks(
    text: str, result: dict[str, Any] | None, declared: dict[str, Any], scale: str
) -> list[dict[str, Any]]:
    """Paragraphs, tables and numbered lists of the section: {kind, ...} with text as markup.

    A table gets a last column "measured effect" if one of its rows names what measures it.
    """
    found = []
    for block in re.split(r"\n\s*\n", section(text).strip()):
        lines = block.splitlines()
        if block.startswith("|"):
            rows = [cells(line) for line in lines[2:]]
            effects = [effect(line, result, declared, scale) for line in lines[2:]]
            found.append({
                "kind": "table",
                "head": [inline(c) for c in cells(lines[0])],
                "rows": [{"id": row[0], "cells": [inline(c) for c in row], "effect": e} for row, e in zip(rows, effects)],
                "measured": any(effects),
            })  # fmt: skip
        elif ITEM.match(block):
            items: list[list[str]] = []
            for line in lines:
                start = ITEM.match(line)
                if start:
                    items.append([start[1], start[2]])
                else:
                    items[-1][1] += " " + line.strip()
            found.append({"kind": "list", "rows": [{"id": n, "text": inline(t)} for n, t in items]})
        elif block:
            found.append({"kind": "text", "text": inline(" ".join(lines))})
    return found


def effect(
    line: str, result: dict[str, Any] | None, declared: dict[str, Any], scale: str
) -> list[str]:
    """A line per task: mean difference over the seeds that both arms ran, and its 95 % t interval."""
    named = EFFECT.search(line)
    if not named:
        return []
    scores = readme.scores(result, declared) if result else {}
    factor = readme.factors(result) if result else {}
    lines = []
    for task, metrics in (readme.metrics_of(result) if result else {}).items():
        (arm, metric), (other, base) = ((side.partition(":")[::2]) for side in named.groups())
        metric, base = metric or metrics[0], base or metrics[0]
        ours = {seed: value for seed, value, _ in scores.get((task, metric, arm), [])}
        theirs = {seed: value for seed, value, _ in scores.get((task, base, other), [])}
        d = np.array([ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))])
        if len(d):
            mean, ends = (
                readme.number(float(d.mean()), signed=True),
                readme.interval(rules.t_interval(d)),
            )
            measure = metric if metric == base else f"{metric} − {base}"
            points = " points" if factor.get(metric) == 100 else ""
            lines.append(
                f"{task}, {measure}: " + f"{mean}{points} ({ends}, n {len(d)})".replace("-", "−")
            )
    return lines or [f"not run at scale {scale}"]
