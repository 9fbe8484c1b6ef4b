"""claims.yaml: what the judge could not use is refused, with the nearest key that exists."""

from __future__ import annotations

import pytest
import yaml
from judged import Paper

from benchmarks.claims import Claims, ClaimSpec, check_names, load_claims
from shared.protocol import BadInput, read_as


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
    refused({"tasks": {"cpu": ["tasks"]}}, "did you mean 'task'")
    refused({"arms": {"weights": {"method@tusk": 1}}, "kind": "contrast"}, "did you mean 'task'")
    target = {"reported": "x", "reason": "r", "arm": "oponent", "task": "task"}
    refused({}, "did you mean 'opponent'", targets=[target])
    refused({}, "did you mean 'task'", targets=[{**target, "arm": "method", "task": ["tusk"]}])
    refused({}, "did you mean 'task'", tasks={"taks": {}})
