"""How much memory the cache may take."""

from __future__ import annotations

import os

from hadal.cost.memory import free_memory

SHARE = 0.5
"""Of the memory that is free when the engine starts: the rest is for activations, and for other programs."""


def free_bytes() -> int:
    """Memory that programs can still have, in bytes."""
    free = free_memory()
    if free is not None:
        return free
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cache_budget(wanted: int | None) -> int:
    """Bytes for the cache: what was asked for, or a share of what is free."""
    return int(free_bytes() * SHARE) if wanted is None else wanted
