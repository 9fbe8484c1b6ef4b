"""The report on whole, partial and empty results: it loads nothing and explains its figures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import synthetic_results
from matplotlib.figure import Figure
from page import Page

from benchmarks import PAPERS, plots, report
from benchmarks.words import formula


@pytest.fixture(scope="module")
def pages(checkout) -> dict[str, Page]:
    return {
        p.name: Page(p.read_text(encoding="utf-8")) for p in (checkout / "report").glob("*.html")
    }


def test_every_paper_and_scale_has_a_page(pages):
    expected = {f"{paper}.html" for paper in PAPERS} | {
        "index.html",
        "findings.html",
        "mlo_mae-cpu.html",
    }
    assert set(pages) == expected


def test_pages_load_nothing(checkout, pages):
    for name, page in pages.items():
        for url in page.loads:
            assert url.startswith(("#", "data:")), f"{name} loads {url}"
        text = (checkout / "report" / name).read_text()
        assert "@import" not in text and not re.search(r"url\((?!#)", text), name
        assert page.tags.count("script") == 1
        known = ("https://arxiv.org/abs/", "https://github.com/")
        assert all(u.startswith(known) for u in page.links if "//" in u), name


def test_links_inside_the_report_lead_somewhere(pages):
    for name, page in pages.items():
        for link in page.links:
            if "//" in link or link == "summary.json":
                continue
            file, _, fragment = link.partition("#")
            target = pages[file or name]
            assert not fragment or fragment in target.ids, f"{name}: {link}"


def test_ids_are_unique_and_every_picture_says_what_it_shows(pages):
    for name, page in pages.items():
        repeated = {i for i in page.ids if page.ids.count(i) > 1}
        assert not repeated, f"{name}: {repeated}"
        for picture in page.pictures:
            assert picture.get("role") == "img" and len(picture.get("aria-label", "")) > 20, name
    assert (
        len(pages["autolora.html"].pictures) == 14
    )  # ten claims, two tasks, one curve, the method's own


def test_every_verdict_word_is_shown_as_a_word(pages):
    text = pages["autolora.html"].text
    for words in (
        "SUPPORTED, NOT ATTRIBUTED (scaled down)",
        "SUPPORTED, ATTRIBUTION OPEN (scaled down)",
        "CONTRADICTED (scaled down)",
        "INCONCLUSIVE (scaled down)",
        "NOT RUN (scaled down)",
        "SUPPORTED for this model (scaled down)",
        "NO MATERIAL DIFFERENCE (scaled down)",
        "these runs exclude a difference of 1 point either way",
        "INSENSITIVE (scaled down)",
        "could not have found it: its positive control uniform_8 − uniform_2 NOT SHOWN",
        "Within ±1.00",
        "NOT BEATEN",
        "OPEN",
        "recorded: SUPPORTED (scaled down) (DIFFERS)",
        "loss is nan at step 12",
        "input missing: tner/bionlp2004",
    ):
        assert words in text, words
    assert "FAILED" in pages["dasgm.html"].text  # its second gate


def test_reported_numbers_are_marked(pages):
    text = pages["mlo_mae.html"].text
    for word in (
        "REPRODUCED",
        "BETTER",
        "NOT REPRODUCED",
        "SUBSTITUTED",
        "NO PUBLISHED VALUE",
        "CONTEXT",
        "NO COUNTERPART",
    ):
        assert word in text
    watermark = pages["ts_watermark.html"]
    folded = watermark.tags.count("details") - watermark.tags.count("h2")  # each section folds, too
    assert folded == 10  # nine tables and what was not found, closed
    assert "884 on file" in watermark.text and "20 NO PUBLISHED VALUE" in watermark.text
    assert "<unreadable>" in watermark.text  # escaped, hence text


def test_special_characters_stay_text(checkout, pages):
    text = (checkout / "report/autolora.html").read_text()
    assert "<b>spans</b>" not in text and "&lt;b&gt;spans&lt;/b&gt;" in text
    assert "<made up>" in pages["autolora.html"].text


def test_findings_place_every_claim_once(checkout, pages):
    linked = [
        link for link in pages["findings.html"].links if link.startswith("autolora.html#claim-")
    ]
    declared = [c for c in synthetic_results.result().claims if c.role != "exhibit"]
    assert len(linked) == len(set(linked)) == len(declared)


def test_summary_for_machines(checkout):
    papers = {
        p["paper"]: p for p in json.loads((checkout / "report/summary.json").read_text())["papers"]
    }
    assert set(papers) == set(PAPERS)
    claim = papers["autolora"]["claims"][0]
    assert claim["verdict"].startswith("SUPPORTED, NOT ATTRIBUTED")
    assert claim["controls"] == {"permuted": "NOT BEATEN", "random": "BEATEN"}
    assert claim["compared"] == formula(synthetic_results.result().claims[0])
    assert papers["autolora"]["recorded"] is False and papers["dasgm"]["recorded"] is True
    assert papers["ppo_nlu"]["scale"] is None
    arm = papers["autolora"]["arms"]["autolora"]
    assert (
        arm["gradient_evaluations_in_all"] > arm["gradient_evaluations"] > 0 and arm["seconds"] > 0
    )
    assert (
        len(claim["ci95"]) == 2 and claim["unit"] and papers["autolora"]["gradient_evaluations"] > 0
    )
    described = (Path(report.__file__).parent.parent / "docs" / "verdicts.md").read_text()
    for name in {*papers["autolora"], *claim, *arm}:
        field = re.sub(r"\w+_in_all$", "*_in_all", name)
        assert f"`{field}`" in described, f"docs/verdicts.md does not say what {name} is"


def test_rendering_is_deterministic(checkout, tmp_path):
    report.render(checkout, ["dasgm"], runs=checkout / "runs", out=tmp_path)
    assert (tmp_path / "dasgm.html").read_bytes() == (checkout / "report/dasgm.html").read_bytes()


def test_a_subset_links_only_to_pages_that_exist(checkout, tmp_path):
    opened = report.render(checkout, ["dasgm"], runs=checkout / "runs", out=tmp_path)
    assert opened == tmp_path / "dasgm.html"
    assert {p.name for p in tmp_path.iterdir()} == {
        "dasgm.html",
        "index.html",
        "findings.html",
        "summary.json",
    }


def test_a_newer_preview_is_shown_as_one(checkout, tmp_path):
    shutil.copytree(checkout / "dasgm", tmp_path / "dasgm")
    preview = synthetic_results.document("dasgm") | {
        "preview": "SEEDS given",
        "created": "2025-12-01T00:00:00Z",
    }
    synthetic_results.write(
        tmp_path / "runs/dasgm/cpu/results.json", synthetic_results.document("dasgm")
    )
    synthetic_results.write(tmp_path / "runs/dasgm/cpu/preview.json", preview)
    report.render(tmp_path, ["dasgm"], runs=tmp_path / "runs")
    assert "SEEDS given" in Page((tmp_path / "report/dasgm.html").read_text()).text
    assert "cpu 2025-12-01 PREVIEW" in Page((tmp_path / "report/index.html").read_text()).text


def test_a_broken_figure_hides_no_verdict(checkout, tmp_path, capsys):
    shutil.copytree(checkout / "dasgm", tmp_path / "dasgm")
    (tmp_path / "dasgm/figures.py").write_text(
        "def figures(results, run_dirs):\n    raise KeyError('genotype')\n"
    )
    report.render(tmp_path, ["dasgm"], runs=tmp_path / "runs")
    page = Page((tmp_path / "report/dasgm.html").read_text())
    assert "dasgm.figures failed: KeyError" in page.text and "CONTRADICTED" in page.text
    assert "dasgm.figures failed" in capsys.readouterr().err


def test_the_command_line_prints_the_page_and_refuses_unknown_papers(checkout, tmp_path, capsys):
    assert report.main(["dasgm", "--root", str(checkout), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "dasgm.html")
    assert report.main(["autolara", "--root", str(checkout)]) == 2
    assert "did you mean 'autolora'?" in capsys.readouterr().err
    (tmp_path / "dasgm/results").mkdir(parents=True)
    (tmp_path / "dasgm/results/cpu.json").write_text("{broken")
    assert report.main(["dasgm", "--root", str(tmp_path)]) == 2
    assert "is not valid JSON" in capsys.readouterr().err


def test_ink_follows_the_page():
    """Colours of text and axes become CSS, for dark pages too; a method's own stay."""
    with plots.style():
        figure = Figure()
        figure.add_subplot().plot([0, 1], [0, 1], color="#123456")
    svg, width = plots.to_svg(figure, 'a line <up> & "on"', "key")
    assert "currentColor" in svg and plots.INK not in svg and "#123456" in svg
    assert 'aria-label="a line &lt;up&gt; &amp; &quot;on&quot;"' in svg and width > 300
    assert svg == plots.to_svg(figure, 'a line <up> & "on"', "key")[0]


