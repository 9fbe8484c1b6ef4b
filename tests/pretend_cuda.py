"""A pretended CUDA device: tensors whose device is `cuda:0` and whose memory is the host's.

    PYTHONPATH=tests pytest -p pretend_cuda --pretend-cuda -m gpu tests/cuda
    pretend_cuda.install()                      for this process, before it uses a device
    env = pretend_cuda.environment(folder)      for processes that this one starts

Every operator that reaches the CUDA dispatch key is checked as CUDA would check it, then computed
by the CPU kernel on the same memory (pretend_cuda.cpp):

  - tensors of two devices in one operator are refused; tensors without dimensions, the indices of
    `x[i]` and copies are allowed, as on CUDA;
  - a CPU generator for a tensor of the device is refused; the device has a random state of its own;
  - `.numpy()`, `from_numpy` and `torch.save` behave as with a CUDA tensor, for it is one;
  - scaled_dot_product_attention is a fused kernel, which has no second derivative and no forward
    mode, unless SDPBackend.MATH alone is enabled;
  - counted: kernel launches (of an optimiser's list of tensors one for each hundred), waits of the
    host for the device (`.item()`, `.cpu()`, boolean masks, nonzero), operations of matrix
    products, bytes.

What it cannot show: speed, numerics of tensor cores and of cuDNN, kernels whose order of additions
varies, fragmented memory, several devices, streams, dtypes that only one of CPU and CUDA has.
Needs g++ (half a minute, once for each version of torch) and a torch without CUDA of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

NAME = "Pretended CUDA device (host memory)"
SOURCE = Path(__file__).with_suffix(".cpp")
# PRETEND_CUDA_DRAWS=host: the device draws what the host would from the same seed, so that a run
# there must equal a run on the CPU; without it another sequence, as on CUDA.
OTHER_DRAWS = 0x5DEECE66D
_installed = False


def lacks() -> str:
    """Why this machine cannot pretend; "" if it can."""
    import torch

    if torch.version.cuda is not None:
        return "this torch has CUDA of its own: make test-gpu"
    return (
        "" if shutil.which("g++") else "g++, which compiles the pretended CUDA device, is missing"
    )


def install() -> None:
    """Make `cuda:0` exist in this process. RuntimeError where that is impossible."""
    global _installed
    if _installed:
        return
    import torch

    if reason := lacks():
        raise RuntimeError(reason)
    torch.ops.load_library(str(_library(torch)))
    _patch_cuda(torch)
    _patch_attention(torch)
    _installed = True


def installed() -> bool:
    return _installed


def counts() -> dict[str, int]:
    """Launches, waits and operations of matrix products, in 16 and in 32 bits, since `reset()`;
    bytes now and at their peak."""
    import torch

    names = ("launches", "waits", "bytes", "peak_bytes", "products_16", "products_32")
    return dict(zip(names, torch.ops.pretend_cuda.counts(), strict=True))


def names() -> tuple[dict[str, int], dict[str, int]]:
    """(launches, waits) since `reset()` by the operator's name."""
    import torch

    both = [[line.split("\t") for line in text.splitlines()] for text in _ops(torch).names()]
    launches, waits = ({name: int(n) for name, n in lines} for lines in both)
    return launches, waits


def reset() -> None:
    import torch

    _ops(torch).reset()


