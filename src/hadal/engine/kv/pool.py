"""Who holds how much of the KV cache: running sequences, prompts in prefill, and the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hadal.engine.kv.buckets import STEP, Bucket, bucket_size
from hadal.engine.kv.prefix import PrefixCache
from hadal.models.cache import Widths

PADDING = 8
"""Tokens of a row in a pass over prompts come in multiples of this, so that no pass has few rows."""

PARTS = 8
"""Parts at most in which sequences move to longer rows: each copies what is left of their bucket."""


def prefill_size(tokens: int) -> int:
    """What the prefill of so many tokens takes in a row, with the padding of the last pass."""
    return -(-tokens // PADDING) * PADDING + PADDING


class Pool:
    """The buckets by the size of their rows, and the prefix cache, inside a budget of tokens.

    lookahead: places behind a sequence's last token that a pass may write to.
    """

    def __init__(self, budget: int, lookahead: int, widths: Sequence[Widths], like: Tensor) -> None:
        self.budget, self.lookahead = budget, lookahead
        self.most = budget // STEP * STEP
        """The longest row: all that there is."""
        self.widths, self.like = widths, like
        self.buckets: dict[int, Bucket] = {}
        self.prefix = PrefixCache()
        self.prefill: Bucket | None = None
        """Where prompts are being read."""

    @property
    def running(self) -> int:
        """Sequences that have a row."""
        return sum(len(bucket) for bucket in self.buckets.values())

    def used(self) -> int:
        """Tokens that rows and prompts in prefill take; the prefix cache comes on top and makes way."""
        buckets = [*self.buckets.values(), *([self.prefill] if self.prefill is not None else [])]
        return sum(bucket.rows * bucket.size for bucket in buckets)

    def longest(self) -> int:
        """The most tokens that a sequence can come to with nothing else there."""
        return self.most - self.lookahead

    def size(self, tokens: int) -> int:
        """The size of a row for so many tokens, which are not more than there are."""
        return min(bucket_size(tokens), self.most)

    def reclaim(self, tokens: int) -> bool:
        """Give back spare rows and evict kept prefixes until so many tokens are free; whether they are."""
        free = self.budget - self.used() - tokens
        if free < 0:
            for bucket in self.buckets.values():
                bucket.resize(len(bucket))
            free = self.budget - self.used() - tokens
        self.prefix.evict(free)
        return free >= 0

    def new_bucket(self, size: int) -> Bucket:
        """An empty bucket, not in the pool yet."""
        return Bucket(size, self.widths, self.like)

    def is_idle(self, size: int) -> bool:
        """Whether the bucket of that size has no sequence, so that another can take its place."""
        return size not in self.buckets or len(self.buckets[size]) == 0

    def adopt(self, bucket: Bucket, slots: Tensor, tokens: int) -> None:
        """Let a sequence decode where its prompt was read, in place of an idle bucket of that size."""
        for part in bucket.parts:
            part[:, :, :, tokens : bucket.ready] = 0  # what the last pass was padded with
        bucket.slots = slots
        self.buckets[bucket.size] = bucket

    def bucket(self, size: int) -> Bucket:
        """The bucket whose rows have this size."""
        if size not in self.buckets:
            self.buckets[size] = self.new_bucket(size)
        return self.buckets[size]

    def reserve(self, bucket: Bucket, more: int) -> None:
        """Have memory for so many rows more, which fit the budget.

        A bucket that has rows gets some to spare where much of the budget is free: it is copied each time it gets more,
        and sequences come to it a few at a time.
        """
        rows = len(bucket) + more
        if rows > bucket.rows:
            free = self.budget - self.used() - (rows - bucket.rows) * bucket.size - self.prefix.tokens
            bucket.resize(rows + max(min(len(bucket) // 2, free // (2 * bucket.size)), 0))

    def busy(self) -> list[Bucket]:
        """Buckets with sequences, shortest rows first."""
        return [bucket for _, bucket in sorted(self.buckets.items()) if len(bucket)]

    def drop(self, leaving: Tensor, length: Tensor) -> None:
        """Take the rows of sequences away, by a mask over slots; length: tokens of each slot."""
        for bucket in self.busy():
            gone = leaving[bucket.slots]
            if bool(gone.any()):
                bucket.leave(gone, int(length[bucket.slots].max()))
                if len(bucket) == 0:
                    bucket.resize(0)

    def drop_one(self, slot: int, length: Tensor) -> None:
        """Take one sequence's row away, if it has one."""
        leaving = torch.zeros(len(length), dtype=torch.bool, device=length.device)
        leaving[slot] = True
        self.drop(leaving, length)

    def grow(self, length: Tensor) -> bool:
        """Move sequences that have filled their rows to longer ones; False where there is not memory for all of them.

        They move in parts where both rows of all of them do not fit at once: what has moved frees memory for the next.
        """
        for bucket in self.busy():
            while count := int((full := length[bucket.slots] + self.lookahead > bucket.size).sum()):
                wider = self.bucket(self.size(bucket.size + self.lookahead))
                moving = self._fitting(wider, count)
                if moving < max(count // PARTS, 1):
                    return False
                rows = full.nonzero()[:moving, 0]
                leaving = torch.zeros_like(full)
                leaving[rows] = True
                self.reserve(wider, moving)
                wider.join(bucket.slots[rows], bucket, rows, bucket.size)
                bucket.leave(leaving, bucket.size)
            if len(bucket) == 0:
                bucket.resize(0)
        return True

    def _fitting(self, bucket: Bucket, rows: int) -> int:
        """How many of so many more rows a bucket can have, once spare rows elsewhere and kept prefixes are given up."""
        spare = bucket.rows - len(bucket)
        if rows <= spare or self.reclaim((rows - spare) * bucket.size):
            return rows
        # Spare rows are given back now, the bucket's own as well.
        more = max(self.budget - self.used(), 0) // bucket.size
        self.reclaim(more * bucket.size)
        return more

    def slots(self) -> Tensor:
        """The slots of all sequences that have a row, bucket by bucket."""
        return torch.cat([bucket.slots for bucket in self.busy()])
