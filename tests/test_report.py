"""The report on whole, partial and empty results: it renders, loads nothing, explains its figures; README tables are stable."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic_results
import yaml
from matplotlib.figure import Figure

from benchmarks import ROOT, differences, findings, papers, pictures, plots, readme, report

VOID = {"meta", "br", "link", "img", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Checks nesting and collects what a page loads, links to, defines and says."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.pictures: list[dict] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in (
            "link",
            "script",
            "img",
            "iframe",
            "image",
            "use",
            "source",
            "object",
            "embed",
        ):
            self.loads += [
                v for k, v in given.items() if k in ("href", "src", "xlink:href", "data", "srcset")
            ]
        if tag == "svg":
            self.pictures.append(given)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (
            f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        )
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A checkout with made-up results of every sort, rendered once."""
    path = synthetic_results.tree(tmp_path_factory.mktemp("checkout"))
    report.render(path, runs=path / "runs")
    return path


@pytest.fixture(scope="module")
def pages(root) -> dict[str, Page]:
    return {p.name: Page(p.read_text(encoding="utf-8")) for p in (root / "report").glob("*.html")}


def test_every_paper_and_scale_has_a_page(pages):
    expected = {f"{paper}.html" for paper in readme.PAPERS} | {
        "index.html",
        "findings.html",
        "mlo_mae-cpu.html",
    }
    assert set(pages) == expected


def test_pages_load_nothing(root, pages):
    about = [papers.paper(name) for name in readme.PAPERS]
    outside = {f"https://arxiv.org/abs/{paper.arxiv}" for paper in about}
    outside |= {paper.repository for paper in about}
    for name, page in pages.items():
        for url in page.loads:
            assert url.startswith(("#", "data:")), f"{name} loads {url}"
        text = (root / "report" / name).read_text()
        assert "@import" not in text and not re.search(r"url\((?!#)", text), name
        assert page.tags.count("script") == 1
        assert {u for u in page.links if "//" in u} <= outside, name


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
        len(pages["autolora.html"].pictures) == 12
    )  # eight claims, two tasks, one curve, the method's own


