"""Which figures of `plots` a page gets, with which numbers, colours, captions and alt texts."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot

from benchmarks import plots
from benchmarks.arms import arms_of, factors, metrics_of, scores, seeds_of
from benchmarks.claims import Claims
from benchmarks.recorded import Claim, Control, Results, RunKey, Sensitivity, finite
from benchmarks.tables import mean_sd
from benchmarks.words import badge_of, fewer, formula, interval, margin, number, unit_of

CHECKOUT = Path(__file__).resolve().parents[1]
LABEL = 44  # characters that fit above a picture beside the effect
MOST_DOTS = 200  # items as replicates: intervals say it, thousands of dots do not
MOST_CURVES = 6  # of a task
TONES = {"for": plots.FOR, "partly": plots.FOR, "against": plots.AGAINST}


def tone_of(words: str | None) -> str:
    return TONES.get(badge_of(words or "")[0], plots.NEUTRAL)


def claim_picture(claim: Claim, result: Results, key: str) -> plots.Picture | None:
    """Paired differences of the claim, its positive control and its controls, each beside what
    would matter; None if there is none to show."""
    seeds, sides = seeds_of(claim, result), claim.arms.sides
    diverged = {(run.arm, run.seed) for run in result.runs if run.status == "diverged"}

    def row(
        label: str, part: Claim | Control | Sensitivity, arms: Sequence[str], words: str | None
    ) -> plots.Row:
        d = part.d if len(part.d) <= MOST_DOTS else []
        of_part = seeds if part is claim else seeds[: len(d)]  # an arm may have the first alone
        failed = [any((arm, seed) in diverged for arm in arms) for seed in of_part]
        by_seed = claim.unit != "item" and len(d) == len(of_part)
        whole = part is claim
        return plots.Row(
            label=label,
            d=d,
            effect=part.effect,
            ci95=part.ci95,
            item_ci95=None if isinstance(part, Sensitivity) else part.item_ci95,
            threshold=float(claim.threshold) if whole else 0.0,
            tone=tone_of(words),
            failed=failed if by_seed else [False] * len(d),
            material=None if whole else claim.material,
            band=(-claim.material, claim.material)
            if whole and claim.p_within is not None
            else None,
        )

    compared = formula(claim).replace(" - ", " − ")
    label = compared if len(compared) <= LABEL else f"the {claim.kind} compared"
    rows = [row(label, claim, sides, claim.verdict)]
    if (positive := claim.sensitivity) and positive.d:
        pair = [*positive.arms.methods, str(positive.arms.opponent)]
        label = f"positive control {' − '.join(pair)}: {positive.outcome}"
        label = label if len(label) <= LABEL else f"positive control: {positive.outcome}"
        rows.append(row(label, positive, pair, positive.outcome))
    for control in claim.controls:
        label = f"control {control.arm}: {control.outcome}"
        of_fewer = fewer(control, claim)
        label += of_fewer if len(label + of_fewer) <= LABEL else ""
        rows.append(row(label, control, [*sides[:1], control.arm], control.outcome))
    if not any(finite(r.d) or finite(r.ci95) for r in rows):
        return None
    unit, first = unit_of(claim), rows[0]
    values = ", ".join(number(d, signed=True) for d in first.d) or f"{len(claim.d)}, not listed"
    alt = (
        f"Paired differences of claim {claim.id}: {compared}. "
        f"Effect {number(claim.effect, signed=True)} {unit}, 95 % interval {interval(claim.ci95)}, "
        f"threshold {number(first.threshold)}, what would matter {margin(claim)}. "
        f"Per replicate: {values}."
    )
    if positive and positive.d:
        size, ends = number(positive.effect, signed=True), interval(positive.ci95)
        alt += f" Positive control {' − '.join(pair)}: {size}, {ends}, {positive.outcome}."
    for control in claim.controls:
        size, ends = number(control.effect, signed=True), interval(control.ci95)
        alt += f" Control {control.arm}: {size}, {ends}, {control.outcome}{fewer(control, claim)}."
    return plots.picture(plots.forest(rows, unit), claim.id, "", alt, f"{key}-claim-{claim.id}")


def strip_pictures(result: Results, declared: Claims | None, key: str) -> list[plots.Picture]:
    """Per task and metric: every arm's score for every seed."""
    points, factor = scores(result, declared), factors(result)
    methods = {arm for c in result.claims if c.role != "exhibit" for arm in c.arms.sides[:1]}
    controls = {control.arm for claim in result.claims for control in claim.controls}

    def tone(arm: str) -> str:
        return plots.FOR if arm in methods else plots.AGAINST if arm in controls else plots.NEUTRAL

    pictures = []
    for task, metric in ((t, m) for t, metrics in metrics_of(result).items() for m in metrics):
        by_arm = {arm: points.get((task, metric, arm), []) for arm in arms_of(result)}
        arms = [(arm, tone(arm), of_arm) for arm, of_arm in by_arm.items() if of_arm]
        if not arms:
            continue
        measure = metric + (" (points)" if factor[task, metric] == 100 else "")
        means = "; ".join(f"{arm} {mean_sd(of_arm)}" for arm, _, of_arm in arms)
        alt = f"Scores of all arms on {task}, {measure}, a point per seed. Mean ± sd: {means}."
        caption, name = f"{task}: {measure}", f"{key}-strip-{task}-{metric}"
        pictures.append(plots.picture(plots.strips(arms, measure), caption, caption, alt, name))
    return pictures


