"""Published checkpoints: what is read, and what is refused."""

import pickle

import pytest
import torch

from shared.protocol import BadInput
from shared.sources import MissingInput
from ts_watermark import checkpoints, stand_ins
from ts_watermark.method import Generators


def test_published_names():
    names = ("init_0.1_1.0.pth", "init_0.25_1.75_default.pth", "init_delta_0.75.pth")
    strengths = [
        (match["gamma"], match["delta"]) for match in map(checkpoints.NAME.fullmatch, names)
    ]
    assert strengths == [("0.1", "1.0"), ("0.25", "1.75"), (None, "0.75")]


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / "c" / "init_0.25_1.75_default.pth"
    stand_ins.checkpoint(path, 12)
    (tmp_path / "c" / "notes.txt").write_text("no checkpoint")
    assert checkpoints.published(tmp_path / "c") == {"0.25_1.75": path}
    pair, e = checkpoints.read(path, 12), torch.randn(5, 12)
    stored = torch.load(path, weights_only=True)
    again = Generators(12, (8,))
    again.load_state_dict(stored["gamma_state_dict"] | stored["delta_state_dict"])
    assert all(torch.equal(a, b) for a, b in zip(pair(e), again(e)))
    with pytest.raises(BadInput, match="width 12, the model has 16"):
        checkpoints.read(path, 16)
    with pytest.raises(MissingInput, match="has no init_"):
        checkpoints.published(tmp_path)


class Hostile:
    def __reduce__(self):
        return print, ("ran",)


def test_a_hostile_pickle_is_refused(tmp_path, capsys):
    path = tmp_path / "init_0.1_1.0.pth"
    path.write_bytes(pickle.dumps({"gamma_state_dict": Hostile()}, protocol=2))
    with pytest.raises(BadInput, match="no published checkpoint"):
        checkpoints.read(path, 12)
    assert "ran" not in capsys.readouterr().out
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(BadInput, match="no published checkpoint"):
        checkpoints.read(path, 12)
