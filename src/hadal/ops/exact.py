"""From which sizes on a matrix product gives a row the same bits, whatever rows stand beside it.

Libraries choose another algorithm for few rows, and threads share rows out, so a request's tokens could depend on
what else is in its batch. For every size there is a somewhat larger one where that does not happen: it is found by
trying (`hadal.ops.linear`), once for each shape and thread count, and rows are padded to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hadal.ops.linear import FORMS, rows_alike, usual_counts

QUERIES = 4
"""Fewest queries of a key head, and the size of every group of an expert, that batched products treat alike."""
COLUMNS = 16
"""Fewest columns of attention over which sums have one order."""
SUMMED = 128
"""Columns of attention that are added up in one product."""
VECTOR = 16
"""Rows that make a number of elements which fills torch's vectors, whatever the width."""
UNDIVIDED = 32768
"""Elements up to which torch leaves an elementwise function to one thread."""


def stable_rows(n: int, dtype: torch.dtype = torch.float32, *shapes: tuple[int, ...]) -> int:
    """The least number of rows, n or more, at which linear layers give each row the bits it always gets.

    shapes: [O, K] of their matrices; without any, what holds for small ones.
    """
    form = f"{dtype}:plain".removeprefix("torch.")
    if form not in FORMS:
        return n
    if shapes:
        return rows_alike(tuple((form, O, K) for O, K in shapes), n)
    counts = usual_counts(form, torch.get_num_threads())
    return counts[n] if n < len(counts) else n


def padded_rows(rows: int, tokens: int, stable: Callable[[int], int] = stable_rows) -> int:
    """The least number of rows, of so many tokens each, whose tokens are as many as `stable` leaves as they are."""
    while stable(rows * tokens) != rows * tokens:
        rows += 1
    return rows


_exact: ContextVar[bool] = ContextVar("exact", default=False)


def is_exact() -> bool:
    """Whether rows must get the same bits in any company: operators that group rows themselves then pad the groups."""
    return _exact.get()


@contextmanager
def exactly(wanted: bool) -> Iterator[None]:
    """Set `is_exact` for a while."""
    token = _exact.set(wanted)
    try:
        yield
    finally:
        _exact.reset(token)


def linear_rows(x_NK: Tensor, weight_OK: Tensor) -> Tensor:
    """F.linear(x, weight); where results must be exact, rows do not depend on how many there are."""
    N = len(x_NK)
    lacking = stable_rows(N, x_NK.dtype, weight_OK.shape) - N if is_exact() else 0
    return F.linear(F.pad(x_NK, (0, 0, 0, lacking)), weight_OK)[:N] if lacking else F.linear(x_NK, weight_OK)


def sigmoid_rows(x_NE: Tensor) -> Tensor:
    """The logistic function; where results must be exact, of an element the same bits wherever it stands.

    torch computes what is left of a tensor after its last full vectors with another exponential: here nothing is left.
    Longer tensors it divides among threads, wherever that falls, so they are cut into pieces that it does not divide.
    """
    if not is_exact():
        return x_NE.sigmoid()
    pieces = x_NE.split(max(VECTOR, UNDIVIDED // x_NE.shape[1] // VECTOR * VECTOR))
    return torch.cat([F.pad(x, (0, 0, 0, -len(x) % VECTOR)).sigmoid_()[: len(x)] for x in pieces])
