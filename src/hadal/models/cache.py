"""What attention reads besides the tokens of a pass: a cache that decoding fills, or a prefix that rows share.

A sequence owns one contiguous run of columns, so attention reads a view and nothing is gathered. Prompts of
different lengths are aligned at their ends: `start[b]` counts the unused columns at the front of row b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hadal.ops.mask import Mask

Widths = tuple[tuple[int, int], ...]
"""(J, C) of each tensor that a layer keeps for a token, e.g. keys and values."""


class Columns:
    """Columns so far, and where the next ones stand: what every kind of cache has in common."""

    exact = False
    """Whether a token must get the same bits in passes of any length: no form is chosen by how many there are."""
    repeatable = False
    """Whether a layer may run twice over the same pass, as it does in the backward pass where it is checkpointed."""

    def __init__(self, start: Tensor) -> None:
        self.start = start
        self.length = 0

    def update(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Take in a layer's [B, J, T, C] tensors of this pass; return them with all columns before them."""
        raise NotImplementedError

    def attend(
        self, layer: int, form: Callable[..., Tensor], q_BTHK: Tensor, new: Sequence[Tensor], mask: Mask, group: int
    ) -> Tensor:
        """form(q, *columns, mask) [B, T, H * V] over a layer's columns, the `new` [B, J, T, C] ones among them.

        group: how many queries of a token share a key head. mask: what `mask` gave for this pass.
        """
        return form(q_BTHK, *self.update(layer, *new), mask)

    def advance(self, tokens: int) -> None:
        """Count the columns that every layer has now written."""
        self.length += tokens

    def positions(self, tokens: int) -> Tensor:
        """Positions [B, T] of the next `tokens` columns, 0 at each row's first real token."""
        columns = torch.arange(self.length, self.length + tokens, device=self.start.device)
        return (columns - self.start[:, None]).clamp_(min=0)

    def mask(self, tokens: int) -> Mask:
        """What the next `tokens` columns look at, of all columns up to them."""
        padded = tokens == 1 or bool(self.start.any())  # one token: a look at `start` would cost more than it saves
        return Mask(tokens, self.length + tokens, start=self.start if padded else None)


class SharedPrefix(Columns):
    """Prompts [P, S] that several rows continue, for training: each is computed once, gradients flow through."""

    repeatable = True

    def __init__(self, start: Tensor) -> None:
        super().__init__(start)
        self.layers: dict[int, tuple[Tensor, ...]] = {}

    def update(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        self.layers.setdefault(layer, new)  # what a second run makes has no way to the loss
        return new


class Continuations(Columns):
    """The rows that continue the prompts of a pass over a `SharedPrefix`: row b continues prompt `prompt_B[b]`."""

    repeatable = True

    def __init__(self, prefix: SharedPrefix, prompt_B: Tensor) -> None:
        super().__init__(prefix.start[prompt_B])
        self.length, self.layers, self.prompt_B = prefix.length, prefix.layers, prompt_B

    def update(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.cat([old.index_select(0, self.prompt_B), part], dim=2)
            for old, part in zip(self.layers[layer], new, strict=True)
        )


class Cache(Columns):
    """Per layer a tuple of tensors [B, J, capacity, C] of the widths that it asks for; they live where `start` does."""

    def __init__(self, widths: Sequence[Widths], start: Tensor, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(start)
        rows, where = len(start), start.device
        self.layers = [
            tuple(torch.empty(rows, heads, capacity, width, dtype=dtype, device=where) for heads, width in layer)
            for layer in widths
        ]

    def update(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        begin, end = self.length, self.length + new[0].shape[2]
        for kept, part in zip(self.layers[layer], new, strict=True):
            kept[:, :, begin:end] = part
        return tuple(kept[:, :, :end] for kept in self.layers[layer])
