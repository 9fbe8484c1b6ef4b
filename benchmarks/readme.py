"""README tables out of recorded results. Pure text: the same files give the same bytes, so that `make check` compares.

A README holds `<!-- generated: NAME -->` ... `<!-- end generated -->`; what stands between is ours, the rest is not touched.
Only committed files are read (`<dir>/results/*.json`, `protocol.yaml`): what a machine has in `runs/` changes no README.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from benchmarks import PAPERS
from shared import sources
from shared.protocol import BadInput

SCALES = ("paper", "gpu", "cpu")  # the most telling first; a rehearsal never has a verdict
SCALED_DOWN = " (scaled down)"
# Metrics of a run that count parameters rather than say how good it is.
SIZES = ("trainable_parameters", "adapter_parameters", "parameters")
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n)(.*?)(<!-- end generated -->)", re.DOTALL)


# --- numbers and words -------------------------------------------------------------------------------------------------


def number(value: Any, signed: bool = False, beside: float = 0.0) -> str:
    """1234567 -> 1,234,567; 150.0 -> 150; 12.345 -> 12.35; 0.012 -> 0.0120; 5.44e-5 -> 0.0000544; None and NaN -> n/a.

    `beside`: the largest number shown together with this one, which decides the decimals of both.
    """
    if value is None or isinstance(value, str):
        return value or "n/a"
    if isinstance(value, float) and not math.isfinite(value):
        return "n/a"
    plus = "+" if signed and value != 0 else ""
    size = max(abs(value), abs(beside))
    if isinstance(value, int) or size >= 10_000 or (size >= 100 and value == round(value)):
        return f"{value:{plus},.0f}"
    if size >= 0.1 or value == 0:
        return f"{value:{plus}.2f}"
    if size >= 1e-6:  # three digits of the larger one
        return f"{value:{plus}.{2 - math.floor(math.log10(size))}f}"
    return f"{value:{plus}.2e}"


def interval(ends: Sequence[float | None] | None, signed: bool = True) -> str:
    known = [float(e) for e in ends or [] if e is not None and math.isfinite(e)]
    if len(known) != 2:
        return "n/a"
    size = max(map(abs, known))
    return f"{number(known[0], signed, size)} to {number(known[1], signed, size)}"


def full_verdict(claim: dict[str, Any], scale: str) -> str:
    """The verdict's words, `(scaled down)` included where docs/verdicts.md, section 3, asks for them."""
    if claim.get("role") == "exhibit":
        return "exhibit"
    verdict = claim.get("verdict") or "NOT RUN"
    small = scale in ("cpu", "gpu") and SCALED_DOWN not in verdict
    return verdict + SCALED_DOWN if small else verdict


def formula(claim: dict[str, Any], control: str = "") -> str:
    """What d is, in words: 'autolora - uniform_4' (or - control), a weighted sum, the statistic's name.

    Where lower is better the opponent comes first: d is positive when the claim is right."""
    arms = claim.get("arms") or {}
    lower = claim.get("direction") == "lower" and claim.get("kind") in ("difference", "exact")
    if control:
        method = sides(claim)[0]
        return f"{control} - {method}" if lower else f"{method} - {control}"
    if claim.get("kind") == "statistic":
        return f"{arms.get('name', 'statistic')}({', '.join(listed(arms.get('method')))})"
    if claim.get("kind") == "contrast" and arms.get("weights"):
        return " ".join(f"{w:+g} {arm}" for arm, w in arms["weights"].items())
    method, opponent = (
        ", ".join(listed(arms.get("method"))),
        ", ".join(listed(arms.get("opponent"))),
    )
    if claim.get("kind") == "spread":
        return f"spread of {opponent} - spread of {method}"
    if not opponent:
        return method
    return f"{opponent} - {method}" if lower else f"{method} - {opponent}"


def sides(claim: dict[str, Any]) -> list[str]:
    """The arms that a claim compares, without the task of `arm@task`; the method first."""
    arms = claim.get("arms") or {}
    named = [
        *listed(arms.get("method")),
        *listed(arms.get("opponent")),
        *(arms.get("weights") or {}),
    ]
    return [str(name).split("@")[0] for name in named]


def listed(value: Any) -> list[str]:
    return (
        []
        if value is None
        else [str(v) for v in value]
        if isinstance(value, list | tuple)
        else [str(value)]
    )


