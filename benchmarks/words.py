"""How numbers, verdicts and claims are said to readers: the same words on every page and table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import rules
from benchmarks.recorded import Claim, Control, Numbers, Results, Sensitivity, finite
from benchmarks.rules import SCALED_DOWN, SMALLER, plain

# The short names by which a verdict says what it failed on, in a sentence's words.
REASONS = {
    "seeds": "too few seeds for a verdict",
    "failures": "more than 20 % of the runs of an arm diverged",
    "t": "the t-test over seeds does not reach 0.025 on either side",
    "Holm": "the t-test reaches 0.025 alone, but not after Holm's adjustment for the number of "
    "claims",
    "sign-flip": "the exact sign-flip test does not confirm the t-test",
    "items": "the interval over test items does not lie wholly on one side of the threshold",
    "sensitivity": "the experiment could not have found it",
}

# What is said of a published number that no run is compared with.
SAID_OF_REPORTED = {
    "CONTEXT": "a number of somebody else's, shown beside the paper's and not judged",
    "NO COUNTERPART": "nothing that is run here answers it",
    "NOT RUN": "an arm of scale paper answers it, and that scale has not been run",
    "NO PUBLISHED VALUE": "nobody here could read the value or say where it stands",
}

# What became of a claim, in the order in which a reader wants it.
GROUPS = {
    "SUPPORTED": "Holds; every control that was declared is beaten",
    "SUPPORTED, NOT ATTRIBUTED": "Holds, but a control that lacks the idea does as well",
    "SUPPORTED, ATTRIBUTION OPEN": "Holds; whether because of the idea stays open",
    "CONTRADICTED": "Contradicted: the opposite was found",
    "NO MATERIAL DIFFERENCE": "No difference that would matter, and the runs could have shown one",
    "INSENSITIVE": "Could not have been found: the positive control does not show",
    "INCONCLUSIVE": "These runs cannot tell",
    "NOT RUN": "Not run",
}

# What a metric of several papers measures; `metrics` of a paper.yaml has its own.
METRICS = {
    "score": "the headline metric of each task",
    "accuracy": "share of test items that are answered rightly",
    "exact_match": "share of test items whose answer is the right one, word for word",
    "f1": "balance of precision and recall: 1 where every case is found and nothing else",
    "matthews": "correlation of predicted and true classes; 0 for a constant answer",
    "pearson": "linear correlation of predictions and labels",
    "spearman": "correlation of the ranks of predictions and labels",
    "probe": "accuracy of a linear classifier on the frozen encoder's features",
    "parameters": "trained parameters",
}

# Words of a verdict, an outcome or a comparison -> (style, sign); the first beginning that matches.
# A sign and a word always stand together, so that colour is never the only carrier.
BADGES = {
    "SUPPORTED, NOT ATTRIBUTED": ("partly", "◐"),
    "SUPPORTED, ATTRIBUTION OPEN": ("partly", "◔"),
    "SUPPORTED": ("for", "●"),
    "CONTRADICTED": ("against", "✕"),
    "NO MATERIAL DIFFERENCE": ("within", "="),
    "INSENSITIVE": ("absent", "⊘"),
    "INCONCLUSIVE": ("neutral", "○"),
    "NOT RUN": ("absent", "–"),
    "NO PUBLISHED VALUE": ("absent", "∅"),
    "NOT REPRODUCED": ("against", "✕"),
    "REPRODUCED": ("for", "●"),
    "BETTER": ("for", "▲"),
    "SUBSTITUTED": ("neutral", "≈"),
    "CONTEXT": ("absent", "·"),
    "NOT BEATEN": ("against", "✕"),
    "BEATEN": ("for", "●"),
    "OPEN": ("neutral", "○"),
    "NOT SHOWN": ("against", "✕"),
    "SHOWN": ("for", "●"),
    "FAILED": ("against", "✕"),
    "IMPOSSIBLE": ("against", "✕"),
    "OFF BY": ("against", "≠"),
    "NOT CHECKED": ("absent", "–"),
    "HOLDS": ("for", "●"),
    "EXHIBIT": ("absent", "◇"),
    "NO COUNTERPART": ("absent", "–"),
}


SAID_OF_AUDIT = {  # relations between published numbers, by what came of them
    "HOLDS": "consistent",
    "OFF BY": "off by more than rounding",
    "IMPOSSIBLE": "impossible",
    "NOT CHECKED": "not checked",
}


def badge_of(words: str) -> tuple[str, str]:
    matching = (look for start, look in BADGES.items() if words.upper().startswith(start))
    return next(matching, ("neutral", "?"))


# --- numbers --------------------------------------------------------------------------------------


def number(value: float | None, signed: bool = False, beside: float = 0.0) -> str:
    """1234567 -> 1,234,567; 150.0 -> 150; 12.345 -> 12.35; 0.012 -> 0.0120; None and NaN -> n/a.

    `beside`: the largest number shown together with this one, which decides the decimals of both.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    plus = "+" if signed and value != 0 else ""
    size = max(abs(value), abs(beside))
    if isinstance(value, int) or size >= 10_000 or (size >= 100 and value == round(value)):
        return f"{value:{plus},.0f}"
    if size >= 0.1 or value == 0:
        return f"{value:{plus}.2f}"
    if size >= 1e-6:  # three digits of the larger one
        return f"{value:{plus}.{2 - math.floor(math.log10(size))}f}"
    return f"{value:{plus}.2e}"


