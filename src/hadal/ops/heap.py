"""Memory that is free and that the C library keeps."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Have the C library hand freed memory back to the system, where it keeps it and can be told (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
