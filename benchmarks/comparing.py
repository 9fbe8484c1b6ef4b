"""Where two parts of a results file differ, in words, down to the digit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.rules import DIGITS, tidy


def same_number(recorded: Any, derived: Any) -> bool:
    """Whether `recorded` is `derived` written with ten digits.

    Where `derived` lies between two such numbers, the last bits of another processor may round it
    either way.
    """
    if recorded == tidy(derived):
        return True
    if isinstance(recorded, bool) or not isinstance(recorded, int | float):
        return False
    if not isinstance(derived, float) or not math.isfinite(derived):
        return False
    if tidy(float(recorded)) != recorded or recorded == 0:
        return False
    unit = 10.0 ** (math.floor(math.log10(abs(recorded))) - DIGITS + 1)
    return abs(recorded - derived) <= 0.5001 * unit


def differences(recorded: Any, derived: Any, place: str) -> list[str]:
    """Where two parts of a results file differ, in words, down to the digit."""
    if isinstance(derived, Mapping) and isinstance(recorded, Mapping):
        lines = [f"{place}: {key!r} is missing" for key in derived if key not in recorded]
        lines += [
            f"{place}: {key!r} does not belong there" for key in recorded if key not in derived
        ]
        for key in derived:
            if key in recorded:
                lines += differences(recorded[key], derived[key], f"{place}.{key}")
        return lines
    if isinstance(derived, list) and isinstance(recorded, list):
        if len(derived) != len(recorded):
            return [f"{place}: {len(recorded)} recorded, {len(derived)} derived"]
        lines = []
        for i, (was, now) in enumerate(zip(recorded, derived)):
            names = now if isinstance(now, Mapping) else {}
            name = names.get("id") or names.get("arm") or i
            lines += differences(was, now, f"{place}[{name}]")
        return lines
    if same_number(recorded, derived):
        return []
    wrong, right = repr(recorded), repr(tidy(derived))
    pairs = enumerate(zip(wrong, right))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(wrong), len(right)))
    return [f"{place}: recorded {wrong}, derived {right} (character {shared + 1})"]
