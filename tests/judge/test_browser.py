"""The report in a browser: two widths, two colour schemes, print, keyboard, contrast.

Where Chromium is not installed these tests are skipped. `AXE=.../axe.min.js` (of the npm package
axe-core) adds its rules; REPORT=folder looks at that report in place of a made-up one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import browser
import pytest
from browser import Seen

CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")
SIZES = [(420, "light"), (420, "dark"), (1280, "light"), (1280, "dark")]
NAMES = ("index.html", "findings.html", "autolora.html")

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def folder(request) -> Path:
    place = os.environ.get("REPORT")
    return Path(place) if place else request.getfixturevalue("checkout") / "report"


@pytest.fixture(scope="module")
def seen(folder, tmp_path_factory) -> list[Seen]:
    pages = [folder / name for name in NAMES]
    pictures = tmp_path_factory.mktemp("pictures")
    return browser.look(pages, CHECKS, SIZES, pictures, tabs=6)


def test_pages_fit_are_legible_and_say_what_they_show(seen):
    """No horizontal scrolling, contrast of 4.5 in both schemes, names, headings, alternatives."""
    assert len(seen) == len(NAMES) * len(SIZES)
    faults = {f"{s.page} {s.width} {s.scheme}": s.facts["faults"] for s in seen}
    assert not any(faults.values()), json.dumps(faults, indent=1)
    assert all(s.facts["texts"] > 50 for s in seen)


def test_the_reader_chooses_the_scheme(seen):
    assert {s.facts["dark"] for s in seen if s.scheme == "dark"} == {True}
    assert {s.facts["dark"] for s in seen if s.scheme == "light"} == {False}


def test_the_tab_key_begins_with_the_content_and_shows_where_it_is(seen):
    for one in seen:
        assert one.focused[0].startswith("A|") and "Skip to the content" in one.focused[0]
        assert len(set(one.focused)) >= 4, one.focused
        assert all("|none|" not in place for place in one.focused[1:]), one.focused


def test_faults_are_noticed(tmp_path):
    """The checks themselves: a page with one fault of each kind."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><body><main id=a><h1>One</h1><h3>Three</h3><img src=data:,><svg></svg>"
        "<p id=a style='color:#999;width:2000px'>grey on white</p><a href=#no></a>"
        "<div style='overflow:auto'><p style='width:2000px'>out of reach</p></div>"
        "<table><tr><th>head</th></tr></table></main></body></html>",
        encoding="utf-8",
    )
    (one,) = browser.look([page], CHECKS, [(420, "light")], tmp_path)
    kinds = {"scroll", "reach", "lang", "headings", "alt", "names", "tables", "ids", "links"}
    kinds |= {"contrast"}
    assert set(one.facts["faults"]) == kinds


def test_print_shows_everything(folder, tmp_path):
    opened = (
        "(window.dispatchEvent(new Event('beforeprint')), "
        "[document.documentElement.scrollWidth <= innerWidth, "
        "document.querySelectorAll('details:not([open])').length])"
    )
    for one in browser.look([folder / "autolora.html"], opened, [(794, "print")], tmp_path):
        assert one.facts == [True, 0]


def test_axe_finds_nothing_serious(folder, tmp_path):
    if browser.axe() is None:
        pytest.skip("axe-core is not installed: AXE=path of its axe.min.js")
    code = browser.axe().read_text(encoding="utf-8")
    ask = (
        f"{code}; axe.run(document, {{resultTypes: ['violations']}}).then(r => r.violations"
        ".filter(v => ['serious', 'critical'].includes(v.impact))"
        ".map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' ## ')))"
    )
    pages = [folder / name for name in NAMES]
    found = browser.look(pages, ask, [(420, "light"), (1280, "dark")], tmp_path)
    serious = {f"{s.page} {s.width} {s.scheme}": s.facts for s in found if s.facts}
    assert not serious, json.dumps(serious, indent=1)
