"""The story that `--tiny` tells, on the toy paper by its real command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from toy import command

from shared import story
from shared.protocol import BadInput, Protocol

STORY = {
    "data": "points on two sides of a plane.",
    "learned": "weights, by gradient descent.",
    "task": "line",
    "set": {"steps": 4},
    "watch": {
        "say": "loss",
        "before": {"arm": "good", "key": "loss"},
        "after": {"arm": "good", "key": "loss"},
    },
    "metric": "accuracy",
    "metric_say": "Right, per cent",
    "times": 100,
    "arms": [
        {"arm": "good", "role": "method", "say": "clean inputs"},
        {"arm": "noisy", "role": "opponent", "say": "noisy inputs", "set": {"noise": 9.0}},
        {"arm": "extra", "role": "control", "say": "a low rate"},
    ],
    "claim": "C1",
}


def write(toy, **changes):
    (toy / "toy" / "story.yaml").write_text(yaml.safe_dump(STORY | changes))


def result(toy, **claim):
    """A recorded result as far as the story reads it."""
    body = {"id": "C1", "statement": "clean beats noisy.", "unit": "points", "n": 5}
    body |= {"effect": 3.0, "ci95": [1.0, 5.0], "verdict": "SUPPORTED (scaled down)"} | claim
    (toy / "toy" / "results").mkdir()
    (toy / "toy" / "results" / "cpu.json").write_text(json.dumps({"claims": [body]}))


def test_the_story_has_numbers_in_sentences_and_names_its_picture(toy):
    write(toy)
    result(toy)
    done = command(toy, "--tiny")
    assert done.returncode == 0, done.stderr
    place = toy / "runs" / "toy" / "story" / "seed0"
    metrics = json.loads((place / "metrics.json").read_text())
    assert list(metrics) == ["good", "noisy", "extra"]
    said = " ".join(done.stdout.split())
    score = {arm: 100 * values["accuracy"] for arm, values in metrics.items()}
    assert f"Right, per cent: {score['good']:.1f} clean inputs; {score['noisy']:.1f} noisy" in said
    assert f"{score['good'] - score['noisy']:.1f} better than its opponent" in said
    assert "Before, loss: 0.69." in said and str(place / "picture.png") in said
    words = '"clean beats noisy": SUPPORTED (scaled down) (+3.00 points, 95 % +1.00 to +5.00)'
    assert f"Recorded over 5 seeds: {words}." in said
    assert "accuracy =" not in said and "accuracy =" in (place / "log.txt").read_text()
    assert (place / "picture.png").stat().st_size > 10_000
    single = command(toy, "--tiny", "--device", "cpu")  # with an option: one run, as ever
    assert "A tiny run of arm 'good'" in single.stdout and "accuracy = " in single.stdout


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metric": "f1"}, "toy/story.yaml: good has no metric f1"),
        ({"task": "cube", "scale": "cpu"}, "cube"),
        ({"learnt": "x"}, "toy/story.yaml: unknown key 'learnt'; did you mean 'learned'?"),
        ({"set": {"stepz": 3}}, "stepz"),
    ],
)
def test_a_wrong_story_is_refused(toy, changes, message):
    write(toy, **changes)
    done = command(toy, "--tiny")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_small_effect_has_the_decimals_it_needs():
    assert story.together(0.0094, 0.0003, 0.0187) == ["+0.0094", "+0.0003", "+0.0187"]
    assert story.together(-8.64, 0.0, 9.5) == ["-8.64", "+0.00", "+9.50"]


def told(score: float, role: str, directory) -> story.Trained:
    return story.Trained(story.Arm(arm=role, role=role, say=role), directory, score)


@pytest.mark.parametrize(
    "lower, words", [(False, "1.0 worse than its opponent"), (True, "1.0 better than its opponent")]
)
def test_better_and_worse_follow_the_direction(toy, lower, words):
    run = toy / "run"
    run.mkdir()
    (run / "record.json").write_text(json.dumps({"config": {"uses": {}}}))
    (run / "metrics.jsonl").write_text(
        '{"step": 0, "w": [[1, 2], [3, 4]]}\n{"w": [[5, 6], [7, 8]]}\n'
    )
    source = {"arm": "method", "key": "w", "index": [1]}
    watch = {"say": "w", "names": ["a", "b"], "before": source, "after": source}
    written = story.Story.model_validate(STORY | {"watch": watch, "lower": lower, "times": 1.0})
    trained = [told(2, "method", run), told(3, "opponent", run), told(2.01, "control", run)]
    lines = story.sentences(Protocol(toy / "toy"), written, trained)
    assert lines[0] == "Before, w: a 3.00, b 4.00." and lines[1] == "After, w: a 7.00, b 8.00."
    assert words in lines[3] and "level with its control" in lines[3]
    assert "`make reproduce-toy` judges" in lines[4]  # nothing is recorded
    wrong = story.Source(arm="method", key="v")
    with pytest.raises(BadInput, match="logs no v"):
        story.history(wrong, trained)
    with pytest.raises(BadInput, match="no run of nobody"):
        story.history(story.Source(arm="nobody", key="w"), trained)
    np.savez(run / "predictions.npz", r=np.arange(3))
    assert story.values_of(story.Source(arm="method", array="r"), trained, -1).tolist() == [0, 1, 2]