def number_or_none(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def controls_of(claim: dict[str, Any]) -> list[dict[str, Any]]:
    controls = claim.get("controls") or []
    return (
        []
        if isinstance(controls, str)
        else [c if isinstance(c, dict) else {"arm": c} for c in controls]
    )


def unit_of(claim: dict[str, Any]) -> str:
    unit = claim.get("unit") or "points"
    metric = claim.get("metric") or "raw"
    return {"raw": str(metric), "item": f"{metric}, item by item"}.get(unit, unit)


def seeds_text(seeds: Sequence[int]) -> str:
    if not seeds:
        return "none"
    run = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}-{seeds[-1]}" if run and len(seeds) > 1 else ", ".join(map(str, seeds))


def day(result: dict[str, Any]) -> str:
    return str(result.get("created") or "no date")[:10]


def factors_by_task(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    """(task, metric) -> 100 where it is shown in points, else 1 (docs/verdicts.md, section 2)."""
    units: dict[Any, set[Any]] = {}
    for claim in result.get("claims") or []:
        units.setdefault(claim.get("metric"), set()).add(claim.get("unit"))
    values: dict[tuple[str, str], list[float]] = {}
    for run in result.get("runs") or []:
        for name, value in (run.get("metrics") or {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault((run["task"], name), []).append(value)
    found = {}
    for (task, name), seen in values.items():
        inside = all(-1 <= v <= 1 for v in seen) and name not in SIZES
        found[task, name] = 100.0 if inside and units.get(name) != {"raw"} else 1.0
    return found


def factors(result: dict[str, Any]) -> dict[str, float]:
    """metric -> 100 where it is shown in points on some task, else 1."""
    by_task = factors_by_task(result)
    return {
        name: max(f for (_, other), f in by_task.items() if other == name) for _, name in by_task
    }


Scores = dict[tuple[str, str, str], list[tuple[int, float, bool]]]


def scores(result: dict[str, Any], claims: dict[str, Any]) -> Scores:
    """(task, metric, arm) -> [(seed, score as shown, diverged)], by seed; stage runs have no metrics and do not occur.

    `claims` is claims.yaml: a run that diverged has the chance that it declares for the task
    (docs/verdicts.md, section 5).
    """
    factor = factors_by_task(result)
    stages = {
        r["arm"]
        for r in result.get("runs") or []
        if r.get("status") == "finished" and not r.get("metrics")
    }
    found: Scores = {}
    for run in sorted(result.get("runs") or [], key=lambda r: r.get("seed", 0)):
        diverged, metrics = run.get("status") == "diverged", run.get("metrics") or {}
        if diverged and not metrics and run["arm"] not in stages:
            metrics = ((claims.get("tasks") or {}).get(run["task"]) or {}).get("chance") or {}
        for name, value in metrics.items():
            if (
                (run["task"], name) in factor
                and isinstance(value, int | float)
                and math.isfinite(value)
            ):
                point = (run["seed"], value * factor[run["task"], name], diverged)
                found.setdefault((run["task"], name, run["arm"]), []).append(point)
    return found


def metrics_of(result: dict[str, Any]) -> dict[str, list[str]]:
    """task -> the metrics worth a table: those of its claims, else the first one its runs recorded."""
    recorded: dict[str, list[str]] = {}
    for run in result.get("runs") or []:
        names = recorded.setdefault(run["task"], [])
        names += [m for m in run.get("metrics") or {} if m not in names and m not in SIZES]
    wanted: dict[str, list[str]] = {}
    for task, names in recorded.items():
        claims = [c for c in result.get("claims") or [] if not c.get("tasks") or task in c["tasks"]]
        claimed = [m for m in names if m in {c.get("metric") for c in claims}]
        if names:
            wanted[task] = claimed or names[:1]
    return wanted


def arms_of(result: dict[str, Any]) -> list[str]:
    """Arms in the order of the claims (method, opponent, controls), then as they were run."""
    order: list[str] = []
    for claim in result.get("claims") or []:
        order += sides(claim)
        order += [
            control["arm"] for control in claim.get("controls") or [] if isinstance(control, dict)
        ]
    order += [run["arm"] for run in result.get("runs") or []]
    return list(dict.fromkeys(order))


def costs(result: dict[str, Any], protocol: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """arm -> means over its finished runs, own and with all that they use."""
    own: dict[str, dict[str, float | None]] = {}
    for arm in arms_of(result):
        runs = [r for r in result.get("runs") or [] if r["arm"] == arm]
        if runs:
            own[arm] = {"runs": len(runs)}
            for key in (
                "seconds",
                "gradient_evaluations",
                "gradient_evaluations_with_uses",
                "peak_memory_mb",
            ):
                known = [
                    r[key] for r in runs if r.get(key) is not None and r.get("status") == "finished"
                ]
                own[arm][key] = statistics.fmean(known) if known else None

    def with_uses(arm: str, seen: frozenset[str]) -> set[str]:
        used = ((protocol.get("arms") or {}).get(arm) or {}).get("uses") or []
        return {arm}.union(
            *(with_uses(u, seen | {arm}) for u in listed(used) if u not in seen and u != arm)
        )

    for arm, row in own.items():
        for key in ("seconds", "gradient_evaluations"):
            parts = [own[a][key] for a in with_uses(arm, frozenset()) if a in own]
            known = [p for p in parts if p is not None]
            row[f"{key}_in_all"] = sum(known) if len(known) == len(parts) else None
        if row["gradient_evaluations_with_uses"] is not None:
            row["gradient_evaluations_in_all"] = row["gradient_evaluations_with_uses"]
    return own


# --- files -------------------------------------------------------------------------------------------------------------


def load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(
            f"{path} is not valid JSON ({error}); restore it with git, or, below runs/, delete it and give the command again"
        ) from error


def load_yaml(path: Path) -> dict[str, Any]:
    """{} where there is no file. By libyaml where it is there: the largest file takes seconds without it."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return (
        (yaml.load(path.read_text(encoding="utf-8"), Loader=loader) or {}) if path.exists() else {}
    )


def recorded(paper_dir: Path) -> dict[str, dict[str, Any]]:
    """scale -> committed result, the most telling scale first."""
    paths = {scale: paper_dir / "results" / f"{scale}.json" for scale in SCALES}
    return {scale: load_json(path) for scale, path in paths.items() if path.exists()}


def implemented(paper_dir: Path) -> str:
    """From `results/rehearsal.json`: {created, commit, passed, runs, seconds}."""
    path = paper_dir / "results" / "rehearsal.json"
    if not path.exists():
        return "not yet"
    stamp = load_json(path)
    word = "yes" if stamp.get("passed") else "FAILED"
    return f"{word}: rehearsal of {number(stamp.get('runs'))} runs, {day(stamp)}"


def checked(paper_dir: Path, scale: str | None) -> str:
    """From `results/checked.json` (see `stamp_checked`); a stamp holds for the very bytes it names."""
    path, results = paper_dir / "results" / "checked.json", paper_dir / "results" / f"{scale}.json"
    stamp = load_json(path).get(scale) if path.exists() else None
    if not stamp or not results.exists():
        return "not yet"
    if stamp.get("results_sha256") != sha256(results.read_bytes()).hexdigest():
        return "results changed since"
    return f"{'yes' if stamp.get('passed') else 'FAILED'}, {day(stamp)}"


def stamp_checked(paper_dir: Path, scale: str) -> None:
    """Note in `results/checked.json` that the committed result of a scale passed; the day stays while the bytes do."""
    path, results = paper_dir / "results" / "checked.json", paper_dir / "results" / f"{scale}.json"
    stamps = load_json(path) if path.exists() else {}
    digest = sha256(results.read_bytes()).hexdigest()
    if (stamps.get(scale) or {}).get("results_sha256") != digest:
        today = time.strftime("%Y-%m-%d", time.gmtime())
        stamps[scale] = {"created": today, "passed": True, "results_sha256": digest}
    path.write_text(json.dumps(stamps, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# --- tables ------------------------------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    """Text that cannot leave its table cell or become markup."""
    text = " ".join(str(value).split())
    for character, escaped in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("*", "\\*"),
        ("_", "\\_"),
    ):
        text = text.replace(character, escaped)
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])


def heading(result: dict[str, Any], scale: str) -> str:
    seeds = seeds_text(result.get("seeds") or [])
    commit = f", commit `{str(result['commit'])[:10]}`" if result.get("commit") else ""
    return f"Scale `{scale}`, recorded {day(result)}{commit}, seeds {seeds}."


def controls_text(claim: dict[str, Any]) -> str:
    controls = claim.get("controls") or []
    if isinstance(controls, str):
        return cell(controls)
    return (
        "<br>".join(f"{cell(c.get('arm'))}: {c.get('outcome') or 'OPEN'}" for c in controls)
        or "none"
    )


def claims_table(result: dict[str, Any], scale: str) -> str:
    rows = []
    for claim in result.get("claims") or []:
        verdict = (
            f"**{full_verdict(claim, scale)}**"
            if claim.get("role") == "primary"
            else full_verdict(claim, scale)
        )
        if claim.get("reason") and "SUPPORTED" not in verdict:
            verdict += f": {cell(claim['reason'])}"
        what = f"{cell(claim.get('statement', ''))} (`{claim['id']}`, {claim.get('role')})"
        values = [
            number(claim.get("effect"), signed=True),
            interval(claim.get("ci95")),
            number(claim.get("n")),
        ]
        rows.append([what, verdict, *values, controls_text(claim)])
    return table(
        ["claim", "verdict", "effect", "95 % interval", "n", "controls"], rows, right=(2, 3, 4)
    )


def results_table(result: dict[str, Any], protocol: dict[str, Any], claims: dict[str, Any]) -> str:
    """Arm x (task, metric): mean and sd over seeds; then what the arm costs, with all it uses."""
    columns = [(task, metric) for task, metrics in metrics_of(result).items() for metric in metrics]
    found, cost = scores(result, claims), costs(result, protocol)
    sizes = {arm: parameter_count(result, arm) for arm in arms_of(result)}
    head = ["arm", *(f"{cell(task)}: {cell(metric)}" for task, metric in columns)]
    head += (["parameters"] if any(sizes.values()) else []) + ["gradient evaluations", "seconds"]
    rows = []
    for arm in arms_of(result):
        cells = [mean_sd(found.get((task, metric, arm), [])) for task, metric in columns]
        if all(c == "" for c in cells):
            continue  # a stage: its cost is within the arms that use it
        size = [number(sizes[arm])] if any(sizes.values()) else []
        price = [
            number(rounded(cost.get(arm, {}).get(f"{k}_in_all")))
            for k in ("gradient_evaluations", "seconds")
        ]
        rows.append([f"`{arm}`", *cells, *size, *price])
    return table(head, rows, right=range(1, len(head)))


def rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def parameter_count(result: dict[str, Any], arm: str) -> int | None:
    for run in result.get("runs") or []:
        for name in SIZES:
            if run["arm"] == arm and (run.get("metrics") or {}).get(name):
                return round(run["metrics"][name])
    return None


def mean_sd(points: Sequence[tuple[int, float, bool]]) -> str:
    values = [value for _, value, _ in points]
    if not values:
        return ""
    sd = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
    bad = sum(diverged for _, _, diverged in points)
    return f"{number(statistics.fmean(values))}{sd} (n {len(values)}{f', {bad} diverged' if bad else ''})"


def reported_table(paper_dir: Path, results: dict[str, dict[str, Any]]) -> str:
    """Entries that an arm of ours answers; a tally in one line where there is none."""
    entries = load_yaml(paper_dir / "reported.yaml").get("entries") or []
    known = {e["id"]: e for e in entries}
    held = (results.get("paper") or next(iter(results.values()), {})).get("reported") or []
    targets = [
        e
        for e in held
        if e.get("task") and str(e.get("verdict")).upper() not in ("CONTEXT", "NO COUNTERPART")
    ]
    tally = Counter(str(e.get("verdict") or "NOT RUN") for e in held)
    missing = sum(e.get("value", e.get("reported")) is None for e in entries or held)
    words = (
        ", ".join(f"{n} {verdict}" for verdict, n in sorted(tally.items())) or "none compared yet"
    )
    line = f"{len(entries) or len(held)} published values on file ({missing} without a value): {words}."
    if not targets:
        return line
    rows = []
    for e in targets:
        setting = (known.get(e["id"]) or {}).get("table") or ""
        sd = f" ± {number(e['sd'])}" if e.get("sd") is not None else ""
        theirs = "NO PUBLISHED VALUE" if e.get("reported") is None else number(e["reported"]) + sd
        ours = [
            number(e.get("measured")),
            number(e.get("gap"), signed=True),
            interval(e.get("ci95")),
            number(e.get("tolerance")),
        ]
        what = (
            f"{cell(e.get('method', ''))}, {cell(e.get('task') or '')}, {cell(e.get('metric', ''))}"
        )
        rows.append(
            [
                f"`{e['id']}`<br>{what}",
                cell(setting),
                theirs,
                *ours,
                str(e.get("verdict") or "NOT RUN"),
            ]
        )
    head = ["entry", "table", "reported", "ours", "gap", "95 % interval", "tolerance", "verdict"]
    return line + "\n\n" + table(head, rows, right=(2, 3, 4, 5, 6))


NOTHING = "Nothing is recorded yet: `make reproduce-{0}`, then `make record-{0}`."


def readme_tables(paper_dir: Path) -> dict[str, str]:
    """Blocks `claims`, `results`, `reported` of a paper's README."""
    results, protocol = recorded(paper_dir), load_yaml(paper_dir / "protocol.yaml")
    declared = load_yaml(paper_dir / "claims.yaml")
    nothing = NOTHING.format(paper_dir.resolve().name)
    claims = [f"{heading(r, scale)}\n\n{claims_table(r, scale)}" for scale, r in results.items()]
    ours = [
        f"{heading(r, scale)} Mean ± sd over seeds.\n\n{results_table(r, protocol, declared)}"
        for scale, r in results.items()
    ]
    return {
        "claims": "\n\n".join(claims) or nothing,
        "results": "\n\n".join(ours) or nothing,
        "reported": reported_table(paper_dir, results),
    }


def project_tables(root: Path) -> dict[str, str]:
    """Blocks of the project's README: `verdicts`, a row per paper at its most telling recorded scale, `speed`, `layouts`."""
    from benchmarks.methods import tables as speed  # which imports this module

    rows = []
    for paper in PAPERS:
        results = recorded(root / paper)
        scale, result = next(iter(results.items()), (None, {}))
        primary = [c for c in result.get("claims") or [] if c.get("role") == "primary"]
        verdicts = [
            f"{cell(c.get('statement') or c['id'])}: **{full_verdict(c, str(scale))}**"
            for c in primary
        ]
        run = ", ".join(f"`{s}` {day(r)}" for s, r in results.items()) or "not yet"
        row = [
            f"[{paper}]({paper}/README.md)",
            f"`{scale}`" if scale else "",
            "<br>".join(verdicts) or "not run",
        ]
        rows.append([*row, implemented(root / paper), run, checked(root / paper, scale)])
    head = ["paper", "scale", "primary claims", "implemented", "run", "checked"]
    return {
        "verdicts": table(head, rows),
        "speed": speed.speed_table(root),
        "layouts": layouts_table(),
    }


def layouts_table() -> str:
    """Block `layouts`: every folder of REPRO_DATA that a loader knows, out of `sources.LAYOUTS`."""
    rows = [
        [
            f"`{x.folder}`",
            cell(x.what),
            cell(x.files),
            cell(x.source),
            cell(x.licence),
            f"`{x.fetch}`",
        ]
        for x in sources.LAYOUTS
    ]
    return table(
        ["folder of REPRO_DATA", "what", "files", "usual source", "licence", "to fetch"], rows
    )


def filled(text: str, tables: dict[str, str]) -> str:
    """`text` with its generated blocks replaced; a block whose name is not in `tables` stays as it is."""
    opened, closed = text.count("<!-- generated: "), text.count("<!-- end generated -->")
    if opened != closed or opened != len(BLOCK.findall(text)):
        raise ValueError(
            f"{opened} blocks are opened and {closed} closed; write `<!-- generated: NAME -->` and "
            "`<!-- end generated -->` each on a line of its own, in pairs"
        )

    def block(match: re.Match[str]) -> str:
        body = tables.get(match[2])
        return match[0] if body is None else f"{match[1]}{body}\n{match[4]}"

    return BLOCK.sub(block, text)


def update_readme(path: Path, tables: dict[str, str]) -> bool:
    """Fill the blocks of the README at `path`; True if that changed it."""
    before = path.read_text(encoding="utf-8")
    try:
        after = filled(before, tables)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def outdated(path: Path, tables: dict[str, str]) -> list[str]:
    """Names of the blocks of `path` that are not what `tables` says (for `make check`)."""
    text = path.read_text(encoding="utf-8")
    old = {name: body for _, name, body, _ in BLOCK.findall(text)}
    new = {name: body for _, name, body, _ in BLOCK.findall(filled(text, tables))}
    return [name for name in new if old[name] != new[name]]


def _tables(root: Path, papers: Sequence[str]) -> list[tuple[Path, dict[str, str]]]:
    """The READMEs that exist among those of `papers`, the project's and docs/findings.md, each with its tables."""
    from benchmarks import findings  # which imports this module

    found = [(root / paper / "README.md", paper) for paper in papers] + [(root / "README.md", "")]
    tables = [
        (path, readme_tables(root / paper) if paper else project_tables(root))
        for path, paper in found
        if path.exists()
    ]
    answers = root / "docs" / "findings.md"
    return tables + (
        [
            (
                answers,
                {
                    "findings": findings.findings_table(root),
                    "replicas": findings.replicas_table(root),
                },
            )
        ]
        if answers.exists()
        else []
    )


def write_readmes(root: Path, papers: Sequence[str] = PAPERS) -> list[Path]:
    """Fill the tables of the papers' READMEs and of the project's; the files that this changed."""
    return [path for path, tables in _tables(root, papers) if update_readme(path, tables)]


def stale_readmes(root: Path, papers: Sequence[str] = PAPERS) -> list[str]:
    """What `write_readmes` would change, as 'autolora/README.md: claims' (for `make check`)."""
    return [
        f"{path.relative_to(root)}: {name}"
        for path, tables in _tables(root, papers)
        for name in outdated(path, tables)
    ]
