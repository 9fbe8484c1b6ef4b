"""Values of the official files: where each stands, and the official way to take a threshold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.sources import MissingInput
from ts_watermark import artifacts


def part(marked: str, human: str, skip: int = 0) -> dict:
    """A decoding setting with 200 marked z of 1.0 to 3.0 and 100 - skip human ones up to 2."""
    z = [1.0 + k / 100 for k in range(200)]
    low = [2.0 - k / 50 for k in range(100 - skip)]
    z_human = {"full": low, **({"skip": skip} if skip else {})}
    return {marked: {"z": {"full": z}, "simcse": 0.5, "gamma": 0.25}, human: {"z": z_human}}


@pytest.mark.parametrize(
    ("document", "name", "value"),
    [
        ({"setting_2": part("wm_bs", "human_bs")}, "opt.kgw.0.25_2.0.setting_2.tpr0", 0.495),
        ({"setting_2": part("wm_bs", "human_bs")}, "opt.kgw.0.25_2.0.setting_2.tpr1", 0.505),
        # a skipped text counts: 1 % of 100, not of 99, may lie above
        ({"setting_2": part("wm_bs", "human_bs", 1)}, "opt.sweet.0.25_2.0.setting_2.tpr1", 0.505),
        ({"ckpt_600": {"setting_0": part("wm", "human")}}, "opt.ts.0.1_1.0.setting_0.z", 1.995),
        ({"ckpt_600": {"setting_2": part("wm", "human")}}, "opt.ts.0.1_1.0.setting_2.simcse", 0.5),
        ({"setting_2": part("para", "human")}, "opt.dipper.ts.0.1_1.0.z", 1.995),
        ({"setting_2": part("wm", "human")}, "human.ts_init_0.1_1.0.thr0", 2.001),
        ({"setting_2": part("wm", "human")}, "human.ts_init_0.1_1.0.thr1", 1.981),
        ({"setting_2": part("wm", "human")}, "llama.ts.0.1_1.0.delta", None),
        ({"setting_1": part("wm", "human")}, "opt.ts.0.1_1.0.setting_3.z", None),
    ],
)
def test_where_a_value_stands(document, name, value):
    assert artifacts.value_of(document, name) == (value if value is None else pytest.approx(value))


def test_a_file_of_several_checkpoints():
    """The directory names delta, and gamma where it is not 0.25."""
    document = {
        "result/mlp_1_0.1/x.pth": {"setting_2": part("wm", "human")},
        "result/mlp_1.5/x.pth": {"setting_2": {**part("wm", "human"), "wm": {"z": {"full": [7]}}}},
    }
    assert artifacts.value_of(document, "opt.copy_paste_1.ts.0.25_1.5.z") == 7
    assert artifacts.value_of(document, "opt.copy_paste_1.ts.0.1_1.0.z") == pytest.approx(1.995)
    assert artifacts.value_of(document, "opt.copy_paste_1.ts.0.25_2.0.z") is None


def test_the_notebook_shows_three_numbers():
    cells = [
        {"outputs": [{"data": {"text/plain": [text]}}]}
        for text in ("(['a text of 2.5 words'], 1)", "11.25", "(12.5, 0.75)")
    ]
    values = [artifacts.demo_value({"cells": cells}, f"demo.x.{k}") for k in ("z", "ppl", "simcse")]
    assert values == [11.25, 12.5, 0.75]
    assert artifacts.demo_value({"cells": cells[:2]}, "demo.x.z") is None


def test_a_folder_without_that_history_is_named(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    source = {"opt.ts.0.1_1.0.z": "official repository outputs: eval/a.json"}
    with pytest.raises(MissingInput, match=r"lacks the commit 1dbc7b4\w+; clone it again, whole"):
        artifacts.outputs(tmp_path, source)


def test_the_official_files_give_every_value(root):
    place = Path(os.environ.get("REPRO_DATA", "/nowhere")) / "official" / "TS_watermark"
    if not place.is_dir():
        pytest.skip("a clone of the official repository in REPRO_DATA/official/TS_watermark")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.audit", "ts_watermark"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "0 NOT CHECKED" in done.stdout and "official outputs" not in done.stdout