def test_each_claim_says_how_its_verdict_was_reached(pages):
    page = pages["autolora.html"]
    claims = synthetic_results.result().claims
    assert page.text.count("How this verdict was reached") == len(claims)
    for words in (
        *("Rule Supported if every condition", "Data documentation", "Seeds 100-107"),
        *("Intervals 95 % Student t", "Controls permuted NOT BEATEN", "needs no test"),
        "An exhibit is shown and never judged",
    ):
        assert words in page.text, words


def test_speed_reliability_and_cluster_are_shown_once_recorded(checkout, tmp_path):
    assert not {"speed", "reliability", "cluster"} & set(
        Page((checkout / "report/index.html").read_text()).ids
    )
    step = {"ratio": 5.2, "lowest": 5.0, "highest": 5.5, "memory": 1.8}
    papers = {
        "autolora": {
            "rows": {"search step (finite difference)": step},
            "commit": "0123456789abcdef",
        }
    }
    commit, promise = "0123456789abcdef", {"item": "1", "promise": "the same <bits>"}
    counted = {"figure": "6/7", "methods": 6, "methods_asked": 7, "seconds": 3.0}
    later = {"figure": "not run", "methods": None, "methods_asked": None, "seconds": 0.0}
    items = [
        {**promise, **counted, "not_held": ["test_x: why"]},
        {"item": "2", "promise": "later", **later, "not_held": []},
    ]
    machine, versions = {"cpu": "a processor", "cores": 2}, {"python": "3.11", "torch": "2"}
    nodes = {"cluster": "one node", "versions": {"slurm": "slurm-wlm 1", "python": "3.11"}}
    checks = [{"check": "requeue", "passed": False, "detail": "2 of 3"}]
    origin = {"machine": machine, "versions": versions, "command": "a command"}
    failed = {"passed": False, "command": "make cluster-check", "seconds": 90.0, "commit": None}
    by = {"commit": commit, "machine": {"processor": "a processor"}, "created": "2026-01-02"}
    files = {
        "methods/results/cpu.json": {"papers": papers, **origin},
        "results/reliability.json": {**by, "items": items},
        "results/cluster.json": {**failed, **nodes, "checks": checks},
    }
    shutil.copytree(
        checkout, tmp_path / "checkout", ignore=shutil.ignore_patterns("report", "runs")
    )
    for name, document in files.items():
        path = tmp_path / "checkout" / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    report.render(tmp_path / "checkout", ["autolora"], runs=tmp_path)
    page = Page((tmp_path / "checkout/report/index.html").read_text())
    assert {"speed", "reliability", "cluster"} <= set(page.ids)
    for words in (
        *("5.20 [5.00, 5.50]", "reached, within 5 %", "6/7 6 of 7", "the same <bits>"),
        *(
            "test_x: why",
            "Not all checks passed.",
            "slurm-wlm 1, python 3.11",
            "commit 0123456789.",
        ),
    ):
        assert words in page.text, words
    assert page.text.count("not run") >= 2  # the other papers' steps, and item 2
    _, figure = page.pictures  # after that of the primary claims
    assert "autolora: search step, 16 x 32 tokens, ours 5.20" in figure["aria-label"]
