"""The HTML report and the README tables, out of results.json files. Nothing is judged here.

    python -m benchmarks.report                    # all papers -> report/index.html
    python -m benchmarks.report autolora           # this page (and the overview) only

A scale's result is taken from `runs/<dir>/<scale>/results.json` (or `preview.json`, if that is newer) where this
machine has one, else from the committed `<dir>/results/<scale>.json`. Pages load nothing: style, figures and the few lines of script are inside each file.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from benchmarks import differences, pictures, plots, predictions, readme, rules
from benchmarks.findings import answers, replica
from benchmarks.papers import paper as about
from benchmarks.readme import (  # also the interface of this module, for the recorder and the checker
    PAPERS,
    SCALES,
    readme_tables,
    stale_readmes,
    stamp_checked,
    update_readme,
    write_readmes,
)
from shared.protocol import runs_root

__all__ = [
    "main",
    "readme_tables",
    "render",
    "stale_readmes",
    "stamp_checked",
    "update_readme",
    "write_readmes",
]

# In words: what a verdict says that it failed on (docs/verdicts.md, section 3).
REASONS = {
    "seeds": "too few seeds for a verdict",
    "failures": "more than 20 % of the runs of an arm diverged",
    "t": "the t-test over seeds does not reach 0.025 on either side",
    "Holm": "the t-test reaches 0.025 alone, but not after Holm's adjustment for the number of claims",
    "sign-flip": "the exact sign-flip test does not confirm the t-test",
    "items": "the interval over test items does not lie wholly on one side of the threshold",
}

# Of a published number that no run here is compared with (docs/verdicts.md, section 6).
SAID_OF_REPORTED = {
    "CONTEXT": "a number of somebody else's, shown beside the paper's and not judged",
    "NO COUNTERPART": "nothing that is run here answers it",
    "NOT RUN": "an arm of scale paper answers it, and that scale has not been run",
    "NO PUBLISHED VALUE": "nobody here could read the value or say where it stands",
}

# Findings, in the order in which a reader wants them.
GROUPS = (
    ("Holds; every control that was declared is beaten", ("SUPPORTED",)),
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

    @property
    def key(self) -> str:
        return f"{self.paper}-{self.scale}"


@dataclass
class Paper:
    name: str
    root: Path
    runs: Path
    results: list[Result] = field(
        default_factory=list
    )  # the one shown first, then the other scales

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
        files = [runs / name / scale / f"{kind}.json" for kind in ("results", "preview")]
        own = [(readme.load_json(path), path) for path in files if path.exists()]
        if own:
            data, path = max(own, key=lambda pair: str(pair[0].get("created") or ""))
            paper.results.append(Result(name, scale, path, data, False, committed.get(scale)))
        elif scale in committed:
            path = root / name / "results" / f"{scale}.json"
            paper.results.append(Result(name, scale, path, committed[scale], True))
    here = [r for r in paper.results if not r.recorded]
    if here:
        newest = max(here, key=lambda r: str(r.data.get("created") or ""))
        paper.results.sort(key=lambda r: r is not newest)
    return paper


def run_directories(result: Result, runs: Path) -> pictures.RunDirectories:
    """(arm, task, seed) -> directory, of those that this machine has. Laid out by `shared.runs`."""
    found = {}
    for run in result.data.get("runs") or []:
        key = (run["arm"], run["task"], run["seed"])
        path = runs / result.paper / result.scale / key[1] / f"seed{key[2]}" / key[0]
        if path.is_dir():
            found[key] = path
    return found


# --- a page's material -------------------------------------------------------------------------------------------------


def why(claim: dict[str, Any]) -> str:
    """The reason in a sentence's words; one that is not a short name is already that. Of a claim that holds: why not plainly."""
    reason = str(claim.get("reason") or "").rstrip(". ")
    if not reason and "ATTRI" in str(claim.get("verdict")):
        outcome = "NOT BEATEN" if "NOT ATTRIBUTED" in claim["verdict"] else "OPEN"
        names = [
            str(c["arm"])
            for c in readme.controls_of(claim)
            if (c.get("outcome") or "OPEN") == outcome
        ]
        one = len(names) == 1
        said = f"{'does' if one else 'do'} as well without the idea"
        if outcome == "OPEN":
            said = f"{'was' if one else 'were'} neither beaten nor shown to do as well"
        if names:
            return f"the claim holds, but the control{'' if one else 's'} {', '.join(names)} {said}"
    return REASONS.get(reason, reason)


