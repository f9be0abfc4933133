"""Who holds how much of the cache: the lanes of running sequences, what is being read, and kept prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hadal.engine.lanes import STEP, Lane, run_size
from hadal.engine.prefix import PrefixStore

PADDING = 8
"""Tokens of a row in a pass over prompts come in multiples of this, so that no pass has few rows."""


def reading_size(tokens: int) -> int:
    """Columns for reading so many tokens, with the padding of the last pass."""
    return -(-tokens // PADDING) * PADDING + PADDING


class Runs:
    """The lanes by the size of their runs, and the prefix store, inside a budget of columns.

    overhang: columns behind a sequence's last token that a pass may write to.
    """

    def __init__(
        self, budget: int, overhang: int, layers: int, widths: Sequence[tuple[int, int]], like: Tensor
    ) -> None:
        self.budget, self.overhang = budget, overhang
        self.layers, self.widths, self.like = layers, widths, like
        self.lanes: dict[int, Lane] = {}
        self.store = PrefixStore()
        self.reading: Lane | None = None
        """Where prompts are being read."""

    @property
    def running(self) -> int:
        """Sequences that have a run."""
        return sum(len(lane) for lane in self.lanes.values())

    def used(self) -> int:
        """Columns that runs and prompts under way take; kept prefixes come on top and make way."""
        lanes = [*self.lanes.values(), *([self.reading] if self.reading else [])]
        return sum(lane.rows * lane.size for lane in lanes)

    def longest(self) -> int:
        """The longest sequence that can be read again, and moved to its last run, with nothing else there."""
        best, size, smaller = 0, STEP, 0
        while size <= self.budget:
            if size + smaller <= self.budget:
                best = max(best, min(size - self.overhang, self.budget - size - 2 * PADDING))
            size, smaller = run_size(size + 1), size
        return best

    def make_room(self, columns: int) -> bool:
        """Give back spare rows and drop kept prefixes until so many columns are free; whether they are."""
        free = self.budget - self.used() - columns
        if free < 0:
            for lane in self.lanes.values():
                lane.resize(len(lane))
            free = self.budget - self.used() - columns
        self.store.shrink(free)
        return free >= 0

    def new_lane(self, size: int) -> Lane:
        """An empty lane that nobody knows of yet."""
        return Lane(size, self.layers, self.widths, self.like)

    def lane(self, size: int) -> Lane:
        """The lane of runs of a size."""
        if size not in self.lanes:
            self.lanes[size] = self.new_lane(size)
        return self.lanes[size]

    def busy(self) -> list[Lane]:
        """Lanes with sequences, shortest runs first."""
        return [lane for _, lane in sorted(self.lanes.items()) if len(lane)]

    def drop(self, leaving: Tensor, length: Tensor) -> None:
        """Take the runs of sequences away, by a mask over slots; length: columns of each slot."""
        for lane in self.busy():
            gone = leaving[lane.slots]
            if bool(gone.any()):
                lane.leave(gone, int(length[lane.slots].max()))
                if len(lane) == 0:
                    lane.resize(0)

    def drop_one(self, slot: int, length: Tensor) -> None:
        """Take one sequence's run away, if it has one."""
        leaving = torch.zeros(len(length), dtype=torch.bool, device=length.device)
        leaving[slot] = True
        self.drop(leaving, length)

    def grow(self, length: Tensor) -> bool:
        """Move sequences that have filled their runs to longer ones; False where there is no room for all of them."""
        for lane in self.busy():
            full = length[lane.slots] + self.overhang > lane.size
            count = int(full.sum())
            if count == 0:
                continue
            wider = self.lane(run_size(lane.size + self.overhang))
            if not self.make_room(max(len(wider) + count - wider.rows, 0) * wider.size):
                return False
            rows = full.nonzero()[:, 0]
            wider.reserve(len(wider) + count)
            wider.join(lane.slots[rows], lane, rows, lane.size)
            lane.leave(full, lane.size)
            if len(lane) == 0:
                lane.resize(0)
        return True

    def slots(self) -> Tensor:
        """The slots of all sequences that have a run, lane by lane."""
        return torch.cat([lane.slots for lane in self.busy()])
