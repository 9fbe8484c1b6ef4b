"""Subsets of a protocol: tasks, published numbers, budgets; their inputs, hours, order, words."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from commands import reproduce

from benchmarks import PAPERS, cells, plan, terminal
from benchmarks import list as listing
from benchmarks import reproduce as command
from benchmarks.recorded import read
from shared.protocol import BadInput, Protocol

ENTRIES = """entries:
  - &entry {id: near, table: T1, method: toy, metric: accuracy, value: 90, higher_is_better: true,
     confidence: read, origin: paper, source: invented}
  - {<<: *entry, id: gap, value: 10}
  - {<<: *entry, id: both, value: 80}
  - {<<: *entry, id: blank, value: null}
  - {<<: *entry, id: foreign, table: T2, value: 70, origin: context}
  - {<<: *entry, id: nobody, value: 60}
"""
TARGETS = """targets:
  - &target {reported: near, arm: good, task: line, metric: accuracy, tolerance: 9, reason: r,
     scales: [cpu]}
  - {<<: *target, reported: gap, opponent: noisy}
  - {<<: *target, reported: both, task: [line, plane]}
  - {<<: *target, reported: blank}
  - {<<: *target, reported: foreign, arm: extra, task: plane}
"""


@pytest.fixture
def published(toy, monkeypatch) -> Path:
    """The toy with six published numbers, five of them answered at scale cpu; its folder."""
    folder = toy / "toy"
    text = (folder / "reported.yaml").read_text().replace("entries: []\n", ENTRIES)
    (folder / "reported.yaml").write_text(text)
    text = (folder / "claims.yaml").read_text().replace("targets: []\n", TARGETS)
    (folder / "claims.yaml").write_text(text.replace("tasks: [line], ", "tasks: [line, plane], "))
    for module in (plan, listing):
        monkeypatch.setattr(module, "ROOT", toy)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return folder


def planned(*words: str) -> plan.Plan:
    return plan.plan("toy", command.arguments().parse_args(["toy", *words]))


def test_a_seed_completes_its_comparisons_before_the_next(toy):
    paper = Protocol(toy / "toy")
    nodes = paper.nodes("cpu", "all")
    assert [n.arm for n in nodes[:4]] == ["stage", "good", "noisy", "extra"]
    groups = [key for key, _ in itertools.groupby(nodes, lambda n: (n.seed, n.task))]
    assert groups == sorted(set(groups), key=lambda group: (group[0], group[1] != "line"))
    pairs = paper.nodes("cpu", pairs=[("good", "plane"), ("extra", "line")], seeds=2)
    assert [n.key for n in pairs] == [
        ("stage", "line", 100), ("good", "plane", 100), ("extra", "line", 100),
        ("good", "plane", 101), ("extra", "line", 101),
    ]  # fmt: skip


INPUTS = [  # paper, scale, arms, tasks, what the runs need
    ("autolora", "paper", ["uniform_8"], ["rte"], ["FacebookAI/roberta-base", "glue/RTE"]),
    ("autolora", "paper", ["autolora"], ["e2e"], ["openai-community/gpt2-medium", "nlg/e2e"]),
    ("autolora", "gpu", ["autolora"], ["ncbi"], ["bioner/NCBI-disease-IOB"]),
    ("tapweight", "paper", ["ft"], ["rte"], ["FacebookAI/roberta-base", "glue/RTE"]),
    ("tapweight", "gpu", ["ft"], ["bbbp"], ["molecules"]),
    ("weight_mixup", "paper", ["mixup"], ["rte_roberta"], ["FacebookAI/roberta-large", "glue/RTE"]),
    ("ppo_nlu", "paper", ["ppo"], ["cb"], ["daryl149/llama-2-7b-chat-hf", "super_glue/cb"]),
    ("ppo_nlu", "paper", ["qwen_sft"], ["rte"], ["Qwen/Qwen2.5-7B-Instruct", "glue/rte"]),
    ("ts_watermark", "gpu", ["kgw"], ["english"], ["text"]),
    ("mlo_mae", "paper", ["mae"], ["cifar10"], ["cifar10"]),
    ("dasgm", "paper", ["darts"], ["imagenet"], ["cifar10", "imagenet"]),
    ("dasgm", "gpu", ["darts"], ["nasbench"], ["cifar10", "nasbench201.csv.gz"]),
]


@pytest.mark.parametrize("paper, scale, arms, tasks, inputs", INPUTS)
def test_inputs_follow_the_runs(root, paper, scale, arms, tasks, inputs):
    protocol = Protocol(root / paper)
    nodes = protocol.nodes(scale, only=arms, tasks=tasks, seeds=1)
    assert [name for _, name in protocol.inputs(scale, nodes)] == inputs


@pytest.mark.parametrize("paper", PAPERS)
def test_every_model_that_a_setting_names_is_declared(root, paper):
    protocol = Protocol(root / paper)
    for scale in ("gpu", "paper"):
        values = [v for n in protocol.nodes(scale, "all") for v in n.settings.values()]
        named = {v for v in values if isinstance(v, str) and re.fullmatch(r"[\w-]+/[\w.-]+", v)}
        assert named <= set(protocol.scale(scale).needs.models), scale


SUBSETS = [  # words, runs, arms that are not stages, how the preview is named
    ([], 23, {"good", "noisy"}, None),
    (["--task", "plane"], 13, {"good", "noisy"}, "TASK=plane given"),
    (["--task", "line", "--only", "noisy", "--seeds", "2"], 2, {"noisy"},
     "TASK=line ONLY=noisy SEEDS=2 given"),
    (["--cell", "near"], 6, {"good"}, "CELL=near given"),
    (["--cell", "gap,foreign"], 17, {"good", "noisy", "extra"}, "CELL=gap,foreign given"),
    (["--cell", "both"], 12, {"good"}, "CELL=both given"),
]  # fmt: skip


@pytest.mark.parametrize("words, runs, arms, preview", SUBSETS)
def test_a_subset_is_what_it_needs_and_no_more(published, words, runs, arms, preview):
    made = planned(*words)
    assert len(made.nodes) == len(made.left) == runs and made.preview == preview
    assert {node.arm for node in made.nodes if not node.stage} == arms
    assert made.scale == "cpu" and made.seconds is None


def test_hours_follow_the_subset_and_say_where_they_come_from(published):
    whole = planned("--scale", "paper")  # 2 hours are stated for its 16 runs
    part = planned("--scale", "paper", "--only", "noisy", "--seeds", "1")
    assert whole.seconds == pytest.approx(7200) and part.seconds == pytest.approx(450)
    assert part.origin.startswith("0 of 1 runs measured, the others 0.12 h a run")
    took = {node.key: 60.0 for node in part.nodes}
    half = replace(whole, measured=took, jobs=1)
    assert half.seconds == pytest.approx(60 + 15 * 450)
    assert replace(part, measured=took, jobs=1).origin == "measured"
    limited = replace(whole, limit=6 * 450)  # the stage and three arms, then two of three
    assert terminal.affordable_seeds(limited) == [100]
    assert "seeds: 1 of 5 end in time" in terminal.seeds_and_effects(limited)[0]
    assert "unknown: no sd was measured" in terminal.seeds_and_effects(limited)[1]


REFUSED = [
    (["--task", "lin"], "did you mean 'line'"),
    (["--task", "LINE"], "did you mean 'line'"),
    (["--task", ","], "TASK=, names no task"),
    (["--task", ""], "TASK= names no task"),
    (["--only", ""], "ONLY= names no arm"),
    (["--only", "nosy"], "not an arm of toy; did you mean 'noisy'"),
    (["--cell", ""], "CELL= names no number"),
    (["--cell", "NEAR"], "did you mean 'near'"),
    (["--budget", ""], "BUDGET=: expected a number above 0"),
    (["--budget", "nan"], "BUDGET=nan: expected a number above 0"),
    (["--budget", "-1"], "BUDGET=-1: expected a number above 0"),
    (["--limit", ""], "LIMIT=: expected a number above 0"),
    (["--task", "plane", "--scale", "paper"], "SCALE=cpu has 'plane'"),
    (["--cell", "neer"], "did you mean 'near'"),
    (["--cell", "nobody"], "no arm answers this number (claims.yaml has no target for it)"),
    (["--cell", "near", "--task", "line"], "leave ONLY and TASK out"),
    (["--only", "line"], "did you mean TASK=line"),
    (["--task", "noisy"], "did you mean ONLY=noisy"),
    (["--cell", "near", "--scale", "paper"], "is compared at scale cpu, not paper"),
    (["--budget", "soon"], "BUDGET=soon: expected a number above 0"),
    (["--budget", "8h"], "no arm answers a published number here at scale paper"),
    (["--budget", "8h", "--scale", "cpu"], "states none"),
    (["--published", "81.2"], "PUBLISHED needs CELL=<id>"),
    (["--published", "81.2", "--only", "stage", "--task", "line"], "has no score"),
    (["--published", "81.2", "--only", "good,noisy", "--task", "line"], "one task and one arm"),
    (["--published", "81.2", "--only", "good", "--task", "line", "--metric", "acuracy"],
     "METRIC=acuracy is nothing that toy measures; did you mean 'accuracy'"),
    (["--published", "81.2", "--cell", "near", "--metric", "accuracy"], "leave METRIC out"),
    (["--metric", "accuracy"], "give PUBLISHED as well"),
]  # fmt: skip


@pytest.mark.parametrize("words, text", REFUSED)
def test_a_request_that_cannot_be_meant_is_refused(published, words, text):
    with pytest.raises(BadInput) as error:
        planned(*words)
    assert text in str(error.value)


def test_a_number_of_another_paper_is_sent_there(root):
    words = ["--cell", "main_ours_avg", "--dry"]
    with pytest.raises(BadInput, match="no number of autolora; it is one of weight_mixup"):
        plan.plan("autolora", command.arguments().parse_args(["autolora", *words]))
    with pytest.raises(BadInput) as error:  # not all 1,628 of them
        plan.plan("ts_watermark", command.arguments().parse_args(["ts_watermark", "--cell", "zq"]))
    assert "and 1616 more; `make list-ts_watermark`" in str(error.value)


def test_words_are_taken_once_and_without_blanks(published):
    assert len(planned("--task", "line, plane,line").nodes) == len(planned().nodes)
    given = planned("--cell", "near, near")
    assert [cell.entry.id for cell in given.cells] == ["near"]
    assert planned("--seeds", "5").notes == ()
    assert planned("--seeds", "99").notes == (
        "SEEDS=99: the protocol has 6, and all of them are taken",
    )


def test_a_score_that_no_run_has_is_asked_for_before_the_runs(root):
    """PPO's runs have two scores, neither of the usual name."""
    words = ["--task", "sst2", "--only", "ppo", "--published", "81.2", "--scale", "paper"]
    with pytest.raises(BadInput, match="METRIC= is missing: ppo on sst2 has no score"):
        plan.plan("ppo_nlu", command.arguments().parse_args(["ppo_nlu", *words]))
    words += ["--metric", "score_greedy"]
    made = plan.plan("ppo_nlu", command.arguments().parse_args(["ppo_nlu", *words]))
    assert {node.arm for node in made.nodes} == {"base", "start", "ppo"}


