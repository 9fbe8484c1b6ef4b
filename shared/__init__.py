"""What at least two methods use: hypergradients, loaders, runs. Imports no package by itself.

`PORTABLE=1` in the environment: the same bits on processors of different makers (docs/findings.md).
"""

import importlib.util
import os
import shlex
import sys
from types import TracebackType

# The libraries' own switches: code paths that x86-64 processors of the last ten years share.
PORTABLE = {
    "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}  # fmt: skip


def portable() -> bool:
    """Whether the switches are set; processes started from here on obey them."""
    return PORTABLE.items() <= os.environ.items()


# Set too late for libraries that this process loaded before: the process has to begin again.
BEGIN_AGAIN = os.environ.get("PORTABLE") == "1" and not portable()
if BEGIN_AGAIN:
    os.environ.update(PORTABLE)


def _name_the_package(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """One line and status 2 where Python lacks a package, a traceback for everything else."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or importlib.util.find_spec(package or "os"):
        sys.__excepthook__(kind, error, trace)
        return
    command = shlex.join([".venv/bin/python", *sys.orig_argv[1:]])
    remedy = f"run {command} (`make setup` makes .venv)"
    print(f"error: {package} is not installed in {sys.executable}; {remedy}", file=sys.stderr)
    sys.exit(2)


# `python -m <paper>.train` imports the paper's package, and so this one, before train.py
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _name_the_package