def meaning(claim: dict[str, Any], paper: str) -> str:
    """What a statistic measures: the first line of its function's docstring."""
    if claim.get("kind") != "statistic":
        return ""
    with contextlib.suppress(ImportError):
        function = importlib.import_module(f"{paper}.evaluate").STATISTICS.get(claim.get("metric"))
        return (function.__doc__ or "").strip().split("\n")[0] if function else ""
    return ""


def conditions(claim: dict[str, Any]) -> list[dict[str, Any]]:
    """(a) to (c) of docs/verdicts.md, section 3, both sides: limit, number, whether it holds."""
    if (
        claim.get("kind") == "exact"
        or claim.get("role") == "exhibit"
        or claim.get("effect") is None
    ):
        return []
    n, threshold = claim.get("n") or 0, float(claim.get("threshold") or 0)
    flip = max(0.025, 2.0**-n if n else 1.0)

    def p(value: Any, limit: float) -> dict[str, Any]:
        known = readme.number_or_none(value)
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


def items_of(result: Result) -> dict[str, int]:
    """task -> test items of one run, from the predictions beside the result; {} where there are none."""
    path = result.path.with_suffix(".predictions.npz")
    found: dict[str, int] = {}
    for (_, task, _), arrays in (
        predictions.unpack_predictions(path) if path.exists() else {}
    ).items():
        rows = [len(array) for name, array in arrays.items() if not name.startswith("_")]
        found[task] = max([found.get(task, 0), *rows])
    return found


def how(claim: dict[str, Any], result: Result, items: dict[str, int]) -> list[tuple[str, str]]:
    """How a verdict was reached: rule, data, seeds, interval, controls; each a sentence."""
    kind, role, n = claim.get("kind"), claim.get("role"), claim.get("n") or 0
    side = f"the threshold {readme.number(claim.get('threshold') or 0)}"
    if role == "exhibit":
        rule = "An exhibit is shown and never judged: it counts neither for nor against the paper."
    elif kind == "exact":
        rule = f"A comparison of counts needs no test: supported if every seed lies above {side}, else contradicted."
    else:
        rule = (
            "Supported if every condition below holds for the claim, contradicted if every one holds against it, else "
            f"inconclusive. p-values are adjusted by Holm over the {role} claims of this scale."
        )
    splits, tasks = result.data.get("splits") or {}, claim.get("tasks") or list(items)
    data = "; ".join(
        f"{task}"
        + (f", {items[task]:,} test items" if task in items else "")
        + (f" (split {splits[task]['test'][:12]})" if (splits.get(task) or {}).get("test") else "")
        for task in tasks
    )
    replicates = (
        "test items of one model"
        if claim.get("unit") == "item"
        else "seeds, tasks averaged within a seed"
    )
    seeds = readme.seeds_text(pictures.seeds_of(claim, result.data))
    rows = [("Rule", rule), ("Data", data or "no predictions are kept beside this result")]
    rows.append(
        (
            "Seeds",
            f"{seeds}; the {n} replicates are {replicates}"
            if n
            else f"{seeds}; none gave a difference",
        )
    )
    if n > 1 and kind != "exact":
        resampled = (
            "items are not resampled"
            if not claim.get("item_ci95")
            else "another by resampling test items 2,000 times"
        )
        rows.append(("Intervals", f"95 % Student t over the replicates; {resampled}"))
    controls = readme.controls_of(claim)
    if controls:
        told = ", ".join(f"{c['arm']} {c.get('outcome') or 'OPEN'}" for c in controls)
        rows.append(
            (
                "Controls",
                f"{told}. A control is beaten if method minus control passes the same tests.",
            )
        )
    else:
        none = claim.get("controls")
        rows.append(("Controls", none if isinstance(none, str) and none else "none declared"))
    return rows


def claim_view(
    claim: dict[str, Any],
    result: Result,
    declared: dict[str, dict[str, Any]],
    items: dict[str, int],
) -> dict[str, Any]:
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
        "seeds": readme.seeds_text(pictures.seeds_of(claim, result.data)),
        "meaning": meaning(claim, result.paper),
        "unit_text": readme.unit_of(claim),
        "picture": pictures.claim_picture(claim, result.data, result.key),
        "conditions": conditions(claim),
        "how": how(claim, result, items),
        "by_task": by_task(claim),
        "controls": readme.controls_of(claim),
        "no_controls": claim["controls"] if isinstance(claim.get("controls"), str) else "",
        "recorded_verdict": readme.full_verdict(other, result.scale) if other else None,
        "why": why(claim),
        "collapse": f"{100 * rules.collapse_bound(n):.0f} %" if steady and n > 1 else None,
    }


