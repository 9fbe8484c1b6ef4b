"""Learn a weight decay for each column of a ridge regression, then train the weights under it.

Expect: R^2 about 0.4 on 282 patients; a second on any CPU; python -m example_paper.train.
Data: the diabetes study that scikit-learn contains (442 patients, 10 measurements).
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from example_paper import evaluate, method
from example_paper.config import Config
from shared import runs
from shared.hypergrad import FiniteDifference


def run(config: Config) -> Path:
    """One run: search the decays, train the weights, score the test rows. Its directory."""
    with runs.start(config, __file__) as run:
        if run.finished:
            return run.directory
        runs.device(config)
        x, y, ids = load(config)
        run.splits(**{part: rows.tolist() for part, rows in ids.items()})
        train, validation, test = ((x[rows], y[rows]) for rows in ids.values())

        lam = torch.full((x.shape[1],), config.start, dtype=x.dtype, requires_grad=True)
        if config.decays != "fixed":
            search(config, run, lam, train, validation)
        if config.decays == "permuted":
            order = torch.randperm(len(lam), generator=runs.stream(config.seed, "permutation"))
            lam.data.copy_(lam.detach()[order])

        theta, lower = weights(config, x)
        for step in run.phase("training", config.steps, runs.Parts(theta=[theta], lower=lower)):
            loss = method.lower_step(theta, lam, train, lower)
            run.finite(loss, "lower", step, ids["train"])
            run.log(phase="training", step=step, loss=loss.item())

        run.gate("decays-positive", bool((lam.sigmoid() > 0).all()), f"{lam.sigmoid().min():.3g}")
        with torch.no_grad():
            validated = method.outer_loss(theta, validation).item()
            prediction = test[0] @ theta
        run.predictions(id=ids["test"], label=test[1], prediction=prediction)
        scores = evaluate.score({"label": test[1].numpy(), "prediction": prediction.numpy()})
        searched = 0 if config.decays == "fixed" else config.search_steps
        run.finish(
            metrics=scores,
            validation={"loss": validated},
            state=[theta, lam],
            gradient_evaluations=config.steps + 5 * searched,  # 2 levels, 2 probes, the real step
            chosen_step=config.steps,
            decays=lam.detach().sigmoid().tolist(),
        )
    return run.directory


def search(
    config: Config, run: runs.Run, lam: Tensor, train: method.Rows, validation: method.Rows
) -> None:
    """Both levels in turn; lam changes in place."""
    theta, lower = weights(config, train[0])
    upper = torch.optim.Adam([lam], lr=config.upper_lr, fused=True)
    work = runs.Parts(theta=[theta], lam=[lam], lower=lower, upper=upper)
    for step in run.phase("search", config.search_steps, work):
        g = method.step(theta, lam, train, validation, lower, upper, FiniteDifference())
        run.finite(g.grads[0], "upper", step)
        run.log(phase="search", step=step, decay=lam.detach().sigmoid().mean().item())


def weights(config: Config, x: Tensor) -> tuple[Tensor, torch.optim.Optimizer]:
    """theta at zero, and what moves it."""
    theta = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    return theta, torch.optim.SGD([theta], lr=config.lr)


def load(config: Config) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x (442, 10 + noise) and y (442,), standardised; which rows train, validate and test.

    The test rows are the same for every seed; the seed divides the others and draws the noise.
    """
    x, y = (torch.tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True))
    noise = runs.stream(config.seed, "noise")
    made = torch.randn(len(x), config.noise_columns, generator=noise, dtype=x.dtype)
    x, y = (standardised(a) for a in (torch.cat([standardised(x), made], dim=1), y))
    order = torch.randperm(len(x), generator=runs.stream(0, "test rows"))
    others, test = order[:160], order[160:]
    others = others[torch.randperm(160, generator=runs.stream(config.seed, "split"))]
    train, rest = others[: config.train_rows], others[config.train_rows :]
    return x, y, {"train": train, "validation": rest[: config.validation_rows], "test": test}


def standardised(a: Tensor) -> Tensor:
    return (a - a.mean(0)) / a.std(0)


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
