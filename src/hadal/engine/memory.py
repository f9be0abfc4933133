"""How much memory the cache may take."""

from __future__ import annotations

from hadal.cost.memory import available_memory, free_memory

SHARE = 0.5
"""Of the memory that is free when the engine starts: the rest is for activations, and for other programs."""
UNKNOWN = 1 << 31
"""Bytes that are taken to be free where the system tells nothing."""


def cache_budget(wanted: int | None) -> int:
    """Bytes for the cache: what was asked for, or a share of what is free, by a container's limit as well."""
    if wanted is not None:
        return wanted
    free = available_memory() or UNKNOWN
    if free_memory() is None:  # all that the machine has, of which other programs hold some
        free //= 2
    return int(free * SHARE)
