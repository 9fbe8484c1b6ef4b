"""Public libraries on the same toy and tasks: Betty, TorchOpt, higher.

Runs in the peers' environment and imports nothing of shared/. Each adapter uses the library the way
its documentation does, except where Betty's estimators are called directly on the toy, whose inner
problem is solved already. A library that is not installed leaves its rows out; `run` says why.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.hypergradients.tasks import Builder, Task
from benchmarks.hypergradients.toy import Toy

ACCURACY: dict[str, tuple[str, Callable[[Toy], Tensor]]] = {}
COST: dict[str, tuple[str, Builder]] = {}


# --- Betty
def betty_toy(kind: str, **settings: Any) -> Callable[[Toy], Tensor]:
    def run(toy: Toy) -> Tensor:
        from betty import hypergradient
        from betty.configs import Config

        config = Config(type=kind, **{k: v(toy) if callable(v) else v for k, v in settings.items()})
        theta = toy.theta.detach().clone().requires_grad_()
        lower = SimpleNamespace(config=config, _strategy="default", cur_batch=None, paths=[])
        lower.optimizer = torch.optim.SGD([theta], lr=1.0)
        lower.parameters = lower.trainable_parameters = lambda: [theta]
        lower.meta_trainable_parameters = lower.parameters
        lower.training_step_exec = lambda _batch: toy.inner(theta, toy.lam)
        upper = SimpleNamespace(trainable_parameters=lambda: [toy.lam])
        estimate = hypergradient.jvp_fn_mapping[kind]
        v = list(torch.autograd.grad(toy.outer(theta), theta))
        extra = [False] if "sync" in inspect.signature(estimate).parameters else []
        return estimate(v, lower, upper, *extra)[0]

    return run


def betty_task(kind: str, **settings: Any) -> Builder:
    def build(task: Task) -> Callable[[], None]:
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.problems import ImplicitProblem

        class Lower(ImplicitProblem):
            def training_step(self, batch: Any) -> Tensor:
                return task.inner(self.module)

        class Upper(ImplicitProblem):
            def training_step(self, batch: Any) -> Tensor:
                return task.outer(self.lower.module)

        # The gates of the lower problem's network belong to the upper one, whose graph Betty must
        # be told to keep.
        config = Config(retain_graph=len(task.lam) == 1)
        sgd = torch.optim.SGD(task.lam, lr=task.outer_lr)
        upper = Upper("upper", config, task.hyper, sgd, train_data_loader=[task.val])
        config = Config(type=kind, unroll_steps=1, **settings)
        sgd = torch.optim.SGD(task.theta, lr=task.lr)
        lower = Lower("lower", config, task.model, sgd, train_data_loader=[task.train])
        logging.disable(logging.CRITICAL)
        engine = Engine(
            config=EngineConfig(train_iters=1, logger_type="none"),
            problems=[upper, lower],
            dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
        )
        engine.train()

        def step() -> None:
            engine.global_step += 1
            engine.train_step()

        return step

    return build


ACCURACY["betty: darts"] = ("one step", betty_toy("darts"))
ACCURACY["betty: sama"] = ("one step", betty_toy("sama"))
for k in (5, 20):
    ACCURACY[f"betty: cg, k={k}"] = (f"conjugate gradient, k={k}", betty_toy("cg", cg_iterations=k))
    settings = {"neumann_iterations": k, "neumann_alpha": lambda toy: toy.rate}
    ACCURACY[f"betty: neumann, k={k}"] = (f"Neumann, k={k}", betty_toy("neumann", **settings))
COST["betty: darts"] = ("finite difference", betty_task("darts"))
COST["betty: sama"] = ("finite difference", betty_task("sama"))
NEUMANN: dict[str, Any] = {"neumann_iterations": 3, "neumann_alpha": 0.01}
COST["betty: neumann, k=3"] = ("Neumann, k=3", betty_task("neumann", **NEUMANN))
COST["betty: cg, k=3"] = ("conjugate gradient, k=3", betty_task("cg", cg_iterations=3))


# --- TorchOpt
class Weights(nn.Module):
    """The toy's theta, or lam, as a module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone())

    def forward(self) -> Tensor:
        return self.value


def torchopt_implicit_toy(k: int) -> Callable[[Toy], Tensor]:
    def run(toy: Toy) -> Tensor:
        import torchopt

        solver = torchopt.linear_solve.solve_normal_cg(maxiter=k, atol=0, rtol=0)

        base: Any = torchopt.nn.ImplicitMetaGradientModule

        class Lower(base, linear_solve=solver):  # type: ignore[call-arg]
            def __init__(self, upper: Weights) -> None:
                super().__init__()
                self.upper, self.theta = upper, nn.Parameter(toy.theta.detach().clone())

            def objective(self) -> Tensor:
                return toy.inner(self.theta, self.upper.value)

            def solve(self) -> Any:
                return self  # theta* is known

        upper = Weights(toy.lam)
        lower = Lower(upper)
        lower.solve()
        return torch.autograd.grad(toy.outer(lower.theta), upper.value)[0]

    return run


