"""A made-up results.json with every verdict word and every kind of gap (docs/verdicts.md, section 8).

`PYTHONPATH=. python tests/synthetic_results.py DIR` writes a whole checkout's worth (results, run directories, YAML files) to look at:
`python -m benchmarks.report --root DIR`. The numbers are drawn, not measured; nothing of this is ever a result.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from hashlib import sha256
from pathlib import Path

import yaml

from benchmarks.readme import stamp_checked

SEEDS = list(range(100, 108))
MEANS = {
    "autolora": 71.4,
    "uniform_4": 69.9,
    "permuted": 71.2,
    "random": 69.1,
    "uniform_2": 68.7,
    "uniform_8": 71.0,
}
MEANS |= {"first_order": 71.1, "train_split": 70.9, "full": 73.2}
TASKS = ["documentation", "digits"]
T95 = 2.365  # t quantile at 7 degrees of freedom


def digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


def differences(rng: random.Random, mean: float, sd: float, n: int = 8) -> dict:
    d = [round(rng.gauss(mean, sd), 4) for _ in range(n)]
    effect, half = statistics.fmean(d), T95 * statistics.stdev(d) / math.sqrt(n)
    p = 0.5 * math.erfc(effect / (statistics.stdev(d) / math.sqrt(n)) / math.sqrt(2))
    return {
        "d": d,
        "effect": effect,
        "ci95": [effect - half, effect + half],
        "item_ci95": [effect - 0.8 * half - 0.1, effect + 0.8 * half + 0.1],
        "p_for": p,
        "p_against": 1 - p,
        "flip_for": max(p, 2**-n),
        "flip_against": 1 - p + 2**-n,
    }


def claim(
    rng,
    id,
    statement,
    verdict,
    mean,
    sd=0.6,
    *,
    kind="difference",
    role="primary",
    reason="",
    controls=(),
    arms=None,
    replicates=8,
    **more,
):
    body = (
        differences(rng, mean, sd, replicates)
        if mean is not None
        else {"d": [], "effect": None, "ci95": None, "item_ci95": None}
    )
    d = body["d"]
    return {
        "id": id,
        "statement": statement,
        "source": "paper, section 4.2; claim 1",
        "kind": kind,
        "role": role,
        "arms": arms or {"method": "autolora", "opponent": "uniform_4"},
        "tasks": TASKS,
        "metric": "accuracy",
        "unit": "points",
        "threshold": 0,
        "material": 1.0,
        "n": len(d),
        **body,
        "d_by_task": {"documentation": [x + 0.3 for x in d], "digits": [x - 0.3 for x in d]},
        "median": statistics.median(d) if d else None,
        "detectable": 0.71 if d else None,
        "p_holm_for": min(1, 2 * body["p_for"]) if d else None,
        "p_holm_against": min(1, 2 * body["p_against"]) if d else None,
        "wins_ties_losses": [sum(x > 0 for x in d), 0, sum(x < 0 for x in d)],
        "diverged": {"autolora": 1} if d else {},
        "at_chance": {"random": 2} if d else {},
        "verdict": verdict,
        "reason": reason,
        "controls": controls
        if isinstance(controls, str)
        else [
            {"arm": arm, **(differences(rng, m, 0.5) if m is not None else {}), "outcome": o}
            for arm, m, o in controls
        ],
        **more,
    }


def claims(rng: random.Random) -> list[dict]:
    return [
        claim(
            rng,
            "better-than-uniform",
            "LoRA with learned ranks scores higher than uniform rank 4 at an equal number of parameters",
            "SUPPORTED, NOT ATTRIBUTED",
            1.5,
            controls=[("permuted", 0.1, "NOT BEATEN"), ("random", 2.2, "BEATEN")],
        ),
        claim(
            rng,
            "better-than-random",
            "Learned ranks beat random ranks of the same total",
            "SUPPORTED",
            2.2,
            controls=[("random", 2.2, "BEATEN")],
            arms={"method": "autolora", "opponent": "random"},
        ),
        claim(
            rng,
            "close-to-full",
            "Within half a point of full fine-tuning",
            "CONTRADICTED",
            -1.8,
            arms={"method": "autolora", "opponent": "full"},
            threshold=-0.5,
            controls="none: the opponent is the upper bound",
        ),
        claim(
            rng,
            "held-out",
            "Selection on a validation split generalises better than on the training loss",
            "SUPPORTED, ATTRIBUTION OPEN",
            1.2,
            role="secondary",
            controls=[("train_split", 0.5, "OPEN"), ("first_order", None, "OPEN")],
        ),
        claim(
            rng,
            "steadier",
            "Scores vary less over seeds than with plain fine-tuning",
            "INCONCLUSIVE",
            0.2,
            role="secondary",
            kind="spread",
            reason="t",
            items="none: a spread has no test items",
            item_ci95=None,
        ),
        claim(
            rng,
            "tagging",
            "The same on token tagging & <b>spans</b>",
            "NOT RUN",
            None,
            role="secondary",
            reason="input missing: tner/bionlp2004",
        ),
        claim(
            rng,
            "cheaper",
            "One search and one retraining cost less than a grid over ranks",
            "SUPPORTED",
            None,
            role="secondary",
            kind="exact",
            metric="gradient_evaluations",
            unit="raw",
            controls="none: a count",
            effect=310.0,
            n=1,
        ),
        claim(
            rng,
            "small-data",
            "The gain grows as data shrink",
            "INCONCLUSIVE",
            0.9,
            1.6,
            role="secondary",
            kind="contrast",
            reason="sign-flip",
            arms={"weights": {"autolora@digits": 1, "uniform_4@digits": -1}},
        ),
        claim(
            rng,
            "detector",
            "The detector finds more texts than a fixed one",
            "SUPPORTED for this model",
            2.0,
            9.0,
            replicates=600,
            role="secondary",
            unit="item",
            item_ci95=None,
            controls="none: one fixed model",
        ),
        claim(
            rng,
            "one-search",
            "Two searches agree on ranks better than chance",
            "INCONCLUSIVE",
            0.31,
            0.4,
            role="exhibit",
            kind="statistic",
            unit="raw",
            metric="kendall_tau",
            arms={"method": ["autolora", "permuted"], "name": "rank_agreement"},
        ),
    ]


def runs(rng: random.Random) -> list[dict]:
    out = []
    for task in TASKS:
        for seed in SEEDS:
            shift = rng.gauss(0, 0.8)
            for arm, mean in {"search": None, **MEANS}.items():
                diverged = arm == "autolora" and seed == 103 and task == "digits"
                score = 0.1 if diverged else (mean or 0) / 100 + (shift + rng.gauss(0, 0.5)) / 100
                metrics = {
                    "accuracy": score,
                    "trainable_parameters": 73_728.0 if arm != "full" else 3_548_928.0,
                }
                out.append(
                    {
                        "arm": arm,
                        "task": task,
                        "seed": seed,
                        "status": "diverged" if diverged else "finished",
                        "attempts": 2 if arm == "random" and seed == 101 else 1,
                        "config_sha256": digest(arm, task),
                        "split_sha256": digest(task, seed),
                        "state_sha256": digest(arm, task, seed),
                        "selection": "last",
                        "chosen_step": 150,
                        "validation": {},
                        "metrics": {} if arm == "search" or diverged else metrics,
                        "reason": "loss is nan at step 12 (lower level)" if diverged else "",
                        "seconds": 7.5 + rng.random(),
                        "gradient_evaluations": 500 if arm == "search" else 150,
                        "gradient_evaluations_with_uses": 650
                        if arm in ("autolora", "permuted")
                        else 150,
                        "peak_memory_mb": 640.0,
                        "record_sha256": digest("record", arm, task, seed),
                        "predictions_sha256": digest("predictions", arm, task, seed),
                    }
                )
    return out


def result(paper: str = "autolora", scale: str = "cpu") -> dict:
    rng = random.Random(f"{paper} {scale}")
    judged = claims(rng)
    for row in judged:
        small = " (scaled down)" if scale in ("cpu", "gpu") else ""
        row["verdict"] = None if row["role"] == "exhibit" else row["verdict"] + small
    entry = {
        "method": "AutoLoRA",
        "task": "glue/rte",
        "metric": "accuracy",
        "sd": 0.5,
        "sd_over": "seeds",
        "n_paper": 5,
        "source": "paper, Table 2",
    }
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
    reported = [
        {
            **entry,
            "id": i,
            "unit": "points",
            "reported": value,
            "sd": entry["sd"] if value else None,
            "measured": ours,
            "scores": [ours] * 5 if ours else [],
            "gap": gap,
            "ci95": ci,
            "tolerance": 1.0 if ours else None,
            "tolerance_reason": "277 test rows",
            "deviations": ["last epoch, theirs best epoch"] if verdict == "SUBSTITUTED" else [],
            "verdict": verdict,
        }
        for i, value, ours, gap, ci, verdict in said
    ]
    return {
        "schema": 1,
        "paper": paper,
        "scale": scale,
        "created": "2025-11-20T10:00:00+00:00",
        "commit": digest(paper)[:40],
        "claims_sha256": digest("claims"),
        "protocol_sha256": digest("protocol"),
        "code_sha256": digest("code"),
        "revision": 1,
        "revisions": [
            {
                "what": "threshold of close-to-full written as -0.5",
                "why": "the paper's words, misread at first",
            }
        ],
        "earlier": [
            {
                "commit": "0" * 40,
                "created": "2025-11-18T09:00:00",
                "revision": 0,
                "verdicts": {"close-to-full": "INCONCLUSIVE"},
            }
        ],
        "environment": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "cpu": "2 cores",
            "packages": {"numpy": "2.4.6", "peft": "0.21.2"},
        },
        "data": {"bundled/documentation": digest("docs"), "glue/rte/train.tsv": digest("rte")},
        "splits": {
            task: {part: digest(task, part) for part in ("train", "validation", "test")}
            for task in TASKS
        },
        "seeds": SEEDS,
        "development_seeds": "0-99",
        "tuning": [
            {
                "arm": a,
                "trials": 3,
                "grid": {"lr": [1e-4, 3e-4, 1e-3]},
                "seeds": [0, 1, 2],
                "scores": [70.1, 71.2, 70.9],
                "chosen": {"lr": 3e-4},
            }
            for a in ("autolora", "uniform_4")
        ],
        "seconds": {"wall": 412.0, "runs": 1301.5, "cpu": 1290.0},
        "gates": [
            {
                "id": "ranks-in-range",
                "statement": "Every learned rank lies between 0 and the search rank",
                "passed": True,
                "detail": "24 maps, ranks 0 to 7",
            },
            {
                "id": "equal-budget",
                "statement": "Permuted ranks have the same sum",
                "passed": paper != "dasgm",
                "detail": "48 = 48",
            },
        ],
        "claims": judged,
        "reported": reported if scale == "paper" else [],
        "runs": runs(rng),
    }


EMPTY = {"schema": 1, "paper": "tapweight", "scale": "cpu"}


def partial() -> dict:
    """What a killed or failing reproduction may leave: fields absent, None, NaN, runs without anything."""
    whole = result("weight_mixup")
    whole["claims"][0] |= {
        "ci95": None,
        "item_ci95": None,
        "d": [1.0, None, float("nan")],
        "controls": [{"arm": "permuted"}],
    }
    whole["claims"][1] = {"id": "bare"}
    whole["runs"] = [
        {"arm": "search", "task": "digits", "seed": 100, "status": "crashed"},
        *whole["runs"][:3],
    ]
    for key in ("environment", "tuning", "gates", "splits", "data", "seconds", "commit", "created"):
        del whole[key]
    return whole


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def tree(root: Path) -> Path:
    """A checkout: one full paper with runs, one at two scales, one partial, one empty, one with many published values."""
    write(root / "autolora/results/cpu.json", result())
    write(
        root / "autolora/results/rehearsal.json",
        {
            "created": "2025-11-19T08:00:00Z",
            "commit": "ab" * 20,
            "passed": True,
            "runs": 96,
            "seconds": 140,
        },
    )
    stamp_checked(root / "autolora", "cpu")
    mine = result()
    mine["claims"][1]["verdict"] = "INCONCLUSIVE (scaled down)"
    write(root / "runs/autolora/cpu/results.json", mine)
    rng = random.Random(1)
    for run in mine["runs"][:40]:
        directory = root / f"runs/autolora/cpu/{run['task']}/seed{run['seed']}/{run['arm']}"
        directory.mkdir(parents=True, exist_ok=True)
        rows = [
            {"step": s, "loss": 2.3 * math.exp(-s / 60) + rng.random() * 0.3, "note": "text"}
            for s in range(0, 150, 2)
        ]
        (directory / "metrics.jsonl").write_text(
            "\n".join(json.dumps(r) for r in rows) + '\n{"step": 15', encoding="utf-8"
        )
    (root / "autolora/protocol.yaml").write_text(
        yaml.safe_dump(
            {
                "arms": {
                    "search": {"stage": True},
                    "autolora": {"uses": ["search"]},
                    "permuted": {"uses": ["search"]},
                }
            }
        )
    )
    (root / "autolora/claims.yaml").write_text(
        yaml.safe_dump(
            {
                "tasks": {"digits": {"chance": {"accuracy": 0.1}}},
                "claims": [
                    {"id": "steadier", "source": "paper, Figure 3", "items": "none: a spread"}
                ],
            }
        )
    )
    (root / "autolora/figures.py").write_text(FIGURES)
    for scale in ("cpu", "paper"):
        write(root / f"mlo_mae/results/{scale}.json", result("mlo_mae", scale))
    write(root / "dasgm/results/cpu.json", result("dasgm"))
    write(root / "weight_mixup/results/cpu.json", partial())
    write(root / "tapweight/results/cpu.json", EMPTY)
    entries = [
        {
            "id": f"opt.ts.{k}.{metric}",
            "table": f"Figure {2 + k % 9} data",
            "method": "TS (MOO)",
            "metric": metric,
            "value": None if k % 50 == 0 else 5.2445 + k,
            "std": 1.8,
            "higher_is_better": True,
            "source": f"official repository, eval/opt/wm_test_{k}.json",
            "confidence": "read",
            "origin": "context" if k % 7 == 0 else "official_repository",
        }
        for k in range(221)
        for metric in ("mean_z", "TPR_at_0pct_FPR", "TPR_at_1pct_FPR", "perplexity_opt2.7b")
    ]
    (root / "ts_watermark").mkdir(exist_ok=True)
    (root / "ts_watermark/reported.yaml").write_text(
        yaml.safe_dump({"entries": entries, "not_found": ["Table 5: values <unreadable>"]})
    )
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
    return [("ranks", "Learned ranks per layer <made up>", "Heat map of ranks, 2 maps by 12 blocks", figure)]
"""

if __name__ == "__main__":
    print(tree(Path(sys.argv[1])))
