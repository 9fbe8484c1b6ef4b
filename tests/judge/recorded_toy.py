"""The toy paper with a result as the runner records it, from invented predictions."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import readme, reported, verdicts
from benchmarks.blocks import update_readme
from benchmarks.claims import load_claims
from benchmarks.predictions import pack_predictions, unpack_predictions
from benchmarks.recorded import Gate, Results, RunEntry, RunKey
from shared import protocol
from shared.protocol import Protocol

BLOCK = "<!-- generated: {} -->\n<!-- end generated -->\n"
README = f"# toy\n\n{BLOCK.format('claims')}\n{BLOCK.format('results')}"
ENTRY = (
    "{id: e1, method: m, metric: accuracy, value: 81.25, source: a table, confidence: read, "
    "origin: paper}"
)


def score(predictions):
    return {"accuracy": float((predictions["label"] == predictions["prediction"]).mean())}


def predictions_of(paper):
    """Answers with an accuracy near 0.9 (clean) and 0.7 (noisy)."""
    answers = {}
    for node in paper.nodes("cpu"):
        if not node.stage:
            rng = np.random.default_rng([node.seed, node.arm == "good"])
            label = np.random.default_rng(0).integers(0, 2, 100)
            wrong = rng.random(100) < (0.1 if node.arm == "good" else 0.3)
            answers[node.key] = {
                "id": np.arange(200, 300),
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
    runs: dict[RunKey, RunEntry] = {}
    for node in paper.nodes("cpu"):
        run = RunEntry(arm=node.arm, task=node.task, seed=node.seed, gradient_evaluations=3)
        run.state_sha256, run.split_sha256 = str(node.key), f"{node.task}{node.seed}"
        if not node.stage:
            run.metrics = {**score(predictions[node.key]), "count": 7.0}
        used = sum(runs[key].gradient_evaluations_with_uses for key in node.uses)
        run.gradient_evaluations_with_uses = 3 + used
        runs[node.key] = run
    gate = Gate(id="toy-gate", passed=True, detail="always")
    gates = [(node.key, [gate]) for node in paper.nodes("cpu")]
    judged = judge(folder, list(runs.values()), predictions, gates)
    names = ("claims", "protocol", "reported")
    result = Results(
        paper="toy",
        scale="cpu",
        created="2020-01-01",
        commit="abc",
        **{f"{name}_sha256": protocol.sha256_yaml(folder / f"{name}.yaml") for name in names},
        predictions_sha256=packed,
        code_sha256=protocol.sha256_json(protocol.code_hashes(folder / "train.py")),
        development_seeds="0-99",
        seeds=paper.seeds("cpu"),
        **dict(judged),
        runs=list(runs.values()),
    )
    result.write(results / "cpu.json")
    (folder / "README.md").write_text(README)
    update_readme(folder / "README.md", readme.paper_tables(folder))


def save(folder, result):
    (folder / "results" / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")


def load(folder):
    return json.loads((folder / "results" / "cpu.json").read_text())
