"""A paper registers itself: its paper.yaml is read, or refused, and it is listed nowhere else."""

import shutil
import subprocess
import sys

import pytest
import yaml

from benchmarks import PAPERS, ROOT, papers
from shared.protocol import BadInput


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_registers_itself(paper):
    about = papers.paper(paper)
    reported = yaml.safe_load((ROOT / paper / "reported.yaml").read_text())
    assert about.arxiv == str(reported["arxiv"])
    assert about.line.endswith(".") and about.title in " ".join(
        (ROOT / paper / "README.md").read_text().replace("**", "").split()
    )


def test_the_order_is_that_of_the_overview():
    orders = [papers.paper(paper).order for paper in PAPERS]
    assert orders == sorted(set(orders)), "two papers ask for one place"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"titel": "A"}, "toy/paper.yaml: unknown key 'titel'; did you mean 'title'?"),
        ({"venue": None}, "toy/paper.yaml: 'venue' is missing"),
        ({"arxiv": "v1"}, "toy/paper.yaml: arxiv is 'v1'"),
        ({"questions": [{"ask": "Is it?"}]}, "toy/paper.yaml: questions.0: 'claim' is missing"),
        (
            {"questions": [{"ask": "Is it?", "clam": "c"}]},
            "toy/paper.yaml: questions.0: unknown key 'clam'; did you mean 'claim'?",
        ),
        (
            {"bounds": [{"work": "w", "row": "r", "floor": 2.0, "flor": 1.0}]},
            "toy/paper.yaml: bounds.0: unknown key 'flor'; did you mean 'floor'?",
        ),
        (
            {"bounds": [{"work": "w", "row": "r", "floor": 0}]},
            "toy/paper.yaml: bounds.0.floor is 0; Input should be greater than 0",
        ),
    ],
)
def test_a_wrong_entry_is_refused(toy, change, message):
    file = toy / "toy" / "paper.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    with pytest.raises(BadInput) as refused:
        papers.read(toy / "toy")
    assert str(refused.value).startswith(message)


def test_a_paper_that_is_not_there_is_refused_with_the_nearest_one():
    with pytest.raises(BadInput, match="did you mean 'autolora'"):
        papers.paper("autolra")


def test_importing_the_judge_is_cheap(toy):
    """PAPERS follows from the directories, in their order, and costs no heavy import."""
    shutil.copytree(toy / "toy", toy / "another")
    heavy = "{'yaml', 'pydantic', 'torch'} & set(sys.modules)"
    code = f"import sys, benchmarks; print(*benchmarks.PAPERS, *{heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=toy, capture_output=True, text=True)
    assert done.stdout.split() == ["another", "toy"], done.stderr


@pytest.mark.parametrize("file", ["Makefile", "pyproject.toml", "benchmarks/__init__.py"])
def test_no_list_of_papers_is_kept_by_hand(file):
    text = (ROOT / file).read_text()
    named = [paper for paper in PAPERS if paper in text]
    assert set(named) <= {"autolora"}, f"{file} names {named}"  # the example in `make help`
