"""How the radius of a finite difference trades curvature against rounding, by precision.

The reference is exact forward mode in float64, on the transformer of the cost benchmark after ten
SGD steps, with the weights of its examples as hyperparameters. Their input, the loss of each
example, is computed once or inside the closure and detached, which a difference cannot see through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.hypergradients.tasks import Task
from shared import vectors
from shared.hypergrad import FiniteDifference, ForwardOverReverse, Method, hypergrad

RADII = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ROWS = {  # label: (dtype of the weights, autocast, detach inside the loss)
    "float64": (torch.float64, None, False),
    "float32": (torch.float32, None, False),
    "bfloat16 autocast": (torch.float32, torch.bfloat16, False),
    "float64, detached inside": (torch.float64, None, True),
}


def measure() -> list[dict[str, Any]]:
    """Relative error of the implicit term for each row and radius, and for the library's own."""
    task = Task("transformer")
    for _ in range(10):
        g = torch.autograd.grad(task.plain(), task.theta)
        with torch.no_grad():
            torch._foreach_add_(task.theta, g, alpha=-0.05)
    x, y = task.train
    state = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.model.double(), task.hyper.double()

    def losses() -> Tensor:
        return F.cross_entropy(task.model(x), y, reduction="none")

    with torch.no_grad():
        frozen = losses()

    def implicit(method: Method, detach: bool) -> list[Tensor]:
        def inner() -> Tensor:
            loss = losses()
            return (task.hyper(loss if detach else frozen.to(loss.dtype)) * loss).mean()

        g = hypergrad(task.outer, inner, task.theta, task.lam, 1.0, method, look_ahead=False)
        return [a.double() for a in g.implicit]

    exact = {detach: implicit(ForwardOverReverse(), detach) for detach in (False, True)}
    rows = []
    for label, (dtype, autocast, detach) in ROWS.items():
        task.model.load_state_dict(state)
        task.model.to(dtype), task.hyper.to(dtype)

        def error(method: Method, detach: bool = detach) -> float:
            return vectors.relative_error(implicit(method, detach), exact[detach])

        errors = {str(radius): error(FiniteDifference(radius, autocast)) for radius in RADII}
        default = error(FiniteDifference(probe_dtype=autocast))
        rows.append({"label": label, "errors": errors, "default": default})
        shown = "  ".join(f"R={radius}: {value:.1e}" for radius, value in errors.items())
        print(f"{label:26s}", shown, f"  default: {default:.1e}")
    return rows
