"""What a run can be told: choices, names of strengths and attacks, values that cannot work."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest

from shared import protocol
from shared.protocol import BadInput, Protocol
from ts_watermark import config as module
from ts_watermark import measure
from ts_watermark.config import Config

PAPER = Path(module.__file__).parent
CHOICES = {
    name: typing.get_args(hint)
    for name, hint in typing.get_type_hints(Config).items()
    if typing.get_origin(hint) is typing.Literal
}


def test_config_is_its_sections():
    assert "__annotations__" not in vars(Config) or not vars(Config)["__annotations__"]
    assert set(CHOICES) >= {"job", "objective", "family", "precision", "corpus", "size_rounding"}


@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_refused_with_the_choices(name):
    model = protocol.settings_model(Config)
    with pytest.raises(BadInput) as refused:
        protocol.read_as(model, {name: "nonsense"}, "protocol.yaml")
    assert name in str(refused.value) and all(c in str(refused.value) for c in CHOICES[name])


def test_the_command_line_refuses_it_too():
    words = [sys.executable, "-m", "ts_watermark.train", "--tiny", "--objective", "sum"]
    done = subprocess.run(words, cwd=PAPER.parent, capture_output=True, text=True)
    assert done.returncode == 2 and "moo" in done.stderr and "weighted_sum" in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inits": ("0.25-1.75",)}, "gamma_delta"),
        ({"inits": ("1.25_1.75",)}, "inside"),
        ({"strengths": ("0.0_1.75",)}, "strengths"),
        ({"attacks": ("copy_paste_2",)}, "copy_paste_2"),
        ({"attacks": ("delete",)}, "delete_SHARE"),
        ({"new_tokens": 1}, "at least 2"),
        ({"job": "generators", "batch": 9, "train_prompts": 8}, "1 .. train_prompts = 8"),
        ({"lm_d": 130, "lm_heads": 4}, "multiple"),
    ],
)
def test_values_that_cannot_work(settings, words):
    with pytest.raises(BadInput, match=words):
        Config(**settings)


def test_every_run_of_the_protocol_has_a_config():
    paper = Protocol(PAPER)
    for scale in ("cpu", "gpu", "paper", "rehearsal"):
        for node in paper.nodes(scale, arms="all", seeds=1):
            assert Config(**paper.config(scale, node)).arm == node.arm


def test_on_smollm2_a_seed_is_a_key_and_a_sampler():
    """One pair of networks for all seeds of the scale; every seed has its own key."""
    paper = Protocol(PAPER)
    nodes = paper.nodes("cpu", tasks=["smollm2"])
    assert [n.seed for n in nodes if n.arm == "generators_smollm2"] == [paper.seeds("cpu")[0]]
    configs = [Config(**paper.config("cpu", n)) for n in nodes if n.arm == "ts_smollm2"]
    assert len({c.uses["generators_smollm2"] for c in configs}) == 1
    assert len({measure.hash_key(c) for c in configs}) == len(paper.seeds("cpu", "smollm2"))
