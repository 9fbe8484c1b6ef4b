"""claims.yaml: what the judge could not use is refused, with the nearest key that exists."""

from __future__ import annotations

import pytest
import toy
import yaml
from judged import Paper

from benchmarks import PAPERS, plan_n, rules
from benchmarks.claims import Claims, ClaimSpec, check_names, load_claims
from benchmarks.plan import load_claims as load_checked
from benchmarks.recorded import Results
from shared.protocol import BadInput, Protocol, read_as, sha256_yaml


def test_claims_file_is_checked(tmp_path):
    good = dict(Paper().spec)

    def refused(change, match):
        with pytest.raises(BadInput, match=match):
            read_as(ClaimSpec, {**good, **change}, "claims.yaml")

    assert read_as(ClaimSpec, good, "claims.yaml").control_arms == []
    refused({"treshold": 1}, "did you mean 'threshold'")
    refused({"kind": "diference"}, "did you mean 'difference'")
    refused({"arms": {"method": "a"}}, r"lacks \['opponent'\]")
    refused({"controls": "none"}, "gives no reason")
    refused({"controls": "permuted"}, "list of arms")
    refused({"items": "dev"}, "write test")
    refused({"tasks": 5}, r"^claims\.yaml: tasks is 5; write a list or a mapping$")  # a union
    refused({"tasks": [5]}, r"^claims\.yaml: tasks\.0 is 5; write text$")
    refused({"material": "x"}, r"^claims\.yaml: material is 'x'; write a number$")
    refused({"sensitivity": "none"}, "gives no reason")
    refused({"sensitivity": "joint"}, "two arms that are known to differ, or 'none: why'")
    refused({"sensitivity": {"method": "a"}}, "'opponent' is missing")
    refused({"material": 0}, "write a number above 0")
    refused({"material": float("nan")}, "material")
    refused({"threshold": float("inf")}, "threshold")
    refused({"kind": "spread", "unit": "item"}, "unit item needs")
    refused({"kind": "exact", "controls": ["a"]}, "an exact comparison has no controls")
    refused({"scales": ["cpuu"]}, "did you mean 'cpu'")
    refused({"threshold": "zero"}, "is 'zero'; write a")


def test_a_file_has_few_primary_claims_with_ids_of_their_own(tmp_path):
    path = tmp_path / "claims.yaml"

    def refused(document, match):
        path.write_text(yaml.safe_dump(document))
        with pytest.raises(BadInput, match=match):
            load_claims(path)

    claims = [{**Paper().spec, "id": f"C{i}"} for i in range(4)]
    refused({"paper": "x", "claims": claims}, "4 primary claims at cpu")
    refused({"paper": "x", "claims": [claims[0], claims[0]]}, "two claims have the id 'C0'")
    refused({"paper": "x", "claim": [], "claims": claims[:1]}, "did you mean 'claims'")
    wrong = {**claims[1], "role": "primry"}
    message = r"claims\.yaml: claims\.C1\.role: 'primry' is not one of .*; did you mean 'primary'"
    refused({"paper": "x", "claims": [claims[0], wrong]}, message)
    refused({"paper": "x"}, "'claims' is missing")
    refused({"paper": "x", "claims": [], "targets": [{"reported": "x"}]}, "'reason' is missing")
    path.write_text("a: [")
    with pytest.raises(BadInput, match="not valid YAML"):
        load_claims(path)


def test_claims_name_arms_and_tasks_of_the_protocol():
    spec = Paper(controls=["control"]).spec
    arms, tasks = {"method", "opponent", "control"}, {"task"}

    def check(change, **top):
        document = {"paper": "x", "claims": [{**spec, **change}], **top}
        check_names(Claims.model_validate(document), arms, tasks, "claims.yaml")

    def refused(change, match, **top):
        with pytest.raises(BadInput, match=match):
            check(change, **top)

    check({})
    refused({"arms": {"method": "methods", "opponent": "opponent"}}, "did you mean 'method'")
    refused({"controls": ["controll"]}, "did you mean 'control'")
    pair = {"method": "method", "opponent": "oponent"}
    refused({"sensitivity": pair}, "did you mean 'opponent'")
    refused({"tasks": {"cpu": ["tasks"]}}, "did you mean 'task'")
    refused({"arms": {"weights": {"method@tusk": 1}}, "kind": "contrast"}, "did you mean 'task'")
    target = {"reported": "x", "reason": "r", "arm": "oponent", "task": "task"}
    refused({}, "did you mean 'opponent'", targets=[target])
    refused({}, "did you mean 'task'", targets=[{**target, "arm": "method", "task": ["tusk"]}])
    refused({}, "did you mean 'task'", tasks={"taks": {}})


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return toy.write(tmp_path_factory.mktemp("planned"))


