"""What `python -m <paper>.train --tiny` tells: what is learned, by whom, and what it is worth.

A paper declares in `<paper>/story.yaml` a few runs, the method's beside one opponent and one
control, and the words for them (`Story`). They are trained like any run, here without a word of
their own: their lines go to a log, their metrics to a file. Then come sentences with the numbers
before and after, and a picture. One seed proves nothing, so the recorded verdict stands beside it.
"""

from __future__ import annotations

import contextlib
import json
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from shared import protocol, runs
from shared.protocol import BadInput, Document, Protocol

# (scale, run, further words of the command line, changed settings) -> the run's directory
Train = Callable[[str, protocol.Node, list[str], Mapping[str, Any]], Path]

COLOURS = {"before": "#8b8b8b", "method": "#1f83c4", "opponent": "#a98310", "control": "#d0641b"}


class Source(Document):
    """Where a learned quantity stands: a key of a run's metrics.jsonl, or an array of its
    predictions.npz, or keys of its metrics, one after the other."""

    arm: str
    key: str = ""
    array: str = ""
    metrics: list[str] = Field(default_factory=list)
    index: list[int] = Field(default_factory=list)  # of a key that is nested: this part of it


class Watch(Document):
    """What is learned, before and after; a number is drawn over the steps, a list as bars."""

    say: str
    names: list[str] = Field(default_factory=list)  # of the items of a list
    before: Source
    after: Source
    truth: Source | None = None  # where it is known
    truth_say: str = "The truth"
    before_say: str = "Before"
    digits: int = 2


class Arm(Document):
    arm: str
    role: Literal["before", "method", "opponent", "control"]
    say: str
    metric: str = ""  # where it is not that of the story
    set: dict[str, Any] = Field(default_factory=dict)


class Story(Document):
    """story.yaml."""

    data: str
    learned: str  # what, by whom, from what
    scale: Literal["tiny", "cpu"] = "tiny"
    task: str
    set: dict[str, Any] = Field(default_factory=dict)
    watch: Watch
    metric: str
    metric_say: str
    times: float = 1.0
    digits: int = 1
    lower: bool = False  # whether lower is better
    arms: list[Arm] = Field(min_length=3)
    claim: str = ""  # the recorded claim that asks the same of many seeds
    note: str = ""


@dataclass(frozen=True)
class Trained:
    arm: Arm
    directory: Path
    score: float


def read(directory: Path) -> Story:
    name = f"{directory.name}/story.yaml"
    return protocol.read_as(Story, protocol.load_yaml(directory / "story.yaml", name), name)


def tell(paper: Protocol, seed: int, train: Train) -> None:
    """Train the runs of the story, print it, and write picture, metrics and log."""
    story = read(paper.directory)
    place = protocol.runs_root(paper.root) / paper.paper / "story" / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    about = protocol.load_yaml(paper.directory / "paper.yaml", "paper.yaml")
    say(f"{about['line']} ({about['venue']}, arXiv {about['arxiv']})")
    say(f"A tiny run: {story.data}")
    say(f"Learned: {story.learned}")
    print()
    trained = [one_run(paper, story, arm, seed, train, place / "log.txt") for arm in story.arms]
    records = {one.arm.arm: record_of(one.directory) for one in trained}
    values = {name: record["metrics"] for name, record in records.items()}
    runs.write_json(place / "metrics.json", values)
    print()
    for line in sentences(paper, story, trained):
        say(line)
    draw(story, trained, place / "picture.png", about["title"])
    print(f"\n  picture        {place / 'picture.png'}")
    print(f"  every metric   {place / 'metrics.json'}")
    print(f"  what runs said {place / 'log.txt'}")
    say(
        f'Next: "Read one method in an hour" in {paper.paper}/README.md. With an option --tiny is a'
        f" single run: `python -m {paper.paper}.train --tiny --help` lists them."
    )