def test_every_verdict_word_is_shown_as_a_word(pages):
    text = pages["autolora.html"].text
    for words in (
        "SUPPORTED, NOT ATTRIBUTED (scaled down)",
        "SUPPORTED, ATTRIBUTION OPEN (scaled down)",
        "CONTRADICTED (scaled down)",
        "INCONCLUSIVE (scaled down)",
        "NOT RUN (scaled down)",
        "SUPPORTED for this model (scaled down)",
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
    assert watermark.tags.count("details") == 10  # nine tables and what was not found, closed
    assert "884 on file" in watermark.text and "20 NO PUBLISHED VALUE" in watermark.text
    assert "<unreadable>" in watermark.text  # escaped, hence text


def test_special_characters_stay_text(root, pages):
    text = (root / "report/autolora.html").read_text()
    assert "<b>spans</b>" not in text and "&lt;b&gt;spans&lt;/b&gt;" in text
    assert "<made up>" in pages["autolora.html"].text


def test_findings_place_every_claim_once(root, pages):
    found = [
        link for link in pages["findings.html"].links if link.startswith("autolora.html#claim-")
    ]
    declared = [c for c in synthetic_results.result()["claims"] if c["role"] != "exhibit"]
    assert len(found) == len(set(found)) == len(declared)


@pytest.mark.parametrize("paper", readme.PAPERS)
def test_questions_ask_for_claims_and_controls_that_are_declared(paper):
    asked = papers.paper(paper).questions
    declared = yaml.safe_load((ROOT / paper / "claims.yaml").read_text())["claims"]
    by_id = {c["id"]: c for c in declared if c["role"] != "exhibit"}
    for question in asked:
        controls = by_id[question.claim]["controls"]
        assert question.control is None or question.control in controls, question.ask
    primary = {c["id"] for c in declared if c["role"] == "primary"}
    here = {c["id"] for c in declared if "cpu" in c.get("scales", ["cpu"])}
    assert len(asked) >= 3 and primary & here <= {question.claim for question in asked}


@pytest.mark.parametrize(
    "verdict, words",
    [
        ("SUPPORTED (scaled down)", "Yes"),
        ("SUPPORTED, NOT ATTRIBUTED (scaled down)", "Yes, but no more than without the idea (b)"),
        ("SUPPORTED, ATTRIBUTION OPEN", "Yes; whether because of the idea stays open (c)"),
        ("CONTRADICTED", "No"),
        ("INCONCLUSIVE for this model (scaled down)", "These runs cannot tell"),
    ],
)
def test_an_answer_is_the_verdict_of_its_claim(verdict, words):
    controls = [
        {"arm": a, "outcome": o, "effect": -1.0, "ci95": [-2.0, 0.0]}
        for a, o in [("a", "BEATEN"), ("b", "NOT BEATEN"), ("c", "OPEN")]
    ]
    claim = {"id": "1", "kind": "difference", "arms": {"method": "m", "opponent": "o"}, "verdict": verdict, "n": 5,
             "unit": "points", "effect": 2.0, "ci95": [1.0, 3.0], "controls": controls}  # fmt: skip
    ours = findings.answer(papers.Question(ask="Is it?", claim="1"), [claim])
    assert (
        ours["words"] == words
        and ours["evidence"] == "m - o = +2.00 points (95 % +1.00 to +3.00, n 5)"
    )
    for arm, said in [
        ("a", "Yes"),
        ("b", "No, that does as well"),
        ("c", "These runs cannot tell"),
    ]:
        ours = findings.answer(papers.Question(ask="Is it?", claim="1", control=arm), [claim])
        assert ours["words"] == said and ours["evidence"].startswith(f"m - {arm} = -1.00 points")
    assert findings.answer(papers.Question(ask="Is it?", claim="2"), [claim]) is None


def test_an_effect_on_a_metric_that_should_fall_is_written_as_its_sign_is():
    """d favours the claim when positive: 460 passes saved are best_uniform - autolora."""
    claim = {"id": "cost", "kind": "exact", "effect": 460.0, "verdict": "SUPPORTED", "unit": "raw", "metric": "cost",
             "direction": "lower", "arms": {"method": "autolora", "opponent": "best_uniform"}, "controls": []}  # fmt: skip
    ours = findings.answer(papers.Question(ask="Is it cheaper?", claim="cost"), [claim])
    assert ours["evidence"].startswith("best_uniform - autolora = +460")


def test_summary_for_machines(root):
    papers = {
        p["paper"]: p for p in json.loads((root / "report/summary.json").read_text())["papers"]
    }
    assert set(papers) == set(readme.PAPERS)
    claim = papers["autolora"]["claims"][0]
    assert claim["verdict"].startswith("SUPPORTED, NOT ATTRIBUTED")
    assert claim["controls"] == {"permuted": "NOT BEATEN", "random": "BEATEN"}
    assert claim["compared"] == readme.formula(
        {**claim, "arms": synthetic_results.result()["claims"][0]["arms"]}
    )
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


def test_rendering_is_deterministic(root, tmp_path):
    report.render(root, ["dasgm"], runs=root / "runs", out=tmp_path)
    assert (tmp_path / "dasgm.html").read_bytes() == (root / "report/dasgm.html").read_bytes()


def test_a_subset_links_only_to_pages_that_exist(root, tmp_path):
    opened = report.render(root, ["dasgm"], runs=root / "runs", out=tmp_path)
    assert opened == tmp_path / "dasgm.html"
    assert {p.name for p in tmp_path.iterdir()} == {
        "dasgm.html",
        "index.html",
        "findings.html",
        "summary.json",
    }


def test_a_newer_preview_is_shown_as_one(root, tmp_path):
    shutil.copytree(root / "dasgm", tmp_path / "dasgm")
    preview = synthetic_results.result("dasgm") | {
        "preview": "SEEDS given",
        "created": "2025-12-01T00:00:00Z",
    }
    synthetic_results.write(
        tmp_path / "runs/dasgm/cpu/results.json", synthetic_results.result("dasgm")
    )
    synthetic_results.write(tmp_path / "runs/dasgm/cpu/preview.json", preview)
    report.render(tmp_path, ["dasgm"], runs=tmp_path / "runs")
    assert "SEEDS given" in Page((tmp_path / "report/dasgm.html").read_text()).text
    assert "cpu 2025-12-01 PREVIEW" in Page((tmp_path / "report/index.html").read_text()).text


def test_a_broken_figure_hides_no_verdict(root, tmp_path, capsys):
    shutil.copytree(root / "dasgm", tmp_path / "dasgm")
    (tmp_path / "dasgm/figures.py").write_text(
        "def figures(results, run_dirs):\n    raise KeyError('genotype')\n"
    )
    report.render(tmp_path, ["dasgm"], runs=tmp_path / "runs")
    page = Page((tmp_path / "report/dasgm.html").read_text())
    assert "dasgm.figures failed: KeyError" in page.text and "CONTRADICTED" in page.text
    assert "dasgm.figures failed" in capsys.readouterr().err


def test_the_command_line_prints_the_page_and_refuses_unknown_papers(root, tmp_path, capsys):
    assert report.main(["dasgm", "--root", str(root), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "dasgm.html")
    assert report.main(["autolara", "--root", str(root)]) == 2
    assert "did you mean autolora?" in capsys.readouterr().err
    (tmp_path / "dasgm/results").mkdir(parents=True)
    (tmp_path / "dasgm/results/cpu.json").write_text("{broken")
    assert report.main(["dasgm", "--root", str(tmp_path)]) == 2
    assert "is not valid JSON" in capsys.readouterr().err


def test_ink_follows_the_page():
    """Colours of text and axes become CSS, so that a figure is readable on a dark page; a method's own stay."""
    with plots.style():
        figure = Figure()
        figure.add_subplot().plot([0, 1], [0, 1], color="#123456")
    svg, width = plots.to_svg(figure, 'a line <up> & "on"', "key")
    assert "currentColor" in svg and plots.INK not in svg and "#123456" in svg
    assert 'aria-label="a line &lt;up&gt; &amp; &quot;on&quot;"' in svg and width > 300
    assert svg == plots.to_svg(figure, 'a line <up> & "on"', "key")[0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "n/a"), (float("nan"), "n/a"), (1234567, "1,234,567"), (150.0, "150"), (12.345, "12.35"), (-0.5, "-0.50"), (0.0123, "0.0123"), (0.012, "0.0120"), (-5.44e-5, "-0.0000544"), (-5.44e-10, "-5.44e-10"), (0.0, "0.00")],
)  # fmt: skip
def test_numbers(value, shown):
    assert readme.number(value) == shown


