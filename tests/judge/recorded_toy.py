"""The toy paper with a result as the runner records it, from invented predictions."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import check, readme, records, reported, verdicts
from benchmarks.assemble import judge_sha256
from benchmarks.blocks import update_readme
from benchmarks.claims import load_claims
from benchmarks.predictions import pack_predictions, unpack_predictions
from benchmarks.recorded import Results, RunKey, Seconds
from shared import protocol
from shared.protocol import Protocol

BLOCK = "<!-- generated: {} -->\n<!-- end generated -->\n"
README = f"# toy\n\n{BLOCK.format('claims')}\n{BLOCK.format('results')}"
ENTRY = (
    "{id: e1, method: m, metric: accuracy, value: 81.25, source: a table, confidence: read, "
    "origin: paper}"
)

GATE = {"id": "toy-gate", "passed": True}
ITEMS = 100  # test items of a run


def score(predictions):
    return {"accuracy": float((predictions["label"] == predictions["prediction"]).mean())}


def predictions_of(paper):
    """Answers with an accuracy near 0.9 (clean) and 0.7 (noisy)."""
    answers = {}
    for node in paper.nodes("cpu"):
        if not node.stage:
            rng = np.random.default_rng([node.seed, node.arm == "good"])
            label = np.random.default_rng(0).integers(0, 2, ITEMS)
            wrong = rng.random(ITEMS) < (0.1 if node.arm == "good" else 0.3)
            answers[node.key] = {
                "id": np.arange(200, 200 + ITEMS),
                "label": label,
                "prediction": label ^ wrong,
            }
    return answers


def judge(folder, runs, predictions, gates=()):
    return verdicts.judge(
        claims=load_claims(folder / "claims.yaml"),
        scale="cpu",
        nodes=Protocol(folder).nodes("cpu"),
        runs=runs,
        gates=gates,
        predictions=predictions,
        score=score,
        reported=reported.load(folder / "reported.yaml"),
    )


def record(folder):
    """A result of `folder` as the runner records it, from invented predictions."""
    paper, results = Protocol(folder), folder / "results"
    packed = pack_predictions(results / "cpu.predictions.npz", predictions_of(paper), score)
    predictions = unpack_predictions(results / "cpu.predictions.npz")
    kept: dict[RunKey, dict] = {}
    code = protocol.code_hashes(folder / "train.py")
    for node in paper.nodes("cpu"):
        used = {key[0]: kept[key] for key in node.uses}
        config = protocol.config_sha256(paper.config("cpu", node))
        splits = {"test": f"{node.task}{node.seed}"}
        passes = 3 + sum(record["gradient_evaluations_with_uses"] for record in used.values())
        record = kept[node.key] = {
            **{"arm": node.arm, "task": node.task, "seed": node.seed, "status": "finished"},
            **{"config_sha256": config, "gates": [{**GATE, "detail": f"seed {node.seed}"}]},
            **{"gradient_evaluations": 3, "gradient_evaluations_with_uses": passes},
            **{"state_sha256": str(node.key), "splits": splits, "metrics": {}},
            **{"split_sha256": protocol.sha256_json(splits), "predictions_sha256": None},
            **{"seconds": 1.5, "cpu_seconds": 1.25, "environment": {"processor": "A"}},
        }
        data = {"made": {"sha256": "d", "path": "made"}}
        uses = {arm: protocol.record_sha256(r) for arm, r in used.items()}
        record["fingerprint"] = {"config": config, "code": code, "data": data, "uses": uses}
        if not node.stage:
            record["metrics"] = {**score(predictions[node.key]), "count": 7.0}
            record["predictions_sha256"] = check.saved_sha256(predictions[node.key])
    runs = [records.entry(record) for record in kept.values()]
    judged = judge(folder, runs, predictions, records.gates(kept))
    names = ("claims", "protocol", "reported")
    result = Results(
        paper="toy",
        scale="cpu",
        created="2020-01-01",
        commit="abc",
        **{f"{name}_sha256": protocol.sha256_yaml(folder / f"{name}.yaml") for name in names},
        predictions_sha256=packed,
        records_sha256=records.pack_records(results / "cpu.records.jsonl.gz", kept),
        judge_sha256=judge_sha256(),
        development_seeds="0-99",
        seeds=paper.seeds("cpu"),
        seconds=Seconds(wall=9.5, **records.spent(kept)),
        **records.head(list(kept.values())),
        **dict(judged),
        runs=runs,
    )
    result.write(results / "cpu.json")
    (folder / "README.md").write_text(README)
    update_readme(folder / "README.md", readme.paper_tables(folder))


def save(folder, result):
    (folder / "results" / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")


def load(folder):
    return json.loads((folder / "results" / "cpu.json").read_text())
