"""Which generated table stands in which page. Only committed files are read, and the same files
give the same bytes, so that `make check` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import PAPERS, findings, plan_n, recorded, settings, tables
from benchmarks.arms import uses_of
from benchmarks.audit import audit_tables
from benchmarks.blocks import outdated, update_readme
from benchmarks.methods import launch_tables
from benchmarks.methods import tables as speed
from benchmarks.words import cell, day, full_verdict, stated, table
from shared import sources

NOTHING = "Nothing is recorded yet: `make reproduce-{0}`, then `make record-{0}`."


def paper_tables(paper_dir: Path) -> dict[str, str]:
    """Blocks `claims`, `results`, `reported` of a paper's README."""
    results = recorded.all_recorded(paper_dir)
    uses, claims = uses_of(paper_dir), tables.declared_claims(paper_dir)
    nothing = NOTHING.format(paper_dir.resolve().name)
    judged, scores = [], []
    for result in results.values():
        heading = tables.heading(result)
        judged.append(
            f"{heading}\n\n{tables.claims_table(result, plan_n.short(paper_dir, result))}"
        )
        scored = tables.results_table(result, uses, claims)
        scores.append(f"{heading} Mean ± sd over seeds.\n\n{scored}")
    return {
        "claims": "\n\n".join(judged) or nothing,
        "results": "\n\n".join(scores) or nothing,
        "reported": tables.reported_table(tables.published_numbers(paper_dir), results),
    }


def verdicts_table(root: Path) -> str:
    """Block `verdicts`: a row per paper."""
    head = ["paper", "scale", "primary claims", "implemented", "run", "checked"]
    return table(head, [paper_row(root / paper) for paper in PAPERS])


def paper_row(paper_dir: Path) -> list[str]:
    """A paper at its most telling recorded scale."""
    results = recorded.all_recorded(paper_dir)
    scale, result = next(iter(results.items()), (None, None))
    verdicts = [
        f"{cell(stated(claim))}: **{full_verdict(claim, result.scale)}**"
        for claim in (result.claims if result else [])
        if result and claim.role == "primary"
    ]
    return [
        f"[{paper_dir.name}](../{paper_dir.name}/README.md)",
        f"`{scale}`" if scale else "",
        "<br>".join(verdicts) or "not run",
        tables.implemented(paper_dir),
        ", ".join(f"`{name}` {day(r.created)}" for name, r in results.items()) or "not yet",
        tables.checked(paper_dir, scale),
    ]


def layouts_table(root: Path) -> str:
    """Every folder of REPRO_DATA that a loader knows."""
    head = ["folder of REPRO_DATA", "what", "files", "usual source", "licence", "to fetch"]
    rows = [
        [f"`{x.folder}`", *map(cell, (x.what, x.files, x.source, x.licence)), f"`{x.fetch}`"]
        for x in sources.LAYOUTS
    ]
    return table(head, rows)


# The project's pages with generated tables -> their blocks.
PROJECT_PAGES: dict[str, dict[str, Callable[[Path], str]]] = {
    "README.md": {"found": findings.short_table},
    "docs/findings.md": {
        "findings": findings.findings_table,
        "verdicts": verdicts_table,
        "replicas": findings.replicas_table,
        "audit": audit_tables,
    },
    "docs/speed.md": {"speed": speed.speed_table},
    "docs/data.md": {"layouts": layouts_table},
}


def pages(root: Path, papers: Sequence[str] = PAPERS) -> list[tuple[Path, dict[str, str]]]:
    """Those that exist of the papers' READMEs and the project's pages, with their tables."""
    listed = []
    for paper in papers:
        if (path := root / paper / "README.md").exists():
            listed.append((path, paper_tables(root / paper)))
    for page, blocks in PROJECT_PAGES.items():
        if (path := root / page).exists():
            text = path.read_text(encoding="utf-8")
            there = {name: make for name, make in blocks.items() if f"generated: {name} " in text}
            listed.append((path, {name: make(root) for name, make in there.items()}))
    if (path := root / "docs" / "gpu.md").exists():
        listed.append((path, launch_tables.blocks(root)))
    if (path := root / "docs" / "settings.md").exists():
        listed.append((path, settings.tables(root, PAPERS)))
    return listed


def write_readmes(root: Path, papers: Sequence[str] = PAPERS) -> list[Path]:
    """Fill the tables of all pages; the files that this changed."""
    return [path for path, blocks in pages(root, papers) if update_readme(path, blocks)]


def stale_readmes(root: Path, papers: Sequence[str] = PAPERS) -> list[str]:
    """What `write_readmes` would change, as 'autolora/README.md: claims'."""
    return [
        f"{path.relative_to(root)}: {name}"
        for path, blocks in pages(root, papers)
        for name in outdated(path, blocks)
    ]
