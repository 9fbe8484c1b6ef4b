"""The site of `make docs`: what is gathered for it, and, where its tools are, the site itself."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import browser
import pytest
import yaml

from benchmarks import PAPERS, ROOT, site
from shared.protocol import BadInput

TOOLS = ROOT / ".venv-docs" / "bin" / "python"


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return folder, site.gather(folder)


def places(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [place for value in values for place in places(value)]


def test_every_page_of_the_repository_is_in_the_navigation(gathered):
    folder, nav = gathered
    listed = places(nav)
    assert len(listed) == len(set(listed))
    assert all((folder / place).exists() for place in listed)
    assert {str(page) for page in site.pages()} <= set(listed), "benchmarks/site.py: navigation"


def test_links_of_the_gathered_pages_lead_somewhere(gathered):
    folder, _ = gathered
    for page in folder.rglob("*.md"):
        text = re.sub(r"^ *`{3,}.*?^ *`{3,}$|`[^`\n]+`", "", page.read_text(), flags=re.S | re.M)
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)\s#]+)", text):
            assert (page.parent / target).exists(), f"{page.relative_to(folder)}: {target}"


def test_a_link_that_leads_nowhere_is_refused():
    match = site.LINK.match("[words](nowhere.md)")
    with pytest.raises(BadInput, match=r"README.md: the link nowhere.md leads nowhere"):
        site.relinked(match, Path("README.md"), set())
    linked: set[Path] = set()
    match = site.LINK.match("[claims](claims.yaml)")
    assert site.relinked(match, Path("dasgm/README.md"), linked) == "[claims](claims.yaml.md)"
    assert linked == {Path("dasgm/claims.yaml")}


@pytest.mark.parametrize("paper", PAPERS)
def test_equations_stand_beside_the_lines_that_compute_them(paper, gathered):
    text = (gathered[0] / paper / "equations.md").read_text()
    shown = re.findall(
        r'^```python linenums="(\d+)" title="([\w/]+\.py)"\n(.*?)^```$', text, re.S | re.M
    )
    assert len(shown) >= 3 and text.count("<math") >= 3
    for first, file, code in shown:
        lines = (ROOT / file).read_text().splitlines()
        assert lines[int(first) - 1] == code.splitlines()[0]


def test_names_of_functions_are_found_as_pages_write_them():
    named = "`method.convex`, `.factored`; `baselines.child_d`, `nothing`, `shared/runs.py`"
    found = [(file, node.name) for file, node in site.excerpts("weight_mixup", named)]
    files = [f"weight_mixup/{name}.py" for name in ("method", "method", "baselines")]
    assert found == list(zip(files, ("convex", "factored", "child_d")))
    (method,) = site.excerpts("autolora", "`method.SelectionLoRA.forward`")
    assert method[1].name == "forward"


def test_the_tools_are_pinned_and_apart():
    pinned = (ROOT / "requirements-docs.txt").read_text().splitlines()
    names = [line for line in pinned if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in names)
    assert "mkdocs" not in (ROOT / "requirements.txt").read_text()


class Page(HTMLParser):
    """What a page loads, links to, and the places that links can name."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loads.append(given["href"])
        elif given.get("src"):
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    if not TOOLS.exists():
        pytest.skip("make docs makes .venv-docs")
    out = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.site", "--python", TOOLS, "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_site_needs_no_network_and_its_links_hold(built):
    pages = {
        path: Page(path.read_text()) for path in built.rglob("*.html") if path.name != "404.html"
    }
    assert len(pages) > 40 and built / "index.html" in pages
    for path, page in pages.items():
        for target in page.loads + page.links:
            external = re.match(r"https?:|mailto:", target)
            assert not (external and target in page.loads), f"{path}: loads {target}"
            place, _, anchor = target.partition("#")
            if external or target.startswith("data:"):
                continue
            to = (path.parent / place).resolve() if place else path
            assert to.exists(), f"{path}: {target}"
            if anchor and to in pages and not anchor.startswith("__"):
                assert anchor in pages[to].ids, f"{path}: {target}"


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_pages_of_the_site_fit_and_follow_the_system_from_light_to_dark(built, tmp_path):
    papers = [built / name / page for name in PAPERS for page in ("index.html", "equations.html")]
    pages = [built / "index.html", *papers]
    sizes = [(420, "light"), (420, "dark"), (1280, "light")]  # one reader: the scheme changes
    for one in browser.look(pages, FITS, sizes, tmp_path):
        where = f"{one.picture.name} of {one.page}"
        assert one.facts == {"fits": True, "dark": one.scheme == "dark"}, where


# after the theme's script has chosen the scheme
FITS = """(async () => {
 for (let i = 0; i < 100 && !document.body.dataset.mdColorMedia; i++)
   await new Promise(done => setTimeout(done, 50));
 return {fits: document.documentElement.scrollWidth <= innerWidth,
         dark: document.body.dataset.mdColorScheme === 'slate'}})()"""


def test_the_configuration_loads_nothing_from_elsewhere():
    text = (ROOT / "docs" / "mkdocs.yml").read_text()
    assert yaml.compose(text) and not re.search(r"https?://", text)
    assert "font: false" in text