def interval(ends: Numbers | None) -> str:
    usable = finite(ends)
    if len(usable) != 2:
        return "n/a"
    size = max(map(abs, usable))
    return " to ".join(number(end, signed=True, beside=size) for end in usable)


def p_value(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return "n/a"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def duration(seconds: float | None, absent: str = "n/a") -> str:
    if seconds is None:
        return absent
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def seeds_text(seeds: Sequence[int]) -> str:
    if not seeds:
        return "none"
    run = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}-{seeds[-1]}" if run and len(seeds) > 1 else ", ".join(map(str, seeds))


def day(created: str | None) -> str:
    return (created or "no date")[:10]


# --- claims ---------------------------------------------------------------------------------------


def full_verdict(claim: Claim, scale: str) -> str:
    """The verdict's words, `(scaled down)` included at the scales that are."""
    if claim.role == "exhibit":
        return "exhibit"
    verdict = claim.verdict or "NOT RUN"
    small = scale in ("cpu", "gpu") and SCALED_DOWN not in verdict
    return verdict + SCALED_DOWN if small else verdict


def stated(claim: Claim) -> str:
    """What is claimed, where a colon follows: without the full stop that some statements have."""
    return (claim.statement or claim.id).rstrip(".")


def machines(result: Results) -> str:
    """Where the runs of a result were made, if not all were made alike; else ""."""
    if len(result.machines) < 2:
        return ""
    columns = [_facts(one.environment) for one in result.machines]
    differing = [key for key in columns[0] if len({facts.get(key) for facts in columns}) > 1]
    each = [
        f"{one.runs} on {', '.join(str(facts.get(key, 'none')) for key in differing)}"
        for one, facts in zip(result.machines, columns)
    ]
    return (
        f"Runs of {len(columns)} machines or versions ({', '.join(differing)}): {'; '.join(each)}."
    )


def _facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    packages = environment.get("packages") or {}
    return {k: v for k, v in environment.items() if k != "packages"} | packages


def formula(claim: Claim, control: str = "") -> str:
    """What d is, in words: 'autolora - uniform_4' (or - control), a weighted sum, a statistic.

    Where lower is better the opponent comes first: d is positive when the claim is right.
    """
    arms = claim.arms
    lower = claim.direction == "lower" and claim.kind in ("difference", "exact")
    method, opponent = ", ".join(arms.methods), arms.opponent or ""
    if control:
        method, opponent = arms.sides[0], control
    elif claim.kind == "statistic":
        return f"{arms.name or 'statistic'}({method})"
    elif claim.kind == "contrast" and arms.weights:
        return " ".join(f"{weight:+g} {arm}" for arm, weight in arms.weights.items())
    elif claim.kind == "spread":
        return f"spread of {opponent} - spread of {method}"
    elif not opponent:
        return method
    return f"{opponent} - {method}" if lower else f"{method} - {opponent}"


def unit_of(claim: Claim) -> str:
    """The unit of a claim's effect; where it has none, the metric in words: 'gamma spread'."""
    metric = (claim.metric or "raw").replace("_", " ")
    return {"raw": metric, "item": f"{metric}, item by item"}.get(claim.unit, claim.unit)


def margin(claim: Claim) -> str:
    """The smallest difference that would matter, with its unit: '1 point', '0.05 f1'."""
    unit = "point" if claim.unit == "points" and claim.material == 1 else unit_of(claim)
    return f"{claim.material:g} {unit}"


