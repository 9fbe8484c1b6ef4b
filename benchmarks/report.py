"""The HTML report and the README tables, out of results.json files (VERDICTS.md section 8). Nothing is judged here.

    python -m benchmarks.report                    # all papers -> report/index.html
    python -m benchmarks.report autolora           # this page (and the overview) only

A scale's result is taken from `runs/<dir>/<scale>/results.json` where this machine has one, else from the committed
`<dir>/results/<scale>.json`. Pages load nothing: style, figures and the few lines of script are inside each file.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from benchmarks import plots, readme
from benchmarks.readme import (  # part of this module's interface, used by reproduce.py
    PAPERS,
    SCALES,
    outdated,
    project_tables,
    readme_tables,
    update_readme,
)

__all__ = ["PAPERS", "build", "main", "outdated", "project_tables", "readme_tables", "update_readme"]

CHECKOUT = Path(__file__).resolve().parents[1]

TITLES = {
    "autolora": (
        "AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta Learning",
        "2403.09113",
    ),
    "tapweight": (
        "TapWeight: Reweighting Pretraining Objectives for Task-Adaptive Pretraining",
        "2410.10006",
    ),
    "weight_mixup": (
        "Generalizable and Stable Finetuning of Pretrained Language Models on Low-Resource Texts",
        "2403.12918",
    ),
    "ppo_nlu": (
        "Improving the Language Understanding Capabilities of Large Language Models Using Reinforcement Learning",
        "2410.11020",
    ),
    "ts_watermark": (
        "Token-Specific Watermarking with Enhanced Detectability and Semantic Coherence for Large Language Models",
        "2402.18059",
    ),
    "mlo_mae": (
        "Downstream Task Guided Masking Learning in Masked Autoencoders Using Multi-Level Optimization",
        "2402.18128",
    ),
    "dasgm": ("Improving Differentiable Architecture Search with a Generative Model", "2112.00171"),
}

# First match decides: words of a verdict, an outcome or a comparison -> (style, sign). A sign and a word always stand
# together, so that colour is never the only carrier.
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

# The short names by which a verdict says what it failed on (VERDICTS.md section 3), in words.
REASONS = {
    "seeds": "too few seeds for a verdict",
    "failures": "more than 20 % of the runs of an arm diverged",
    "t": "the t-test over seeds does not reach 0.025 on either side",
    "Holm": "the t-test reaches 0.025 alone, but not after Holm's adjustment for the number of claims",
    "sign-flip": "the exact sign-flip test does not confirm the t-test",
    "items": "the interval over test items does not lie wholly on one side of the threshold",
}

# Findings, in the order in which a reader wants them.
GROUPS = (
    ("Holds, and every control was beaten", ("SUPPORTED",)),
    ("Holds, but a control that lacks the idea does as well", ("SUPPORTED, NOT ATTRIBUTED",)),
    ("Holds; whether because of the idea stays open", ("SUPPORTED, ATTRIBUTION OPEN",)),
    ("Contradicted: the opposite was found", ("CONTRADICTED",)),
    ("These runs cannot tell", ("INCONCLUSIVE",)),
    ("Not run", ("NOT RUN",)),
)


@dataclass(frozen=True)
class Result:
    """One scale of one paper. `other` is the committed result of that scale when `data` is this machine's own."""

    paper: str
    scale: str
    path: Path
    data: dict[str, Any]
    recorded: bool
    other: dict[str, Any] | None = None


@dataclass
class Paper:
    name: str
    root: Path
    runs: Path
    results: list[Result] = field(default_factory=list)  # the one shown first, then the other scales

    @property
    def directory(self) -> Path:
        return self.root / self.name

    @property
    def lead(self) -> Result | None:
        return self.results[0] if self.results else None


# --- what there is to show ---------------------------------------------------------------------------------------------


