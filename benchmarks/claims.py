"""claims.yaml: what is claimed, fixed before any run. Reading refuses what the judge would not understand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from shared.protocol import SCALES, BadInput, unknown

CLAIMS_KEYS = {"paper", "revisions", "gates", "tasks", "claims", "targets"}
CLAIM_KEYS = {
    *("id", "statement", "source", "kind", "role", "arms", "tasks", "metric", "unit", "direction"),
    *("threshold", "material", "controls", "items", "scales", "task_units"),
}
CLAIM_REQUIRED = (
    "id",
    "statement",
    "source",
    "kind",
    "role",
    "arms",
    "controls",
    "items",
    "scales",
)
TARGET_KEYS = {
    *(
        "reported",
        "arm",
        "opponent",
        "task",
        "metric",
        "unit",
        "tolerance",
        "reason",
        "deviations",
        "scales",
    ),
    *("sd_over", "n_paper"),
}
ARM_KEYS = {
    "difference": {"method", "opponent"},
    "contrast": {"weights"},
    "spread": {"method", "opponent"},
    "statistic": {"method", "name"},
    "exact": {"method", "opponent"},
}
ROLES = ("primary", "secondary", "exhibit")
UNITS = ("points", "raw", "item")


def one_of(value: object, valid: Collection[str], where: str) -> None:
    """Refuses a word that is not valid and names the nearest that is."""
    if value not in valid:
        raise unknown(str(value), valid, where)


def is_none(text: object, where: str) -> bool:
    """True for 'none: reason'. A bare 'none' is refused: the reason is part of the claim."""
    if not isinstance(text, str) or not text.startswith("none"):
        return False
    if not text.removeprefix("none").lstrip(": "):
        raise BadInput(f"{where}: {text!r} gives no reason; write 'none: why'")
    return True


def load_claims(path: Path) -> dict[str, Any]:
    """claims.yaml, checked: known keys and words, unique ids, at most three primary claims a scale."""
    claims: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for key in claims:
        one_of(key, CLAIMS_KEYS, f"{path.name}")
    for key in ("paper", "claims"):
        if key not in claims:
            raise BadInput(f"{path.name}: {key!r} is missing")
    for gate in claims.get("gates") or []:
        for key in gate:
            one_of(key, {"id", "statement", "scales"}, f"{path.name}: gate {gate.get('id')}")
    for claim in claims["claims"]:
        check_claim(claim, f"{path.name}: claim {claim.get('id')}")
    for target in claims.get("targets") or []:
        where = f"{path.name}: target {target.get('reported')}"
        for key in target:
            one_of(key, TARGET_KEYS, where)
        for key in ("reported", "reason"):
            if key not in target:
                raise BadInput(f"{where}: {key!r} is missing")
    ids = [claim["id"] for claim in claims["claims"]]
    for name in {i for i in ids if ids.count(i) > 1}:
        raise BadInput(f"{path.name}: two claims have the id {name!r}; give each its own")
    for scale in SCALES:
        primary = [
            c["id"] for c in claims["claims"] if c["role"] == "primary" and scale in c["scales"]
        ]
        if len(primary) > 3:
            raise BadInput(
                f"{path.name}: {len(primary)} primary claims at {scale} ({primary}); at most 3"
            )
    return claims


def check_claim(claim: Mapping[str, Any], where: str) -> None:
    for key in claim:
        one_of(key, CLAIM_KEYS, where)
    for key in CLAIM_REQUIRED:
        if key not in claim:
            raise BadInput(f"{where}: {key!r} is missing")
    one_of(claim["kind"], ARM_KEYS, f"{where}: kind")
    one_of(claim["role"], ROLES, f"{where}: role")
    one_of(claim.get("unit", "points"), UNITS, f"{where}: unit")
    one_of(claim.get("direction", "higher"), ("higher", "lower"), f"{where}: direction")
    for scale in claim["scales"]:
        one_of(scale, SCALES, f"{where}: scales")
    for key in claim["arms"]:
        one_of(key, ARM_KEYS[claim["kind"]], f"{where}: arms")
    missing = ARM_KEYS[claim["kind"]] - set(claim["arms"])
    if missing:
        raise BadInput(f"{where}: arms lacks {sorted(missing)}")
    if claim["kind"] != "statistic" and "metric" not in claim:
        raise BadInput(f"{where}: 'metric' is missing")
    if not is_none(claim["items"], f"{where}: items") and claim["items"] != "test":
        raise BadInput(f"{where}: items is {claim['items']!r}; write test or 'none: why'")
    if not is_none(claim["controls"], f"{where}: controls"):
        if not isinstance(claim["controls"], list) or not claim["controls"]:
            raise BadInput(
                f"{where}: controls is {claim['controls']!r}; write a list of arms or 'none: why'"
            )
        if claim["kind"] == "exact":
            raise BadInput(f"{where}: an exact comparison has no controls; write 'none: why'")
    if claim.get("unit") == "item" and claim["kind"] not in ("difference", "contrast"):
        raise BadInput(f"{where}: unit item needs kind difference or contrast, not {claim['kind']}")


def check_names(
    claims: Mapping[str, Any], arms: Collection[str], tasks: Collection[str], where: str
) -> None:
    """Refuses an arm or task that the protocol does not have: it would only ever read NOT RUN."""
    for claim in claims["claims"]:
        here = f"{where}: claim {claim['id']}"
        given = claim["arms"]
        named = [
            given.get("method"),
            given.get("opponent"),
            list(given.get("weights") or {}),
            claim["controls"],
        ]
        for text in (t for part in named for t in (part if isinstance(part, list) else [part])):
            if text is not None and not is_none(text, here):
                arm, _, task = text.partition("@")
                one_of(arm, arms, f"{here}: arms and controls")
                if task:
                    one_of(task, tasks, f"{here}: arms")
        listed = claim.get("tasks") or []
        for task in (
            [t for ts in listed.values() for t in ts] if isinstance(listed, Mapping) else listed
        ):
            one_of(task, tasks, f"{here}: tasks")
    for target in claims.get("targets") or []:
        here = f"{where}: target {target['reported']}"
        for arm in filter(None, (target.get("arm"), target.get("opponent"))):
            one_of(arm, arms, here)
        task = target.get("task")
        for name in task if isinstance(task, list) else filter(None, [task]):
            one_of(name, tasks, here)
    for task in claims.get("tasks") or {}:
        one_of(task, tasks, f"{where}: tasks")
