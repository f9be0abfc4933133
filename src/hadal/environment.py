"""What libraries under torch read from the environment, once, when torch loads them: set here and nowhere else.

Threads that wait for their partners spin for a while before they sleep, since the next piece of work is mostly a few
microseconds away. Where another program has the partner's core they spin for as long as that program runs: with the
libraries' own limits a busy program beside a training of two threads makes its steps up to twenty times longer. Here
they spin for as long as the pauses between operators and no longer, which differs from CPU to CPU (docs/log.md).

On Intel's CPUs MKL chooses among kernels with different orders of addition by how many rows a matrix has and by where
it lies in memory. Its reproducible mode has one order for all and is as fast (docs/log.md). On other CPUs MKL has other
kernels, which keep a row's bits from few rows on, and a run's bits are those of before.

What a user has set stays. Nothing that a process sets for itself can reach a torch that it has imported before.
"""

from __future__ import annotations

import os
from pathlib import Path

SPINS, SPINS_ON_INTEL = 2000, 3000
"""Turns of GNU's OpenMP (in torch's wheels for Linux) before a waiting thread sleeps: under a tenth of a ms."""
BLOCKED = 1
"""The same for LLVM's and Intel's (in its wheels for macOS, and in conda's), in milliseconds; theirs is 200."""
CPUINFO = Path("/proc/cpuinfo")


def prepare() -> None:
    """Set what is not set. Before torch is imported; child processes inherit it."""
    for name, value in settings().items():
        os.environ.setdefault(name, value)


def settings() -> dict[str, str]:
    """What `prepare` sets on this machine, in this environment."""
    found: dict[str, str] = {}
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        spins = SPINS_ON_INTEL if is_intel() else SPINS
        found |= {"GOMP_SPINCOUNT": str(spins), "KMP_BLOCKTIME": str(BLOCKED)}
    if "MKL_CBWR" not in os.environ and is_intel():
        found["MKL_CBWR"] = "AUTO,STRICT"
    return found


def is_intel() -> bool:
    """Whether the CPU is Intel's, as far as the system says."""
    if not CPUINFO.exists():
        return False
    with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("vendor_id") and "GenuineIntel" in line for line in lines)