def test_hours_come_from_measured_steps_where_a_visit_left_some(root, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path))
    paper = Protocol(root / "mlo_mae")
    nodes = paper.nodes("gpu", seeds=1)
    assert plan.visited(paper, "gpu", nodes) == {}
    first = next(node for node in nodes if not node.uses)
    phase = {"steps": 1000, "taken": 4, "seconds": 0.5}
    row = {"arm": first.arm, "task": first.task, "stage": first.stage, "precision": "bf16",
           "uses": [], "seconds": 12.0, "phases": {"train": phase}}  # fmt: skip
    path = tmp_path / "gpu-visit" / "steps-mlo_mae.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(row) + "\n")
    of_arm = [node for node in nodes if node.arm == first.arm]
    by_steps = plan.visited(paper, "gpu", nodes)
    assert by_steps == {node.key: pytest.approx(510.0) for node in of_arm}  # 10 s + 1,000 steps
    assert plan.visited(paper, "paper", paper.nodes("paper", seeds=1)) == {}
    made = plan.Plan(paper, "gpu", "", "", [], [], 1, None, 60.0, nodes, of_arm, {}, by_steps)
    assert made.seconds == pytest.approx(510.0 * len(of_arm))
    said = f"{len(of_arm)} of {len(of_arm)} by the steps that make gpu-visit measured"
    assert made.origin == said
    assert made.origin_of(nodes).endswith("divided evenly")
    path.write_text(json.dumps(row)[:40])  # the visit was killed as it wrote
    assert plan.visited(paper, "gpu", nodes) == {}


