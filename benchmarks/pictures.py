"""Pictures of a result: which figures of `plots` a page gets, with which numbers, colours, captions and alt texts."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, readme

CHECKOUT = Path(__file__).resolve().parents[1]
RunDirectories = dict[tuple[str, str, int], Path]  # (arm, task, seed) -> directory

# First match decides: words of a verdict, an outcome or a comparison -> (style, sign). A sign and a word always stand
# together, so that colour is never the only carrier.
LABEL = 44  # characters that fit above a picture beside the effect
BADGES = (
    ("SUPPORTED, NOT ATTRIBUTED", "partly", "◐"),
    ("SUPPORTED, ATTRIBUTION OPEN", "partly", "◔"),
    ("SUPPORTED", "for", "●"),
    ("CONTRADICTED", "against", "✕"),
    ("INCONCLUSIVE", "neutral", "○"),
    ("NOT RUN", "absent", "–"),
    ("NO PUBLISHED VALUE", "absent", "∅"),
    ("NOT REPRODUCED", "against", "✕"),
    ("REPRODUCED", "for", "●"),
    ("BETTER", "for", "▲"),
    ("SUBSTITUTED", "neutral", "≈"),
    ("CONTEXT", "absent", "·"),
    ("NOT BEATEN", "against", "✕"),
    ("BEATEN", "for", "●"),
    ("OPEN", "neutral", "○"),
    ("FAILED", "against", "✕"),
    ("HOLDS", "for", "●"),
    ("EXHIBIT", "absent", "◇"),
    ("NO COUNTERPART", "absent", "–"),
)
TONES = {"for": plots.FOR, "partly": plots.FOR, "against": plots.AGAINST}


def badge_of(words: str) -> tuple[str, str]:
    for start, name, sign in BADGES:
        if words.upper().startswith(start):
            return name, sign
    return "neutral", "?"


def seeds_of(claim: dict[str, Any], data: dict[str, Any]) -> list[int]:
    """The seeds behind a claim's differences: tasks of one scale may have different numbers of them."""
    tasks = claim.get("tasks") or []
    arms = readme.sides(claim)
    runs = [
        r for r in data.get("runs") or [] if r["arm"] in arms and (not tasks or r["task"] in tasks)
    ]
    seeds = sorted({r["seed"] for r in runs})
    return seeds if len(seeds) == claim.get("n") else data.get("seeds") or []


def claim_picture(claim: dict[str, Any], data: dict[str, Any], key: str) -> plots.Picture | None:
    """Paired differences of the claim and of its controls; None if there is no difference to show."""
    seeds = seeds_of(claim, data)
    bad = {(r["arm"], r["seed"]) for r in data.get("runs") or [] if r.get("status") == "diverged"}
    sides = readme.sides(claim)

    def failed(names: Sequence[str], n: int) -> list[bool]:
        if claim.get("unit") == "item" or n != len(seeds):
            return [False] * n
        return [any((arm, seed) in bad for arm in names) for seed in seeds]

    def row(
        label: str,
        part: dict[str, Any],
        names: Sequence[str],
        threshold: float,
        tone: str,
        material: float | None,
    ) -> plots.Row:
        d = [readme.number_or_none(v) for v in part.get("d") or []]
        shown = (
            d if len(d) <= 200 else []
        )  # items as replicates: intervals say it, thousands of dots do not
        effect = readme.number_or_none(part.get("effect"))
        flags = failed(names, len(shown))
        return plots.Row(
            label,
            shown,
            effect,
            part.get("ci95"),
            part.get("item_ci95"),
            threshold,
            tone,
            flags,
            material,
        )

    tone = TONES.get(badge_of(claim.get("verdict") or "")[0], plots.NEUTRAL)
    threshold = float(claim.get("threshold") or 0)
    formula = readme.formula(claim).replace(" - ", " − ")
    label = (
        formula if len(formula) <= LABEL else f"the {claim.get('kind')} compared"
    )  # a longer one meets the effect
    rows = [row(label, claim, sides, threshold, tone, None)]
    for control in readme.controls_of(claim):
        outcome = control.get("outcome") or "OPEN"
        tone = TONES.get(badge_of(outcome)[0], plots.NEUTRAL)
        label = f"control {control.get('arm')}: {outcome}"
        rows.append(
            row(
                label,
                control,
                [*sides[:1], control.get("arm", "")],
                0.0,
                tone,
                claim.get("material", 1.0),
            )
        )
    if not any(r.d or plots.finite(r.ci95) for r in rows):
        return None
    unit = readme.unit_of(claim)
    figure = plots.forest(rows, unit)
    values = (
        ", ".join(readme.number(v, signed=True) for v in rows[0].d)
        or f"{len(claim.get('d') or [])}, not listed"
    )
    alt = (
        f"Paired differences of claim {claim['id']}: {formula}. Effect {readme.number(rows[0].effect, signed=True)} {unit}, "
        f"95 % interval {readme.interval(rows[0].ci95)}, threshold {readme.number(threshold)}. Per replicate: {values}."
    )
    for r, control in zip(rows[1:], readme.controls_of(claim), strict=True):
        alt += f" Control {control.get('arm')}: {readme.number(r.effect, signed=True)}, {readme.interval(r.ci95)}, {control.get('outcome') or 'OPEN'}."
    return plots.picture(figure, claim["id"], "", alt, f"{key}-claim-{claim['id']}")


