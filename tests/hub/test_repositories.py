"""What is wrong with a repository is said, and nothing that came is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_content
import pytest
from hub_server import Fault, Hub

HERE = Path(__file__).resolve().parent
FILES = {"models": "model.safetensors", "datasets": "data/train-00001-of-00002.parquet"}
FAULTS = {  # of the file in FILES; what the message says
    "whole": (None, ""),
    "lost": (Fault(lost=True), "404"),
    "locked": (Fault(gated=401), "gated"),
    "terms": (Fault(gated=403), "gated"),
    "cut": (Fault(cut=1000), "without sending complete message body (received 1000 bytes"),
    "resumed": (Fault(cut=1000, once=True), ""),
    "slow": (Fault(wait=7.0), ("timed out", "ReadTimeout")),
    "nowhere": (None, ("Repository Not Found", "doesn't exist")),
}
DOWN = "models/o/down"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Copies of one model and one data set, one for each fault."""
    root = tmp_path_factory.mktemp("hub")
    made = {"models": root / "model", "datasets": root / "data"}
    hub_content.model(made["models"], "o/roberta-base")
    rows = [{"text": 50 * "abc", "label": k} for k in range(500)]
    hub_content.table(made["datasets"] / "data", "train", rows)
    hub_content.card(made["datasets"])
    with Hub(root / "hub") as hub:
        for kind, folder in made.items():
            for name, (fault, _) in FAULTS.items():
                if name != "nowhere":
                    shutil.copytree(folder, hub.root / kind / "o" / name)
                if fault:
                    hub.faults[f"{kind}/o/{name}"] = fault.of(FILES[kind])
        shutil.copytree(made["models"], hub.root / DOWN)
        hub.faults[DOWN] = Fault(down=True)
        yield hub


def ask(hub: Hub, cache: Path, names: list[str], offline: bool = False) -> dict[str, dict]:
    """`model/o/whole` or `data/o/whole` -> what the loader of the papers says."""
    hub.asked.clear()
    threads = len(names) if hub.faults else 1  # together only where some are to be waited for
    script, root = str(HERE / "ask_hub.py"), str(HERE.parent.parent)
    command = [sys.executable, script, root, str(threads), *names]
    environment = os.environ | hub.environment(cache, offline)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(names, json.loads(done.stdout), strict=True))


def test_each_fault_is_said_and_a_second_try_keeps_what_came(hub, tmp_path):
    names = [f"{kind}/o/{name}" for name in FAULTS for kind in ("model", "data")]
    answers = ask(hub, tmp_path, [*names, "model/o/down"])
    assert "500" in answers["model/o/down"]["message"]
    for word, answer in answers.items():
        kind, _, name = word.split("/")
        said = FAULTS[name][1] if name in FAULTS else "out of order"
        if not said:
            assert "ok" in answer, (word, answer)
            continue
        assert answer["error"] == "MissingInput", (word, answer)
        first, *more = answer["message"].splitlines()
        assert f"{kind} 'o/{name}'" in first and "missing" in first
        assert any(line.startswith(("  fetch:", "  remedy:")) for line in more)
        said = (said,) if isinstance(said, str) else said
        assert any(word in answer["message"] for word in said), answer["message"]
        may_be_shut = name in ("locked", "terms") or word == "model/o/nowhere"  # all the hub says
        assert ("hf auth login" in answer["message"]) == may_be_shut, answer["message"]
    for kind, file in FILES.items():
        assert hub.downloads(f"{kind}/o/resumed").count(file) == 2

    hub.faults.clear()
    again = [word for word in names if not word.endswith("nowhere")]
    assert all("ok" in answer for answer in ask(hub, tmp_path, again).values())
    for kind, file in FILES.items():
        assert not hub.downloads(f"{kind}/o/whole")
        assert [x for x in hub.downloads(f"{kind}/o/lost") if not x.startswith("README")] == [file]

    before = ask(hub, tmp_path, again, offline=True)
    assert not hub.asked
    assert not {word: answer for word, answer in before.items() if "ok" not in answer}