def one_run(paper: Protocol, story: Story, arm: Arm, seed: int, train: Train, log: Path) -> Trained:
    """Train one run and what it uses, with one line on the terminal."""
    begun = time.monotonic()
    print(f"  {arm.role:9} {arm.say} ...", end="", flush=True)
    node, changed = paper.node(story.scale, arm.arm, story.task, seed), story.set | arm.set
    for name in changed:
        if name not in paper.defaults:
            raise protocol.unknown(name, paper.defaults, f"{paper.paper}/story.yaml: set")
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changed.items()}
        directory = train(story.scale, node, [], changes)
    metrics = record_of(directory)["metrics"]
    name = arm.metric or story.metric
    if name not in metrics:
        raise BadInput(f"{paper.paper}/story.yaml: {arm.arm} has no metric {name}")
    print(f" {time.monotonic() - begun:.0f} s")
    return Trained(arm, directory, metrics[name] * story.times)


def record_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "record.json").read_text(encoding="utf-8"))


# --- sentences ------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(textwrap.fill(text, 96))


def sentences(paper: Protocol, story: Story, trained: Sequence[Trained]) -> list[str]:
    watch, by_role = story.watch, {one.arm.role: one for one in trained}
    before, after = (values_of(x, trained, i) for x, i in ((watch.before, 0), (watch.after, -1)))
    lines = [
        f"{watch.before_say}, {watch.say}: {numbers(before, watch)}.",
        f"After, {watch.say}: {numbers(after, watch)}."
        + (f" {watch.truth_say}: {numbers(values_of(watch.truth, trained, -1), watch)}."
           if watch.truth else ""),
    ]  # fmt: skip
    scores = [f"{one.score:.{story.digits}f} {one.arm.say}" for one in trained]
    lines.append(f"{story.metric_say}: {'; '.join(scores)}.")
    method = by_role["method"].score
    compared = [
        f"{gap(method - by_role[role].score, story)} {words}"
        for role, words in (("opponent", "its opponent"), ("control", "its control"))
        if role in by_role
    ]
    lines.append(f"So here the method is {' and '.join(compared)}.")
    lines.append(verdict(paper, story))
    return [line for line in [*lines, story.note] if line]


def gap(difference: float, story: Story) -> str:
    size = f"{abs(difference):.{story.digits}f}"
    if float(size) == 0:
        return "level with"
    better = (difference > 0) != story.lower
    return f"{size} {'better' if better else 'worse'} than"


def verdict(paper: Protocol, story: Story) -> str:
    """What the recorded runs say of the same question; without a record, what to type."""
    path = paper.directory / "results" / "cpu.json"
    single = "One seed is an anecdote."
    claims = json.loads(path.read_text(encoding="utf-8"))["claims"] if path.exists() else []
    for claim in claims:
        if claim["id"] == story.claim:
            low, high = claim["ci95"]
            points = " points" if claim["unit"] == "points" else ""
            effect, low, high = together(claim["effect"], low, high)
            size = f"{effect}{points}, 95 % {low} to {high}"
            asked = claim["statement"].rstrip(".")
            over = f"{claim['n']} {'items' if claim['unit'] == 'item' else 'seeds'}"
            return f'{single} Recorded over {over}: "{asked}": {claim["verdict"]} ({size}).'
    return f"{single} `make reproduce-{paper.paper}` judges the claims over many."


def together(*values: float) -> list[str]:
    """Numbers that are compared, with the decimals that the largest needs for three digits."""
    largest = max(map(abs, values))
    decimals = max(2, 2 - math.floor(math.log10(largest))) if largest else 2
    return [f"{value:+.{decimals}f}" for value in values]


def numbers(values: np.ndarray, watch: Watch) -> str:
    shown = [f"{value:.{watch.digits}f}" for value in values]
    if len(shown) == len(watch.names):
        return ", ".join(f"{name} {value}" for name, value in zip(watch.names, shown))
    return ", ".join(shown)


