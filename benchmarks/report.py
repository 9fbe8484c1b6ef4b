"""The HTML report, out of results files. Nothing is judged here.

    python -m benchmarks.report                    # all papers -> report/index.html
    python -m benchmarks.report autolora           # this page (and the overview) only

The pages go to REPRO_REPORT, else to report/ in the checkout.

A scale's result is taken from `runs/<dir>/<scale>/results.json` (or `preview.json`, if that is
newer) where this machine has one, else from the committed `<dir>/results/<scale>.json`. Pages load
nothing: style, figures and the few lines of script are inside each file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from benchmarks import (
    PAPERS,
    differences,
    drawings,
    front,
    locks,
    mathml,
    pictures,
    plan_n,
    plots,
    recorded,
    tables,
    views,
    words,
)
from benchmarks import items as items_of
from benchmarks.arms import Cost, costs, parameter_count, uses_of
from benchmarks.audit import Audit, audit_paper, data_folder
from benchmarks.claims import Claims
from benchmarks.findings import Answer, answers, replica
from benchmarks.methods import tables as speed_tables
from benchmarks.papers import Paper as PaperFile
from benchmarks.papers import paper as about
from benchmarks.recorded import Claim, Results, result_path
from benchmarks.reported import ReportedFile
from benchmarks.rules import SCALED_DOWN, plain
from benchmarks.views import Headline, Result
from shared.protocol import runs_root, unknown

# --- what there is to show ------------------------------------------------------------------------


@dataclass(frozen=True)
class Paper:
    name: str
    root: Path
    runs: Path
    results: list[Result]  # the one shown first, then the other scales

    @property
    def directory(self) -> Path:
        return self.root / self.name

    @property
    def lead(self) -> Result | None:
        return self.results[0] if self.results else None

    # read once for the paper's pages and its row in the overview
    @cached_property
    def declared(self) -> Claims | None:
        return tables.declared_claims(self.directory)

    @cached_property
    def audit(self) -> Audit | None:
        """Of its published numbers; None where the paper has no audit.yaml."""
        there = (self.directory / "audit.yaml").exists()
        return audit_paper(self.directory, data_folder()) if there else None

    @cached_property
    def published(self) -> ReportedFile | None:
        return tables.published_numbers(self.directory)

    def reported(self, data: Results | None) -> views.ReportedView:
        return views.reported_view(data, self.published, self.declared)


def load(name: str, root: Path, runs: Path) -> Paper:
    """All scales: this machine's newest result first, else the most telling committed one."""
    if name not in PAPERS:
        raise unknown(name, PAPERS, "papers")
    committed, results = recorded.all_recorded(root / name), []
    for scale in recorded.SCALES:
        files = [runs / name / scale / f"{kind}.json" for kind in ("results", "preview")]
        candidates = [(recorded.read(path), path) for path in files if path.exists()]
        if candidates:
            data, path = max(candidates, key=lambda pair: pair[0].created or "")
            results.append(Result(name, scale, path, data, False, committed.get(scale)))
        elif scale in committed:
            path = result_path(root / name, scale)
            results.append(Result(name, scale, path, committed[scale], True))
    local = [result for result in results if not result.recorded]
    if local:
        newest = max(local, key=lambda result: result.data.created or "")
        results.sort(key=lambda result: result is not newest)
    return Paper(name, root, runs, results)


def page_name(paper: Paper, result: Result | None) -> str:
    if result is None or result is paper.lead:
        return f"{paper.name}.html"
    return f"{paper.name}-{result.scale}.html"


