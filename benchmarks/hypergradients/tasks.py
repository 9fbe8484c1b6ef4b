"""The models of the cost benchmark; they import torch alone, as the peers' environment has it.

mlp          three hidden layers; hyperparameters outside the network (a weight for each example)
transformer  4 layers, eager attention (differentiable twice); hyperparameters outside, as above
gated        the same transformer; hyperparameters inside it, a gate for each channel and sub-layer
On CUDA the same shapes, but larger, so that they fill the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[], Tensor]
MODELS = ("mlp", "transformer", "gated")
# hidden sizes and batches, by device type
SIZES = {
    "cpu": {"hidden": 768, "mlp_batch": 512, "d": 192, "length": 64, "batch": 32},
    "cuda": {"hidden": 8192, "mlp_batch": 8192, "d": 1024, "length": 256, "batch": 64},
}


class Block(nn.Module):
    def __init__(self, d: int, heads: int = 4) -> None:
        super().__init__()
        self.n1, self.n2, self.heads = nn.LayerNorm(d), nn.LayerNorm(d), heads
        self.qkv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.gates: Callable[[], tuple[Tensor | float, Tensor | float]] = lambda: (1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        g1, g2 = self.gates()
        qkv = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5).softmax(-1) @ v
        x = x + g1 * self.o(a.transpose(1, 2).reshape(b, t, d))
        return x + g2 * self.down(F.gelu(self.up(self.n2(x))))


class Transformer(nn.Module):
    def __init__(self, d: int, layers: int = 4, vocabulary: int = 1000, classes: int = 4) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, d), nn.Linear(d, classes)
        self.blocks = nn.Sequential(*[Block(d) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(x)).mean(1))


class ExampleWeights(nn.Module):
    """Loss of an example -> its weight in the inner loss (Meta-Weight-Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1), nn.Sigmoid())

    def forward(self, loss: Tensor) -> Tensor:
        return self.net(loss.detach()[:, None])[:, 0]


class Gates(nn.Module):
    """One gate for each channel of each sub-layer; every example has weight 1."""

    def __init__(self, model: Transformer, d: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(len(model.blocks), 2, d))
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            block.gates = partial(self.pair, i)

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        return self.g[i, 0], self.g[i, 1]

    def forward(self, loss: Tensor) -> Tensor:
        return torch.ones_like(loss)


class Task:
    """A model, its hyperparameters, one training and one validation batch, and the two losses."""

    lr, outer_lr = 1e-2, 1e-3

    def __init__(self, name: str, device: str = "cpu") -> None:
        torch.manual_seed(0)
        s = SIZES[device]
        self.model: nn.Module
        self.hyper: nn.Module = ExampleWeights()
        if name == "mlp":
            widths = [784, s["hidden"], s["hidden"], s["hidden"], 10]
            layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.GELU())]
            self.model = nn.Sequential(*layers[:-1])
            n = s["mlp_batch"]
            batches = [(torch.randn(n, 784), torch.randint(0, 10, (n,))) for _ in range(2)]
        else:
            self.model = transformer = Transformer(s["d"])
            if name == "gated":
                self.hyper = Gates(transformer, s["d"])
            n, shape = s["batch"], (s["batch"], s["length"])
            batches = [(torch.randint(0, 1000, shape), torch.randint(0, 4, (n,))) for _ in range(2)]
        self.model.to(device), self.hyper.to(device)
        self.train, self.val = [(x.to(device), y.to(device)) for x, y in batches]
        self.theta: list[Tensor] = list(self.model.parameters())
        self.lam: list[Tensor] = list(self.hyper.parameters())

    def inner(self, forward: Callable | None = None) -> Tensor:
        x, y = self.train
        loss = F.cross_entropy((forward or self.model)(x), y, reduction="none")
        return (self.hyper(loss) * loss).mean()

    def outer(self, forward: Callable | None = None) -> Tensor:
        x, y = self.val
        return F.cross_entropy((forward or self.model)(x), y)

    def plain(self) -> Tensor:
        """The loss of the plain training step that everything is measured in."""
        x, y = self.train
        return F.cross_entropy(self.model(x), y)

    @property
    def levels(self) -> tuple[Loss, Loss, list[Tensor], list[Tensor], float]:
        """What every estimator of ours is given: both losses, theta, lam, the inner rate."""
        return self.outer, self.inner, self.theta, self.lam, self.lr

    def outer_step(self, grads: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_add_(self.lam, grads, alpha=-self.outer_lr)

    def inner_step(self, grads: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_add_(self.theta, grads, alpha=-self.lr)


Builder = Callable[[Task], Callable[[], None]]  # of one step on a task


def inner_sgd(task: Task) -> None:
    """One real step of the inner problem."""
    task.inner_step(list(torch.autograd.grad(task.inner(), task.theta)))


def plain_sgd(task: Task) -> Callable[[], None]:
    """One plain training step: the unit of the cost table."""
    return lambda: task.inner_step(list(torch.autograd.grad(task.plain(), task.theta)))