def environment(folder: Path) -> dict[str, str]:
    """os.environ for a Python process that begins with the device. folder: an empty one."""
    (folder / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    path = [str(folder), str(SOURCE.parent), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "CUDA_VISIBLE_DEVICES": "0"}
    return {**os.environ, **more}


SITE = """
import importlib.abc, importlib.machinery, sys

class Torch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            import pretend_cuda
            pretend_cuda.install()
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Torch())
"""


def _ops(torch: Any) -> Any:
    return torch.ops.pretend_cuda


def _library(torch: Any) -> Path:
    """The compiled extension, for this torch and this source: outside the tree."""
    key = hashlib.sha256(torch.__version__.encode() + SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"pretend-cuda-{os.getuid()}"
    made = folder / f"{key}.so"
    if not made.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        root, part = Path(torch.__file__).parent, made.with_suffix(f".{os.getpid()}")
        abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
        words = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-w"]
        words += [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f"-I{root}/include"]
        words += [f"-I{root}/include/torch/csrc/api/include", str(SOURCE), "-o", str(part)]
        words += [f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib"]
        subprocess.run(words, check=True)
        os.replace(part, made)
    return made


def _patch_cuda(torch: Any) -> None:
    """`torch.cuda`, whose C functions a CPU build lacks, and what asks it at import."""
    cuda, ops = torch.cuda, _ops(torch)
    state = {"initialized": False}
    other = 0 if os.environ.get("PRETEND_CUDA_DRAWS") == "host" else OTHER_DRAWS
    generator = ops.default_generator()
    cuda.default_generators = (generator,)

    def initialize() -> None:
        state["initialized"] = True

    def current_device() -> int:
        initialize()
        return 0

    def peak(device: Any = None) -> int:
        return counts()["peak_bytes"] if state["initialized"] else 0

    def reset_peak(device: Any = None) -> None:
        initialize()
        ops.reset_peak()

    def allocated(device: Any = None) -> int:
        return counts()["bytes"]

    def properties(device: Any = None) -> Any:
        return types.SimpleNamespace(
            name=NAME, major=9, minor=0, total_memory=141 * 2**30, multi_processor_count=132,
            warp_size=32, max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
        )  # fmt: skip

    def seed(number: int) -> None:
        generator.manual_seed((int(number) ^ other) & (2**63 - 1))

    def set_state(new_state: Any, device: Any = "cuda") -> None:
        generator.set_state(new_state.cpu())

    def get_state(device: Any = "cuda") -> Any:
        return generator.get_state()

    replaced: dict[str, Any] = {
        "_lazy_init": initialize, "init": initialize, "is_available": lambda: True,
        "is_initialized": lambda: state["initialized"], "device_count": lambda: 1,
        "current_device": current_device, "set_device": lambda device: None,
        "synchronize": lambda device=None: None, "empty_cache": lambda: None,
        "ipc_collect": lambda: None, "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0), "get_device_properties": properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "max_memory_allocated": peak, "max_memory_reserved": peak, "memory_allocated": allocated,
        "memory_reserved": allocated, "reset_peak_memory_stats": reset_peak,
        "mem_get_info": lambda device=None: (100 * 2**30, 141 * 2**30),
        "manual_seed": seed, "manual_seed_all": seed, "initial_seed": generator.initial_seed,
        "get_rng_state": get_state, "set_rng_state": set_state,
        "get_rng_state_all": lambda: [get_state()],
        "set_rng_state_all": lambda states: [set_state(s) for s in states],
        "_exchange_device": lambda device: 0, "_maybe_exchange_device": lambda device: 0,
        "_is_in_bad_fork": lambda: False,
    }  # fmt: skip
    for name, value in replaced.items():
        for module in (cuda, cuda.memory, cuda.random):
            if module is cuda or hasattr(module, name):
                setattr(module, name, value)
    torch._utils._get_current_device_index = current_device
    torch._utils._get_available_device_type = lambda: "cuda"
    device = torch.device("cuda")
    torch._C._get_accelerator = lambda *words, **more: device
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda check_available=False: device
    torch.accelerator.device_count = lambda: 1
    torch.Tensor.pin_memory = lambda self, device=None: self
    new_storage = torch.UntypedStorage.__new__

    def storage(cls: Any, *words: Any, device: Any = None, **more: Any) -> Any:
        if device is not None and torch.device(device).type == "cuda":
            size = words[0] if words else 0
            return torch.empty(size, dtype=torch.uint8, device="cuda").untyped_storage()
        return new_storage(cls, *words, **({} if device is None else {"device": device}), **more)

    torch.UntypedStorage.__new__ = storage


def _patch_attention(torch: Any) -> None:
    """On the device: the composite if the math backend alone is enabled, else a fused kernel."""
    functional, ops = torch.nn.functional, _ops(torch)
    on_cpu = functional.scaled_dot_product_attention
    composite = torch.ops.aten._scaled_dot_product_attention_math

    def math(q: Any, k: Any, v: Any, mask: Any, p: float, causal: bool, scale: Any, gqa: bool):
        return composite(q, k, v, mask, p, causal, None, scale=scale, enable_gqa=gqa)[0]

    class OneDerivative(torch.autograd.Function):
        """Marks the gradients of the fused kernel: differentiating them fails in torch's words."""

        @staticmethod
        def forward(ctx: Any, g: Any, q: Any, k: Any, v: Any, *gradients: Any) -> Any:
            return tuple(t.view_as(t) for t in gradients)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            what = "aten::_scaled_dot_product_efficient_attention_backward is not implemented"
            raise RuntimeError(f"derivative for {what}")

    class Fused(torch.autograd.Function):
        """Counted as one launch forward and two backward."""

        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any, mask: Any, *options: Any) -> Any:
            ctx.random = torch.cuda.get_rng_state()
            ctx.save_for_backward(q, k, v, mask)
            ctx.options = options
            ops.count(False)
            try:
                return math(q, k, v, mask, *options)
            finally:
                ops.count(True)
                ops.launched("fused attention", 1)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            q, k, v, mask = ctx.saved_tensors
            inputs = [t.detach().requires_grad_() for t in (q, k, v)]
            before = torch.cuda.get_rng_state()
            ops.count(False)
            try:
                torch.cuda.set_rng_state(ctx.random)
                with torch.enable_grad():
                    out = math(*inputs, mask, *ctx.options)
                gradients = torch.autograd.grad(out, inputs, g.detach())
            finally:
                torch.cuda.set_rng_state(before)
                ops.count(True)
                ops.launched("fused attention, backward", 2)
            if torch.is_grad_enabled():
                gradients = OneDerivative.apply(g, q, k, v, *gradients)
            return (*gradients, None, None, None, None, None)

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                  enable_gqa=False):  # fmt: skip
        options = dropout_p, is_causal, scale, enable_gqa
        if not query.is_cuda:
            more = {"scale": scale, "enable_gqa": enable_gqa}
            return on_cpu(query, key, value, attn_mask, dropout_p, is_causal, **more)
        if torch.is_autocast_enabled("cuda"):
            low = torch.get_autocast_dtype("cuda")
            query, key, value = (t.to(low) for t in (query, key, value))
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(low)
        backends = torch.backends.cuda
        enabled = backends.flash_sdp_enabled() or backends.mem_efficient_sdp_enabled()
        with_slope = attn_mask is not None and attn_mask.requires_grad
        if not enabled or query.dim() != 4 or with_slope:
            return math(query, key, value, attn_mask, *options)
        if any(t is not None and t.device != query.device for t in (key, value, attn_mask)):
            raise RuntimeError("Expected query, key, value and mask on the same device")
        if not query.dtype == key.dtype == value.dtype:
            raise RuntimeError("Expected query, key, and value to have the same dtype")
        forward_ad = torch.autograd.forward_ad
        if forward_ad._current_level >= 0:
            tangents = [forward_ad.unpack_dual(t).tangent for t in (query, key, value)]
            if any(t is not None for t in tangents):
                what = "_scaled_dot_product_efficient_attention that does not support it"
                raise NotImplementedError(f"Trying to use forward AD with {what}")
        return Fused.apply(query, key, value, attn_mask, *options)

    functional.scaled_dot_product_attention = attention


# --- pytest plugin


def pytest_addoption(parser: Any) -> None:
    words = {"action": "store_true", "help": "run on a pretended CUDA device (host memory)"}
    parser.addoption("--pretend-cuda", **words)


def pytest_configure(config: Any) -> None:
    if config.getoption("--pretend-cuda"):
        sys.modules.setdefault("pretend_cuda", sys.modules[__name__])
        install()
