"""From A to a cell and from a cell to a network, in both spaces."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from dasgm import darts_space, nasbench
from shared import runs


@pytest.mark.parametrize("row", [1, 2, 3, 4])
def test_decided_supernet_is_the_derived_network(row):
    torch.manual_seed(0)
    settings = {"channels": 4, "N": 1, "stages": 2, "nodes": 4, "classes": 5}
    net = nasbench.Network(None, **settings)
    choice = [(row + k) % 5 for k in range(6)]
    alpha = torch.zeros(6, 5)
    alpha[range(6), choice] = 60.0
    cell = nasbench.derive(alpha, 4)
    one = nasbench.Network(cell, affine=False, **settings)
    one.load_state_dict({k: v for k, v in net.state_dict().items() if k in one.state_dict()})
    x = torch.randn(8, 3, 16, 16)
    assert float((net(x, [alpha]) - one(x)).detach().abs().max()) < 1e-4
    assert nasbench.to_string(nasbench.from_string(cell), 4) == cell


def test_the_norm_after_pooling_is_of_the_relaxed_network_alone():
    """As DARTS has it: no weights, unit variance whatever comes in; derived cells do without."""
    settings = {"channels": 4, "N": 1, "stages": 2, "nodes": 3, "classes": 5}
    plain, normed = (nasbench.Network(None, pool_norm=n, **settings) for n in (False, True))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in normed.parameters()]
    pools = [
        e["avg_pool_3x3"] for m in normed.modules() if isinstance(m, nasbench.Cell) for e in m.edges
    ]
    out = pools[0](5 + 3 * torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(out.var((0, 2, 3), unbiased=False), torch.ones(4), atol=1e-3)
    assert not list(normed.buffers())  # generated images move no running statistics
    derived = nasbench.Network(nasbench.to_string(["avg_pool_3x3"] * 3, 3), **settings)
    assert len(list(derived.modules())) < len(list(normed.modules()))
    assert all(
        not isinstance(e["avg_pool_3x3"], torch.nn.Sequential)
        for m in derived.modules()
        if isinstance(m, nasbench.Cell)
        for e in m.edges
    )


def test_derivation_in_nasbench():
    alpha = torch.zeros(6, 5)
    for edge, op in enumerate([0, 1, 2, 3, 4, 0]):
        alpha[edge, op] = 1.0
    alpha[0, 3] = 0.5
    cell = "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    assert nasbench.derive(alpha, 4) == cell
    assert nasbench.derive(alpha, 4, exclude_none=True).startswith("|nor_conv_3x3~0|+")
    assert nasbench.skips(cell) == 1
    assert len(set(nasbench.all_cells(3))) == 125
    assert len(nasbench.all_cells(3, exclude_none=True)) == 64


@pytest.mark.parametrize(
    "cell", ["", "|none~0|+|none~1|none~0|", "|conv~0|+|none~0|none~1|", "|none~0|+|none~0|none~1"]
)
def test_malformed_cells_are_refused(cell):
    with pytest.raises(ValueError, match="cell"):
        nasbench.from_string(cell)


def test_derivation_in_the_darts_space():
    """Two edges per node, `none` never, the strongest other operation; beta weighs edges."""
    alpha = [torch.zeros(14, 8), torch.zeros(14, 8)]
    for row, (_, _target) in enumerate(darts_space.EDGES):
        alpha[0][row, 0] = 5.0  # none is strong everywhere
        alpha[0][row, 1 + row % 7] = 1.0 + 0.1 * row
    genotype = darts_space.derive(alpha)
    assert len(genotype.normal) == len(genotype.reduce) == 8
    assert all(op != "none" for op, _ in (*genotype.normal, *genotype.reduce))
    for node in range(4):
        of_node = [r for r, (_, t) in enumerate(darts_space.EDGES) if t == 2 + node]
        strongest = sorted(of_node, reverse=True)[:2]
        pairs = {(darts_space.OPERATIONS[1 + r % 7], darts_space.EDGES[r][0]) for r in strongest}
        assert set(genotype.normal[2 * node : 2 * node + 2]) == pairs
    assert darts_space.Genotype.from_json(genotype.to_json()) == genotype
    beta = torch.zeros(14)
    beta[2] = 9.0  # node 3: its edge from input 0, the weakest so far
    with_beta = darts_space.derive([*alpha, beta, torch.zeros(14)])
    assert 0 in {source for _, source in with_beta.normal[2:4]}


@pytest.mark.parametrize(
    "text",
    [
        '{"normal": [], "reduce": []}',
        '{"normal": [["none", 0]' + ', ["none", 0]' * 7 + '], "reduce": []}',
        '{"normal": [["skip_connect", 5]' + ', ["skip_connect", 0]' * 7 + '], "reduce": []}',
    ],
)
def test_malformed_genotypes_are_refused(text):
    with pytest.raises(ValueError, match="genotype: normal"):
        darts_space.Genotype.from_json(text)


def test_pdarts_limits_skips_and_shrinks():
    stream = torch.Generator().manual_seed(0)
    alpha = [1e-3 * torch.randn(14, 8, generator=stream) for _ in range(2)]
    alpha[0][:, 3] += 2.0
    assert darts_space.derive(alpha).skips() == 8
    for most in (2, 0):
        assert darts_space.derive(alpha, most_skips=most).skips() == most
    choices = darts_space.shrink(alpha, 5)
    assert all(len(names) == 5 for edges in choices for names in edges)
    assert all("skip_connect" in names for names in choices[0])
    net = darts_space.RelaxedNetwork(4, 3, 10, choices, skip_dropout=0.3)
    A = darts_space.initial(choices, 1, runs.stream(0))
    assert net(torch.randn(2, 3, 16, 16), A).shape == (2, 10)
    fewer = darts_space.shrink(A, 3, choices)
    assert all(set(b) < set(a) for old, new in zip(choices, fewer) for a, b in zip(old, new))


@pytest.mark.parametrize("partial", [1, 4])
def test_darts_networks_run_and_every_weight_is_reached(partial):
    torch.manual_seed(0)
    choices = darts_space.everything()
    net = darts_space.RelaxedNetwork(8, 3, 10, choices, partial=partial)
    A = [a.requires_grad_() for a in darts_space.initial(choices, partial, runs.stream(0))]
    loss = cross_entropy(net(torch.randn(4, 3, 16, 16), A), torch.arange(4))
    gradients = torch.autograd.grad(loss, [*A, *net.parameters()])
    assert all(torch.isfinite(g).all() for g in gradients)
    one = darts_space.DerivedNetwork(darts_space.derive(A), 8, 3, 10, auxiliary=True)
    one.drop_path = 0.5
    logits, second = one(torch.randn(4, 3, 32, 32))
    assert logits.shape == second.shape == (4, 10)
    one.eval()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(one(x), one(x))  # no drop path, no second head outside training
    genotype = darts_space.random_genotype(runs.stream(1))
    wide = darts_space.DerivedNetwork(genotype, 8, 3, 7, auxiliary=False, imagenet=True)
    assert wide(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(("side", "stride"), [(8, 3), (7, 2)])
def test_the_auxiliary_heads_pooling_is_that_of_darts(side, stride):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.AvgPool2d(5, stride, padding=0, count_include_pad=False)
    assert torch.equal(darts_space.Corners()(x), theirs(x))
