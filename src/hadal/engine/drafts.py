"""Guessing tokens ahead, so that one pass can check several: from the text itself.

A guess is only ever a guess: a token counts when it equals the one that is drawn at its place anyway, so what a
request gets is the same with and without.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens at the end of a text that are looked up in it."""


def look_up(tokens: Sequence[int], count: int) -> list[int]:
    """What followed the last tokens where they stood before, up to `count` tokens; the longest match counts, and of
    equals the latest (prompt lookup decoding)."""
    data = array("i", tokens).tobytes()
    width = array("i").itemsize
    for size in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
        tail = data[-size * width :]
        end = len(data) - width  # the tail itself is no match
        while (at := data.rfind(tail, 0, end)) >= 0:
            if at % width == 0:
                begin = at // width + size
                return list(tokens[begin : begin + count])
            end = at + len(tail) - 1
    return []
