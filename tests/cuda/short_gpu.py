"""Scale `gpu` of every paper, cut in length: the protocol's arms, models, precision and jobs, with
a few steps, small batches and made-up data in the layouts of the sources.

Settings are cut by the words of their names, the same way in every paper.
"""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reliable
import torch
from reliable import ROOT

from autolora import corpora
from benchmarks.claims import load_claims
from dasgm import nasbench, tables
from shared import cifar, glue, protocol, runs
from tapweight import rehearsal as tapweight_inputs

# a word of a setting's name -> the most that the setting may be
CAPS = {
    "steps": 2, "epochs": 1, "batch": 4, "minibatch": 4, "tokens": 6, "window": 6, "prompts": 4,
    "length": 32, "examples": 8, "K": 1, "n": 8, "extra": 8, "items": 16, "labels": 40,
    "out": 20, "points": 1, "trials": 1, "samples": 1, "beams": 2, "texts": 1, "stack": 2,
    "new": 4, "warmup": 0,
}  # fmt: skip
# what a phase does beside training, in its first and last step and a few others: here that is all
BESIDE = {"self_checks": False, "probe_every": 0, "curve_points": 0, "direction_trials": 0}
WHOLE = ("inner_epochs",)  # of what a step is, not of how many there are
ROWS = 48  # of a made-up data set; twice as many images