def page(paper: Paper, result: Result | None) -> dict[str, Any]:
    """All that templates/paper.html needs."""
    declared = paper.declared
    data, scale = (result.data, result.scale) if result else (None, None)
    readme = paper.directory / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""

    def measure(line: str) -> list[str]:
        return differences.effects(line, data, declared, scale or "cpu")

    view = {
        "paper": paper.name,
        "about": about(paper.name),
        "result": result,
        "results": paper.results,
        "reported": paper.reported(data),
        "audit": paper.audit,
        "on_file": paper.published,
        "commands": views.commands(paper.name, result),
        "implemented": tables.implemented(paper.directory),
        "checked": tables.checked(paper.directory, scale),
        "differences": differences.blocks(text, measure),
        "drawing": drawings.picture(paper.directory),
        "equations": mathml.equations(text),
    }
    if result is None or data is None:
        return view
    places = {run.key: result.directory_of(paper.runs, run.key) for run in data.runs}
    places = {key: place for key, place in places.items() if place.is_dir()}
    own, problem = pictures.method_pictures(data, paper.directory, places, result.key)
    specs = {spec.id: spec for spec in declared.claims} if declared else {}
    items, judged = result.items(), result.claims()
    cost, short = costs(data, uses_of(paper.directory)), plan_n.short(paper.directory, data)
    return view | {
        "data": data,
        "head": views.headline(data),
        "claims": [
            (claim, views.claim_view(claim, result, specs.get(claim.id), items, short))
            for claim in sorted(judged, key=lambda claim: claim.role != "primary")
        ],
        "finding": front.sentence(judged, result.scale),
        "item_tasks": items_of.of_result(paper.name, data, result.path),
        "strips": pictures.strip_pictures(data, declared, result.key),
        "curves": pictures.curve_pictures(data, places, result.key),
        "figures": own,
        "figures_problem": problem,
        "trouble": views.troubled(data),
        "costs": [(arm, parameter_count(data, arm), row) for arm, row in cost.items()],
        "n_directories": len(places),
    }


@dataclass(frozen=True)
class Row:
    """A paper in the overview, at the scale that it leads with."""

    paper: str
    about: PaperFile
    page: str
    result: Result | None
    claims: list[Claim]
    head: Headline | None
    implemented: str
    run: list[str]
    checked: str
    reported: list[tuple[str, int]]
    not_found: int
    audit: Audit | None
    answers: list[Answer]
    costs: dict[str, Cost]
    workers_busy: float | None
    finding: str
    open: list[front.Open]
    paper_hours: float | None
    n_published: int
    n_compared: int
    linked: bool  # whether its page exists

    def of_role(self, role: str) -> list[Claim]:
        return [claim for claim in self.claims if claim.role == role]


def overview(paper: Paper, out: Path) -> Row:
    result, directory = paper.lead, paper.directory
    claims = result.claims() if result else []
    data = result.data if result else None
    reported = paper.reported(data)
    spent = costs(data, uses_of(directory)) if data else {}
    return Row(
        paper=paper.name,
        about=about(paper.name),
        page=page_name(paper, result),
        result=result,
        claims=claims,
        head=views.headline(data) if data else None,
        implemented=tables.implemented(directory),
        run=[place_of(one) for one in paper.results],
        checked=tables.checked(directory, result.scale if result else None),
        reported=reported.tally,
        not_found=len(reported.not_found),
        audit=paper.audit,
        answers=answers(paper.name, claims),
        costs=spent,
        workers_busy=workers_busy(paper, result),
        finding=front.sentence(claims, result.scale if result else ""),
        open=front.open_claims(claims, spent),
        paper_hours=front.paper_hours(directory),
        n_published=len(reported.rows),
        n_compared=sum(row.answered for row in reported.rows),
        linked=(out / page_name(paper, result)).exists(),
    )


def place_of(result: Result) -> str:
    """'cpu 2026-01-02 (this machine)'."""
    place = " PREVIEW" if result.data.preview else "" if result.recorded else " (this machine)"
    return f"{result.scale} {words.day(result.data.created)}{place}"


def workers_busy(paper: Paper, result: Result | None) -> float | None:
    """Sum of run times over wall time x workers, of the calls here that trained this scale."""
    path = paper.runs / paper.name / result.scale / "wall.json" if result else None
    spent = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    return round(spent["runs"] / spent["offered"], 3) if spent else None


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[tuple[Row, Claim]]]]:
    """Claims of all papers by what became of them, the primary ones first."""
    pairs = [(row, claim) for row in rows for claim in row.claims if claim.role != "exhibit"]
    pairs.sort(key=lambda pair: pair[1].role != "primary")
    return [
        (name, [pair for pair in pairs if plain(pair[1].verdict or "") == word])
        for word, name in words.GROUPS.items()
    ]


