"""What libraries under torch read from the environment, once, when torch loads them: set here and nowhere else.

Threads that wait for their partners spin for a while before they sleep, which is bad beside another program
(`hadal.machine.spinning`). Where the scheduler tells how long threads wait for a CPU, GNU's OpenMP keeps its own limits
and is watched; elsewhere its limit is fixed, and so is that of others.

On Intel's CPUs MKL chooses among kernels with different orders of addition by how many rows a matrix has and by where
it lies in memory. Its reproducible mode has one order for all and is as fast (docs/log.md). On other CPUs MKL has other
kernels, which keep a row's bits from few rows on, and a run's bits are those of before.

What a user has set stays. Nothing that a process sets for itself can reach a torch that it has imported before.
"""

from __future__ import annotations

import os
from pathlib import Path

from hadal.machine import spinning

SPINS = 3000
"""Turns of GNU's OpenMP (in torch's wheels for Linux) before a waiting thread sleeps: about a tenth of a ms."""
BLOCKED = 1
"""The same for LLVM's and Intel's (in its wheels for macOS, and in conda's), in milliseconds; theirs is 200."""
CPUINFO = Path("/proc/cpuinfo")


def prepare() -> None:
    """Set what is not set. Before torch is imported; child processes inherit it."""
    for name, value in settings().items():
        os.environ.setdefault(name, value)
    if spinning.can_watch() and not _has("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        spinning.start()


def settings() -> dict[str, str]:
    """What `prepare` sets on this machine, in this environment."""
    found: dict[str, str] = {}
    if not _has("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") and not spinning.can_watch():
        found["GOMP_SPINCOUNT"] = str(SPINS)
    if not _has("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        found["KMP_BLOCKTIME"] = str(BLOCKED)
    if "MKL_CBWR" not in os.environ and is_intel():
        found["MKL_CBWR"] = "AUTO,STRICT"
    return found


def _has(*names: str) -> bool:
    return any(name in os.environ for name in names)


def is_intel() -> bool:
    """Whether the CPU is Intel's, as far as the system says."""
    if not CPUINFO.exists():
        return False
    with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("vendor_id") and "GenuineIntel" in line for line in lines)
