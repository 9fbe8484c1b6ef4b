"""Every promise about runs names tests that exist, and is counted from what pytest wrote."""

from __future__ import annotations

import ast

from benchmarks import reliability

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.shared.test_runs" name="test_resume_is_bitwise" time="2"/>
<testcase classname="tests.reliability.test_resume" name="test_resume_in[autolora]" time="1">
  <failure message="other bits&#10;at step 3"/></testcase>
<testcase classname="tests.reliability.test_damage" name="test_bit_flips" time="1">
  <properties><property name="figure" value="199/200"/></properties>
  <failure message="one missed"/></testcase>
<testcase classname="tests.reliability.test_data" name="test_offline[dasgm]"><skipped/></testcase>
</testsuite></testsuites>"""


def test_every_promise_names_tests_that_exist(root):
    names = set()
    for path in root.glob("tests/**/test_*.py"):
        tree = ast.parse(path.read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        names |= {f"{path.stem}::{name}" for name in functions}
    for promise in reliability.promises():
        for start in promise.tests:
            assert any(name.startswith(start) for name in names), start


def test_items_are_counted(tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    items = {one.item: one for one in reliability.count(reliability.cases(tmp_path / "junit.xml"))}
    assert items["2"].figure == "1/2" and (items["2"].methods, items["2"].methods_asked) == (0, 1)
    assert items["2"].not_held == ["test_resume::test_resume_in[autolora]: other bits"]
    assert items["6"].figure == "199/200" and items["20"].figure == "not run"
    assert items["2"].seconds == 3.0 and items["6"].methods is None
