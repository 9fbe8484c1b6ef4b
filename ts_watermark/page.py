"""What a detection says, in a sentence, in numbers and as a page with every token coloured.

The page has no script and no outside file, and follows the reader's choice of light or dark.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ts_watermark.detect import Detection

PART = 25  # distinct pairs of a part of the text, each with its own interval
WIDTH, HEIGHT, LEFT = 640, 150, 40  # of the drawing, in pixels


def odds(p: float) -> str:
    """How rare p is, in words."""
    if p > 0.05:
        return f"{100 * p:.0f} of 100 texts"
    if p > 1e-6:
        return f"one of {float(f'{1 / p:.2g}'):,.0f} texts"
    return f"one of 10^{min(290, math.floor(-math.log10(max(p, 1e-290))))} texts"


def sentence(d: Detection) -> str:
    """The verdict in one sentence, and what it does not say."""
    counts = (
        f"{d.green_count} of {d.scored} different pairs of neighbouring tokens are green, where "
        f"chance alone gives about {d.expected:.0f}"
    )
    if d.decision == "found":
        return (
            f"The watermark is in this text: {counts}; so many come by chance in {odds(d.p_value)}."
        )
    if d.decision == "too short":
        return (
            f"Too short to decide: {counts}; even if all were green, that would come by chance in "
            f"{odds(d.least_p)}, and {odds(d.level)} is asked for."
        )
    return (
        f"No watermark found: {counts}; as many come by chance in {odds(d.p_value)}. This does not "
        "show who wrote it: editing removes a watermark, and predictable text carries little."
    )


def numbers(d: Detection) -> dict[str, str]:
    """The numbers behind the sentence."""
    where = f"best of {d.windows}: tokens {d.start} to {d.start + d.length - 1}"
    return {
        "exact p-value": f"{d.p_value:.3g} (decision at {d.level:g})",
        "green pairs": f"{d.green_count} of {d.scored} (by chance {d.expected:.1f})",
        "repeated pairs": f"{d.repeats:.0%}, counted once",
        "z of different pairs": f"{d.z_unique:.2f}",
        "z of the paper": f"{d.z:.2f}, all pairs counted",
        "scored": "the whole text" if d.windows == 1 else where,
    }


# --- parts of the text ----------------------------------------------------------------------------


def parts(d: Detection) -> list[tuple[float, float, float, float]]:
    """Share of green pairs of consecutive parts, its 95 % interval (Clopper and Pearson) and the
    share that chance gives: (share, low, high, chance) each."""
    from scipy import stats

    first = np.flatnonzero(d.evidence.first)
    rows = []
    for part in np.array_split(first, max(1, len(first) // PART)):
        n, k = len(part), int(d.evidence.green[part].sum())
        low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
        high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
        rows.append((k / n, float(low), float(high), float(d.evidence.gamma[part].mean())))
    return rows


def drawing(d: Detection) -> str:
    """The parts as a figure: a point with its error bar each, over the line of chance."""
    rows = parts(d)
    step, height = (WIDTH - LEFT) / len(rows), HEIGHT - 20

    def y(share: float) -> str:
        return f"{10 + (1 - share) * height:.1f}"

    lines = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{y(v)}" y2="{y(v)}"/>'
        f'<text x="{LEFT - 6}" y="{y(v)}" dy="4" text-anchor="end">{v:.0%}</text>'
        for v in (0, 0.5, 1)
    ]
    for i, (share, low, high, chance) in enumerate(rows):
        x, kind = LEFT + (i + 0.5) * step, "sign" if low > chance else "none"
        title = f"part {i + 1}: {share:.0%} green ({low:.0%} to {high:.0%}), by chance {chance:.0%}"
        ends = f'x1="{LEFT + i * step:.1f}" x2="{LEFT + (i + 1) * step:.1f}"'
        lines += [
            f'<line class="chance" {ends} y1="{y(chance)}" y2="{y(chance)}"/>',
            f'<g class="{kind}"><title>{title}</title>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(low)}" y2="{y(high)}"/>'
            f'<circle cx="{x:.1f}" cy="{y(share)}" r="4"/></g>',
        ]
    silent = sum(low <= chance for _, low, _, chance in rows)
    label = f"Share of green pairs along the text, {len(rows)} parts"
    caption = (
        f"{label}, from left to right, with 95 % intervals; dashed: what chance gives. {silent} of "
        f"{len(rows)} parts (hollow) show no sign of the watermark on their own: edited, written "
        "by somebody else, or too short to tell."
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(lines)}'
    return f"<figure>{svg}</svg><figcaption>{caption}</figcaption></figure>"


# --- the page -------------------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Watermark: {decision}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #1b1b1b; --soft: #595959; --rule: #d0d0d0;
  --green: #d7f0dd; --green-line: #1b7a3d; --red: #fbe0de; --red-line: #b3372f }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #16181c; --ink: #e8e8e8; --soft: #a8adb5;
  --rule: #3a3f47; --green: #12351f; --green-line: #5fce87; --red: #43201d;
  --red-line: #ff8f85 }} }}
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--page) }}
h1 {{ font-size: 1.5rem; margin-bottom: .5rem }}
.text {{ line-height: 2; overflow-wrap: anywhere }}
.t {{ padding: 2px 0; border-bottom: 3px solid transparent; white-space: pre-wrap }}
.g {{ background: var(--green); border-bottom: 3px solid var(--green-line) }}
.r {{ background: var(--red); border-bottom: 3px dotted var(--red-line) }}
.s {{ color: var(--soft) }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ text-align: left; padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid var(--rule);
  font-weight: normal }}
th, figcaption {{ color: var(--soft) }}
figure {{ margin: 1rem 0 }} figcaption {{ font-size: .9rem }} svg {{ width: 100% }}
svg text {{ font-size: 11px; fill: var(--soft) }}
.axis {{ stroke: var(--rule) }} .chance {{ stroke: var(--ink); stroke-dasharray: 4 3 }}
.sign line {{ stroke: var(--green-line); stroke-width: 2 }}
.sign circle {{ fill: var(--green-line) }}
.none line {{ stroke: var(--soft); stroke-width: 2 }}
.none circle {{ fill: var(--page); stroke: var(--soft); stroke-width: 2 }}
</style>
<h1>{title}</h1><p>{sentence}</p>
{drawing}
<p><span class="t g">green</span> <span class="t r">red</span> <span class="s">not scored, or a pair
that came before</span>; point at a token to see the share gamma of its list.</p>
<p class="text">{tokens}</p>
<table>{rows}</table></html>
"""
TITLES = {
    "found": "Watermark found",
    "not found": "No watermark found",
    "too short": "Too short to decide",
}


def write(d: Detection, pieces: list[str]) -> str:
    """The page. pieces: (n,) printable text of each token."""
    evidence = d.evidence
    spans = [span("s", "the first token has no list", pieces[0])]
    for t, piece in enumerate(pieces[1:]):
        color, word = ("g", "green") if evidence.green[t] else ("r", "red")
        title = f"{word}; gamma {evidence.gamma[t]:.3f}"
        if not evidence.counted[t]:
            color, title = "s", "not scored"
        elif not evidence.first[t]:
            color, title = "s", f"{title}; this pair came before and is counted once"
        spans.append(span(color, title, piece))
    return PAGE.format(
        decision=d.decision,
        title=TITLES[d.decision],
        sentence=html.escape(sentence(d)),
        drawing=drawing(d),
        tokens="".join(spans),
        rows="".join(
            f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>"
            for k, v in numbers(d).items()
        ),
    )


def span(color: str, title: str, piece: str) -> str:
    return f'<span class="t {color}" title="{title}">{html.escape(piece)}</span>'
