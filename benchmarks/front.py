"""The report's first page: what was found, in one sentence a paper and one figure; what is open,
what would settle it, and what that costs. Out of recorded claims and declared hours alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from benchmarks import plots
from benchmarks.arms import Cost
from benchmarks.pictures import tone_of
from benchmarks.recorded import Claim, finite
from benchmarks.rules import SMALLER, plain
from benchmarks.words import interval, margin, number, seeds_to_decide, unit_of

# how a sentence about claims with this verdict begins
LEADS = {
    "SUPPORTED": "it holds that",
    "SUPPORTED, NOT ATTRIBUTED": "it holds, but without the idea just as well or better, that",
    "SUPPORTED, ATTRIBUTION OPEN": "it holds, whether because of the idea or not, that",
    "CONTRADICTED": "the opposite was found of the claim that",
    "NO MATERIAL DIFFERENCE": "no difference that would matter was found where it is claimed that",
    "INCONCLUSIVE": "these runs cannot tell whether",
    "INSENSITIVE": "these runs could not have shown whether",
    "NOT RUN": "nothing was run on the claim that",
}
SMALL = {"cpu": "On small models and data", "gpu": "On smaller models and data"}
STEP = 0.54  # between lines of a label
EDGE = 6.0  # of the figure, in differences that matter: what lies beyond is marked at the edge
LETTERS = 62  # of a line of a label
HARD = "\N{NO-BREAK SPACE}"


def sentence(claims: Sequence[Claim], scale: str) -> str:
    """What the primary claims of a paper came to, with their effects, in one sentence."""
    parts = []
    judged = [claim for claim in claims if claim.role == "primary"]
    for word, lead in LEADS.items():
        said = [told(claim) for claim in judged if plain(claim.verdict or "NOT RUN") == word]
        if said:
            parts.append(f"{lead} {', and that '.join(said)}")
    if not parts:
        return "No primary claim is judged yet."
    text = f"{SMALL.get(scale, 'On the paper’s own models and data')} {'; '.join(parts)}."
    return text


def told(claim: Claim) -> str:
    """'the learned ranks score higher (+0.86 points, 95 % +0.51 to +1.22)'."""
    statement = (claim.statement or claim.id).rstrip(".")
    second = statement[1:2]
    if second.islower() or second == " ":  # a word, no name in capitals
        statement = statement[0].lower() + statement[1:]
    if claim.effect is None:
        return statement
    unit = "" if claim.unit == "raw" else f"{HARD}{unit_of(claim)}"  # a name of code says nothing
    size = f"{number(claim.effect, signed=True)}{unit}"
    ends = f", 95{HARD}% {interval(claim.ci95)}" if len(finite(claim.ci95)) == 2 else ""
    matter = f"{claim.material:g}" if claim.unit == "raw" else margin(claim)
    less = f", less than the {matter} that would matter"
    return f"{statement} ({size}{ends}{less if SMALLER.search(claim.verdict or '') else ''})"


# --- every primary claim in one figure ------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A claim in the figure: effect and interval in differences that matter, from its threshold."""

    paper: str
    claim: Claim
    effect: float
    ends: tuple[float, float]


def lines(papers: Sequence[tuple[str, Sequence[Claim]]]) -> list[Line]:
    found = []
    for paper, claims in papers:
        for claim in claims:
            ends = finite(claim.ci95)
            if claim.role != "primary" or claim.effect is None or len(ends) != 2:
                continue
            low, high = ((end - claim.threshold) / claim.material for end in ends)
            effect = (claim.effect - claim.threshold) / claim.material
            found.append(Line(paper, claim, effect, (low, high)))
    return found


def picture(papers: Sequence[tuple[str, Sequence[Claim]]]) -> plots.Picture | None:
    """Interval beside the band of what would not matter, all papers; None without a claim."""
    drawn = lines(papers)
    if not drawn:
        return None
    words = [
        f"{line.paper}, {line.claim.statement or line.claim.id} {line.claim.verdict}, "
        f"{number(line.claim.effect, signed=True)} {unit_of(line.claim)}, "
        f"{interval(line.claim.ci95)}, would matter: {margin(line.claim)}"
        for line in drawn
    ]
    caption = (
        "Diamond and bar: effect and 95 % t interval over seeds, measured from the claim's "
        "threshold in units of the smallest difference that would matter (named on each page). "
        "Grey band: too small to matter. Right of zero favours the claim; an arrow: it goes on."
    )
    alt = f"Primary claims of all papers. {'. '.join(words)}."
    return plots.picture(figure(drawn), "primary claims", caption, alt, "primary-claims")