def values_of(source: Source, trained: Sequence[Trained], place: int) -> np.ndarray:
    """(n,): the first (place 0) or last (-1) value of the source."""
    return history(source, trained)[1][place]


def history(source: Source, trained: Sequence[Trained]) -> tuple[np.ndarray, np.ndarray]:
    """steps (t,), values (t, n) of a source; one row where it has no steps."""
    directory = directory_of(source.arm, trained)
    if source.key:
        text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [line for line in map(json.loads, text.splitlines()) if source.key in line]
        if not lines:
            raise BadInput(f"story.yaml: {source.arm} logs no {source.key}")
        steps = np.array([line.get("step", i) for i, line in enumerate(lines)])
        parts = [np.array(line[source.key])[tuple(source.index)] for line in lines]
        return steps, np.array([np.ravel(part) for part in parts], dtype=float)
    if source.array:
        with np.load(directory / "predictions.npz") as stored:
            return np.zeros(1), np.ravel(stored[source.array])[None].astype(float)
    metrics = record_of(directory)["metrics"]
    return np.zeros(1), np.array([[metrics[name] for name in source.metrics]])


def directory_of(arm: str, trained: Sequence[Trained]) -> Path:
    """Of an arm of the story, or of a run that one of them used."""
    for one in trained:
        used = record_of(one.directory)["config"]["uses"]
        if one.arm.arm == arm or arm in used:
            return one.directory if one.arm.arm == arm else Path(used[arm])
    raise BadInput(f"story.yaml: no run of {arm} among {[one.arm.arm for one in trained]}")


# --- the picture ----------------------------------------------------------------------------------


def draw(story: Story, trained: Sequence[Trained], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    look: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with matplotlib.rc_context(look):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        draw_learned(left, story.watch, trained)
        names = [textwrap.fill(f"{one.arm.role}: {one.arm.say}", 30) for one in trained]
        scores = [one.score for one in trained]
        colours = [COLOURS[one.arm.role] for one in trained]
        right.hlines(range(len(names)), 0, scores, color=colours, alpha=0.35, linewidth=5)
        right.scatter(scores, range(len(names)), c=colours, s=50, zorder=3)
        for row, score in enumerate(scores):
            right.annotate(
                f"{score:.{story.digits}f}", (score, row), (7, 0), textcoords="offset points",
                va="center",
            )  # fmt: skip
        right.set_yticks(range(len(names)), names)
        right.invert_yaxis()
        right.margins(x=0.15)
        right.set_xlabel(textwrap.fill(story.metric_say, 50))
        right.set_title("What it is worth")
        figure.suptitle(textwrap.shorten(f"{title} (one seed)", 110, placeholder=" ..."))
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def draw_learned(axes: Any, watch: Watch, trained: Sequence[Trained]) -> None:
    steps, values = history(watch.after, trained)
    if values.shape[1] == 1 and len(steps) > 1:
        axes.plot(steps, values[:, 0], color=COLOURS["method"])
        axes.set_xlabel("step")
        axes.set_ylabel(watch.say)
    else:
        shown = [(watch.before_say, values_of(watch.before, trained, 0), COLOURS["before"])]
        shown.append(("After", values[-1], COLOURS["method"]))
        if watch.truth:
            shown.append((watch.truth_say, values_of(watch.truth, trained, -1), "#109c77"))
        width = 0.8 / len(shown)
        for i, (name, row, colour) in enumerate(shown):
            place = np.arange(len(row)) + (i - (len(shown) - 1) / 2) * width
            axes.bar(place, row, width * 0.92, color=colour, label=name)
        count = len(values[-1])
        names = watch.names or [str(i + 1) for i in range(count)]
        axes.set_xticks(range(count), [textwrap.fill(name, 12) for name in names])
        axes.set_ylabel(watch.say)
        axes.legend(frameon=False, fontsize=8)
    axes.set_title("What is learned")