def changed(folder, name, change):
    """The toy with one file changed, put back when the test ends."""
    path = folder / name
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return Protocol(folder)


PLAN = "plan_n toy --scale cpu prints"


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("claims.yaml", lambda c: c.pop("material"), "claim C1: material or material_reason"),
        ("claims.yaml", lambda c: c.pop("material_reason"), "claim C1: material or material_reas"),
        ("claims.yaml", lambda c: c.pop("sensitivity"), "claim C1: sensitivity is missing; write"),
        (
            "claims.yaml",
            lambda c: c.update(sensitivity={"method": "good", "opponent": "extra"}),
            "claim C1: sensitivity: 'extra' is not run at scale cpu; .* `core`",
        ),
        ("protocol.yaml", lambda p: p.clear(), f"plan.cpu: primary claim C1 has no plan.*{PLAN}"),
        (
            "protocol.yaml",
            lambda p: p["C1"].update(n=6),
            f"n is 6, the scale has 5 seeds; .*{PLAN}",
        ),
        ("protocol.yaml", lambda p: p["C1"].update(detectable=0.4), "sd 0.3 and n 5 give 0.505"),
        ("protocol.yaml", lambda p: p["C1"].pop("source"), "'source' is missing"),
        (
            "protocol.yaml",
            lambda p: p["C1"].update(sd=1.0, detectable=1.68),
            "1.68 is the smallest effect it would find, and 1 would matter: .* 10 seeds",
        ),
    ],
)
def test_a_claim_without_its_positive_control_or_plan_is_refused(planned, name, change, match):
    before = (planned / name).read_text()
    part = (lambda d: d["claims"][0]) if name == "claims.yaml" else (lambda d: d["plan"]["cpu"])
    try:
        with pytest.raises(BadInput, match=rf"toy/{name}.*{match}"):
            load_checked(changed(planned, name, lambda d: change(part(d))))
    finally:
        (planned / name).write_text(before)
    load_checked(Protocol(planned))


def test_a_claim_planned_short_says_so(planned):
    path = planned / "protocol.yaml"
    before = path.read_text()
    line = {"seeds": "0-4", "sd": 1.0, "n": 5, "detectable": 1.68, "source": "s", "short": "why"}
    try:
        load_checked(changed(planned, path.name, lambda d: d["plan"]["cpu"].update(C1=line)))
        result = Results(paper="toy", scale="cpu", protocol_sha256=sha256_yaml(path))
        assert plan_n.short(planned, result) == {"C1": "finds 1.68 or more; why"}
        result.protocol_sha256 = "of another protocol"
        assert plan_n.short(planned, result) == {}
    finally:
        path.write_text(before)


def test_plan_lines_come_from_a_pilot(capsys):
    claim = "8 allocation, all tasks"
    pilot = ["autolora", "--scale", "gpu", "--claim", claim]
    pilot += ["--d", "0.5", "-1.2", "0.3", "-0.4", "0.6"]
    assert plan_n.main(pilot) == 0
    line, advice = capsys.readouterr().out.splitlines()
    assert f'"{claim}": {{seeds: "0-4", sd: 0.757, n: 5, detectable: 1.55' in line
    assert advice.strip() == "# above material 1: needs 9 seeds, or `short: why`"
    assert plan_n.main(["autolra"]) == 2 and "no paper" in capsys.readouterr().err
    assert rules.seeds_needed(0.0, 1.0, 1) == 5 and rules.seeds_needed(1e4, 1.0, 1) is None


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_is_planned(root, paper):
    declared = load_checked(Protocol(root / paper))
    assert all(claim.material_reason for claim in declared.claims)