# --- for machines ---------------------------------------------------------------------------------

CLAIM_FIELDS = {
    *("id", "statement", "kind", "role", "metric", "unit", "tasks", "n", "effect", "ci95"),
    *("item_ci95", "threshold", "material", "p_within", "p_holm_within", "flip_within"),
    *("sensitivity", "detectable", "verdict", "reason"),
}
HEAD_FIELDS = (
    *("gates", "gates_passed", "runs", "diverged", "crashed"),
    *("seconds", "cpu_seconds", "gradient_evaluations"),
)
COST_FIELDS = (
    *("runs", "seconds", "seconds_in_all"),
    *("gradient_evaluations", "gradient_evaluations_in_all"),
)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """report/summary.json: the report without its HTML; docs/verdicts.md names its fields."""
    papers = []
    for row in rows:
        result = row.result
        data = result.data if result else None
        claims = [
            claim.model_dump(include=CLAIM_FIELDS)
            | {
                "compared": words.formula(claim),
                "meaning": words.why(claim),
                "controls": {control.arm: control.outcome for control in claim.controls},
            }
            for claim in row.claims
        ]
        spent = {
            arm: {field: getattr(cost, field) for field in COST_FIELDS}
            for arm, cost in row.costs.items()
        }
        papers.append(
            {
                "paper": row.paper,
                "arxiv": row.about.arxiv,
                "scale": result.scale if result else None,
                "created": data.created if data else None,
                "commit": data.commit if data else None,
                "recorded": result.recorded if result else None,
                "implemented": row.implemented,
                "run": row.run,
                "checked": row.checked,
                **{field: getattr(row.head, field, None) for field in HEAD_FIELDS},
                "seeds": data.seeds if data else None,
                "arms": spent,
                "workers_busy": row.workers_busy,
                "claims": claims,
                "reported": dict(row.reported),
                "audit": row.audit.tally if row.audit else {},
            }
        )
    return {"schema": 1, "papers": papers}


# --- writing --------------------------------------------------------------------------------------


def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )

    def minus(text: str) -> str:
        return text.replace("-", "−")

    def minuses(text: str) -> str:
        """Of numbers and differences; hyphens in names stay."""
        return re.sub(r"(?<=[ (])-(?=[\d ])", "−", text)

    filters: dict[str, Any] = {
        "number": lambda value: minus(words.number(value)),
        "signed": lambda value: minus(words.number(value, signed=True)),
        "interval": lambda ends: minus(words.interval(ends)),
        "duration": words.duration,
        "p": words.p_value,
        "anchor": words.anchor,
        "minuses": minuses,
        "pretty": words.pretty,
        "fold": fold,
        "svg": Markup,  # our own markup; everything else is escaped
    }
    environment.filters |= filters
    environment.tests["search"] = lambda value, pattern: bool(re.search(pattern, str(value)))
    environment.globals |= {
        "badge_of": words.badge_of,
        "page_name": page_name,
        "day": words.day,
        "formula": words.formula,
        "machines": words.machines,
        "stated": words.stated,
        "why": words.why,
        "in_words": words.in_words,
        "scaled_down": SCALED_DOWN,
        "said_of_reported": words.SAID_OF_REPORTED,
        "said_of_audit": words.SAID_OF_AUDIT,
        "unit_of": words.unit_of,
    }
    return environment


def fold(page: str) -> Markup:
    """Each section, from one <h2> to the next, in a <details> that its heading opens."""
    before, *sections = re.split(r"(?=<h2 )", page)
    folded = [
        re.sub(
            r"^(<h2 .*?</h2>)(.*)$",
            r'<details class="part"><summary>\1</summary>\2</details>',
            section,
            flags=re.DOTALL,
        )
        for section in sections
    ]
    return Markup("".join([before, *folded]))


