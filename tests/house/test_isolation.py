"""A method imports itself, `shared` and third parties; with `shared` alone beside it, it works."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import PAPERS, plan_n
from benchmarks.claims import load_claims
from shared import protocol
from shared.story import read as read_story

ROOT = Path(__file__).resolve().parents[2]
OURS = {*PAPERS, "shared", "benchmarks", "tests"}


def imports(path: Path) -> set[str]:
    """First parts of the names that a file imports, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(path.parent.name if node.level else (node.module or "").split(".")[0])
    return modules


@pytest.mark.parametrize("paper", PAPERS)
def test_a_method_imports_itself_and_shared(paper):
    for path in (ROOT / paper).rglob("*.py"):
        assert imports(path) & OURS <= {paper, "shared"}, path.relative_to(ROOT)


def test_shared_imports_no_method_and_no_judge():
    for path in (ROOT / "shared").rglob("*.py"):
        assert imports(path) & OURS <= {"shared"}, path.relative_to(ROOT)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_judge_touches_only_the_interface_of_a_method(paper):
    allowed = {f"{paper}.train", f"{paper}.evaluate", f"{paper}.figures"}
    for path in (ROOT / "benchmarks").glob("*.py"):
        named = set(
            re.findall(rf"^\s*(?:from|import) ({paper}[.\w]*)", path.read_text(), re.MULTILINE)
        )
        assert named <= allowed, path.name


@pytest.mark.parametrize("paper", PAPERS)
def test_a_copy_with_shared_alone_trains_and_evaluates(paper, tmp_path):
    """`--tiny` needs no argument, no download and nothing but <paper>/ and shared/, and tells what
    it did: sentences, a picture, no bare key of a metric."""
    records = ("*.jsonl.gz", "*.npz", "cpu.json", "rehearsal.json", "checked.json")  # of the judge
    for name in (paper, "shared"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", *records)
        )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    env.setdefault("REPRO_CACHE", str(ROOT / ".cache"))
    env.pop("REPRO_DATA", None)
    done = subprocess.run(
        [sys.executable, "-m", f"{paper}.train", "--tiny"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "tiny run" in done.stdout
    story = read_story(tmp_path / paper)
    told = tmp_path / "runs" / paper / "story" / "seed0"
    assert (told / "picture.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((told / "metrics.json").read_text())
    assert set(metrics) == {arm.arm for arm in story.arms}
    said = " ".join(done.stdout.split())
    for role in ("method", "opponent", "control"):
        assert sum(arm.role == role for arm in story.arms) == 1
    assert all(arm.say in said for arm in story.arms) and "One seed is an anecdote" in said
    assert not re.search(r"\w+_\w+ = ", done.stdout)
    method = next(arm.arm for arm in story.arms if arm.role == "method")
    claims = load_claims(ROOT / paper / "claims.yaml").claims
    assert not story.claim or story.claim in {claim.id for claim in claims}
    written = (tmp_path / "runs" / paper / story.scale).glob("*/seed0/*/record.json")
    (directory,) = [p.parent for p in written if json.loads(p.read_text())["arm"] == method]
    metrics = metrics[method]
    done = subprocess.run(
        [sys.executable, "-m", f"{paper}.evaluate", str(directory)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # a run may record costs beside its scores; what evaluate prints are the scores
    assert any(f"{key}" in done.stdout for key in metrics), done.stdout


def test_protocols_are_read_without_torch_or_a_method():
    """A plan, or a wrong key, is answered within a second: config.py imports no method."""
    code = f"""
import sys
from pathlib import Path
from shared.protocol import Protocol
for paper in {PAPERS!r}:
    Protocol(Path(paper))
unwanted = {{"torch", "transformers", "numpy", *{PAPERS!r}}}
heavy = [m for m in sys.modules if m.split(".")[0] in unwanted]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("paper", PAPERS)
def test_config_is_sections_alone(paper):
    """Fields stand in sections with a docstring; Config joins them; no two share a field."""
    config = protocol.config_class(ROOT / paper / "config.py")
    assert "__annotations__" not in vars(config) or not vars(config)["__annotations__"]
    sections = config.__mro__[1:-1]
    assert len(sections) > 2 and all(
        s.__doc__ and not s.__doc__.startswith(f"{s.__name__}(") for s in sections
    )
    names = [name for section in sections for name in section.__annotations__]
    assert len(names) == len(set(names)) and config.__doc__


@pytest.mark.parametrize("paper", PAPERS)
def test_every_scale_of_the_protocol_resolves(paper):
    """All four scales exist and resolve; the arms of the claims are run; seeds are enough."""
    import yaml

    p = protocol.Protocol(ROOT / paper)
    claims = yaml.safe_load((ROOT / paper / "claims.yaml").read_text())
    assert set(p.document.scales) == set(protocol.SCALES)
    for scale in protocol.SCALES:
        nodes = p.nodes(scale)
        assert nodes, scale
        arms = {n.arm for n in nodes}
        for claim in claims["claims"]:
            if scale in claim["scales"]:
                named = claim["arms"]
                wanted = list(named.get("weights") or []) or [
                    x
                    for v in (named.get("method"), named.get("opponent"))
                    if v
                    for x in ([v] if isinstance(v, str) else v)
                ]
                wanted += claim["controls"] if isinstance(claim["controls"], list) else []
                lacking = {w.split("@")[0] for w in wanted} - arms
                assert not lacking, f"{paper} {scale} {claim['id']}: {lacking} are not run"
        if scale == "cpu":
            for judged in load_claims(p.directory / "claims.yaml").claims:
                if scale in judged.scales and judged.role != "exhibit":
                    assert plan_n.seeds_of(p, judged, scale) >= 5, judged.id
    rehearsal, full = ({(n.arm, n.task) for n in p.nodes(s, "all")} for s in ("rehearsal", "paper"))
    assert {a for a, _ in full} <= {a for a, _ in rehearsal}, (
        "the rehearsal leaves out arms of the paper"
    )
    assert {t for _, t in full} <= {t for _, t in rehearsal}, (
        "the rehearsal leaves out tasks of the paper"
    )


def test_nothing_unsafe_in_the_tree():
    """No unsafe pickles, no remote code, no eval: shared/sources.py says what is done instead."""
    unsafe = re.compile(
        r"weights_only\s*=\s*False|trust_remote_code\s*=\s*True|pickle\.loads?\(|(?<![\w.])(?:eval|exec)\("
    )
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    tracked = tracked or [
        str(p.relative_to(ROOT))
        for d in ("shared", "benchmarks", *PAPERS)
        for p in (ROOT / d).rglob("*.py")
    ]
    for name in tracked:
        if name != "tests/house/test_isolation.py":
            hit = unsafe.search((ROOT / name).read_text())
            assert not hit, f"{name}: {hit[0]}"


def test_shared_is_ours():
    import shared

    assert Path(shared.__file__).resolve().parent == ROOT / "shared"
