"""From which sizes on a matrix product gives a row the same bits, whatever rows stand beside it.

Libraries choose another algorithm for few rows, and threads share rows out, so a request's tokens could depend on
what else is in its batch. For every size there is a somewhat larger one where that does not happen: it is found by
trying, once for each thread count, and rows are padded to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 4
"""Fewest queries of a key head, and the size of every group of an expert, that batched products treat alike."""
COLUMNS = 16
"""Fewest columns of attention over which sums have one order."""
SUMMED = 128
"""Columns of attention that are added up in one product."""
LANES = 32
"""Elements that torch's loops take at once, or a multiple of that."""
_TRIED = 64
_SHAPES = ((128, 96), (896, 256))


@cache
def _stable(threads: int) -> tuple[int, ...]:
    """For 0 to `_TRIED` rows, how many must be computed."""
    generator = torch.Generator().manual_seed(0)
    good = [True] * (_TRIED + 1)
    for inputs, outputs in _SHAPES:
        weight = torch.randn(outputs, inputs, generator=generator)
        x = torch.randn(8 * _TRIED, inputs, generator=generator)
        whole = F.linear(x, weight)
        for n in range(1, _TRIED + 1):
            good[n] = good[n] and torch.equal(F.linear(x[3 : 3 + n], weight), whole[3 : 3 + n])
    sizes, size = [0] * (_TRIED + 1), _TRIED
    for n in range(_TRIED, 0, -1):
        size = n if good[n] else size
        sizes[n] = size
    return tuple(sizes)


def stable_rows(n: int) -> int:
    """The least number of rows, n or more, at which a linear layer gives each row the bits it always gets."""
    return _stable(torch.get_num_threads())[n] if n < _TRIED else n


def sigmoid(x_E: Tensor) -> Tensor:
    """The logistic function, of an element the same bits wherever it stands.

    torch takes many elements at once and the last few one by one, with another exponential: where results must be
    exact, rows are padded to a length that leaves none over.
    """
    over = -x_E.shape[-1] % LANES
    if not is_exact() or not over:
        return x_E.sigmoid()
    return F.pad(x_E, (0, over)).sigmoid()[..., : x_E.shape[-1]]


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