Curve = list[tuple[float, float]]  # (step, value)


def logged(path: Path) -> dict[str, Curve]:
    """The quantities of a metrics.jsonl over steps; what is no finite number is left out."""
    curves: dict[str, Curve] = {}
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed run
        numbers = {key: v for key, v in entry.items() if isinstance(v, int | float) and finite([v])}
        step = numbers.pop("step", i)
        for key, value in numbers.items():
            if key not in ("seconds", "time", "epoch"):
                curves.setdefault(key, []).append((float(step), float(value)))
    return curves


def curve_pictures(
    result: Results, directories: dict[RunKey, Path], key: str
) -> list[plots.Picture]:
    """Per task the quantities that most runs logged."""
    tasks: dict[str, dict[str, dict[str, list[Curve]]]] = {}  # task -> quantity -> arm -> by seed
    for (arm, task, _), directory in directories.items():
        path = directory / "metrics.jsonl"
        for name, curve in logged(path).items() if path.exists() else ():
            quantities = tasks.setdefault(task, {})
            quantities.setdefault(name, {}).setdefault(arm, []).append(curve)
    pictures = []
    for task, quantities in tasks.items():
        by_runs = sorted(quantities, key=lambda q: -sum(map(len, quantities[q].values())))
        for name in by_runs[:MOST_CURVES]:
            arms = {
                arm: quantities[name][arm] for arm in arms_of(result) if arm in quantities[name]
            }
            last = {arm: sum(c[-1][1] for c in cs) / len(cs) for arm, cs in arms.items()}
            ends = "; ".join(f"{arm} {number(value)}" for arm, value in last.items())
            alt = f"{name} over steps on {task}, mean over seeds. Last values: {ends}."
            seeds = max(map(len, arms.values()))
            caption = f"{task}: {name}, mean over {seeds} seeds in bins of steps"
            place = f"{key}-curve-{task}-{name}"
            pictures.append(plots.picture(plots.curves(arms, name), name, caption, alt, place))
    return pictures


def method_pictures(
    result: Results, directory: Path, directories: dict[RunKey, Path], key: str
) -> tuple[list[plots.Picture], str]:
    """The method's own figures, and what went wrong: a broken figure must not hide a verdict."""
    path = directory / "figures.py"
    if not path.exists():
        return [], ""
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
            for name, caption, alt, figure in module.figures(result.document(), directories):
                pictures.append(plots.picture(figure, name, caption, alt, f"{key}-own-{name}"))
                pyplot.close(figure)  # pyplot keeps every figure that a method draws with it
    except Exception as error:
        message = f"{directory.name}.figures failed: {type(error).__name__}: {error}"
        print(message, file=sys.stderr)
        return pictures, message
    return pictures, ""