def figures_of(root: Path, name: str) -> Any:
    """What `python -m benchmarks.reliability` or `make cluster-check` recorded, or None."""
    path = root / "benchmarks" / "results" / f"{name}.json"
    return recorded.load_json(path) if path.exists() else None


def speed(root: Path) -> dict[str, Any] | None:
    """Rows, figure and origin of the recorded cost of a step of each method, or None."""
    result = speed_tables.load(root / speed_tables.RESULT)
    if not result["papers"]:
        return None
    rows = [
        {
            "paper": paper,
            "bound": bound,
            "ours": ours,
            "same": same,
            "verdict": speed_tables.verdict(ours["ratio"], bound) if ours else "NOT RUN",
        }
        for paper, bound, ours, same in speed_tables.works(result)
    ]
    lines = speed_tables.speed_lines(result)
    said = "; ".join(
        f"{name}, {', '.join(f'{k} {v:.2f}' for k, v in m.items() if v)}" for name, m, _ in lines
    )
    alt = f"Cost of one step of each method in plain steps: {said}."
    picture = (
        plots.picture(
            plots.speed(lines), "speed", "Blue bar: the range of ours over rounds.", alt, "speed"
        )
        if lines
        else None
    )
    about_it = {"lacks": speed_tables.lacks(result), "commits": speed_tables.commits(result)}
    return {**result, "rows": rows, "picture": picture, **about_it}


def render(
    root: Path, papers: Sequence[str] = (), runs: Path | None = None, out: Path | None = None
) -> Path:
    """Write the pages of `papers` (default: all), the overview, the findings and summary.json.

    Returns the page to open: the paper's, if one was asked for, else the overview. `root` is the
    checkout; the folder of the report is written by one process at a time, page by page.
    """
    out = out or recorded.report_root(root)
    with locks.alone(out, "a report", patience=120, signed=False):
        return write_pages(root, papers, runs or runs_root(root), out)


def write_pages(root: Path, papers: Sequence[str], runs: Path, out: Path) -> Path:
    matplotlib.use("Agg")
    asked = [load(name, root, runs) for name in papers or PAPERS]
    environment = templates()

    def write(name: str, template: str, **values: Any) -> None:
        text = environment.get_template(template).render(file=name, **values)
        recorded.write_text(out / name, text)

    for paper in asked:
        for result in paper.results or (None,):
            write(page_name(paper, result), "paper.html", p=paper, **page(paper, result))
    loaded = {paper.name: paper for paper in asked}
    rows = [overview(loaded.get(name) or load(name, root, runs), out) for name in PAPERS]
    replicas = [(row, twin) for row in rows if row.result and (twin := replica(row.result.data))]
    write("findings.html", "findings.html", groups=grouped(rows), rows=rows, replicas=replicas)
    counted = {name: figures_of(root, name) for name in ("reliability", "cluster")}
    primary = front.picture([(row.paper, row.claims) for row in rows])
    write("index.html", "index.html", rows=rows, primary=primary, speed=speed(root), **counted)
    text = json.dumps(summary(rows), indent=1, ensure_ascii=False, default=str)
    recorded.write_text(out / "summary.json", text + "\n")
    return out / (f"{papers[0]}.html" if len(papers) == 1 else "index.html")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("papers", nargs="*", metavar="paper", help=f"of {', '.join(PAPERS)}; none: all")
    add("--root", type=Path, default=Path("."), help="the checkout")
    add("--runs", type=Path, help="where runs are (default: runs/ in it)")
    add("--out", type=Path, help="where the pages go (default: REPRO_REPORT, else report/)")
    options = parser.parse_args(arguments)
    try:
        opened = render(options.root, options.papers, options.runs, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, OSError):
            print("  remedy:  make room there, or give REPRO_REPORT=... or --out", file=sys.stderr)
        return 2
    print(opened.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
