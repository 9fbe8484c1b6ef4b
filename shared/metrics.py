"""The GLUE and SuperGLUE metrics as `evaluate.Metric`s that need no network.

metric = metrics.load("mrpc")  # in place of evaluate.load("glue", "mrpc")
metric.compute(predictions=[1, 0], references=[1, 1])  # {"accuracy": 0.5, "f1": 0.67}

They compute what `shared.glue.score` does, the scorer of every run here, under the names of
evaluate's own scripts; `add_batch`, `evaluate.combine` and several processes work as usual."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from shared import glue

# our name -> that of evaluate's scripts
_NAMES = {"matthews": "matthews_correlation", "spearman": "spearmanr", "f1_macro": "f1"}
_CITED = "Wang et al., GLUE (arXiv 1804.07461); Wang et al., SuperGLUE (arXiv 1905.00537)"


class TaskMetric(evaluate.Metric):
    """The metrics of one task, as `config_name`.

    predictions, references: (n,) classes, or scores for STS-B; MultiRC also takes groups, the
    number of an answer's question, and ReCoRD groups and values, a candidate's word F1, with a
    score for each candidate as its prediction. Values lie in -1 to 1; 0 where a correlation is not
    defined, because a side is constant."""

    def _info(self) -> evaluate.MetricInfo:
        task = str(self.config_name)
        scores = not glue.spec(task).labels or task == "record"
        columns = {"predictions": "float64" if scores else "int64"}
        columns["references"] = "int64" if glue.spec(task).labels else "float64"
        columns |= {"groups": "int64"} if task in ("multirc", "record") else {}
        columns |= {"values": "float64"} if task == "record" else {}
        return evaluate.MetricInfo(
            description=f"Metrics of {task}: {', '.join(glue.spec(task).metrics)}.",
            citation=_CITED,
            inputs_description=str(TaskMetric.__doc__),
            features=datasets.Features({k: datasets.Value(v) for k, v in columns.items()}),
        )

    def _compute(self, predictions: Any, references: Any, **more: Any) -> dict[str, float]:
        arrays = {name: np.asarray(value) for name, value in more.items()}
        label, prediction = np.asarray(references), np.asarray(predictions)
        scored = glue.score(str(self.config_name), label, prediction, **arrays)
        return {_NAMES.get(name, name): value for name, value in scored.items()}


def load(task: str, **settings: Any) -> TaskMetric:
    """The metrics of `task`, one of `glue.SPECS`; settings: those of `evaluate.Metric`, for several
    processes (num_process, process_id, experiment_id). Raises BadInput for an unknown task."""
    glue.spec(task)
    return TaskMetric(config_name=task, **settings)
