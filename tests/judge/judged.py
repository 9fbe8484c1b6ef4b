"""A paper by hand for the tests of the judge: arms with an accuracy (in percent) per seed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.claims import Claims
from benchmarks.recorded import Gate, RunEntry
from benchmarks.reported import ReportedFile
from benchmarks.verdicts import judge

ITEMS = 400
IDS = np.arange(ITEMS)
CHANCE = {"task": {"chance": {"accuracy": 0.5, "gap": 0.0, "count": 9}}}


def score(predictions):
    right = predictions["right"]
    return {"accuracy": float(np.mean(right)), "size": float(np.mean(right > 0.5))}


def item_values(predictions):
    return {"accuracy": predictions["right"].astype(float)}


def answers(percent, salt=0):
    """Predictions of which exactly this share is right; which ones is fixed by the salt."""
    order = np.random.default_rng(salt).permutation(ITEMS)
    return {"id": IDS, "right": (order < round(percent * ITEMS / 100)).astype(np.int8)}


class Paper:
    """Judged at scale paper unless said otherwise."""

    def __init__(self, **spec):
        self.spec = {
            **{"id": "C1", "statement": "s", "source": "x", "kind": "difference"},
            **{"role": "primary", "arms": {"method": "method", "opponent": "opponent"}},
            **{"tasks": ["task"], "metric": "accuracy", "controls": "none: a test"},
            **{"items": "test", "scales": ["cpu", "paper"], **spec},
        }
        self.nodes, self.runs, self.predictions = [], [], {}

    def arm(self, arm, percents, task="task", salt=0, metrics=None):
        """One run per seed from 100 on; None: it diverged."""
        for seed, percent in enumerate(percents, 100):
            run = RunEntry(arm=arm, task=task, seed=seed, metrics=metrics or {}, selection="last")
            run.state_sha256, run.split_sha256 = f"{arm}{task}{seed}", f"{task}{seed}"
            if percent is None:
                run.status = "diverged"
            else:
                self.predictions[run.key] = answers(percent, salt)
            self.nodes.append(SimpleNamespace(key=run.key, stage=False))
            self.runs.append(run)
        return self

    def judge(
        self,
        scale="paper",
        *,
        others=(),
        gates=(),
        targets=(),
        tasks=CHANCE,
        entries=(),
        recorded=(),
        **more,
    ):
        document = {"paper": "x", "claims": [self.spec, *others], "gates": gates, "tasks": tasks}
        published = {"paper": "x", "arxiv": "1", "note": "n", "not_found": [], "entries": entries}
        of_runs = [(key, [Gate(**gate) for gate in listed]) for key, listed in recorded]
        return judge(
            claims=Claims.model_validate({**document, "targets": list(targets)}),
            scale=scale,
            nodes=self.nodes,
            runs=self.runs,
            gates=of_runs,
            predictions=self.predictions,
            score=score,
            reported=ReportedFile.model_validate(published),
            **{"item_values": item_values, **more},
        )

    def claim(self, scale="paper", **more):
        return self.judge(scale, **more).claims[0]


def case(d, base=70.0, **spec):
    """The opponent at `base` on every seed, the method d points above it."""
    return Paper(**spec).arm("method", [base + x for x in d]).arm("opponent", [base] * len(d))


# case 1 times five: multiples of 0.25 points, and beyond the noise of 400 items
STRONG = (6, 4, 7.5, 5, 4.5)
