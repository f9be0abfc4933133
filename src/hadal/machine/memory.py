"""Memory: what this process holds, what the system still has, and what a container allows. No torch."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

UNKNOWN_PROCESS = 300_000_000
"""Bytes of Python with torch, where the system does not say how many it is."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may have (version 2)."""


def resident_memory() -> int:
    """Bytes of memory that this process holds now; a usual number where the system, as all but Linux, does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return UNKNOWN_PROCESS


def free_memory() -> int | None:
    """Bytes that new programs may take without swapping; None where the system, as all but Linux, does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def container_limit() -> int | None:
    """Bytes that a container is held to; None where there is none, or no limit."""
    try:
        return int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):  # `max`
        return None


def available_memory() -> int | None:
    """Bytes that this process may still take, by its container's limit as well; None where the system does not say."""
    free, limit = free_memory(), container_limit()
    found = [] if free is None else [free]
    try:
        if limit is not None:
            held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
            files = int(held["inactive_file"])  # read, and let go of when memory is asked for
            found.append(limit - int((CGROUP / "memory.current").read_text()) + files)
    except (OSError, ValueError, KeyError):
        pass
    if not found and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def peak_memory_bytes() -> int:
    """The most memory that this process held at once (resident, not virtual).

    Linux's VmHWM belongs to this program alone; ru_maxrss there also remembers the parent that
    it was forked from. ru_maxrss is in bytes on macOS and in KiB elsewhere.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
