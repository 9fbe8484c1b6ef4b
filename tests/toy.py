"""A paper of twenty lines for a temporary repository: logistic regression, a stage, an opponent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TRAIN = '''
"""Toy: expect an accuracy near 0.9 in a second on any machine."""
import json
import shutil
from pathlib import Path

import torch

from shared import runs, sources
from toy import evaluate
from toy.config import Config


def begin(value):
    return torch.full((5,), value)


def run(config):
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        runs.device(config)
        if config.data:
            for file in sorted(sources.find_data(config.data).glob("train*")):
                sources.note(f"{config.data}/{file.name}", file)
        if config.model:
            folder = sources.local_model(config.model) or Path(config.model)
            sources.note(f"{config.model}/weights", folder / "weights")
        if config.seed == config.crash:
            import os
            os._exit(7)
        if config.arm == "stage":
            (run.directory / "shift.json").write_text(json.dumps({"shift": 0.1}))
            run.finish(gradient_evaluations=3, state=[torch.tensor([float(config.seed)])])
            return run.directory
        gen = runs.stream(config.seed, "data")
        x, w = torch.randn(300, 5, generator=gen), torch.randn(5, generator=gen)
        y = (x @ w > 0).float()
        run.splits(train=range(200), test=range(200, 300))
        theta = torch.zeros(5)
        if config.begin:
            theta = runs.cached(("toy beginning", config.begin), lambda: begin(config.begin))
        theta.requires_grad_()
        noise = runs.stream(config.seed, "noise")
        for step in run.phase("training", config.steps, runs.Parts(theta=[theta], noise=noise)):
            inputs = x[:200] + config.noise * torch.randn(200, 5, generator=noise)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ theta, y[:200])
            if step == config.nan_at:
                loss = loss * float("nan")
            run.finite(loss, "only", step, range(3))
            (g,) = torch.autograd.grad(loss, [theta])
            theta.data -= config.lr * g
            run.log(step=step, loss=loss.item())
        run.gate("toy-gate", True, "always")
        guess = (x[200:] @ theta > 0).long()
        preds = {"id": torch.arange(200, 300), "label": y[200:].long(), "prediction": guess}
        run.predictions(**preds)
        metrics = evaluate.score({k: v.numpy() for k, v in preds.items()})
        steps = config.steps
        run.finish(metrics=metrics, state=[theta], gradient_evaluations=steps, chosen_step=steps)
    return run.directory


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
'''

CONFIG = '''
"""What toy can be told."""
from dataclasses import dataclass

from shared.protocol import BadInput, RunConfig


@dataclass(frozen=True)
class Training:
    """How the weights are learned."""

    # gradient steps
    steps: int = 20
    # learning rate
    lr: float = 0.5
    # standard deviation of noise on the inputs
    noise: float = 0.0
    # put a NaN in at this step
    nan_at: int = -1
    # the run of this seed dies without a word
    crash: int = -1
    # folder of REPRO_DATA whose files are hashed, if any
    data: str = ""
    # model of REPRO_MODELS, or a folder, whose weights are hashed
    model: str = ""
    # where the weights begin, kept in the cache
    begin: float = 0.0


@dataclass(frozen=True)
class Config(RunConfig, Training):
    """Everything a run of toy can be told."""

    def __post_init__(self):
        if self.lr <= 0:
            raise BadInput(f"lr = {self.lr} must be positive")
'''

EVALUATE = """
STATISTICS = {}


def score(predictions):
    return {"accuracy": float((predictions["label"] == predictions["prediction"]).mean())}
"""

FIGURES = """
def figures(results, run_dirs):
    return []
"""

PROTOCOL = """
paper: toy
defaults: {lr: 0.5}
scales:
  cpu:
    tasks: {line: {}, plane: {seeds: 6, steps: 12}}
    seeds: 5
    core: [good, noisy]
    set: {steps: 20}
  paper: {tasks: [line], seeds: 5, set: {steps: 40}, hours: 2,
          needs: {models: [nobody/nothing], data: [nothing/here]}}
  rehearsal: {like: paper, seeds: 1, set: {steps: 2}}
arms:
  stage: {stage: true, over: {seed: one, task: one}}
  good:  {uses: [stage]}
  noisy: {set: {noise: 3.0}}
  extra: {set: {lr: 0.1}}
tiny: {arm: good, task: line, set: {steps: 3}}
plan:
  cpu: {C1: {seeds: 0-4, sd: 0.3, n: 5, detectable: 0.505, source: invented}}
"""

CLAIMS = """
paper: toy
revisions: []
gates: [{id: toy-gate, statement: always holds}]
tasks: {line: {chance: {accuracy: 0.5}}, plane: {chance: {accuracy: 0.5}}}
claims:
  - {id: C1, statement: clean inputs beat noisy ones, source: made up, kind: difference,
     role: primary, arms: {method: good, opponent: noisy}, tasks: [line], metric: accuracy,
     unit: points, direction: higher,
     threshold: 0, material: 1.0, material_reason: a toy, sensitivity: "none: a toy",
     controls: "none: a toy", items: test, scales: [cpu, paper]}
targets: []
"""

PAPER = """
order: 1
title: A toy
authors: [Nobody]
venue: nowhere
arxiv: "0000.00000"
line: Clean inputs beat noisy ones.
questions: [{ask: "Do clean inputs beat noisy ones?", claim: C1}]
"""

REPORTED = """
paper: toy
arxiv: '0000.00000'
note: invented
entries: []
not_found: []
"""


def write(root: Path) -> Path:
    """A repository in `root` with the paper `toy`, whose folder is returned."""
    here = Path(__file__).resolve().parent.parent
    for name in ("shared", "benchmarks"):  # copies: the judge finds papers beside itself
        shutil.copytree(here / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = root / "toy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    for name, text in {
        "train.py": TRAIN,
        "config.py": CONFIG,
        "evaluate.py": EVALUATE,
        "figures.py": FIGURES,
        "paper.yaml": PAPER,
        "protocol.yaml": PROTOCOL,
        "claims.yaml": CLAIMS,
        "reported.yaml": REPORTED,
        "README.md": "# toy\n",
    }.items():
        (folder / name).write_text(text.lstrip("\n"))
    return folder


def record(directory: Path) -> dict:
    return json.loads((directory / "record.json").read_text())


def command(root, *words, **environ):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(
        [sys.executable, "-m", "toy.train", *words],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )


def module(root, monkeypatch):
    """The toy's train module, imported from `root` in this process."""
    for name in [n for n in sys.modules if n == "toy" or n.startswith("toy.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(root))
    import toy.train

    return toy.train
