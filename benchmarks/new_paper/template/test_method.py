"""example_paper: its hypergradient is exact, its run repeats, and wrong settings are refused."""

from __future__ import annotations

import json

import pytest
import torch

from example_paper import evaluate, method, train
from example_paper.config import Config
from shared.hypergrad import FiniteDifference
from shared.protocol import BadInput


@pytest.fixture
def problem():
    x, y, ids = train.load(Config(noise_columns=3))
    lam = torch.linspace(-3, 0, x.shape[1], dtype=x.dtype).requires_grad_()
    return *((x[ids[part]], y[ids[part]]) for part in ("train", "validation")), lam


def closed_form(rows, lam):
    """theta* of ridge regression; differentiable in lam."""
    x, y = rows
    return torch.linalg.solve(x.T @ x / len(x) + torch.diag(lam.sigmoid()), x.T @ y / len(x))


def trained(rows, lam, steps=3000):
    theta = torch.zeros(len(lam), dtype=lam.dtype, requires_grad=True)
    lower = torch.optim.SGD([theta], lr=0.1)
    for _ in range(steps):
        method.lower_step(theta, lam, rows, lower)
    return theta.detach()


def test_the_weights_reach_their_closed_form(problem):
    rows, _, lam = problem
    torch.testing.assert_close(
        trained(rows, lam), closed_form(rows, lam).detach(), atol=1e-6, rtol=0
    )


def test_a_step_goes_down_the_validation_loss(problem):
    """The step of lam has the sign of the exact gradient through the closed form."""
    rows, validation, lam = problem
    (exact,) = torch.autograd.grad(method.outer_loss(closed_form(rows, lam), validation), lam)
    theta = trained(rows, lam).requires_grad_()
    lower, upper = torch.optim.SGD([theta], lr=0.1), torch.optim.SGD([lam], lr=1e-3)
    g = method.step(theta, lam, rows, validation, lower, upper, FiniteDifference()).grads[0]
    assert torch.cosine_similarity(g, exact, dim=0) > 0.7


def test_a_run_repeats(tmp_path):
    records = []
    for name in "ab":
        settings = {"arm": "learned", "task": "diabetes", "steps": 5, "search_steps": 5}
        config = Config(**settings, out=str(tmp_path / name))
        records.append(json.loads((train.run(config) / "record.json").read_text(encoding="utf-8")))
    assert records[0]["state_sha256"] == records[1]["state_sha256"]
    assert records[0]["gradient_evaluations"] == 30 and records[0]["gates"][0]["passed"]


def test_no_row_is_in_two_levels():
    _, _, ids = train.load(Config())
    assert len({row for rows in ids.values() for row in rows.tolist()}) == sum(
        map(len, ids.values())
    )


def test_score_is_the_share_of_variance():
    label = torch.tensor([1.0, 2.0, 3.0]).numpy()
    assert evaluate.score({"label": label, "prediction": label})["r2"] == 1
    assert evaluate.score({"label": label, "prediction": 0 * label + 2})["r2"] == 0


def test_a_level_without_rows_is_refused():
    with pytest.raises(BadInput, match="train_rows = 0"):
        Config(train_rows=0)