def test_a_budget_takes_whole_numbers_cheapest_first(published):
    path = published / "protocol.yaml"
    path.write_text(path.read_text().replace("    seeds: 5\n", "    seeds: 5\n    hours: 23\n"))
    # an hour a run: near needs 6, gap 5 more, both 6 more than near; foreign gets no verdict
    for hours, ids in ((7, ["near"]), (12, ["near", "gap"]), (17, ["near", "gap", "both"])):
        made = planned("--budget", f"{hours}h", "--scale", "cpu")
        assert [cell.entry.id for cell in made.cells] == ids
        assert made.limit == hours * 3600 and f"BUDGET={hours}h" in str(made.preview)
    assert "next: both, 6.0 h more" in " ".join(planned("--budget", "12", "--scale", "cpu").notes)
    listed = planned("--budget", "30h", "--scale", "cpu", "--task", "plane").cells
    assert [cell.entry.id for cell in listed] == ["foreign"]
    with pytest.raises(BadInput, match=r"the cheapest, near, needs 6\.0 h"):
        planned("--budget", "1h", "--scale", "cpu")


def test_a_number_of_the_readers_own_is_judged_by_a_prediction_interval():
    low, high = cells.prediction_interval([80.0, 81.0, 82.0])
    half = 4.302653 * (4 / 3) ** 0.5  # t of 2 degrees of freedom, s = 1
    assert (low, high) == pytest.approx((81 - half, 81 + half), abs=1e-5)
    for value, word in ((85.9, "CONSISTENT: ours 81 (n = 3)"), (86.0, "NOT CONSISTENT")):
        assert cells.judge_given(value, [80.0, 81.0, 82.0]).startswith(word)
    assert cells.judge_given(81.0, [80.0, 82.0]).startswith("INCONCLUSIVE")