def reported_view(
    result: Result | None, directory: Path, declared: dict[str, Any]
) -> dict[str, Any]:
    """Every published value on file, grouped by the table it comes from, joined with what the result says of it."""
    on_file = readme.load_yaml(directory / "reported.yaml")
    entries = on_file.get("entries") or on_file.get("reported") or []
    held = {e["id"]: e for e in ((result.data.get("reported") if result else None) or [])}
    targets = declared.get("targets") or []
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in [*entries, *({"id": i} for i in held if i not in {e["id"] for e in entries})]:
        ours = held.get(entry["id"], {})
        value = ours.get("reported", entry.get("value"))
        own = str(entry.get("origin") or "paper") in ("paper", "official_repository")
        target: dict[str, Any] = next(
            (t for t in targets if fnmatchcase(entry["id"], str(t.get("reported")))), {}
        )
        if ours.get("verdict"):
            verdict = ours["verdict"]
        elif value is None or not (ours.get("source") or entry.get("source")):
            verdict = "NO PUBLISHED VALUE"  # nobody read it, or nobody can say where
        else:
            verdict = "CONTEXT" if not own else "NOT RUN" if target.get("arm") else "NO COUNTERPART"
        row = {
            **entry,
            **ours,
            "reported": value,
            "sd": ours.get("sd", entry.get("std")),
            "verdict": verdict,
        }
        if verdict.upper() == "NO COUNTERPART":
            row["reason"] = (
                ours.get("tolerance_reason")
                or target.get("reason")
                or "no target names this number"
            )
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
            (
                "One run alone" + ("" if one.get("status") == "finished" else " (one that failed)"),
                alone,
            )
        )
        where = f"runs/{paper}/{scale}/{one['task']}/seed{one['seed']}/{one['arm']}"
        rows.append(
            (
                "Its log; its scores again",
                f"less {where}/log.txt; python -m {paper}.evaluate {where}",
            )
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


def differences_of(
    paper: Paper, result: Result | None, declared: dict[str, Any]
) -> list[dict[str, Any]]:
    path = paper.directory / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return differences.blocks(
        text, result.data if result else None, declared, result.scale if result else "cpu"
    )


def headline(result: Result) -> dict[str, Any]:
    """The few figures that stand above everything else."""
    data = result.data
    runs, gates = data.get("runs") or [], data.get("gates") or []
    claims, seconds = data.get("claims") or [], data.get("seconds")
    return {
        "primary": [c for c in claims if c.get("role") == "primary"],
        "gates_passed": sum(bool(g.get("passed")) for g in gates),
        "gates": len(gates),
        "runs": len(runs),
        "diverged": sum(r.get("status") == "diverged" for r in runs),
        "crashed": sum(r.get("status") == "crashed" for r in runs),
        "seeds": readme.seeds_text(data.get("seeds") or []),
        "n_seeds": len(data.get("seeds") or []),
        "seconds": seconds.get("wall") if isinstance(seconds, dict) else seconds,
        "cpu_seconds": seconds.get("cpu") if isinstance(seconds, dict) else None,
        "gradient_evaluations": sum(r.get("gradient_evaluations") or 0 for r in runs),
    }


def page(paper: Paper, result: Result | None) -> dict[str, Any]:
    """All that templates/paper.html needs."""
    declared = readme.load_yaml(paper.directory / "claims.yaml")
    view: dict[str, Any] = {
        "paper": paper.name,
        "about": about(paper.name),
        "result": result,
        "results": paper.results,
        "reported": reported_view(result, paper.directory, declared),
        "commands": commands(paper.name, result),
        "implemented": readme.implemented(paper.directory),
        "checked": readme.checked(paper.directory, result.scale if result else None),
        "differences": differences_of(paper, result, declared),
    }
    if result is None:
        return view
    data, directories = result.data, run_directories(result, paper.runs)
    by_id = {c["id"]: c for c in declared.get("claims") or []}
    own, problem = pictures.method_pictures(data, paper.directory, directories, result.key)
    runs, items = data.get("runs") or [], items_of(result)
    return {
        **view,
        "data": data,
        "head": headline(result),
        "claims": [claim_view(c, result, by_id, items) for c in data.get("claims") or []],
        "strips": pictures.strip_pictures(data, declared, result.key),
        "curves": pictures.curve_pictures(data, directories, result.key),
        "figures": own,
        "figures_problem": problem,
        "trouble": [
            r for r in runs if r.get("status") != "finished" or (r.get("attempts") or 1) > 1
        ],
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
    shown = (
        [{**c, "verdict": readme.full_verdict(c, result.scale)} for c in claims] if result else []
    )
    place = {True: "", False: " (this machine)"}
    ran = [
        f"{r.scale} {readme.day(r.data)}"
        + (" PREVIEW" if r.data.get("preview") else place[r.recorded])
        for r in paper.results
    ]
    reported = reported_view(
        result, paper.directory, readme.load_yaml(paper.directory / "claims.yaml")
    )
    return {
        "paper": paper.name,
        "about": about(paper.name),
        "page": page_name(paper, result),
        "result": result,
        "claims": shown,
        "primary": [c for c in shown if c.get("role") == "primary"],
        "secondary": [c for c in shown if c.get("role") == "secondary"],
        "head": headline(result) if result else None,
        "implemented": readme.implemented(paper.directory),
        "run": ran,
        "checked": readme.checked(paper.directory, result.scale if result else None),
        "reported": reported["tally"],
        "not_found": len(reported["not_found"]),
        "answers": answers(paper.name, shown),
        "costs": readme.costs(result.data, readme.load_yaml(paper.directory / "protocol.yaml"))
        if result
        else {},
    }


def findings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Claims of all papers by what became of them; every line carries its evidence and links to it."""
    groups = []
    for name, words in GROUPS:
        found = []
        for row in rows:
            for claim in row["claims"]:
                verdict = (
                    claim["verdict"]
                    .removesuffix(readme.SCALED_DOWN)
                    .removesuffix(" for this model")
                )
                if claim.get("role") != "exhibit" and verdict in words:
                    evidence = {
                        "formula": readme.formula(claim),
                        "unit": readme.unit_of(claim),
                        "why": why(claim),
                    }
                    found.append({**row, "claim": claim, **evidence})
        found.sort(key=lambda f: f["claim"].get("role") != "primary")
        groups.append({"name": name, "found": found})
    return groups


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """report/summary.json: what a machine wants to know without reading HTML; its fields stand in docs/verdicts.md."""
    keep = (
        "id",
        "statement",
        "kind",
        "role",
        "metric",
        "unit",
        "tasks",
        "n",
        "effect",
        "ci95",
        "item_ci95",
        "threshold",
        "detectable",
        "verdict",
        "reason",
    )
    spent = (
        "runs",
        "seconds",
        "seconds_in_all",
        "gradient_evaluations",
        "gradient_evaluations_in_all",
    )
    papers = []
    for row in rows:
        result: Result | None = row["result"]
        head = row["head"] or {}
        claims = [
            {
                **{k: c.get(k) for k in keep},
                "compared": readme.formula(c),
                "controls": {
                    x.get("arm"): x.get("outcome") or "OPEN" for x in readme.controls_of(c)
                },
            }
            for c in row["claims"]
        ]
        papers.append(
            {
                "paper": row["paper"],
                "arxiv": row["about"].arxiv,
                "scale": result.scale if result else None,
                "created": result.data.get("created") if result else None,
                "commit": result.data.get("commit") if result else None,
                "recorded": result.recorded if result else None,
                "implemented": row["implemented"],
                "run": row["run"],
                "checked": row["checked"],
                **{
                    k: head.get(k)
                    for k in (
                        *("gates", "gates_passed", "runs", "diverged", "crashed"),
                        *("seconds", "cpu_seconds", "gradient_evaluations"),
                    )
                },
                "seeds": result.data.get("seeds") if result else None,
                "arms": {
                    arm: {k: cost.get(k) for k in spent} for arm, cost in row["costs"].items()
                },
                "workers_busy": row.get("workers_busy"),
                "claims": claims,
                "reported": dict(row["reported"]),
            }
        )
    return {"schema": 1, "papers": papers}


def workers_busy(paper: Paper, result: Result | None) -> float | None:
    """Sum of run times over wall time x workers, of the calls on this machine that trained the shown scale."""
    path = paper.runs / paper.name / result.scale / "wall.json" if result else None
    spent = json.loads(path.read_text()) if path and path.exists() else {}
    return round(spent["runs"] / spent["offered"], 3) if spent.get("offered") else None


# --- writing -----------------------------------------------------------------------------------------------------------


def anchor(text: Any) -> str:
    """A fragment that is safe in an id and in a link."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in str(text))


def pretty(value: Any) -> str:
    """A nested value of environment or tuning in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def p_value(value: Any) -> str:
    p = readme.number_or_none(value)
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
        "number": lambda v: minus(
            readme.number(v if not isinstance(v, jinja2.Undefined) else None)
        ),
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
    environment.tests["search"] = lambda value, pattern: bool(re.search(pattern, str(value)))
    environment.globals |= {
        "badge_of": pictures.badge_of,
        "page_name": page_name,
        "day": readme.day,
        "scaled_down": readme.SCALED_DOWN,
        "said_of_reported": SAID_OF_REPORTED,
        "unit_of": readme.unit_of,
    }
    return environment


def reliability(root: Path) -> dict[str, Any] | None:
    """The recorded figures of `python -m benchmarks.reliability`, or None."""
    path = root / "benchmarks" / "results" / "reliability.json"
    return readme.load_json(path) if path.exists() else None


def cluster(root: Path) -> dict[str, Any] | None:
    """What `make cluster-check` recorded, or None."""
    path = root / "benchmarks" / "results" / "cluster.json"
    return readme.load_json(path) if path.exists() else None


def speed(root: Path) -> dict[str, Any] | None:
    """Rows, figure and origin of the recorded cost of a step of each method, or None."""
    from benchmarks.methods import tables

    result = tables.load(root / tables.RESULT)
    if not result["papers"]:
        return None
    rows = [
        {
            "paper": paper,
            "bound": bound,
            "ours": ours,
            "same": same,
            "verdict": tables.verdict(ours["ratio"], bound) if ours else "NOT RUN",
        }
        for paper, bound, ours, same in tables.works(result)
    ]
    lines = tables.speed_lines(result)
    told = "; ".join(
        f"{name}, {', '.join(f'{k} {v:.2f}' for k, v in m.items() if v)}" for name, m, _ in lines
    )
    alt = f"Cost of one step of each method in plain steps: {told}."
    picture = (
        plots.picture(
            plots.speed(lines), "speed", "Blue bar: the range of ours over rounds.", alt, "speed"
        )
        if lines
        else None
    )
    about_it = {"lacks": tables.lacks(result), "commits": tables.commits(result)}
    return {**result, "rows": rows, "picture": picture, **about_it}


def render(
    root: Path, papers: Sequence[str] = (), runs: Path | None = None, out: Path | None = None
) -> Path:
    """Write the pages of `papers` (default: all), the overview, the findings and summary.json.

    Returns the page to open: the paper's, if one was asked for, else the overview. `root` is the checkout.
    """
    matplotlib.use("Agg")
    runs, out = runs or runs_root(root), out or root / "report"
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
    for row, paper in zip(rows, everything):
        row["workers_busy"] = workers_busy(paper, row["result"])
        row["linked"] = (out / row["page"]).exists()
    replicas = [
        (row, found) for row in rows if row["result"] and (found := replica(row["result"].data))
    ]
    write("findings.html", "findings.html", groups=findings(rows), rows=rows, replicas=replicas)
    write(
        "index.html",
        "index.html",
        rows=rows,
        reliability=reliability(root),
        speed=speed(root),
        cluster=cluster(root),
    )
    text = json.dumps(summary(rows), indent=1, ensure_ascii=False, default=str)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return out / (f"{papers[0]}.html" if len(papers) == 1 else "index.html")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "papers", nargs="*", metavar="paper", help=f"of {', '.join(PAPERS)}; none: all"
    )
    parser.add_argument("--root", type=Path, default=Path("."), help="the checkout")
    parser.add_argument("--runs", type=Path, help="where runs are (default: runs/ in it)")
    parser.add_argument("--out", type=Path, help="where the pages go (default: report/ in it)")
    given = parser.parse_args(arguments)
    try:
        opened = render(given.root, given.papers, given.runs, given.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(opened.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