def cut(settings: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Shorter settings. Switches are those of `like`, what a rehearsal sets: gates that ask for
    something learned are off there; so is a number that is 0, which stands for all or for a
    default. Of a list of names the first remains."""

    def shorter(name: str, value: Any) -> Any:
        if name in WHOLE:
            return value
        if isinstance(value, bool) or value == 0:
            return like.get(name, value)
        if isinstance(value, list | tuple):
            one = value[:1] if value and isinstance(value[0], str) else value
            return type(value)(shorter(name, x) for x in one)
        caps = [CAPS[word] for word in name.split("_") if word in CAPS]
        return type(value)(min([value, *caps])) if isinstance(value, int | float) else value

    made = {name: shorter(name, value) for name, value in settings.items()}
    if "k1" in made:  # mlo_mae: so many steps are one of its phase
        made["steps"] = min(settings["steps"], CAPS["steps"] * made["k1"])
    if made.get("adapter") == "adalora":  # a step before its budget, one within and one after
        made["steps"] = min(settings["steps"], 3)
    return made | {name: off for name, off in BESIDE.items() if name in made}


# --- made-up data --------------------------------------------------------------------------------


def glue_rows(root: Path, name: str, rows: int) -> None:
    task = name.rpartition("/")[2].replace("-", "").lower()
    glue.write_sample(root, task, rows, runs.stream(0, task))


def tagged(root: Path, name: str, rows: int) -> None:
    for file, content in corpora.sample_files("ncbi", rows, runs.stream(0)).items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content, encoding="utf-8")


def cells(root: Path, name: str, rows: int) -> None:
    columns = ["arch", *tables.NASBENCH_COLUMNS.values()]
    lines = [f"{cell},{i % 90},{i % 70},{i % 40}" for i, cell in enumerate(nasbench.all_cells(4))]
    text = "\n".join([",".join(columns), *lines]) + "\n"
    (root / name).write_bytes(gzip.compress(text.encode()))


def prose(root: Path, name: str, rows: int) -> None:
    sentence = "The committee met on Monday and agreed that a bridge be built by the river"
    words = sentence.split()
    g = np.random.default_rng(0)

    def document() -> str:
        sentences = (" ".join(g.choice(words, 11)).capitalize() for _ in range(40))
        return ". ".join(sentences) + "."

    lines = [json.dumps({"source": f"s{i}", "text": document()}) for i in range(rows)]
    (root / name).mkdir()
    (root / name / "english.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


WRITERS: dict[str, Callable[[Path, str, int], Any]] = {
    "glue": glue_rows, "bioner": tagged, "nasbench201.csv.gz": cells, "text": prose,
    "cifar10": lambda root, name, n: cifar.write_sample(root, name, 2 * n, runs.stream(0)),
    "molecules": lambda root, name, rows: tapweight_inputs.write_data(root),
}  # fmt: skip


def write_data(root: Path, papers: Iterable[str], rows: int = ROWS) -> None:
    """A folder for REPRO_DATA with all that scale `gpu` of these papers needs."""
    root.mkdir()
    needs = [protocol.Protocol(ROOT / p).scale("gpu").needs.data for p in papers]
    names = sorted({name for listed in needs for name in listed}, key=lambda n: n != "molecules")
    for name in names:  # molecules first: with them come small sets of other kinds
        WRITERS[name.partition("/")[0]](root, name, rows)


# --- runs ----------------------------------------------------------------------------------------


class Paper:
    """A paper's runs at one scale, in `home`, on `device`; `gpu` is cut, `rehearsal` is short."""

    def __init__(self, name: str, home: Path, device: str = "cuda", scale: str = "gpu"):
        self.name, self.home, self.device, self.scale = name, home, device, scale
        self.protocol = protocol.Protocol(ROOT / name)
        self.train = importlib.import_module(f"{name}.train")
        tiny = self.protocol.document.tiny
        assert tiny is not None
        self.method = tiny.arm

    def task(self, arm: str) -> str:
        return self.protocol.arm_tasks(arm, self.scale)[0]

    def node(self, arm: str, task: str = "") -> protocol.Node:
        return self.protocol.node(self.scale, arm, task or self.task(arm), 0)

    def opponents(self) -> list[str]:
        """Opponents of the method in the claims at this scale."""
        claims = load_claims(ROOT / self.name / "claims.yaml").claims
        sides = [claim.arms.sides for claim in claims if self.scale in claim.scales]
        arms = [two[1] for two in sides if two[0] == self.method and len(two) == 2]
        return list(dict.fromkeys(arm for arm in arms if arm != self.method))

    def directory(self, key: protocol.Key) -> Path:
        arm, task, seed = key
        return self.home / self.name / self.scale / task / f"seed{seed}" / arm

    def run(self, node: protocol.Node, out: Path | None = None, **changes: Any) -> Path:
        """One run, in its place or in `out`, after those that it uses."""
        for key in node.uses:
            if not (self.directory(key) / "record.json").exists():
                self.run(self.protocol.node(self.scale, *key))
        values = self.settings(node, out or self.directory(node.key))
        return self.train.run(self.train.Config(**values | self.shorter(values) | changes))

    def shorter(self, values: dict[str, Any]) -> dict[str, Any]:
        """Settings of scale `gpu`, cut; of `rehearsal`, as they are."""
        whole = self.changeable(values)
        return cut(whole, self.protocol.scale("rehearsal").set) if self.scale == "gpu" else whole

    def numbers_cut(self, node: protocol.Node) -> dict[str, float]:
        """Numbers among the settings of a run that are smaller in it than in the protocol."""
        whole = self.changeable(self.settings(node, self.home))
        made = self.shorter(whole)
        numbers = {k: v for k, v in made.items() if type(v) in (int, float) and v != whole[k]}
        return dict(sorted(numbers.items()))

    def settings(self, node: protocol.Node, out: Path) -> dict[str, Any]:
        """Every field of Config as the protocol has it, the run in `out`."""
        values = self.protocol.config(self.scale, node) | {"device": self.device, "out": str(out)}
        return values | {"uses": {key[0]: str(self.directory(key)) for key in node.uses}}

    def changeable(self, values: dict[str, Any]) -> dict[str, Any]:
        """The settings among the fields: not which run it is, and where."""
        run = {*vars(protocol.RunConfig()), "uses"}
        return {name: value for name, value in values.items() if name not in run}

    def record(self, node: protocol.Node) -> dict[str, Any]:
        return reliable.record(self.directory(node.key))


def record_on(device: str, directory: Path) -> dict[str, Any]:
    """The record of a run, which says that the device did it and that its numbers are finite; the
    gates that claims.yaml declares for its scale hold."""
    record = reliable.record(directory)
    assert record["status"] == "finished"
    on_cpu = record["environment"]["device"] == "cpu"
    assert on_cpu == (device == "cpu") and record["fingerprint"]["machine"]["device"] == device
    assert all(np.isfinite(list(record["metrics"].values())))
    gates = load_claims(ROOT / record["paper"] / "claims.yaml").gates
    judged = {gate.id for gate in gates if record["scale"] in gate.scales}
    failed = [gate for gate in record["gates"] if gate["id"] in judged and not gate["passed"]]
    assert not failed, failed
    return record


def trained_tensors(patch: pytest.MonkeyPatch) -> dict[str, list[torch.Tensor]]:
    """Name of a run -> what it hashes as its trained state, from here on."""
    states: dict[str, list[torch.Tensor]] = {}
    finish = runs.Run.finish

    def noting(self: runs.Run, **values: Any) -> None:
        values["state"] = list(values.get("state", ()))
        states[self.name] = [t.detach().cpu().double().clone() for t in values["state"]]
        finish(self, **values)

    patch.setattr(runs.Run, "finish", noting)
    return states


def difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """|a - b| / |a| of the worst pair of tensors."""
    assert [t.shape for t in a] == [t.shape for t in b]
    apart = [float((x - y).norm() / x.norm().clamp_min(1e-3)) for x, y in zip(a, b, strict=True)]
    return max(apart, default=0.0)
