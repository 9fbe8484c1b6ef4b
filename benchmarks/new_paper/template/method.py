"""Ridge regression whose weight decays, one for each column, are learned on validation rows.

Symbols: x (rows, columns) and y (rows,), standardised; theta (columns,) the weights; lam (columns,)
from which the weight decays sigmoid(lam) follow.

    lower   theta*(lam) minimises |x theta - y|^2 / (2 rows) + sum_j sigmoid(lam_j) theta_j^2 / 2
    upper   lam minimises |x' theta*(lam) - y'|^2 / (2 rows') on validation rows x', y'

Read `step`: it is the whole algorithm. `inner_loss` and `outer_loss` are the two levels; theta
takes one step down the first, then lam one step along the hypergradient of the second.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from shared.hypergrad import Hypergradient, Method, hypergrad

Rows = tuple[Tensor, Tensor]  # x (rows, columns), y (rows,)


def inner_loss(theta: Tensor, lam: Tensor, rows: Rows) -> Tensor:
    """The lower level: squared error on training rows, and the decay of each weight."""
    x, y = rows
    return (x @ theta - y).square().mean() / 2 + (lam.sigmoid() * theta.square()).sum() / 2


def outer_loss(theta: Tensor, rows: Rows) -> Tensor:
    """The upper level: squared error on validation rows; lam enters through theta alone."""
    x, y = rows
    return (x @ theta - y).square().mean() / 2


def step(
    theta: Tensor,
    lam: Tensor,
    train: Rows,
    validation: Rows,
    lower: Optimizer,
    upper: Optimizer,
    method: Method,
) -> Hypergradient:
    """One step of each level. theta and lam change in place; the hypergradient is returned."""
    lr = lower.param_groups[0]["lr"]
    g = hypergrad(
        lambda: outer_loss(theta, validation),
        lambda: inner_loss(theta, lam, train),
        [theta],
        [lam],
        lr,
        method,
    )
    lam.grad = g.grads[0]
    upper.step()
    lower_step(theta, lam, train, lower)
    return g


def lower_step(theta: Tensor, lam: Tensor, train: Rows, lower: Optimizer) -> Tensor:
    """One step of theta under fixed decays; its loss before the step."""
    lower.zero_grad()
    loss = inner_loss(theta, lam.detach(), train)
    loss.backward()
    lower.step()
    return loss.detach()