def torchopt_unrolled_toy(k: int) -> Callable[[Toy], Tensor]:
    def run(toy: Toy) -> Tensor:
        import torchopt

        net = Weights(torch.zeros_like(toy.theta))
        optimizer = torchopt.MetaSGD(net, lr=toy.rate)
        for _ in range(k):
            optimizer.step(toy.inner(net.value, toy.lam))
        return torch.autograd.grad(toy.outer(net.value), toy.lam)[0]

    return run


def torchopt_unrolled_task(k: int) -> Builder:
    def build(task: Task) -> Callable[[], None]:
        import torchopt

        optimizer = torchopt.MetaSGD(task.model, lr=task.lr)
        outer_optimizer = torch.optim.SGD(task.lam, lr=task.outer_lr)

        def step() -> None:
            for _ in range(k):
                optimizer.step(task.inner())
            outer_optimizer.zero_grad()
            task.outer().backward()
            outer_optimizer.step()
            torchopt.stop_gradient(task.model)
            torchopt.stop_gradient(optimizer)

        return step

    return build


def torchopt_implicit_task(k: int) -> Builder:
    def build(task: Task) -> Callable[[], None]:
        import torchopt

        solver = torchopt.linear_solve.solve_normal_cg(maxiter=k, atol=0, rtol=0)

        base: Any = torchopt.nn.ImplicitMetaGradientModule

        class Lower(base, linear_solve=solver):  # type: ignore[call-arg]
            def __init__(self, upper: nn.Module) -> None:  # only arguments count as hyperparameters
                super().__init__()
                self.upper, self.model = upper, task.model

            def objective(self) -> Tensor:
                return task.inner(self.model)

            def solve(self) -> Any:
                weights: list[Tensor] = list(self.model.parameters())
                with torch.enable_grad():
                    g = torch.autograd.grad(self.objective(), weights)
                with torch.no_grad():
                    torch._foreach_add_(weights, g, alpha=-task.lr)
                return self

        lower = Lower(task.hyper)
        outer_optimizer = torch.optim.SGD(task.lam, lr=task.outer_lr)

        def step() -> None:
            lower.solve()
            outer_optimizer.zero_grad()
            task.outer(lower.model).backward()
            outer_optimizer.step()

        return step

    return build


for k in (5, 20):
    kind = f"conjugate gradient, k={k}"
    ACCURACY[f"torchopt: implicit normal-cg, k={k}"] = (kind, torchopt_implicit_toy(k))
for k in (20, 100):
    ACCURACY[f"torchopt: explicit, k={k}"] = (f"unrolled, k={k}", torchopt_unrolled_toy(k))
COST["torchopt: explicit, 1 step"] = ("exact, one step", torchopt_unrolled_task(1))
COST["torchopt: explicit, 5 steps"] = ("unrolled, 5 steps", torchopt_unrolled_task(5))
COST["torchopt: implicit normal-cg, k=3"] = ("conjugate gradient, k=3", torchopt_implicit_task(3))


# --- higher
def higher_toy(k: int) -> Callable[[Toy], Tensor]:
    def run(toy: Toy) -> Tensor:
        import higher

        net = Weights(torch.zeros_like(toy.theta))
        optimizer = torch.optim.SGD(net.parameters(), lr=toy.rate)
        with higher.innerloop_ctx(net, optimizer) as (functional, differentiable):
            for _ in range(k):
                differentiable.step(toy.inner(functional(), toy.lam))
            return torch.autograd.grad(toy.outer(functional()), toy.lam)[0]

    return run


def higher_task(k: int) -> Builder:
    def build(task: Task) -> Callable[[], None]:
        import higher

        optimizer = torch.optim.SGD(task.theta, lr=task.lr)
        outer_optimizer = torch.optim.SGD(task.lam, lr=task.outer_lr)

        def step() -> None:
            with higher.innerloop_ctx(task.model, optimizer) as (functional, differentiable):
                for _ in range(k):
                    differentiable.step(task.inner(functional))
                outer_optimizer.zero_grad()
                task.outer(functional).backward()
                outer_optimizer.step()
                with torch.no_grad():
                    torch._foreach_copy_(task.theta, list(functional.parameters()))

        return step

    return build


for k in (20, 100):
    ACCURACY[f"higher: unrolled, k={k}"] = (f"unrolled, k={k}", higher_toy(k))
COST["higher: unrolled, 1 step"] = ("exact, one step", higher_task(1))
COST["higher: unrolled, 5 steps"] = ("unrolled, 5 steps", higher_task(5))
