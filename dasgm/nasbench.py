"""The NAS-Bench-201 cell: strings, derivation, relaxed and derived networks; layout as in its code.

    nodes          0: the cell's input;  j: sum over i < j of edge(i, j)(node i);  the last: output
    relaxed edge   sum_o softmax(alpha_edge)_o * o(x)        (DARTS)
    derived edge   the operation with the largest logit, `none` included (the benchmark's script)

Four nodes give the benchmark's 6 edges and 5^6 = 15,625 cells, three nodes the 125 cells of the
digits test bed.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP = OPERATIONS.index("none"), OPERATIONS.index("skip_connect")


def edges(nodes: int) -> list[tuple[int, int]]:
    """Edges (i, j), i < j, in the order of the rows of alpha and of the cell string."""
    return [(i, j) for j in range(1, nodes) for i in range(j)]


# --- cell strings ---------------------------------------------------------------------------------


def to_string(operations: Sequence[str], nodes: int) -> str:
    """One operation per edge -> `|op~0|+|op~0|op~1|+...|`."""
    named = dict(zip(edges(nodes), operations, strict=True))
    return "+".join("|" + "".join(f"{named[i, j]}~{i}|" for i in range(j)) for j in range(1, nodes))


def from_string(cell: str) -> list[str]:
    """`|op~0|+|op~0|op~1|+...|` -> one operation per edge; ValueError names what is wrong."""
    operations: list[str] = []
    for j, node in enumerate(cell.split("+"), start=1):
        parts = re.fullmatch(r"\|((?:[^|~]+~\d+\|)+)", node)
        steps = parts[1].rstrip("|").split("|") if parts else []
        if len(steps) != j:
            parts_needed = f"it needs {j} parts `op~i|`, i = 0 to {j - 1}"
            raise ValueError(f"cell {cell!r}: node {j} reads {node!r}; {parts_needed}")
        for i, step in enumerate(steps):
            operation, _, source = step.partition("~")
            if operation not in OPERATIONS or source != str(i):
                names = ", ".join(OPERATIONS)
                raise ValueError(f"cell {cell!r}: {step!r} should be `op~{i}`, op one of {names}")
            operations.append(operation)
    return operations


def all_cells(nodes: int, exclude_none: bool = False) -> list[str]:
    """Every cell string, in the order of itertools.product over the edges."""
    names = OPERATIONS[1:] if exclude_none else OPERATIONS
    return [to_string(c, nodes) for c in itertools.product(names, repeat=len(edges(nodes)))]


def derive(alpha: Tensor, nodes: int, exclude_none: bool = False) -> str:
    """alpha (edges, 5) -> the cell of the largest logits; `none` may win unless `exclude_none`."""
    logits = alpha.detach().clone()
    if exclude_none:
        logits[:, NONE] = -torch.inf
    return to_string([OPERATIONS[o] for o in logits.argmax(1).tolist()], nodes)


def skips(cell: str) -> int:
    return from_string(cell).count("skip_connect")


# --- networks -------------------------------------------------------------------------------------


def relu_conv_bn(
    c_in: int, c_out: int, kernel: int, stride: int, affine: bool, track: bool
) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out, affine=affine, track_running_stats=track),
    )


def operation(name: str, channels: int, affine: bool, track: bool, pool_norm: bool) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        if not pool_norm:
            return pool
        return nn.Sequential(
            pool, nn.BatchNorm2d(channels, affine=affine, track_running_stats=track)
        )
    return relu_conv_bn(channels, channels, int(name[-1]), 1, affine, track)


class Cell(nn.Module):
    """x (n, C, h, w) -> (n, C, h, w). choices: operations of each edge; derived cells have one."""

    def __init__(
        self,
        channels: int,
        choices: Sequence[Sequence[str]],
        nodes: int,
        affine: bool,
        track: bool,
        pool_norm: bool,
    ):
        super().__init__()
        self.nodes = nodes
        self.choices = [list(names) for names in choices]
        self.edge_list = edges(nodes)
        # `none` adds nothing and needs no module: softmax still gives its logit a gradient.
        self.edges = nn.ModuleList(
            nn.ModuleDict(
                {n: operation(n, channels, affine, track, pool_norm) for n in names if n != "none"}
            )
            for names in choices
        )

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """weights (edges, operations), or None for a derived cell."""
        states = [x]
        for j in range(1, self.nodes):
            terms, shares = [], []
            for row, (i, target) in enumerate(self.edge_list):
                if target == j:
                    for column, name in enumerate(self.choices[row]):
                        if name != "none":
                            terms.append(cast(nn.ModuleDict, self.edges[row])[name](states[i]))
                            shares.append(row * len(OPERATIONS) + column)
            states.append(_sum(terms, None if weights is None else weights.flatten()[shares], x))
        return states[-1]


def _sum(terms: list[Tensor], weights: Tensor | None, like: Tensor) -> Tensor:
    """sum_k w_k terms_k; zeros like `like` where a node is reached by `none` alone.

    The weighted sum is one matrix product, and so is its gradient for the weights, instead of a
    reduction per operation, which made a gradient of A a sixth of a plain step dearer."""
    if not terms:
        return torch.zeros_like(like)
    if weights is None:
        return functools.reduce(torch.add, terms)
    return (weights @ torch.stack(terms).flatten(1)).view_as(like)


class Residual(nn.Module):
    """The benchmark's reduction: two 3x3 convolutions, stride 2, beside a pooled 1x1 one."""

    def __init__(self, c_in: int, c_out: int, affine: bool, track: bool):
        super().__init__()
        self.a = relu_conv_bn(c_in, c_out, 3, 2, affine, track)
        self.b = relu_conv_bn(c_out, c_out, 3, 1, affine, track)
        self.short = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.b(self.a(x))