def strip_pictures(data: dict[str, Any], declared: dict[str, Any], key: str) -> list[plots.Picture]:
    """Per task and metric: every arm's score for every seed."""
    found, pictures = readme.scores(data, declared), []
    factor = readme.factors_by_task(data)
    claims = data.get("claims") or []
    methods = {
        arm for claim in claims if claim.get("role") != "exhibit" for arm in readme.sides(claim)[:1]
    }
    controls = {c.get("arm") for claim in claims for c in readme.controls_of(claim)}
    for task, metrics in readme.metrics_of(data).items():
        for metric in metrics:
            arms = []
            for arm in readme.arms_of(data):
                points = found.get((task, metric, arm), [])
                if points:
                    tone = (
                        plots.FOR
                        if arm in methods
                        else plots.AGAINST
                        if arm in controls
                        else plots.NEUTRAL
                    )
                    arms.append((arm, tone, [(value, diverged) for _, value, diverged in points]))
            if not arms:
                continue
            unit = " (points)" if factor.get((task, metric)) == 100 else ""
            means = "; ".join(f"{a} {readme.mean_sd(found[task, metric, a])}" for a, _, _ in arms)
            alt = f"Scores of all arms on {task}, {metric}{unit}, a point per seed. Mean ± sd: {means}."
            caption = f"{task}: {metric}{unit}"
            key = f"{key}-strip-{task}-{metric}"
            pictures.append(
                plots.picture(plots.strips(arms, f"{metric}{unit}"), caption, caption, alt, key)
            )
    return pictures


def curve_pictures(
    data: dict[str, Any], directories: RunDirectories, key: str, at_most: int = 6
) -> list[plots.Picture]:
    """Per task the logged quantities that most runs have, from `metrics.jsonl`; what is not a finite number is left out."""
    logged: dict[str, dict[str, dict[str, list[list[tuple[float, float]]]]]] = {}
    for (arm, task, _), directory in directories.items():
        path = directory / "metrics.jsonl"
        if not path.exists():
            continue
        own: dict[str, list[tuple[float, float]]] = {}
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed run
            step = readme.number_or_none(entry.get("step"))
            for key, value in entry.items():
                if (
                    key not in ("step", "seconds", "time", "epoch")
                    and readme.number_or_none(value) is not None
                ):
                    own.setdefault(key, []).append(
                        (float(i) if step is None else step, float(value))
                    )
        for key, curve in own.items():
            logged.setdefault(task, {}).setdefault(key, {}).setdefault(arm, []).append(curve)
    pictures = []
    for task, keys in logged.items():
        by_runs = sorted(keys, key=lambda k: -sum(len(curves) for curves in keys[k].values()))
        for key in by_runs[:at_most]:
            arms = {arm: keys[key][arm] for arm in readme.arms_of(data) if arm in keys[key]}
            ends = "; ".join(
                f"{arm} {readme.number(sum(c[-1][1] for c in cs) / len(cs))}"
                for arm, cs in arms.items()
            )
            alt = f"{key} over steps on {task}, mean over seeds. Last values: {ends}."
            caption = (
                f"{task}: {key}, mean over {max(map(len, arms.values()))} seeds in bins of steps"
            )
            name = f"{key}-curve-{task}-{key}"
            pictures.append(plots.picture(plots.curves(arms, key), key, caption, alt, name))
    return pictures


def method_pictures(
    data: dict[str, Any], directory: Path, run_dirs: RunDirectories, key: str
) -> tuple[list[plots.Picture], str]:
    """The method's own figures, and what went wrong if it did: a broken figure must not hide a verdict."""
    path = directory / "figures.py"
    if not path.exists():
        return [], ""
    from matplotlib import pyplot

    pictures: list[plots.Picture] = []
    try:
        with plots.style():
            if path.resolve().parents[1] == CHECKOUT:
                module = importlib.import_module(f"{directory.name}.figures")
            else:  # another checkout's results are drawn by its own figures
                spec = importlib.util.spec_from_file_location(f"{directory.name}_figures", path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            for name, caption, alt, figure in module.figures(data, run_dirs):
                pictures.append(plots.picture(figure, name, caption, alt, f"{key}-own-{name}"))
                pyplot.close(
                    figure
                )  # the methods draw with pyplot, which keeps every figure until told
    except Exception as error:
        message = f"{directory.name}.figures failed: {type(error).__name__}: {error}"
        print(message, file=sys.stderr)
        return pictures, message
    return pictures, ""