def test_intervals_share_their_decimals():
    assert readme.interval([-0.00658, 2.36]) == "-0.01 to +2.36"
    assert readme.interval([-5.44e-05, 0.0356]) == "-0.0001 to +0.0356"
    assert readme.interval([None, 1.0]) == "n/a" and readme.interval(None) == "n/a"


def test_a_metric_is_in_points_where_its_own_task_has_shares():
    """`score` of a planted task may count something: that must not turn the accuracies of another into shares."""
    runs = [
        {
            "arm": "a",
            "task": task,
            "seed": 0,
            "status": "finished",
            "metrics": {"score": value, "kept": 0.5},
        }
        for task, value in (("documentation", 0.64), ("planted", 1.25))
    ]
    result = {"runs": runs, "claims": [{"metric": "kept", "unit": "raw"}]}
    found = readme.scores(result, {})
    assert found["documentation", "score", "a"] == [(0, 64.0, False)]
    assert found["planted", "score", "a"] == [(0, 1.25, False)]
    assert found["planted", "kept", "a"] == [(0, 0.5, False)]
    assert readme.factors(result) == {"score": 100.0, "kept": 1.0}


# --- differences and how a verdict was reached ---------------------------------------------------------------------------

SECTION = """# A
## Differences: paper, official code, ours

Default in **bold**; `a\\|b` <i>stays</i>.

| # | paper | ours |
| --- | --- | --- |
| 1 | \\|x\\|² | **`rule=a`**, or `b`. Effect: `permuted` - `autolora` |
| 2 | w\\* | [a link](other.md). Effect: `never_run` - `autolora` |
| 3 | key * p * q | - |

1. first,
   going on
2. second

## Next
not this
"""


