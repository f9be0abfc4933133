"""The cache that decoding writes and attention reads.

A sequence owns one contiguous run of columns, so attention reads a view and nothing is gathered. Prompts of
different lengths are aligned at their ends: `start[b]` counts the unused columns at the front of row b.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Per layer a tuple of tensors [B, J, capacity, C]; which ones is the architecture's business.

    widths: (J, C) of each tensor that a layer keeps for a token, e.g. keys and values.
    """

    def __init__(
        self, layers: int, widths: list[tuple[int, int]], start: Tensor, capacity: int, dtype: torch.dtype
    ) -> None:
        rows = len(start)
        self.start = start
        self.capacity = capacity
        self.length = 0
        self.layers = [
            tuple(torch.empty(rows, heads, capacity, width, dtype=dtype) for heads, width in widths)
            for _ in range(layers)
        ]

    def update(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Write [B, J, T, C] tensors behind what is there; return views of all columns so far."""
        begin, end = self.length, self.length + new[0].shape[2]
        for kept, part in zip(self.layers[layer], new, strict=True):
            kept[:, :, begin:end] = part
        return tuple(kept[:, :, :end] for kept in self.layers[layer])

    def advance(self, tokens: int) -> None:
        """Count the columns that every layer has now written."""
        self.length += tokens

    def positions(self, tokens: int) -> Tensor:
        """Positions [B, T] of the next `tokens` columns, 0 at each row's first real token."""
        columns = torch.arange(self.length, self.length + tokens)
        return (columns - self.start[:, None]).clamp_(min=0)

    def bias(self, tokens: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [B, T, S] for the next `tokens` columns over all columns up to them."""
        end = self.length + tokens
        column = torch.arange(end)
        query = torch.arange(self.length, end)[:, None]
        seen = (column <= query) & (column >= self.start[:, None, None])
        seen |= column == query  # an unused column looks at itself, so that its softmax is defined
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows, in their order."""
        self.start = self.start[rows]
        self.layers = [tuple(kept[rows] for kept in layer) for layer in self.layers]

    def grow(self, capacity: int) -> None:
        """Make room for more columns."""
        if capacity <= self.capacity:
            return

        def wider(kept: Tensor) -> Tensor:
            rows, heads, _, width = kept.shape
            room = kept.new_empty(rows, heads, capacity, width)
            room[:, :, : self.length] = kept[:, :, : self.length]
            return room

        self.layers = [tuple(wider(kept) for kept in layer) for layer in self.layers]
        self.capacity = capacity