def figure(drawn: Sequence[Line]) -> Figure:
    labels = [
        textwrap.wrap(text[0].upper() + text[1:], LETTERS, max_lines=2, placeholder=" …")
        for text in (line.claim.statement or line.claim.id for line in drawn)
    ]
    tops: list[float] = []
    heads: dict[str, float] = {}
    y = 0.0
    for line, label in zip(drawn, labels):
        if line.paper not in heads:
            y -= 0.45 if heads else 0.0
            heads[line.paper] = y
            y -= 0.68
        tops.append(y)
        y -= STEP * len(label) + 0.85
    with plots.style():
        made = Figure(figsize=(plots.WIDTH, 0.45 + 0.28 * -y))
        axes = made.add_subplot()
        across: Any = {"transform": axes.get_yaxis_transform(), "va": "center"}
        for paper, top in heads.items():
            axes.text(0, top, paper, fontsize=9, fontweight="bold", **across)
        for line, label, top in zip(drawn, labels, tops):
            for i, text in enumerate(label):
                axes.text(0, top - STEP * i, text, fontsize=8, **across)
            mark(axes, line, top - STEP * len(label) - 0.04)
        axes.set(xlim=(-EDGE, EDGE), ylim=(y + 0.2, 0.5))
        axes.set_yticks([])
        axes.set_xticks([-5, -1, 0, 1, 5])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("effect, in differences that would matter")
    return made


def mark(axes: Any, line: Line, y: float) -> None:
    tone, inside = tone_of(line.claim.verdict), EDGE * 0.97
    ends = [y - 0.3, y + 0.3]
    axes.fill([-1, 1, 1, -1], [ends[0], ends[0], ends[1], ends[1]], plots.FAINT, lw=0, zorder=0)
    axes.plot([0, 0], ends, color=plots.INK, linewidth=0.8, linestyle=(0, (2, 1.5)), zorder=0.5)
    low, high = (min(max(end, -inside), inside) for end in line.ends)
    if low < high:
        axes.plot([low, high], [y, y], color=tone, linewidth=3.2, solid_capstyle="butt")
    for end in line.ends:
        if abs(end) > inside:
            place, shape = (inside, ">") if end > 0 else (-inside, "<")
            axes.plot(place, y, shape, color=tone, markersize=6)
    if abs(line.effect) > inside:
        side: Any = {"ha": "right" if line.effect > 0 else "left", "va": "center"}
        place = 0.94 * inside * (1 if line.effect > 0 else -1)
        axes.text(place, y, f"{line.effect:+.0f}".replace("-", "−"), color=tone, fontsize=8, **side)
    else:
        edge: Any = {"markeredgecolor": plots.INK, "markeredgewidth": 0.6}
        axes.plot(line.effect, y, "D", markersize=4.6, color=tone, **edge)


# --- what is open ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Open:
    """A primary claim without an answer, what would give one, and the seconds of one process."""

    claim: Claim
    settles: str
    seconds: float | None


def open_claims(claims: Sequence[Claim], costs: Mapping[str, Cost]) -> list[Open]:
    found = []
    for claim in claims:
        word = plain(claim.verdict or "NOT RUN")
        if claim.role != "primary" or word not in ("INCONCLUSIVE", "INSENSITIVE", "NOT RUN"):
            continue
        needed = seeds_to_decide(claim)
        if word == "INSENSITIVE":
            settles = "another experiment: in this one two arms known to differ do not show it"
            needed = None
        elif needed:
            settles = f"about {needed:,} new seeds, which would find {margin(claim)}"
        elif word == "NOT RUN":
            settles = "a run of this scale"
        else:
            settles = "no more seeds of this experiment: its intervals lie at the edge of the rule"
        found.append(Open(claim, settles, needed * per_seed(claim, costs) if needed else None))
    return found


def per_seed(claim: Claim, costs: Mapping[str, Cost]) -> float:
    """Seconds of one seed of all arms of the claim, on each of its tasks."""
    positive = claim.sensitivity.arms.sides if claim.sensitivity else []
    arms = {*claim.arms.sides, *positive, *(control.arm for control in claim.controls)}
    seconds = (costs[arm].seconds_in_all or 0.0 for arm in arms if arm in costs)
    return sum(seconds) * max(1, len(claim.tasks))


def paper_hours(directory: Path) -> float | None:
    """GPU hours of the paper's own scale, as protocol.yaml states them; None if it does not."""
    path = directory / "protocol.yaml"
    if not path.exists():
        return None
    scales = yaml.safe_load(path.read_text(encoding="utf-8")).get("scales") or {}
    return (scales.get("paper") or {}).get("hours")
