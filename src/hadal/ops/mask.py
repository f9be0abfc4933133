"""Which columns the queries of a pass look at, described: attention builds of it what it multiplies, block by block.

Axes: B rows, T queries, S columns, P columns that are chosen for a query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

X = TypeVar("X")

WHOLE = 1 << 22
"""Numbers of a mask that is built once for all layers of a pass; of a larger one each layer builds what it needs."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Each of T queries looks at its own one of S columns and at all before it, where nothing more is said.

    tokens, columns: T and S. at [B, T]: the column that each query stands at, S - T + t at most; None: just that.
    start [B]: columns in front that are unused; a query that stands in one looks at itself, so that its softmax is
    defined. documents [B, T]: of T queries over as many columns, what each belongs to: queries stay in their own.
    window: how many columns a query looks at at most, itself included; 0: all. index [B, T, P]: the columns that each
    query looks at, as far as the rest allows; it must allow one.
    """

    tokens: int
    columns: int
    at: Tensor | None = None
    start: Tensor | None = None
    documents: Tensor | None = None
    window: int = 0
    index: Tensor | None = None
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def rows(self) -> int:
        """B, or 0 where all rows look alike."""
        return next((len(x) for x in (self.at, self.start, self.documents, self.index) if x is not None), 0)

    @property
    def is_causal(self) -> bool:
        """Whether nothing is said but that a query does not look ahead."""
        return not self.rows and not self.window

    def within(self, window: int) -> Mask:
        """The same for a layer whose queries look at so many columns at most; 0: at all."""
        if not 0 < window < self.columns:
            return self
        return self._once(("within", window), lambda: replace(self, window=window))

    def choosing(self, index_BTP: Tensor) -> Mask:
        """The same where queries look at the columns of an index alone."""
        return replace(self, index=index_BTP)

    def beside(self, more: int) -> Mask:
        """The same with so many rows more, which look where the first does."""
        if not self.rows:
            return self

        def longer(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.cat([x, x[:1].expand(more, *x.shape[1:])])

        def made() -> Mask:
            at, start, documents = longer(self.at), longer(self.start), longer(self.documents)
            return replace(self, at=at, start=start, documents=documents, index=longer(self.index))

        return self._once(("beside", more), made)

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """The columns, from the first to behind the last, among which are all that queries begin:end look at."""
        last = self.columns - self.tokens + end
        if not self.window or self.at is not None:
            return 0, last
        return max(self.columns - self.tokens + begin - self.window + 1, 0), last

    def bias(
        self, like: Tensor, begin: int = 0, end: int | None = None, first: int = 0, last: int | None = None
    ) -> Tensor:
        """What is added to scores of queries begin:end over columns first:last: 0 where they look and -inf where not.

        [t, s], or [B, t, s] where rows differ, in the dtype and on the device of `like`.
        """
        T, S = self.tokens, self.columns
        end, last = T if end is None else end, S if last is None else last
        if max(self.rows, 1) * T * S > WHOLE:
            return self._build(like, begin, end, first, last)
        whole = self._once(("bias", like.dtype), lambda: self._build(like, 0, T, 0, S))
        return whole if (begin, end, first, last) == (0, T, 0, S) else whole[..., begin:end, first:last]

    def _build(self, like: Tensor, begin: int, end: int, first: int, last: int) -> Tensor:
        column = torch.arange(first, last, device=like.device)
        if self.at is None:
            offset = self.columns - self.tokens
            query = torch.arange(offset + begin, offset + end, device=like.device)[:, None]
        else:
            query = self.at[:, begin:end, None]
        hidden = column > query
        if self.window:
            hidden = hidden | (column <= query - self.window)
        if self.start is not None:
            hidden = (hidden | (column < self.start[:, None, None])) & (column != query)
        if self.documents is not None:
            hidden = hidden | (self.documents[:, begin:end, None] != self.documents[:, None, first:last])
        if self.index is not None:
            chosen = self.index[:, begin:end]
            missing = torch.ones(*chosen.shape[:2], self.columns, dtype=torch.bool, device=like.device)
            hidden = hidden | missing.scatter_(2, chosen, False)[..., first:last]
        return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)

    def _once(self, key: Any, make: Callable[[], X]) -> X:
        """What was made for a key before: all layers of a pass ask for the same."""
        if key not in self._made:
            self._made[key] = make()
        made: X = self._made[key]
        return made
