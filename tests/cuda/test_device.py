"""What a CUDA device refuses and allows: the same on a real one and on the pretended one."""

from __future__ import annotations

import io

import pretend_cuda
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]
SAME = "same device|two devices|on cuda|on CUDA|Pointer argument"

MIXED = {
    "sum": lambda x: x + torch.ones(4, 3),
    "gather": lambda x: x.gather(0, torch.zeros(1, 3, dtype=torch.long)),
    "embedding": lambda x: F.embedding(torch.tensor([1]), x),
    "labels": lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2, 0])),
    "cat": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "assignment": lambda x: x.__setitem__(torch.tensor([0]), torch.zeros(1, 3)),
}


@pytest.fixture
def x():
    return torch.arange(12.0, device="cuda").reshape(4, 3)


@pytest.mark.parametrize("name", MIXED)
def test_two_devices_in_one_operator(name, x):
    with pytest.raises(RuntimeError, match=SAME):
        MIXED[name](x)


def test_what_may_lie_on_the_host(x):
    assert (x + torch.tensor(2.0)).is_cuda and x[torch.tensor([0, 1])].is_cuda
    x[0] = torch.tensor(3.0)
    assert torch.ones(4, 3).copy_(x)[0].tolist() == [3.0] * 3
    with pytest.raises(TypeError, match="can't convert cuda"):
        x.numpy()


def test_generators_draw_where_they_lie(x):
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator"):
        torch.randperm(3, generator=torch.Generator("cuda"))
    torch.manual_seed(1)
    host, first = torch.get_rng_state(), torch.rand(3, device="cuda")
    assert torch.equal(torch.get_rng_state(), host)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, device="cuda"), first)
    state = torch.cuda.get_rng_state()
    second = F.dropout(x, 0.5)
    torch.cuda.set_rng_state(state)
    assert torch.equal(F.dropout(x, 0.5), second)


def test_fused_attention_has_one_derivative():
    q = torch.randn(2, 2, 4, 8, device="cuda", requires_grad=True)

    def twice() -> torch.Tensor:
        loss = F.scaled_dot_product_attention(q, q, q).square().sum()
        (g,) = torch.autograd.grad(loss, q, create_graph=True)
        return torch.autograd.grad(g.square().sum(), q)[0]

    with pytest.raises(RuntimeError, match="not implemented"):
        twice()
    with sdpa_kernel(SDPBackend.MATH):
        assert twice().shape == q.shape


def test_kernels_without_an_order_are_refused(x):
    torch.use_deterministic_algorithms(True)
    for kernel in (lambda: x.cumsum(0), lambda: x.kthvalue(1), lambda: x.median(0)):
        with pytest.raises(RuntimeError, match="deterministic"):
            kernel()
    assert x.long().cumsum(0).is_cuda


def test_saved_tensors_come_back_where_they_were(x):
    file = io.BytesIO()
    torch.save({"x": x}, file)
    file.seek(0)
    assert torch.load(file)["x"].is_cuda
    file.seek(0)
    assert torch.equal(torch.load(file, map_location="cpu")["x"], x.cpu())


def test_counts(x):
    if not pretend_cuda.installed():
        pytest.skip("a real device does not count its launches")
    weight = torch.ones(3, 5, device="cuda")
    pretend_cuda.reset()
    (x @ weight).sum().item()
    x[x > 3]
    launches, waits = pretend_cuda.names()
    total = pretend_cuda.counts()
    assert launches["aten::mm"] == sum(n for k, n in launches.items() if "sum" in k) == 1
    assert total["launches"] == sum(launches.values()) and total["waits"] == sum(waits.values())
    assert waits["item"] == 1 and any("mask" in name for name in waits)
    assert total["products_32"] == 2 * 4 * 3 * 5 and total["products_16"] == 0