def test_a_subset_is_named_in_every_verdict(published, finished, capsys):
    """Runs that are there are judged; a recorded verdict is not said to be the same."""
    toy = published.parent
    shutil.copytree(finished[0] / "runs", toy / "runs")
    (published / "results").mkdir()
    recorded = json.loads((toy / "runs/toy/cpu/results.json").read_text())
    (published / "results" / "cpu.json").write_text(json.dumps(recorded))
    words = ["--task", "line", "--only", "good,noisy"]
    done = reproduce(toy, *words)
    assert done.returncode == 0 and "11 finished before" in done.stdout, done.stdout + done.stderr
    subset = "[preview: TASK=line ONLY=good,noisy]"
    lines = [line for line in done.stdout.splitlines() if line.startswith("  C1 ")]
    assert len(lines) == 1 and f"on line alone {subset}" in lines[0], done.stdout
    assert "as recorded" not in done.stdout
    assert re.search(rf"  near  [A-Z ]+ {re.escape(subset)}", done.stdout)
    preview = json.loads((toy / "runs/toy/cpu/preview.json").read_text())
    assert preview["preview"] == "TASK=line ONLY=good,noisy given"
    results = read(toy / "runs/toy/cpu/preview.json")
    words = ["toy", "--task", "line", "--only", "good", "--published", "250"]
    for metric, text in (([], "NOT CONSISTENT: ours"), (["--metric", "acuracy"], "'accuracy'")):
        options = command.arguments().parse_args([*words, *metric])
        with pytest.raises(BadInput, match=text) if metric else contextlib.nullcontext():
            terminal.show_given(plan.plan("toy", options), options, results)
    said = capsys.readouterr().out
    assert "YOUR NUMBER 250 (accuracy, good on line; supplied" in said and "(n = 5)" in said
    options = command.arguments().parse_args(
        ["toy", "--task", "line,", "--only", " good", "--published", "250"]
    )
    terminal.show_given(plan.plan("toy", options), options, results)
    assert "(n = 5)" in capsys.readouterr().out
    # the same records, listed
    said = "\n".join(listing.lines(Protocol(published), "cpu", "T1"))
    assert re.search(r"T1\n  near  90\n    good on line; 5 seeds, 0 of 6 runs left, done\n", said)
    assert "blank  not on file" in said and "no arm answers it: claims.yaml has no target" in said
    assert "5 published numbers, 4 with an arm at scale cpu" in said and "foreign" not in said


SETTINGS = [  # what is typed, what is said ("" where it is let through)
    ("TASKS=rte", "did you mean TASK?"),
    ("SEED=1", "did you mean SEEDS?"),
    ("task=rte", "did you mean TASK?"),
    ("LIMITS=9m", "did you mean LIMIT?"),
    ("BUGDET=8h", "did you mean BUDGET?"),
    ("QQQQ=1", "valid: "),
    ("TASK=", "TASK= is empty"),
    ("BUDGET= ", "BUDGET= is empty"),
    ("CELL=", "CELL= is empty"),
    ("CELL=a b", ""),
    ("REPRO_RUNS=/nowhere", ""),
    ("V=1", ""),
]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("words, text", SETTINGS)
def test_make_refuses_a_setting_that_does_not_exist(root, words, text):
    target = "reproduce-autolora"
    done = subprocess.run(["make", "-n", words, target], cwd=root, capture_output=True, text=True)
    assert done.returncode == (2 if text else 0), done.stdout + done.stderr
    assert text in done.stderr
    checked = ["make", "-n", "SEED=1", "check"]
    assert subprocess.run(checked, cwd=root, capture_output=True).returncode == 0
