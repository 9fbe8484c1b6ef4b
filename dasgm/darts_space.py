"""The DARTS space: 8 candidate operations, cells of four nodes, relaxed and derived networks; also
PC-DARTS' partial channels, P-DARTS' shrinking lists of operations and its limit on skips. Layout
read in the three public repositories, written anew.

    cell inputs    s0, s1: outputs of the cell before the last and of the last
    nodes 2..5     sums of their incoming edges; concatenated they are the cell's output
    relaxed edge   sum_o softmax(alpha_edge)_o * o(x)
    PC-DARTS       that on 1/4 of the channels; the edge weighted by softmax(beta)
    derived node   the two incoming edges with the largest weight other than `none`, on each the
                   largest operation other than `none`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NODES = 4
PARTIAL = 4  # PC-DARTS: 1 / PARTIAL of the channels go through the mixed operation
EDGES = [
    (i, 2 + j) for j in range(NODES) for i in range(2 + j)
]  # 14 rows of alpha: (source, target)

Choices = list[list[list[str]]]  # [normal, reduce][edge] -> its operations


# --- genotypes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Genotype:
    """Two edges per node, as (operation, source): 8 pairs each."""

    normal: tuple[tuple[str, int], ...]
    reduce: tuple[tuple[str, int], ...]

    def to_json(self) -> str:
        return json.dumps({"space": "darts", "normal": self.normal, "reduce": self.reduce})

    @staticmethod
    def from_json(text: str) -> Genotype:
        """Raises ValueError for an operation or source that cannot be."""
        document = json.loads(text)
        cells = []
        for kind in ("normal", "reduce"):
            pairs = tuple((str(op), int(source)) for op, source in document.get(kind, ()))
            if len(pairs) != 2 * NODES:
                raise ValueError(f"genotype: {kind} has {len(pairs)} edges, expected {2 * NODES}")
            for k, (op, source) in enumerate(pairs):
                if op not in OPERATIONS[1:] or not 0 <= source < 2 + k // 2:
                    raise ValueError(
                        f"genotype: {kind} edge {k} is ({op!r}, {source}); the operation must be"
                        f" one of {', '.join(OPERATIONS[1:])} and the source below {2 + k // 2}"
                    )
            cells.append(pairs)
        return Genotype(*cells)

    def skips(self) -> int:
        return sum(op == "skip_connect" for op, _ in self.normal)


def everything() -> Choices:
    return [[list(OPERATIONS) for _ in EDGES] for _ in range(2)]


def weights_of(A: Sequence[Tensor]) -> list[Tensor]:
    """Two tables (14, operations of an edge): softmax(alpha), with beta times softmax(beta)."""
    tables = [F.softmax(a.detach(), -1) for a in A[:2]]
    if len(A) == 4:
        tables = [t * _edge_weights(b.detach())[:, None] for t, b in zip(tables, A[2:])]
    return tables


def _edge_weights(beta: Tensor) -> Tensor:
    """softmax of beta (14,) over the edges into each node."""
    parts, start = [], 0
    for node in range(NODES):
        parts.append(F.softmax(beta[start : start + 2 + node], 0))
        start += 2 + node
    return torch.cat(parts)


def derive(
    A: Sequence[Tensor], choices: Choices | None = None, most_skips: int | None = None
) -> Genotype:
    """The discrete cells. most_skips (P-DARTS): a normal cell with more loses its weakest."""
    choices = choices or everything()
    tables = [t.clone() for t in weights_of(A)]
    genotype = Genotype(*(_parse(t, names) for t, names in zip(tables, choices)))
    while most_skips is not None and genotype.skips() > most_skips:
        rows = [EDGES.index((source, 2 + k // 2)) for k, (_, source) in enumerate(genotype.normal)]
        skips = [
            (row, choices[0][row].index("skip_connect"))
            for row, (operation, _) in zip(rows, genotype.normal)
            if operation == "skip_connect"
        ]
        tables[0][min(skips, key=lambda at: float(tables[0][at]))] = 0.0
        genotype = Genotype(_parse(tables[0], choices[0]), genotype.reduce)
    return genotype


def _parse(table: Tensor, names: Sequence[Sequence[str]]) -> tuple[tuple[str, int], ...]:
    chosen: list[tuple[str, int]] = []
    for node in range(NODES):
        options = []
        for row, (source, target) in enumerate(EDGES):
            if target == 2 + node:
                best = max(
                    (w, -c) for c, w in enumerate(table[row].tolist()) if names[row][c] != "none"
                )
                options.append((best[0], -source, names[row][-best[1]]))
        for _, minus_source, op in sorted(options, reverse=True)[:2]:
            chosen.append((op, -minus_source))
    return tuple(chosen)


def shrink(A: Sequence[Tensor], size: int, choices: Choices | None = None) -> Choices:
    """P-DARTS between stages: of every edge the `size` operations with the largest weight."""
    new: Choices = []
    for table, edges in zip(weights_of(A), choices or everything()):
        rows = []
        for weights, names in zip(table, edges):
            order = sorted(range(len(names)), key=lambda c: (-float(weights[c]), c))
            rows.append([names[c] for c in sorted(order[:size])])
        new.append(rows)
    return new


# --- operations -----------------------------------------------------------------------------------


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int, affine: bool) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), norm(c_out, affine)]


def norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    """Search: no affine part, batch statistics; derived networks: both."""
    return nn.BatchNorm2d(channels, affine=affine, track_running_stats=affine)


def separable(
    c_in: int, c_out: int, kernel: int, stride: int, dilation: int, affine: bool
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(c_in, c_in, kernel, stride, padding, dilation, groups=c_in, bias=False),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        norm(c_out, affine),
    ]


class FactorizedReduce(nn.Module):
    """Halves the resolution and loses no pixel: two strided 1x1 convolutions, one shifted."""

    def __init__(self, c_in: int, c_out: int, affine: bool):
        super().__init__()
        self.a = nn.Conv2d(c_in, c_out // 2, 1, 2, bias=False)
        self.b = nn.Conv2d(c_in, c_out - c_out // 2, 1, 2, bias=False)
        self.norm = norm(c_out, affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.norm(torch.cat([self.a(x), self.b(F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1)))], 1))


def operation(
    name: str, channels: int, stride: int, affine: bool, skip_dropout: float = 0.0
) -> nn.Module:
    """In the relaxed network (affine=False) batch norm follows a pooling, for an equal scale."""
    if name == "skip_connect":
        skip = nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)
        return nn.Sequential(skip, nn.Dropout(skip_dropout)) if skip_dropout else skip
    if name.endswith("pool_3x3"):
        pool = (
            nn.MaxPool2d(3, stride, 1)
            if name[0] == "m"
            else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        )
        return pool if affine else nn.Sequential(pool, norm(channels, affine))
    kernel = int(name[-1])
    if name.startswith("sep"):
        return nn.Sequential(
            *separable(channels, channels, kernel, stride, 1, affine),
            *separable(channels, channels, kernel, 1, 1, affine),
        )
    return nn.Sequential(*separable(channels, channels, kernel, stride, 2, affine))


class MixedOperation(nn.Module):
    """sum_o w_o o(x); `partial` k > 1 (PC-DARTS): on the first 1/k of the channels, the rest
    bypasses, then a shuffle."""

    def __init__(
        self, names: Sequence[str], channels: int, stride: int, partial: int, skip_dropout: float
    ):
        super().__init__()
        self.names, self.partial, self.stride = list(names), partial, stride
        self.ops = nn.ModuleDict(
            {
                n: operation(n, channels // partial, stride, False, skip_dropout)
                for n in names
                if n != "none"
            }
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        head, rest = (
            (x, None) if self.partial == 1 else x.tensor_split([x.shape[1] // self.partial], 1)
        )
        terms = [weights[c] * self.ops[n](head) for c, n in enumerate(self.names) if n != "none"]
        out = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0] if terms else None
        if out is None:  # an edge whose only choice is `none`
            out = torch.zeros_like(head[:, :, :: self.stride, :: self.stride])
        if rest is None:
            return out
        out = torch.cat([out, F.max_pool2d(rest, 2) if self.stride == 2 else rest], 1)
        n, c, h, w = out.shape
        return (
            out.view(n, self.partial, c // self.partial, h, w).transpose(1, 2).reshape(n, c, h, w)
        )


# --- the relaxed network --------------------------------------------------------------------------


def reductions(layers: int) -> set[int]:
    """Cells at one and two thirds of the depth reduce."""
    return {layers // 3, 2 * layers // 3}


def preprocess(c_in: int, c_out: int, reduce: bool, affine: bool) -> nn.Module:
    if reduce:
        return FactorizedReduce(c_in, c_out, affine)
    return nn.Sequential(nn.ReLU(), *conv_bn(c_in, c_out, 1, 1, affine))


class RelaxedCell(nn.Module):
    def __init__(
        self,
        names: list[list[str]],
        cs: tuple[int, int, int],
        reduce: bool,
        reduce_before: bool,
        partial: int,
        drop: float,
    ):
        super().__init__()
        self.pre0 = preprocess(cs[0], cs[2], reduce_before, False)
        self.pre1 = preprocess(cs[1], cs[2], False, False)
        self.ops = nn.ModuleList(
            MixedOperation(n, cs[2], 2 if reduce and source < 2 else 1, partial, drop)
            for n, (source, _) in zip(names, EDGES)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, edge: Tensor | None) -> Tensor:
        states = [self.pre0(s0), self.pre1(s1)]
        for node in range(NODES):
            total: Tensor | None = None
            for row, (source, target) in enumerate(EDGES):
                if target == 2 + node:
                    out = self.ops[row](states[source], weights[row])
                    out = out if edge is None else edge[row] * out
                    total = out if total is None else total + out
            assert total is not None
            states.append(total)
        return torch.cat(states[2:], 1)


class RelaxedNetwork(nn.Module):
    """f(x; A, W): `layers` cells from `channels`; A = [alpha_normal, alpha_reduce] (14, operations)
    and, with partial channels, [beta_normal, beta_reduce] (14,). A is never its parameter."""

    def __init__(
        self,
        channels: int,
        layers: int,
        classes: int,
        choices: Choices | None = None,
        partial: int = 1,
        skip_dropout: float = 0.0,
    ):
        super().__init__()
        choices = choices or everything()
        if channels % partial:
            raise ValueError(f"{channels} channels are not divisible by partial = {partial}")
        self.stem = nn.Sequential(*conv_bn(3, 3 * channels, 3, 1, False))
        c0 = c1 = 3 * channels
        before, cells = False, []
        for layer in range(layers):
            reduce = layer in reductions(layers)
            channels = 2 * channels if reduce else channels
            widths, names = (c0, c1, channels), choices[int(reduce)]
            cells.append(RelaxedCell(names, widths, reduce, before, partial, skip_dropout))
            before, c0, c1 = reduce, c1, NODES * channels
        self.cells = nn.ModuleList(cells)
        self.head = nn.Linear(c1, classes)

    def forward(self, x: Tensor, A: Sequence[Tensor]) -> Tensor:
        weights = [F.softmax(a, -1) for a in A[:2]]
        edge = [_edge_weights(b) for b in A[2:]] if len(A) == 4 else [None, None]
        s0 = s1 = self.stem(x)
        for layer, cell in enumerate(self.cells):
            kind = int(layer in reductions(len(self.cells)))
            s0, s1 = s1, cell(s0, s1, weights[kind], edge[kind])
        return self.head(s1.mean((2, 3)))


def initial(choices: Choices, partial: int, generator: torch.Generator) -> list[Tensor]:
    """A ~ 1e-3 N(0, 1)."""
    A = [1e-3 * torch.randn(len(EDGES), len(names[0]), generator=generator) for names in choices]
    if partial == 1:
        return A
    return A + [1e-3 * torch.randn(len(EDGES), generator=generator) for _ in range(2)]


def random_genotype(generator: torch.Generator) -> Genotype:
    """Two distinct sources per node and an operation other than `none` for each, uniformly."""
    cells = []
    for _ in range(2):
        pairs = []
        for node in range(NODES):
            for source in sorted(torch.randperm(2 + node, generator=generator)[:2].tolist()):
                operation = OPERATIONS[1 + int(torch.randint(7, (1,), generator=generator))]
                pairs.append((operation, source))
        cells.append(tuple(pairs))
    return Genotype(*cells)


# --- the derived network --------------------------------------------------------------------------


def drop_path(x: Tensor, p: float) -> Tensor:
    """Zeroes whole examples with probability p and scales the others."""
    keep = torch.bernoulli(torch.full((len(x), 1, 1, 1), 1 - p, device=x.device))
    return x * keep / (1 - p)


class Corners(nn.Module):
    """(n, c, s, s) -> (n, c, 2, 2): means over the 5 x 5 windows in the corners, for s of 8 and 7
    the pooling of DARTS' two heads. Adaptive pooling has no ordered gradient on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        window = min(5, x.shape[-1] - 1)
        return nn.functional.avg_pool2d(x, window, x.shape[-1] - window)


def auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        Corners(),
        nn.Conv2d(channels, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 2, bias=False),
        nn.BatchNorm2d(768),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, classes),
    )


class DerivedCell(nn.Module):
    def __init__(
        self,
        pairs: Sequence[tuple[str, int]],
        cs: tuple[int, int, int],
        reduce: bool,
        reduce_before: bool,
    ):
        super().__init__()
        self.sources = [source for _, source in pairs]
        self.pre0 = preprocess(cs[0], cs[2], reduce_before, True)
        self.pre1 = preprocess(cs[1], cs[2], False, True)
        self.ops = nn.ModuleList(
            operation(op, cs[2], 2 if reduce and s < 2 else 1, True) for op, s in pairs
        )

    def forward(self, s0: Tensor, s1: Tensor, p: float) -> Tensor:
        states = [self.pre0(s0), self.pre1(s1)]
        for node in range(NODES):
            terms = []
            for k in (2 * node, 2 * node + 1):
                out = self.ops[k](states[self.sources[k]])
                if self.training and p > 0 and not isinstance(self.ops[k], nn.Identity):
                    out = drop_path(out, p)
                terms.append(out)
            states.append(terms[0] + terms[1])
        return torch.cat(states[2:], 1)


class DerivedNetwork(nn.Module):
    """x -> logits; while training, with `auxiliary`, (logits, logits of the head at two thirds of
    the depth). imagenet: a stem that divides the resolution by eight before the first cell.
    drop_path: set by the training loop."""

    def __init__(
        self,
        genotype: Genotype,
        channels: int,
        layers: int,
        classes: int,
        auxiliary: bool,
        imagenet: bool = False,
    ):
        super().__init__()
        self.drop_path = 0.0
        if imagenet:
            half = channels // 2
            self.stem0 = nn.Sequential(
                *conv_bn(3, half, 3, 2, True), nn.ReLU(), *conv_bn(half, channels, 3, 2, True)
            )
            self.stem1 = nn.Sequential(nn.ReLU(), *conv_bn(channels, channels, 3, 2, True))
            c0 = c1 = channels
        else:
            self.stem0 = nn.Sequential(*conv_bn(3, 3 * channels, 3, 1, True))
            self.stem1 = nn.Sequential()
            c0 = c1 = 3 * channels
        before, cells = imagenet, []
        self.auxiliary_at = 2 * layers // 3 if auxiliary else -1
        self.auxiliary: nn.Module | None = None
        for layer in range(layers):
            reduce = layer in reductions(layers)
            channels = 2 * channels if reduce else channels
            pairs = genotype.reduce if reduce else genotype.normal
            cells.append(DerivedCell(pairs, (c0, c1, channels), reduce, before))
            before, c0, c1 = reduce, c1, NODES * channels
            if layer == self.auxiliary_at:
                self.auxiliary = auxiliary_head(c1, classes)
        self.cells = nn.ModuleList(cells)
        self.head = nn.Linear(c1, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        s0 = self.stem0(x)
        s1 = self.stem1(s0)
        extra = None
        for layer, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path)
            if layer == self.auxiliary_at and self.training and self.auxiliary is not None:
                extra = self.auxiliary(s1)
        logits = self.head(s1.mean((2, 3)))
        return logits if extra is None else (logits, extra)