def test_differences_are_read_from_the_readme_and_measured_from_runs(root):
    result, declared = synthetic_results.result(), readme.load_yaml(root / "autolora/claims.yaml")
    text, table, items = differences.blocks(SECTION, result, declared, "cpu")
    assert (
        text["text"]
        == "Default in <strong>bold</strong>; <code>a|b</code> &lt;i&gt;stays&lt;/i&gt;."
    )
    first, second, third = table["rows"]
    assert [str(c) for c in first["cells"][:2]] == [
        "1",
        "|x|²",
    ] and "<strong><code>rule=a</code>" in first["cells"][2]
    assert (
        str(second["cells"][1]) == "w*"
        and "a link" in second["cells"][2]
        and "href" not in second["cells"][2]
    )
    assert str(third["cells"][1]) == "key * p * q" and third["effect"] == []
    assert second["effect"] == ["not run at scale cpu"]
    points = readme.scores(result, declared)
    for line in first["effect"]:
        task, metric = line.partition(":")[0].split(", ")
        mean = {
            arm: [v for _, v, _ in points[task, metric, arm]] for arm in ("permuted", "autolora")
        }
        d = [a - b for a, b in zip(mean["permuted"], mean["autolora"])]
        assert (
            readme.number(sum(d) / len(d), signed=True).replace("-", "−") in line
            and " points (" in line
            and f"n {len(d)}" in line
        )
    assert len(first["effect"]) == 2  # two tasks
    assert [(row["id"], str(row["text"])) for row in items["rows"]] == [
        ("1", "first, going on"),
        ("2", "second"),
    ]
    assert differences.blocks("# no such heading\n", result, declared, "cpu") == []
    assert differences.blocks(SECTION, None, {}, "cpu")[1]["rows"][0]["effect"] == [
        "not run at scale cpu"
    ]


@pytest.mark.parametrize("paper", readme.PAPERS)
def test_every_paper_has_its_numbered_differences(paper):
    directory = Path(report.__file__).parent.parent / paper
    found = differences.blocks((directory / "README.md").read_text(), None, {}, "cpu")
    rows = [row for block in found if block["kind"] != "text" for row in block["rows"]]
    assert len(rows) >= 10 and len({row["id"] for row in rows}) == len(rows)
    for block in found:
        if block["kind"] == "table":
            assert {len(row["cells"]) for row in block["rows"]} == {len(block["head"])}
    arms = readme.load_yaml(directory / "protocol.yaml")["arms"]
    for pair in differences.EFFECT.findall((directory / "README.md").read_text()):
        for side in pair:
            assert side.partition(":")[0] in arms, f"{paper}: {side} is no arm"


def test_each_claim_says_how_its_verdict_was_reached(pages):
    page = pages["autolora.html"]
    claims = synthetic_results.result()["claims"]
    assert page.text.count("How this verdict was reached") == len(claims)
    for words in ("Rule Supported if every condition", "Data documentation", "Seeds 100-107", "Intervals 95 % Student t",
                  "Controls permuted NOT BEATEN", "An exhibit is shown and never judged", "needs no test"):  # fmt: skip
        assert words in page.text, words


# --- README tables -------------------------------------------------------------------------------------------------------


def test_where_lower_is_better_the_difference_is_written_the_other_way_round():
    score = {"kind": "difference", "arms": {"method": "m", "opponent": "o"}, "direction": "higher"}
    cost = score | {"direction": "lower"}
    assert readme.formula(cost) == "o - m" and readme.formula(score) == "m - o"
    assert readme.formula(cost, "c") == "c - m" and readme.formula(score, "c") == "m - c"
    assert readme.formula(cost | {"kind": "spread"}) == readme.formula(score | {"kind": "spread"})


def test_a_claim_that_holds_says_which_control_leaves_it_open():
    controls = [
        {"arm": "a", "outcome": "OPEN"},
        {"arm": "b", "outcome": "NOT BEATEN"},
        {"arm": "c"},
    ]
    claim = {"controls": controls, "reason": ""}
    assert report.why(claim | {"verdict": "SUPPORTED, NOT ATTRIBUTED (scaled down)"}) == "the claim holds, but the control b does as well without the idea"  # fmt: skip
    assert report.why(claim | {"verdict": "SUPPORTED, ATTRIBUTION OPEN"}).endswith("controls a, c were neither beaten nor shown to do as well")  # fmt: skip
    assert report.why(claim | {"verdict": "SUPPORTED"}) == ""