def positive_control(claim: Claim) -> str:
    """'ppo - sft SHOWN, +3.20 (+1.20 to +5.20)', or why there is none; "" where none is named."""
    row = claim.sensitivity
    if row is None:
        return ""
    if row.outcome == "none":
        return row.reason
    pair = f"{row.arms.method} - {row.arms.opponent} {row.outcome}"
    if row.effect is None:
        return f"{pair} ({row.reason})"
    shown = f"{pair}, {number(row.effect, signed=True)} ({interval(row.ci95)})"
    return shown + fewer(row, claim)


def fewer(part: Control | Sensitivity, claim: Claim) -> str:
    """', 8 of 19 seeds' where it has fewer than its claim, else ""."""
    return f", {len(part.d)} of {claim.n} seeds" if 0 < len(part.d) < claim.n else ""


def seeds_to_decide(claim: Claim) -> int | None:
    """About how many seeds would find `material` in 80 % of repetitions, if they spread as these
    do; None: no more than now."""
    n = claim.n
    if claim.detectable is None or not n or claim.unit == "item":
        return None
    effect = claim.detectable - claim.threshold
    if effect <= claim.material:
        return None
    d = [x for x in claim.d or () if x is not None]
    sd = statistics.stdev(d) if len(d) > 1 else 0.0
    if not sd:  # nothing of single seeds is on file: the effect falls with the root of n
        return math.ceil(n * (effect / claim.material) ** 2)
    return rules.seeds_needed(sd, claim.material, rules.claims_of(effect, n, sd), n)


def why(claim: Claim) -> str:
    """What a verdict means that is not plainly for or against; "" where it is."""
    reason, verdict = claim.reason.rstrip(". "), claim.verdict or ""
    word = plain(verdict)
    if word == "NO MATERIAL DIFFERENCE":
        return f"these runs exclude a difference of {margin(claim)} either way"
    if word == "INSENSITIVE" and claim.sensitivity:
        failed = claim.sensitivity.reason
        because = failed if failed.startswith("it ") else f"first failed: {failed}"
        return (
            f"{REASONS['sensitivity']}: its positive control {positive_control(claim)}; {because}"
        )
    said = [_of_controls(claim) if "ATTRI" in verdict else REASONS.get(reason, reason)]
    if SMALLER.search(verdict):
        said.append(f"these runs also exclude a difference of {margin(claim)} or more")
    needed = seeds_to_decide(claim) if word == "INCONCLUSIVE" else None
    if needed and reason not in ("items", "failures"):
        said.append(f"about {needed:,} seeds would find a difference of {margin(claim)}")
    return "; ".join(filter(None, said))


def in_words(claim: Claim) -> str:
    """What any verdict means: `why`, or for a plain one which tests agree on which side."""
    word = plain(claim.verdict or "")
    if (said := why(claim)) or word not in ("SUPPORTED", "CONTRADICTED"):
        return said
    favours = "on the claim's side" if word == "SUPPORTED" else "against the claim"
    if claim.kind == "exact":
        where = "in every seed" if word == "SUPPORTED" else "in at least one seed"
        return f"the counts are {favours} {where}"
    over = "test items" if claim.unit == "item" else "seeds"
    tests = f"the t-test and the sign-flip test over {over}"
    tests += " and the interval over test items" if claim.item_ci95 else ""
    side = "above" if word == "SUPPORTED" else "below"
    beaten = "; every control is beaten" if claim.controls and word == "SUPPORTED" else ""
    return f"{tests} agree that the difference lies {side} {claim.threshold:g}{beaten}"


def _of_controls(claim: Claim) -> str:
    """Which controls keep a supported claim from being put down to the idea."""
    outcome = "NOT BEATEN" if "NOT ATTRIBUTED" in (claim.verdict or "") else "OPEN"
    names = [control.arm for control in claim.controls if control.outcome == outcome]
    if not names:
        return ""
    one = len(names) == 1
    said = f"{'does' if one else 'do'} as well without the idea"
    if outcome == "OPEN":
        said = f"{'was' if one else 'were'} neither beaten nor shown to do as well"
    return f"the claim holds, but the control{'' if one else 's'} {', '.join(names)} {said}"


# --- text -----------------------------------------------------------------------------------------


def cell(value: object) -> str:
    """Text that cannot leave its table cell or become markup."""
    text = " ".join(str(value).split()).replace("\\", "\\\\")
    for character, escaped in zip("|<>*_", ("\\|", "&lt;", "&gt;", "\\*", "\\_")):
        text = text.replace(character, escaped)
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; `right`: the columns that are set to the right."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])


def anchor(text: object) -> str:
    """A fragment that is safe in an id and in a link."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in str(text))


def pretty(value: Any) -> str:
    """A nested value of environment or tuning in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
