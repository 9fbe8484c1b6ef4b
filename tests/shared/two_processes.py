"""The body of a test: hypergradients of a data-parallel model, by every method.

Usage: PYTHONPATH=. python tests/shared/two_processes.py OUT.pt, alone, or as one of two processes
under accelerate (RANK, WORLD_SIZE, ...).
"""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from shared.hypergrad import (
    SGD,
    ConjugateGradient,
    FiniteDifference,
    FirstOrder,
    ForwardOverReverse,
    Neumann,
    OneStep,
    Unrolled,
    hypergrad,
    through_level,
)
from shared.multilevel import Level, chain

METHODS = [
    FirstOrder(),
    FiniteDifference(),
    OneStep(),
    ForwardOverReverse(),
    Neumann(3),
    ConjugateGradient(3, damping=3.0),
    Unrolled(3, SGD(momentum=0.9)),
]


def main(out: str) -> None:
    accelerator = Accelerator(cpu=True)
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / 2)
    wrapped = accelerator.prepare(net)
    net = accelerator.unwrap_model(
        wrapped
    )  # inside the wrapper: its reducer knows nothing of hypergradients
    theta, gate = list(net.parameters()), torch.ones(7, dtype=torch.float64, requires_grad=True)
    x, y = (
        torch.randn(2, 8, 5, generator=g, dtype=torch.float64),
        torch.randint(0, 3, (2, 8), generator=g),
    )
    share = slice(accelerator.process_index, None, accelerator.num_processes)

    def loss(which):
        out = net[2](torch.tanh(net[0](x[which][share])) * gate)
        return F.cross_entropy(out, y[which][share]) + 0.1 * sum(p.pow(2).sum() for p in theta)

    inputs = (lambda: loss(1), lambda: loss(0), theta, [gate], 0.2)
    results = {str(m): hypergrad(*inputs, m).grads for m in METHODS}
    results["level"] = through_level(
        inputs[1], theta, [gate], [torch.ones_like(p) for p in theta], 0.2
    )
    levels = [Level(inputs[1], theta[:2], 0.2, OneStep()), Level(inputs[1], theta[2:], 0.2)]
    results["chain"] = chain(inputs[0], levels, [gate]).grads
    wrapped(x[0]).sum().backward()  # the wrapper still works
    if accelerator.is_main_process:
        torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
