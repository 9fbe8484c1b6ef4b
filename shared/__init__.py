"""What at least two methods use: hypergradients, loaders, runs. Imports nothing by itself.

`PORTABLE=1` in the environment: the same bits on processors of different makers (docs/findings.md).
"""

import os

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