def test_a_claim_names_the_seeds_of_its_own_tasks():
    runs = [{"arm": arm, "task": task, "seed": s} for arm in "mo" for task, n in (("t", 3), ("u", 5)) for s in range(100, 100 + n)]  # fmt: skip
    data = {"seeds": list(range(100, 105)), "runs": runs}
    claim = {"kind": "difference", "arms": {"method": "m", "opponent": "o"}, "tasks": ["t"], "n": 3}
    assert pictures.seeds_of(claim, data) == [100, 101, 102]
    assert pictures.seeds_of(claim | {"tasks": ["u"], "n": 5}, data) == data["seeds"]
    assert pictures.seeds_of(claim | {"n": 40}, data) == data["seeds"]  # items are the replicates


def test_speed_reliability_and_cluster_are_shown_once_recorded(root, tmp_path):
    assert not {"speed", "reliability", "cluster"} & set(
        Page((root / "report/index.html").read_text()).ids
    )
    step = {"ratio": 5.2, "lowest": 5.0, "highest": 5.5, "memory": 1.8}
    papers = {
        "autolora": {
            "rows": {"search step (finite difference)": step},
            "commit": "0123456789abcdef",
        }
    }
    files = {
        "methods/results/cpu.json": {"papers": papers, "machine": {"cpu": "a processor", "cores": 2},
                                     "versions": {"python": "3.11", "torch": "2"}, "command": "a command"},
        "results/reliability.json": {"commit": "0123456789abcdef", "machine": {"processor": "a processor"}, "created": "2026-01-02",
                                     "items": [{"item": "1", "promise": "the same <bits>", "figure": "6/7", "methods": 6,
                                                "methods_asked": 7, "seconds": 3.0, "not_held": ["test_x: why"]},
                                               {"item": "2", "promise": "later", "figure": "not run", "methods": None,
                                                "methods_asked": None, "seconds": 0.0, "not_held": []}]},
        "results/cluster.json": {"passed": False, "command": "make cluster-check", "seconds": 90.0, "commit": None,
                                 "cluster": "one node", "versions": {"slurm": "slurm-wlm 1", "python": "3.11"},
                                 "checks": [{"check": "requeue", "passed": False, "detail": "2 of 3"}]},
    }  # fmt: skip
    shutil.copytree(root, tmp_path / "checkout", ignore=shutil.ignore_patterns("report", "runs"))
    for name, document in files.items():
        path = tmp_path / "checkout" / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    report.render(tmp_path / "checkout", ["autolora"], runs=tmp_path)
    page = Page((tmp_path / "checkout/report/index.html").read_text())
    assert {"speed", "reliability", "cluster"} <= set(page.ids)
    for words in ("5.20 [5.00, 5.50]", "reached, within 5 %", "6/7 6 of 7", "the same <bits>", "test_x: why",
                  "Not all checks passed.", "slurm-wlm 1, python 3.11", "commit 0123456789."):  # fmt: skip
        assert words in page.text, words
    assert page.text.count("not run") >= 2  # the other papers' steps, and item 2
    (figure,) = page.pictures
    assert "autolora: search step, 16 x 32 tokens, ours 5.20" in figure["aria-label"]


def test_readme_tables_are_deterministic_and_whole(root):
    tables = report.readme_tables(root / "autolora")
    assert set(tables) == {"claims", "results", "reported"}
    assert tables == report.readme_tables(root / "autolora")
    claims, results = tables["claims"], tables["results"]
    for claim in synthetic_results.result()["claims"]:
        assert f"`{claim['id']}`" in claims
    assert (
        "**SUPPORTED, NOT ATTRIBUTED (scaled down)**" in claims and "permuted: NOT BEATEN" in claims
    )
    assert "&lt;b&gt;spans" in claims and "<b>" not in claims
    row = next(line for line in results.splitlines() if line.startswith("| `autolora`"))
    assert "1 diverged" in row and "73,728" in row and "| 650 |" in row
    for table in (claims, results):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_a_diverged_run_counts_as_chance_in_the_mean(root):
    result, claims = synthetic_results.result(), readme.load_yaml(root / "autolora/claims.yaml")
    points = readme.scores(result, claims)["digits", "accuracy", "autolora"]
    assert [(seed, value) for seed, value, diverged in points if diverged] == [(103, 10.0)]
    assert len(points) == len(synthetic_results.SEEDS)


