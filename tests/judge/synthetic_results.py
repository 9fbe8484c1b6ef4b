"""A made-up result with every verdict word and every kind of gap, and a checkout full of them.

`PYTHONPATH=. python tests/judge/synthetic_results.py DIR` writes the checkout to look at with
`python -m benchmarks.report --root DIR`. The numbers are drawn, not measured.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from benchmarks.recorded import Results, stamp_checked

SEEDS = list(range(100, 108))
MEANS = {
    **{"autolora": 71.4, "uniform_4": 69.9, "permuted": 71.2, "random": 69.1, "uniform_2": 68.7},
    **{"uniform_8": 71.0, "first_order": 71.1, "train_split": 70.9, "full": 73.2},
}
TASKS = ["documentation", "digits"]
T95 = 2.365  # t quantile at 7 degrees of freedom


def digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


def differences(rng: random.Random, mean: float, sd: float, n: int = 8) -> dict:
    d = [round(rng.gauss(mean, sd), 4) for _ in range(n)]
    effect, half = statistics.fmean(d), T95 * statistics.stdev(d) / math.sqrt(n)
    p = 0.5 * math.erfc(effect / (statistics.stdev(d) / math.sqrt(n)) / math.sqrt(2))
    return {
        **{"d": d, "effect": effect, "ci95": [effect - half, effect + half], "p_for": p},
        "item_ci95": [effect - 0.8 * half - 0.1, effect + 0.8 * half + 0.1],
        "flip_for": max(p, 2**-n),
    }


def claim(
    rng: random.Random,
    id: str,
    statement: str,
    verdict: str,
    mean: float | None,
    sd: float = 0.6,
    controls: tuple[tuple[str, float | None, str], ...] = (),
    replicates: int = 8,
    **more: Any,
) -> dict:
    body = {} if mean is None else differences(rng, mean, sd, replicates)
    d = body.get("d", [])
    if d:
        p = body["p_for"]
        body |= {"median": statistics.median(d), "detectable": 0.71}
        body |= {"p_against": 1 - p, "flip_against": 1 - p + 2**-replicates}
        body |= {"p_holm_for": min(1, 2 * p), "p_holm_against": min(1, 2 - 2 * p)}
        body |= {"diverged": {"autolora": 1}, "at_chance": {"random": 2}}
        body["d_by_task"] = {"documentation": [x + 0.3 for x in d], "digits": [x - 0.3 for x in d]}
        body["wins_ties_losses"] = [sum(x > 0 for x in d), 0, sum(x < 0 for x in d)]
    judged = [
        {"arm": arm, "outcome": outcome, **({} if m is None else differences(rng, m, 0.5))}
        for arm, m, outcome in controls
    ]
    return {
        **{"id": id, "statement": statement, "kind": "difference", "role": "primary"},
        **{"arms": {"method": "autolora", "opponent": "uniform_4"}, "tasks": TASKS},
        **{"metric": "accuracy", "n": len(d), "verdict": verdict, "controls": judged},
        **body,
        **more,
    }


def positive(rng: random.Random, mean: float, outcome: str) -> dict:
    pair = {"arms": {"method": "uniform_8", "opponent": "uniform_2"}, "outcome": outcome}
    numbers = differences(rng, mean, 0.5)
    reason = "" if outcome == "SHOWN" else "t"
    return {**pair, "reason": reason, **{name: numbers[name] for name in ("d", "effect", "ci95")}}


def claims(rng: random.Random) -> list[dict]:
    learned = "Learned ranks score higher than uniform rank 4 at an equal number"
    held_out = "Selection on a validation split generalises better than on the training loss"
    grid = "One search and one retraining cost less than a grid over ranks"
    second = {"role": "secondary"}
    weights = {"weights": {"autolora@digits": 1, "uniform_4@digits": -1}}
    unattributed = (("permuted", 0.1, "NOT BEATEN"), ("random", 2.2, "BEATEN"))
    unclear = (("train_split", 0.5, "OPEN"), ("first_order", None, "OPEN"))
    beaten = (("random", 2.2, "BEATEN"),)
    return [
        claim(rng, "better-than-uniform", learned, "SUPPORTED, NOT ATTRIBUTED", 1.5, 0.6,
              unattributed),
        claim(rng, "better-than-random", "Learned ranks beat random ranks of the same total",
              "SUPPORTED", 2.2, 0.6, beaten, arms={"method": "autolora", "opponent": "random"}),
        claim(rng, "close-to-full", "Within half a point of full fine-tuning", "CONTRADICTED", -1.8,
              arms={"method": "autolora", "opponent": "full"}, threshold=-0.5),
        claim(rng, "held-out", held_out, "SUPPORTED, ATTRIBUTION OPEN", 1.2, 0.6, unclear,
              **second),
        claim(rng, "steadier", "Scores vary less over seeds than with plain fine-tuning",
              "INCONCLUSIVE", 0.2, kind="spread", reason="t", item_ci95=None, **second),
        claim(rng, "tagging", "The same on token tagging & <b>spans</b>", "NOT RUN", None,
              reason="input missing: tner/bionlp2004", **second),
        claim(rng, "cheaper", grid, "SUPPORTED", None, kind="exact", effect=310.0,
              metric="gradient_evaluations", unit="raw", **{**second, "n": 1}),
        claim(rng, "small-data", "The gain grows as data shrink", "INCONCLUSIVE", 0.9, 1.6,
              kind="contrast", reason="sign-flip", arms=weights, **second),
        claim(rng, "detector", "The detector finds more texts than a fixed one",
              "SUPPORTED for this model", 2.0, 9.0, replicates=600, unit="item",
              item_ci95=None, **second),
        claim(rng, "alike", "Scores differ from those of rank 4", "NO MATERIAL DIFFERENCE", 0.05,
              0.2, p_within=0.001, p_holm_within=0.001, flip_within=[0.004, 0.004],
              sensitivity=positive(rng, 4.0, "SHOWN"), **second),
        claim(rng, "blind", "Ranks of the first block matter", "INSENSITIVE", 0.1, 2.0,
              reason="sensitivity", p_within=0.2, p_holm_within=0.4, flip_within=[0.2, 0.1],
              sensitivity=positive(rng, 0.1, "NOT SHOWN"), **second),
        claim(rng, "one-search", "Two searches agree on ranks better than chance", "INCONCLUSIVE",
              0.31, 0.4, role="exhibit", kind="statistic", unit="raw", metric="kendall_tau",
              arms={"method": ["autolora", "permuted"], "name": "rank_agreement"}),
    ]  # fmt: skip


def run(rng: random.Random, arm: str, task: str, seed: int, shift: float) -> dict:
    diverged = arm == "autolora" and seed == 103 and task == "digits"
    score = (MEANS.get(arm, 0) + shift + rng.gauss(0, 0.5)) / 100
    size = 3_548_928.0 if arm == "full" else 73_728.0
    scored = {"accuracy": score, "trainable_parameters": size}
    passes = 500 if arm == "search" else 150
    return {
        **{"arm": arm, "task": task, "seed": seed},
        "status": "diverged" if diverged else "finished",
        "reason": "loss is nan at step 12 (lower level)" if diverged else "",
        "attempts": 2 if arm == "random" and seed == 101 else 1,
        **{"split_sha256": digest(task, seed), "state_sha256": digest(arm, task, seed)},
        **{"selection": "last", "chosen_step": 150, "record_sha256": digest(arm, task, seed, 1)},
        "metrics": {} if arm == "search" or diverged else scored,
        **{"seconds": 7.5 + rng.random(), "peak_memory_mb": 640.0, "gradient_evaluations": passes},
        "gradient_evaluations_with_uses": 650 if arm in ("autolora", "permuted") else passes,
    }


def reported() -> list[dict]:
    entry = {"method": "AutoLoRA", "task": "glue/rte", "metric": "accuracy", "n_paper": 5}
    said = [
        ("rte-ours", 80.1, 80.4, 0.3, [-0.2, 0.8], "REPRODUCED"),
        ("rte-lora", 78.0, 81.0, 3.0, [2.4, 3.6], "BETTER"),
        ("mnli", 87.2, 85.0, -2.2, [-2.6, -1.8], "NOT REPRODUCED"),
        ("qqp", 90.6, 90.0, -0.6, [-2.0, 0.8], "INCONCLUSIVE"),
        ("cola", None, None, None, None, "NO PUBLISHED VALUE"),
        ("sst2", 94.8, 94.0, -0.8, [-1.0, -0.6], "SUBSTITUTED"),
        ("lora-readme", 86.6, None, None, None, "CONTEXT"),
        ("e2e", 70.2, None, None, None, "NOT RUN"),
        ("webnlg", 55.0, None, None, None, "NO COUNTERPART"),
    ]
    rows = []
    for name, value, ours, gap, ci95, verdict in said:
        row = {**entry, "id": name, "reported": value, "verdict": verdict, "source": "Table 2"}
        row |= {"measured": ours, "gap": gap, "ci95": ci95, "tolerance_reason": "277 test rows"}
        row |= {
            "sd": 0.5 if value else None,
            "sd_over": "seeds",
            "tolerance": 1.0 if ours else None,
        }
        if verdict == "SUBSTITUTED":
            row["deviations"] = ["last epoch, theirs best epoch"]
        rows.append(row)
    return rows


def document(paper: str = "autolora", scale: str = "cpu") -> dict:
    rng = random.Random(f"{paper} {scale}")
    judged = claims(rng)
    for row in judged:
        small = " (scaled down)" if scale in ("cpu", "gpu") else ""
        row["verdict"] = None if row["role"] == "exhibit" else row["verdict"] + small
    tuned = {"trials": 3, "grid": {"lr": [1e-4, 3e-4]}, "seeds": [0, 1], "scores": [70.1, 71.2]}
    old = {"commit": "0" * 40, "created": "2025-11-18T09:00:00", "revision": 0}
    ranks = {"id": "ranks-in-range", "passed": True, "detail": "24 maps, ranks 0 to 7"}
    budget = {"id": "equal-budget", "passed": paper != "dasgm", "detail": "48 = 48"}
    runs = []
    for task in TASKS:
        for seed in SEEDS:
            shift = rng.gauss(0, 0.8)
            runs += [run(rng, arm, task, seed, shift) for arm in ["search", *MEANS]]
    return {
        **{"schema": 1, "paper": paper, "scale": scale, "created": "2025-11-20T10:00:00+00:00"},
        **{"commit": digest(paper)[:40], "claims_sha256": digest("claims"), "revision": 1},
        **{"protocol_sha256": digest("protocol"), "code_sha256": digest("code")},
        "revisions": [{"what": "threshold of close-to-full is -0.5", "why": "misread at first"}],
        "earlier": [{**old, "verdicts": {"close-to-full": "INCONCLUSIVE"}}],
        "environment": {"python": "3.11.2", "packages": {"numpy": "2.4.6", "peft": "0.21.2"}},
        "data": {"bundled/documentation": digest("docs"), "glue/rte/train.tsv": digest("rte")},
        "splits": {
            task: {part: digest(task, part) for part in ("train", "test")} for task in TASKS
        },
        **{"seeds": SEEDS, "development_seeds": "0-99"},
        "tuning": [{"arm": arm, **tuned, "chosen": {"lr": 3e-4}} for arm in ("autolora", "full")],
        "seconds": {"wall": 412.0, "runs": 1301.5, "cpu": 1290.0},
        "gates": [{**gate, "statement": "A sum of ranks"} for gate in (ranks, budget)],
        **{"claims": judged, "reported": reported() if scale == "paper" else [], "runs": runs},
    }


def result(paper: str = "autolora", scale: str = "cpu") -> Results:
    return Results.model_validate(document(paper, scale))


def partial() -> dict:
    """What a killed or failing reproduction may leave: fields absent, None, NaN, bare runs."""
    whole = document("weight_mixup")
    gaps = {"ci95": None, "item_ci95": None, "d": [1.0, None, float("nan")]}
    whole["claims"][0] |= {**gaps, "controls": [{"arm": "permuted"}]}
    whole["claims"][1] = {"id": "bare"}
    crashed = {"arm": "search", "task": "digits", "seed": 100, "status": "crashed"}
    whole["runs"] = [crashed, *whole["runs"][:3]]
    for key in ("environment", "tuning", "gates", "splits", "data", "seconds", "commit", "created"):
        del whole[key]
    return whole


# --- a checkout -----------------------------------------------------------------------------------


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_yaml(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value), encoding="utf-8")


def run_directory(root: Path, run: dict, rng: random.Random) -> None:
    place = root / f"runs/autolora/cpu/{run['task']}/seed{run['seed']}/{run['arm']}"
    place.mkdir(parents=True, exist_ok=True)
    steps = [(s, 2.3 * math.exp(-s / 60) + rng.random() * 0.3) for s in range(0, 150, 2)]
    lines = [json.dumps({"step": s, "loss": loss, "note": "text"}) for s, loss in steps]
    text = "\n".join([*lines, '{"step": 15'])  # the last line of a killed run
    (place / "metrics.jsonl").write_text(text, encoding="utf-8")


def published() -> list[dict]:
    metrics = ("mean_z", "TPR_at_0pct_FPR", "TPR_at_1pct_FPR", "perplexity_opt2.7b")
    return [
        {
            **{"id": f"opt.ts.{k}.{metric}", "table": f"Figure {2 + k % 9} data"},
            **{"method": "TS (MOO)", "metric": metric, "value": None if k % 50 == 0 else 5.2 + k},
            **{"std": 1.8, "higher_is_better": True, "confidence": "read", "source": f"file {k}"},
            "origin": "context" if k % 7 == 0 else "official_repository",
        }
        for k in range(221)
        for metric in metrics
    ]


def tree(root: Path) -> Path:
    """A full paper with runs, one at two scales, one partial, one empty, one of many numbers."""
    write(root / "autolora/results/cpu.json", document())
    rehearsal = {"created": "2025-11-19T08:00:00Z", "passed": True, "runs": 96}
    write(root / "autolora/results/rehearsal.json", rehearsal)
    stamp_checked(root / "autolora", "cpu")
    local = document()
    local["claims"][1]["verdict"] = "INCONCLUSIVE (scaled down)"
    write(root / "runs/autolora/cpu/results.json", local)
    rng = random.Random(1)
    for entry in local["runs"][:40]:
        run_directory(root, entry, rng)
    arms = {arm: {"uses": ["search"]} for arm in ("autolora", "permuted")}
    write_yaml(root / "autolora/protocol.yaml", {"arms": {"search": {"stage": True}, **arms}})
    spread = {
        **{"id": "steadier", "statement": "s", "source": "paper, Figure 3", "kind": "spread"},
        **{"role": "secondary", "arms": {"method": "autolora", "opponent": "uniform_4"}},
        **{"metric": "accuracy", "controls": "none: a spread", "items": "none: a spread"},
        "scales": ["cpu"],
    }
    chance = {"digits": {"chance": {"accuracy": 0.1}}}
    declared = {"paper": "autolora", "tasks": chance, "claims": [spread]}
    write_yaml(root / "autolora/claims.yaml", declared)
    (root / "autolora/figures.py").write_text(FIGURES)
    for scale in ("cpu", "paper"):
        write(root / f"mlo_mae/results/{scale}.json", document("mlo_mae", scale))
    write(root / "dasgm/results/cpu.json", document("dasgm"))
    write(root / "weight_mixup/results/cpu.json", partial())
    write(root / "tapweight/results/cpu.json", {"paper": "tapweight", "scale": "cpu"})
    facts = {"paper": "ts_watermark", "arxiv": "2402.18059", "note": "made up"}
    facts["not_found"] = ["Table 5: values <unreadable>"]
    write_yaml(root / "ts_watermark/reported.yaml", {**facts, "entries": published()})
    return root


FIGURES = """
from matplotlib.figure import Figure

def figures(results, run_dirs):
    figure = Figure(figsize=(6.4, 2.6))
    axes = figure.add_subplot()
    image = axes.imshow([[(i * j) % 8 for i in range(12)] for j in range(2)], aspect="auto")
    axes.set_yticks([0, 1], ["query", "value"])
    axes.set_xlabel("block")
    figure.colorbar(image, label="rank")
    return [("ranks", "Learned ranks <made up>", "Heat map of ranks, 2 maps by 12 blocks", figure)]
"""

if __name__ == "__main__":
    print(tree(Path(sys.argv[1])))