class Network(nn.Module):
    """Stem, stages of N cells with reductions between them, batch norm, pooled linear head:
    x (n, c, h, w) -> (n, classes).

    cell=None: the relaxed network f(x; A, W), whose A = [alpha] is an argument, never a parameter:
    else it would enter SGD, weight decay and the clipping norm. cell=string: the derived network,
    called with x alone. Batch norm of the relaxed network has no running statistics: generated
    images cannot change what is not there.
    """

    def __init__(
        self,
        cell: str | None,
        channels: int,
        N: int,
        stages: int,
        nodes: int,
        classes: int,
        c_in: int = 3,
        reduction: str = "residual",
        affine: bool | None = None,
        pool_norm: bool = False,
    ):
        super().__init__()
        choices = (
            [OPERATIONS] * len(edges(nodes))
            if cell is None
            else [(name,) for name in from_string(cell)]
        )
        if len(choices) != len(edges(nodes)):
            raise ValueError(
                f"cell {cell!r} has {len(choices)} edges; {nodes} nodes need {len(edges(nodes))}"
            )
        affine = cell is not None if affine is None else affine
        track = affine  # search: batch statistics, no affine part (DARTS)
        self.relaxed = cell is None
        self.stem = nn.Sequential(
            nn.Conv2d(c_in, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, affine=affine, track_running_stats=track),
        )
        blocks: list[nn.Module] = []
        for stage in range(stages):
            if stage:
                make = (
                    Residual
                    if reduction == "residual"
                    else lambda a, b, *bn: relu_conv_bn(a, b, 3, 2, *bn)
                )
                blocks.append(make(channels, 2 * channels, affine, track))
                channels *= 2
            blocks += [Cell(channels, choices, nodes, affine, track, pool_norm) for _ in range(N)]
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Sequential(
            nn.BatchNorm2d(channels, affine=affine, track_running_stats=track), nn.ReLU()
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor, A: Sequence[Tensor] | None = None) -> Tensor:
        if self.relaxed != (A is not None):
            raise ValueError("the relaxed network takes A, a derived one does not")
        weights = None if A is None else F.softmax(A[0], dim=-1)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, weights) if isinstance(block, Cell) else block(x)
        return self.head(self.last(x).mean((2, 3)))


def initial(nodes: int, generator: torch.Generator) -> list[Tensor]:
    """A = [alpha], alpha (edges, 5) ~ 1e-3 N(0, 1)."""
    return [1e-3 * torch.randn(len(edges(nodes)), len(OPERATIONS), generator=generator)]
