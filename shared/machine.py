"""The machine that a run is made on: device, packages, memory, and what of it can move a score.

torch is imported only where a run is made: the judge asks for `fingerprint` without it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import PORTABLE, portable
from shared.protocol import BadInput, RunConfig

if TYPE_CHECKING:
    import torch

PACKAGES = ["torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy"]
PACKAGES += ["scikit-learn", "pandas", "rdkit"]
CUBLAS = ":4096:8"  # memory of its own for each product: without it cuBLAS may choose another order


def cuda_devices() -> list[str]:
    """Identifiers of the CUDA devices that this process may use, told without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [d for d in visible.split(",") if d.strip() not in {"", "-1"}]
    return _listed_devices()


@functools.cache
def _listed_devices() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    devices = [line for line in listing.stdout.splitlines() if line.startswith("GPU")]
    return [str(i) for i in range(len(devices))]


def kind(name: str) -> str:
    """cpu or cuda: what the option --device means on this machine."""
    if name != "auto":
        return name.split(":")[0]
    if "torch" in sys.modules:
        return "cuda" if sys.modules["torch"].cuda.is_available() else "cpu"
    return "cuda" if cuda_devices() and not packages().get("torch", "").endswith("+cpu") else "cpu"


def device(config: RunConfig) -> torch.device:
    """The device of a run. CPU runs use one thread: a score does not depend on the neighbours."""
    import torch

    name = kind("auto") if config.device == "auto" else config.device
    if name.startswith("cuda") and not torch.cuda.is_available():
        lacking = f"torch {torch.__version__} sees no CUDA device"
        raise BadInput(f"device '{name}' asked for, but {lacking}; use --device cpu")
    if name == "cpu":
        torch.set_num_threads(1)
    else:  # fp32 is fp32: by torch's default convolutions would round their inputs to 10 bits
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if deterministic():
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS)  # read at its first product
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device(name)


def deterministic() -> bool:
    """DETERMINISTIC=1: kernels of CUDA that add in the same order each time, so that a run made
    again there has the same bits. Where one has no such form torch refuses it by name."""
    return os.environ.get("DETERMINISTIC") == "1"


def free_memory() -> None:
    """Give cached blocks of a finished run back, for the next one may need other sizes."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@functools.cache
def packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def fingerprint(device: str) -> dict[str, Any]:
    """What can move a score: kind of device, versions of packages, whether PORTABLE=1 holds, on
    CUDA also whether DETERMINISTIC=1 does."""
    here = {"device": kind(device), "packages": packages(), "portable": portable()}
    return here | ({"deterministic": True} if here["device"] == "cuda" and deterministic() else {})


def moved(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What changed between two fingerprints, in words; None if nothing did."""
    for key in ("device", "portable", "deterministic"):
        if before.get(key) != now.get(key):
            return f"{key} changed: {before.get(key)} -> {now.get(key)}"
    old, new = before.get("packages") or {}, now["packages"]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    changes = ", ".join(f"{x} {old.get(x, 'none')} -> {new.get(x, 'none')}" for x in names)
    return f"packages changed: {changes}" if changes else None


def environment(device: str) -> dict[str, Any]:
    """What the record says of the machine and of the packages."""
    processor, here = platform.processor(), {"device": "cpu"}
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next(x for x in lines if x.startswith("model name")).split(":", 1)[1].strip()
    if kind(device) == "cuda":
        here = _cuda_environment()
    return {
        "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
        "processor": processor, "packages": packages(), **here,
        **({"settings": PORTABLE} if portable() else {}),
    }  # fmt: skip


def _cuda_environment() -> dict[str, Any]:
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = ""
    with contextlib.suppress(OSError):
        done = subprocess.run(query, capture_output=True, text=True)
        driver = next(iter(done.stdout.splitlines()), "")
    return {
        "device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver,
        "cudnn": torch.backends.cudnn.version(), "deterministic": deterministic(),
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
    }  # fmt: skip


def commit(root: Path) -> str | None:
    """The checkout's commit, with `+changes` if tracked files differ from it; None outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = "+changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mb(device: str, reset: bool = False) -> float:
    """Most memory used since the last reset, in MB: on the GPU for a run there, else resident."""
    import torch

    if kind(device) == "cuda" and torch.cuda.is_initialized():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):  # off Linux: since the process began
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
