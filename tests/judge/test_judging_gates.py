"""Runs beside published numbers, and gates, through `judge`."""

from __future__ import annotations

from judged import IDS, STRONG, case


def test_judge_reported():
    def entry(name, value, **more):
        facts = {"method": "m", "metric": "accuracy", "source": "s", "confidence": "read"}
        return {
            "id": name,
            "value": value,
            "origin": "paper",
            "higher_is_better": True,
            **facts,
            **more,
        }

    def target(name, **more):
        arm = {"arm": "method", "task": "task", "metric": "accuracy", "reason": "r"}
        return {"reported": name, **arm, **more}

    entries = [
        *(entry("same", 75.5), entry("far", 60), entry("none", None), entry("nobody", 1)),
        *(entry("others", 75, origin="third_party"), entry("difference", 5.5)),
        *(entry("model", 75), entry("absent", 75)),
        entry("epoch", 75.5, setting={"selection": "best"}),
    ]
    targets = [
        target("difference", opponent="opponent", tolerance=2.5),
        target("[snofe]*", tolerance=2.5),
        target("model", deviations=["smaller model"]),
        target("absent", arm="nothing"),
    ]
    rows = case(STRONG).judge(entries=entries, targets=targets).reported
    words = {row.id: row.verdict for row in rows}
    assert words == {
        **{"same": "REPRODUCED", "far": "BETTER", "none": "NO PUBLISHED VALUE"},
        **{"others": "CONTEXT", "difference": "REPRODUCED", "nobody": "BETTER"},
        **{"model": "SUBSTITUTED", "absent": "NOT RUN", "epoch": "SUBSTITUTED"},
    }
    without = case(STRONG).judge(entries=entries[:1]).reported[0]
    assert without.verdict == "no counterpart" and without.tolerance_reason
    assert case(STRONG).judge("cpu", entries=entries, targets=targets).reported == []
    unset = case(STRONG).judge(entries=entries[:1], targets=[target("same")]).reported[0]
    assert unset.tolerance == 1.0


def test_judge_gates():
    paper = case(STRONG)
    keys = [node.key for node in paper.nodes]
    listed = [
        {"id": "held", "statement": "a"},
        {"id": "broken", "statement": "b"},
        {"id": "silent", "statement": "c"},
    ]
    listed.append({"id": "elsewhere", "statement": "d", "scales": ["gpu"]})
    recorded = [(key, [{"id": "held", "passed": True, "detail": "x"}]) for key in keys]
    recorded.append((keys[0], [{"id": "broken", "passed": False, "detail": "off by one"}]))
    gates = {g.id: g for g in paper.judge(gates=listed, recorded=recorded).gates}
    passed = {name for name, gate in gates.items() if gate.passed}
    assert passed == {"held", "distinct-states", "shared-items"}
    assert gates.keys() == passed | {"broken", "silent"}
    assert "off by one" in gates["broken"].detail and "no finished run" in gates["silent"].detail


def test_gate_only_recorded_by_a_diverged_run_fails():
    paper = case(STRONG)
    paper.runs[0].status = "diverged"
    recorded = [(paper.nodes[0].key, [{"id": "g", "passed": True, "detail": ""}])]
    gates = paper.judge(gates=[{"id": "g", "statement": "s"}], recorded=recorded).gates
    assert not gates[0].passed


def test_built_in_gates_notice_copies_and_other_items():
    paper = case(STRONG)
    paper.runs[1].state_sha256 = paper.runs[0].state_sha256
    paper.runs[7].split_sha256 = "another"
    gates = {g.id: g for g in paper.judge().gates}
    assert (
        not gates["distinct-states"].passed
        and "seeds 100 and 101" in gates["distinct-states"].detail
    )
    assert not gates["shared-items"].passed
    shuffled = case(STRONG)
    shuffled.predictions["opponent", "task", 102]["id"] = IDS[::-1]
    judged = shuffled.judge()
    assert not judged.gates[-1].passed and judged.claims[0].reason == "items"
