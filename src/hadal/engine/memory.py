"""How much memory the cache may take."""

from __future__ import annotations

from hadal.machine.memory import available_memory, free_memory
from hadal.models.decoder import Decoder

SHARE = 0.5
"""Of the memory that is free when the engine starts: the rest is for activations, and for other programs."""
UNKNOWN = 1 << 31
"""Bytes that are taken to be free where the system tells nothing."""
WIDEST = 20_000_000
"""Bytes of one activation of a pass on a CPU. Of more, the C library takes fresh memory from the system each time, and
its pages cost a tenth of the pass; the caches are too small for it anyway."""
LEAST = 256
"""Tokens of a pass that keep matrix products busy."""


def chunk_size(most: int, model: Decoder) -> int:
    """Tokens of prompts that a pass takes: `most`, or on a CPU as many as leave its widest activation small."""
    if model.device.type != "cpu":
        return most
    return min(most, max(WIDEST // (2 * model.config.intermediate_size * model.dtype.itemsize), LEAST))


def cache_budget(wanted: int | None) -> int:
    """Bytes for the cache: what was asked for, or a share of what is free, by a container's limit as well."""
    if wanted is not None:
        return wanted
    free = available_memory() or UNKNOWN
    if free_memory() is None:  # all that the machine has, of which other programs hold some
        free //= 2
    return int(free * SHARE)