def load(name: str, root: Path, runs: Path) -> Paper:
    """All scales of a paper: this machine's newest result first, else the most telling committed one."""
    if name not in PAPERS:
        near = difflib.get_close_matches(name, PAPERS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no paper is called {name!r}{hint} Papers: {', '.join(PAPERS)}")
    paper, committed = Paper(name, root, runs), readme.recorded(root / name)
    for scale in SCALES:
        path = runs / name / scale / "results.json"
        if path.exists():
            paper.results.append(
                Result(name, scale, path, readme.load_json(path), False, committed.get(scale))
            )
        elif scale in committed:
            path = root / name / "results" / f"{scale}.json"
            paper.results.append(Result(name, scale, path, committed[scale], True))
    own = [r for r in paper.results if not r.recorded]
    if own:
        newest = max(own, key=lambda r: str(r.data.get("created") or ""))
        paper.results.sort(key=lambda r: r is not newest)
    return paper


def run_directories(result: Result, runs: Path) -> dict[tuple[str, str, int], Path]:
    """(arm, task, seed) -> directory, of those that this machine has. Layout: DESIGN section 3."""
    found = {}
    for run in result.data.get("runs") or []:
        key = (run["arm"], run["task"], run["seed"])
        path = runs / result.paper / result.scale / key[1] / f"seed{key[2]}" / key[0]
        if path.is_dir():
            found[key] = path
    return found


# --- figures -----------------------------------------------------------------------------------------------------------


def number_or_none(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def claim_picture(claim: dict[str, Any], result: Result) -> plots.Picture | None:
    """Paired differences of the claim and of its controls; None if there is no difference to show."""
    data = result.data
    seeds = data.get("seeds") or []
    bad = {(r["arm"], r["seed"]) for r in data.get("runs") or [] if r.get("status") == "diverged"}
    arms = claim.get("arms") or {}
    method, opponent = readme.listed(arms.get("method")), readme.listed(arms.get("opponent"))
    sides = method + opponent + [str(a).split("@")[0] for a in arms.get("weights") or {}]

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
        d = [number_or_none(v) for v in part.get("d") or []]
        shown = d if len(d) <= 200 else []  # items as replicates: intervals say it, thousands of dots do not
        effect = number_or_none(part.get("effect"))
        flags = failed(names, len(shown))
        return plots.Row(
            label, shown, effect, part.get("ci95"), part.get("item_ci95"), threshold, tone, flags, material
        )

    tone = TONES.get(badge_of(claim.get("verdict") or "")[0], plots.NEUTRAL)
    threshold = float(claim.get("threshold") or 0)
    rows = [row(readme.formula(claim).replace(" - ", " − "), claim, sides, threshold, tone, None)]
    for control in controls_of(claim):
        outcome = control.get("outcome") or "OPEN"
        tone = TONES.get(badge_of(outcome)[0], plots.NEUTRAL)
        label = f"control: − {control.get('arm')}, {outcome}"
        rows.append(
            row(label, control, [*method, control.get("arm", "")], 0.0, tone, claim.get("material", 1.0))
        )
    if not any(r.d or plots.finite(r.ci95) for r in rows):
        return None
    unit = unit_of(claim)
    figure = plots.forest(rows, unit)
    values = ", ".join(readme.number(v, signed=True) for v in rows[0].d)
    alt = (
        f"Paired differences of claim {claim['id']}: {rows[0].label}. Effect {readme.number(rows[0].effect, signed=True)} {unit}, "
        f"95 % interval {readme.interval(rows[0].ci95)}, threshold {readme.number(threshold)}. Per replicate: {values}."
    )
    for r, control in zip(rows[1:], controls_of(claim), strict=True):
        alt += f" Control {control.get('arm')}: {readme.number(r.effect, signed=True)}, {readme.interval(r.ci95)}, {control.get('outcome') or 'OPEN'}."
    return plots.picture(figure, claim["id"], "", alt, f"{result.paper}-{result.scale}-claim-{claim['id']}")


def strip_pictures(result: Result) -> list[plots.Picture]:
    """Per task and metric: every arm's score for every seed."""
    found, pictures = readme.scores(result.data), []
    factor = readme.factors(result.data)
    claims = result.data.get("claims") or []
    methods = {m for c in claims for m in readme.listed((c.get("arms") or {}).get("method"))[:1]}
    controls = {c.get("arm") for claim in claims for c in controls_of(claim)}
    for task, metrics in readme.metrics_of(result.data).items():
        for metric in metrics:
            arms = []
            for arm in readme.arms_of(result.data):
                points = found.get((task, metric, arm), [])
                if points:
                    tone = (
                        plots.FOR if arm in methods else plots.AGAINST if arm in controls else plots.NEUTRAL
                    )
                    arms.append((arm, tone, [(value, diverged) for _, value, diverged in points]))
            if not arms:
                continue
            unit = " (points)" if factor.get(metric) == 100 else ""
            means = "; ".join(f"{a} {readme.mean_sd(found[task, metric, a])}" for a, _, _ in arms)
            alt = f"Scores of all arms on {task}, {metric}{unit}, a point per seed. Mean ± sd: {means}."
            caption = f"{task}: {metric}{unit}"
            key = f"{result.paper}-{result.scale}-strip-{task}-{metric}"
            pictures.append(plots.picture(plots.strips(arms, f"{metric}{unit}"), caption, caption, alt, key))
    return pictures


def curve_pictures(
    result: Result, directories: dict[tuple[str, str, int], Path], at_most: int = 6
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
            step = number_or_none(entry.get("step"))
            for key, value in entry.items():
                if key not in ("step", "seconds", "time", "epoch") and number_or_none(value) is not None:
                    own.setdefault(key, []).append((float(i) if step is None else step, float(value)))
        for key, curve in own.items():
            logged.setdefault(task, {}).setdefault(key, {}).setdefault(arm, []).append(curve)
    pictures = []
    for task, keys in logged.items():
        by_runs = sorted(keys, key=lambda k: -sum(len(curves) for curves in keys[k].values()))
        for key in by_runs[:at_most]:
            arms = {arm: keys[key][arm] for arm in readme.arms_of(result.data) if arm in keys[key]}
            ends = "; ".join(
                f"{arm} {readme.number(sum(c[-1][1] for c in cs) / len(cs))}" for arm, cs in arms.items()
            )
            alt = f"{key} over steps on {task}, mean over seeds. Last values: {ends}."
            caption = f"{task}: {key}, mean over {max(map(len, arms.values()))} seeds in bins of steps"
            name = f"{result.paper}-{result.scale}-curve-{task}-{key}"
            pictures.append(plots.picture(plots.curves(arms, key), key, caption, alt, name))
    return pictures


def method_pictures(
    result: Result, directory: Path, run_dirs: dict[tuple[str, str, int], Path]
) -> tuple[list[plots.Picture], str]:
    """The method's own figures, and what went wrong if it did: a broken figure must not hide a verdict."""
    path = directory / "figures.py"
    if not path.exists():
        return [], ""
    pictures: list[plots.Picture] = []
    try:
        with plots.style():
            if path.resolve().parents[1] == CHECKOUT:
                module = importlib.import_module(f"{result.paper}.figures")
            else:  # another checkout's results are drawn by its own figures
                spec = importlib.util.spec_from_file_location(f"{result.paper}_figures", path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            for name, caption, alt, figure in module.figures(result.data, run_dirs):
                pictures.append(
                    plots.picture(figure, name, caption, alt, f"{result.paper}-{result.scale}-own-{name}")
                )
    except Exception as error:
        message = f"{result.paper}.figures failed: {type(error).__name__}: {error}"
        print(message, file=sys.stderr)
        return pictures, message
    return pictures, ""


# --- a page's material -------------------------------------------------------------------------------------------------


def badge_of(words: str) -> tuple[str, str]:
    for start, name, sign in BADGES:
        if words.upper().startswith(start):
            return name, sign
    return "neutral", "?"


def controls_of(claim: dict[str, Any]) -> list[dict[str, Any]]:
    controls = claim.get("controls") or []
    return [] if isinstance(controls, str) else [c if isinstance(c, dict) else {"arm": c} for c in controls]


def unit_of(claim: dict[str, Any]) -> str:
    unit = claim.get("unit") or "points"
    return {"raw": f"{claim.get('metric') or 'raw units'}", "item": "points (items are the replicates)"}.get(
        unit, unit
    )


def why(claim: dict[str, Any]) -> str:
    """The reason in a sentence's words; one that is not a short name is already that."""
    reason = str(claim.get("reason") or "").rstrip(". ")
    return REASONS.get(reason, reason)


def conditions(claim: dict[str, Any]) -> list[dict[str, Any]]:
    """VERDICTS.md section 3, (a) to (c), both sides: what was required, what was found, whether it holds."""
    if claim.get("kind") == "exact" or claim.get("role") == "exhibit" or claim.get("effect") is None:
        return []
    n, threshold = claim.get("n") or 0, float(claim.get("threshold") or 0)
    flip = max(0.025, 2.0**-n if n else 1.0)

    def p(value: Any, limit: float) -> dict[str, Any]:
        known = number_or_none(value)
        return {"value": f"p {p_value(value)}", "met": known is not None and known <= limit}

    item = plots.finite(claim.get("item_ci95"))
    rows = [
        {
            "name": "(a) t-test over replicates, Holm-adjusted",
            "rule": "p ≤ 0.025",
            "for": p(claim.get("p_holm_for"), 0.025),
            "against": p(claim.get("p_holm_against"), 0.025),
            "note": f"before Holm: for {p_value(claim.get('p_for'))}, against {p_value(claim.get('p_against'))}",
        },
        {
            "name": "(b) exact sign-flip",
            "rule": f"p ≤ {flip:.4g}",
            "for": p(claim.get("flip_for"), flip),
            "against": p(claim.get("flip_against"), flip),
            "note": "",
        },
    ]
    if len(item) == 2:
        text = readme.interval(item)
        rows.append(
            {
                "name": "(c) item interval",
                "rule": f"wholly on one side of {readme.number(threshold)}",
                "for": {"value": text, "met": item[0] > threshold},
                "against": {"value": text, "met": item[1] < threshold},
                "note": "",
            }
        )
    return rows


def by_task(claim: dict[str, Any]) -> list[tuple[str, str]]:
    """Effect per task; a task's entry is a number or its differences per seed."""
    rows = []
    for task, value in (claim.get("d_by_task") or {}).items():
        if isinstance(value, list):
            known = plots.finite(value)
            value = sum(known) / len(known) if known else None
        rows.append((task, readme.number(value, signed=True)))
    return rows if len(rows) > 1 else []


def claim_view(claim: dict[str, Any], result: Result, declared: dict[str, dict[str, Any]]) -> dict[str, Any]:
    other = {c["id"]: c for c in (result.other or {}).get("claims") or []}.get(claim["id"])
    n = claim.get("n") or 0
    collapses = [*(claim.get("diverged") or {}).values(), *(claim.get("at_chance") or {}).values()]
    steady = not any(collapses) and claim.get("unit") != "item" and claim.get("role") != "exhibit"
    return {
        **claim,
        "verdict": readme.full_verdict(claim, result.scale),
        "source": claim.get("source") or declared.get(claim["id"], {}).get("source"),
        "items": claim.get("items") or declared.get(claim["id"], {}).get("items"),
        "formula": readme.formula(claim),
        "unit_text": unit_of(claim),
        "picture": claim_picture(claim, result),
        "conditions": conditions(claim),
        "by_task": by_task(claim),
        "controls": controls_of(claim),
        "no_controls": claim["controls"] if isinstance(claim.get("controls"), str) else "",
        "recorded_verdict": readme.full_verdict(other, result.scale) if other else None,
        "why": why(claim),
        "collapse": f"{100 * (1 - 0.05 ** (1 / n)):.0f} %" if steady and n > 1 else None,
    }


def reported_view(result: Result | None, directory: Path) -> dict[str, Any]:
    """Every published value on file, grouped by the table it comes from, joined with what the result says of it."""
    on_file = readme.load_yaml(directory / "reported.yaml")
    entries = on_file.get("entries") or on_file.get("reported") or []
    held = {e["id"]: e for e in ((result.data.get("reported") if result else None) or [])}
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in [*entries, *({"id": i} for i in held if i not in {e["id"] for e in entries})]:
        ours = held.get(entry["id"], {})
        value = ours.get("reported", entry.get("value"))
        own = str(entry.get("origin") or "paper") in ("paper", "official_repository", "derived")
        if ours.get("verdict"):
            verdict = ours["verdict"]
        elif value is None:
            verdict = "NO PUBLISHED VALUE"
        else:
            verdict = "no counterpart" if own else "CONTEXT"
        row = {**entry, **ours, "reported": value, "sd": ours.get("sd", entry.get("std")), "verdict": verdict}
        row["answered"] = ours.get("measured") is not None
        groups.setdefault(str(entry.get("table") or "no table named"), []).append(row)
    views = [
        {
            "name": name,
            "rows": rows,
            "answered": sum(r["answered"] for r in rows),
            "tally": Counter(str(r["verdict"]) for r in rows).most_common(),
        }
        for name, rows in groups.items()
    ]
    views.sort(key=lambda g: -g["answered"])
    everything = [r for rows in groups.values() for r in rows]
    return {
        "groups": views,
        "n": len(everything),
        "tally": Counter(str(r["verdict"]) for r in everything).most_common(),
        "note": on_file.get("note"),
        "not_found": on_file.get("not_found") or [],
    }


def cost_rows(result: Result, protocol: dict[str, Any]) -> list[dict[str, Any]]:
    cost = readme.costs(result.data, protocol)
    sizes = {arm: readme.parameter_count(result.data, arm) for arm in cost}
    return [{"arm": arm, "size": sizes[arm], **row} for arm, row in cost.items()]


def commands(paper: str, result: Result | None) -> list[tuple[str, str]]:
    scale = result.scale if result else "cpu"
    runs = (result.data.get("runs") if result else None) or []
    one = next((r for r in runs if r.get("status") != "finished"), runs[0] if runs else None)
    rows = [
        ("Everything on this page, resumable", f"make reproduce-{paper} SCALE={scale}"),
        ("What it would do: runs, hours, disk", f"make reproduce-{paper} SCALE={scale} DRY=1"),
    ]
    if one:
        alone = f"python -m {paper}.train --scale {scale} --arm {one['arm']} --task {one['task']} --seed {one['seed']}"
        rows.append(
            ("One run alone" + ("" if one.get("status") == "finished" else " (one that failed)"), alone)
        )
        where = f"runs/{paper}/{scale}/{one['task']}/seed{one['seed']}/{one['arm']}"
        rows.append(
            ("Its log; its scores again", f"less {where}/log.txt; python -m {paper}.evaluate {where}")
        )
    return [
        *rows,
        ("The method on a tiny input, in under a minute", f"python -m {paper}.train --tiny"),
        (
            "Every arm and task of the paper's protocol on tiny models",
            f"make reproduce-{paper} SCALE=rehearsal",
        ),
        ("Derive every number anew from the committed predictions", "make check"),
        ("And train one recorded run of each paper again", "make check RERUN=1"),
        ("Record (maintainers; a clean, committed tree)", f"make record-{paper} SCALE={scale}"),
        ("This page", f"python -m benchmarks.report {paper}"),
    ]


def headline(result: Result) -> dict[str, Any]:
    """The few figures that stand above everything else."""
    data = result.data
    runs, gates = data.get("runs") or [], data.get("gates") or []
    claims = data.get("claims") or []
    return {
        "primary": [c for c in claims if c.get("role") == "primary"],
        "gates_passed": sum(bool(g.get("passed")) for g in gates),
        "gates": len(gates),
        "runs": len(runs),
        "diverged": sum(r.get("status") == "diverged" for r in runs),
        "crashed": sum(r.get("status") == "crashed" for r in runs),
        "seeds": readme.seeds_text(data.get("seeds") or []),
        "n_seeds": len(data.get("seeds") or []),
        "seconds": data.get("seconds"),
        "gradient_evaluations": sum(r.get("gradient_evaluations") or 0 for r in runs),
    }


def page(paper: Paper, result: Result | None) -> dict[str, Any]:
    """All that templates/paper.html needs."""
    title, arxiv = TITLES[paper.name]
    view: dict[str, Any] = {
        "paper": paper.name,
        "title": title,
        "arxiv": arxiv,
        "result": result,
        "results": paper.results,
        "reported": reported_view(result, paper.directory),
        "commands": commands(paper.name, result),
        "implemented": readme.implemented(paper.directory),
        "checked": readme.checked(paper.directory, result.scale if result else None),
    }
    if result is None:
        return view
    data, directories = result.data, run_directories(result, paper.runs)
    declared = {c["id"]: c for c in readme.load_yaml(paper.directory / "claims.yaml").get("claims") or []}
    own, problem = method_pictures(result, paper.directory, directories)
    runs = data.get("runs") or []
    return {
        **view,
        "data": data,
        "head": headline(result),
        "claims": [claim_view(c, result, declared) for c in data.get("claims") or []],
        "strips": strip_pictures(result),
        "curves": curve_pictures(result, directories),
        "figures": own,
        "figures_problem": problem,
        "trouble": [r for r in runs if r.get("status") != "finished" or (r.get("attempts") or 1) > 1],
        "costs": cost_rows(result, readme.load_yaml(paper.directory / "protocol.yaml")),
        "n_directories": len(directories),
    }


def page_name(paper: Paper, result: Result | None) -> str:
    lead = result is None or result is paper.lead
    return f"{paper.name}.html" if lead or result is None else f"{paper.name}-{result.scale}.html"


def overview(paper: Paper) -> dict[str, Any]:
    """One row of the matrix."""
    result = paper.lead
    claims = (result.data.get("claims") or []) if result else []
    shown = [{**c, "verdict": readme.full_verdict(c, result.scale)} for c in claims] if result else []
    ran = [
        f"{r.scale} {readme.day(r.data)}" + ("" if r.recorded else " (this machine)") for r in paper.results
    ]
    return {
        "paper": paper.name,
        "title": TITLES[paper.name][0],
        "arxiv": TITLES[paper.name][1],
        "page": page_name(paper, result),
        "result": result,
        "claims": shown,
        "primary": [c for c in shown if c.get("role") == "primary"],
        "secondary": [c for c in shown if c.get("role") == "secondary"],
        "head": headline(result) if result else None,
        "implemented": readme.implemented(paper.directory),
        "run": ran,
        "checked": readme.checked(paper.directory, result.scale if result else None),
        "reported": reported_view(result, paper.directory)["tally"],
    }


def findings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Claims of all papers by what became of them; every line carries its evidence and links to it."""
    groups = []
    for name, words in GROUPS:
        found = []
        for row in rows:
            for claim in row["claims"]:
                verdict = claim["verdict"].removesuffix(readme.SCALED_DOWN).split(":")[0].strip()
                if claim.get("role") != "exhibit" and verdict in words:
                    evidence = {"formula": readme.formula(claim), "unit": unit_of(claim), "why": why(claim)}
                    found.append({**row, "claim": claim, **evidence})
        found.sort(key=lambda f: f["claim"].get("role") != "primary")
        groups.append({"name": name, "found": found})
    return groups


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """report/summary.json: what a machine wants to know without reading HTML."""
    keep = (
        "id",
        "statement",
        "kind",
        "role",
        "n",
        "effect",
        "ci95",
        "item_ci95",
        "threshold",
        "verdict",
        "reason",
    )
    papers = []
    for row in rows:
        result: Result | None = row["result"]
        head = row["head"] or {}
        claims = [
            {
                **{k: c.get(k) for k in keep},
                "controls": {x.get("arm"): x.get("outcome") or "OPEN" for x in controls_of(c)},
            }
            for c in row["claims"]
        ]
        papers.append(
            {
                "paper": row["paper"],
                "arxiv": row["arxiv"],
                "scale": result.scale if result else None,
                "created": result.data.get("created") if result else None,
                "commit": result.data.get("commit") if result else None,
                "recorded": result.recorded if result else None,
                "implemented": row["implemented"],
                "run": row["run"],
                "checked": row["checked"],
                **{
                    k: head.get(k)
                    for k in ("gates", "gates_passed", "runs", "diverged", "crashed", "seconds")
                },
                "claims": claims,
                "reported": dict(row["reported"]),
            }
        )
    return {"schema": 1, "papers": papers}


# --- writing -----------------------------------------------------------------------------------------------------------


def anchor(text: Any) -> str:
    """A fragment that is safe in an id and in a link."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in str(text))


def pretty(value: Any) -> str:
    """A nested value of environment or tuning in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def p_value(value: Any) -> str:
    p = number_or_none(value)
    return "n/a" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,  # a missing field of a partial result is an empty cell, not a crash
    )

    def minus(text: str) -> str:
        return text.replace("-", "−")

    environment.filters |= {
        "number": lambda v: minus(readme.number(v if not isinstance(v, jinja2.Undefined) else None)),
        "signed": lambda v: minus(
            readme.number(v if not isinstance(v, jinja2.Undefined) else None, signed=True)
        ),
        "interval": lambda v: minus(readme.interval(v or None)),
        "duration": lambda v: duration(None if isinstance(v, jinja2.Undefined) else v),
        "p": p_value,
        "anchor": anchor,
        "pretty": pretty,
        "svg": Markup,  # our own markup; everything else is escaped
    }
    environment.globals |= {
        "badge_of": badge_of,
        "page_name": page_name,
        "day": readme.day,
        "scaled_down": readme.SCALED_DOWN,
    }
    return environment


def build(
    papers: Sequence[str] = (), root: Path = Path("."), runs: Path | None = None, out: Path | None = None
) -> Path:
    """Write the pages of `papers` (default: all), the overview, the findings and summary.json; the overview's path."""
    matplotlib.use("Agg")
    runs, out = runs or root / "runs", out or root / "report"
    asked = [load(name, root, runs) for name in papers or PAPERS]
    everything = [load(name, root, runs) for name in PAPERS]
    environment = templates()
    out.mkdir(parents=True, exist_ok=True)

    def write(name: str, template: str, **values: Any) -> None:
        text = environment.get_template(template).render(file=name, **values)
        (out / name).write_text(text, encoding="utf-8")

    for paper in asked:
        for result in paper.results or [None]:  # type: ignore[list-item]
            write(page_name(paper, result), "paper.html", p=paper, **page(paper, result))
    rows = [overview(paper) for paper in everything]
    for row in rows:
        row["linked"] = (out / row["page"]).exists()
    write("findings.html", "findings.html", groups=findings(rows), rows=rows)
    write("index.html", "index.html", rows=rows)
    text = json.dumps(summary(rows), indent=1, ensure_ascii=False, default=str)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return out / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("papers", nargs="*", metavar="paper", help=f"of {', '.join(PAPERS)}; none: all")
    parser.add_argument("--root", type=Path, default=Path("."), help="the checkout")
    parser.add_argument("--runs", type=Path, help="where runs are (default: runs/ in it)")
    parser.add_argument("--out", type=Path, help="where the pages go (default: report/ in it)")
    given = parser.parse_args(arguments)
    try:
        index = build(given.papers, given.root, given.runs, given.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(index.resolve() if len(given.papers) != 1 else index.with_name(f"{given.papers[0]}.html").resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