def test_readme_tables_read_committed_files_only(root):
    own = json.loads((root / "runs/autolora/cpu/results.json").read_text())["claims"][1]["verdict"]
    assert own.startswith("INCONCLUSIVE")
    line = next(
        x
        for x in report.readme_tables(root / "autolora")["claims"].splitlines()
        if "better-than-random" in x
    )
    assert "**SUPPORTED (scaled down)**" in line


def test_reported_table_shows_targets_or_a_tally(root):
    shown = report.readme_tables(root / "mlo_mae")["reported"]
    assert "`rte-ours`" in shown and "lora-readme" not in shown and "webnlg" not in shown
    assert "NO PUBLISHED VALUE" in shown
    tally = report.readme_tables(root / "ts_watermark")["reported"]
    assert tally == "884 published values on file (20 without a value): none compared yet."


def test_tables_of_partial_and_missing_results(root, tmp_path):
    for paper in ("weight_mixup", "tapweight"):
        assert all(report.readme_tables(root / paper).values())
    (tmp_path / "dasgm").mkdir()
    assert report.readme_tables(tmp_path / "dasgm")["claims"].startswith(
        "Nothing is recorded yet: `make reproduce-dasgm`"
    )


def test_readmes_are_filled_in_place_and_checked(root, tmp_path):
    for paper in ("autolora", "dasgm"):
        shutil.copytree(root / paper, tmp_path / paper)
    block = "<!-- generated: {} -->\nold\n<!-- end generated -->\n"
    paper, project = tmp_path / "autolora/README.md", tmp_path / "README.md"
    paper.write_text(
        "# A\n" + block.format("claims") + "\nwords | stay\n" + block.format("figures")
    )
    project.write_text(block.format("verdicts"))
    assert report.stale_readmes(tmp_path) == ["autolora/README.md: claims", "README.md: verdicts"]
    assert report.write_readmes(tmp_path) == [paper, project]
    assert report.stale_readmes(tmp_path) == [] and report.write_readmes(tmp_path) == []
    text = paper.read_text()
    assert (
        text.startswith("# A\n<!-- generated: claims -->\nScale `cpu`")
        and "\nwords | stay\n" in text
    )
    assert "<!-- generated: figures -->\nold\n" in text
    row = next(line for line in project.read_text().splitlines() if "[autolora]" in line)
    assert "yes: rehearsal of 96 runs, 2025-11-19" in row and "| yes, 20" in row
    paper.write_text(text.replace("8 |", "9 |", 1))
    assert report.stale_readmes(tmp_path) == ["autolora/README.md: claims"]


def test_a_stamp_holds_for_the_bytes_it_names(root, tmp_path):
    shutil.copytree(root / "autolora", tmp_path / "autolora")
    results = tmp_path / "autolora/results/cpu.json"
    assert readme.checked(tmp_path / "autolora", "cpu").startswith("yes")
    results.write_text(results.read_text().replace("71", "72", 1))
    assert readme.checked(tmp_path / "autolora", "cpu") == "results changed since"


def test_an_unclosed_block_is_named(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("<!-- generated: claims -->\nnever closed\n")
    with pytest.raises(ValueError, match=r"README\.md: 1 blocks are opened and 0 closed"):
        report.update_readme(path, {"claims": "x"})


def test_a_record_from_another_processor_is_compared_claim_by_claim():
    claims = [{"id": "a", "verdict": "INCONCLUSIVE", "effect": 0.5}, {"id": "b", "verdict": "SUPPORTED", "effect": 2.0},
              {"id": "c", "verdict": None, "effect": 1.0}]  # fmt: skip
    old = {
        "revision": 1,
        "processor": "A",
        "verdicts": {"a": "SUPPORTED", "b": "SUPPORTED", "c": None},
        "effects": {"a": 0.9, "b": 2.1},
    }
    result = {"revision": 1, "environment": {"processor": "B"}, "claims": claims, "earlier": [old]}
    found = findings.replica(result)
    assert found["then"] == "A" and found["now"] == "B" and found["judged"] == 2
    assert [(c["claim"]["id"], c["then"], c["effect_then"]) for c in found["changed"]] == [
        ("a", "SUPPORTED", 0.9)
    ]
    for other in (
        {"processor": "B"},
        {"revision": 0},
        {"processor": None},
    ):  # the same machine, other seeds, unknown
        assert findings.replica(result | {"earlier": [old | other]}) is None
