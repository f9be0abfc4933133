"""Who holds how much of the cache: the lanes of running sequences, what is being read, and kept prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hadal.engine.lanes import STEP, Lane, run_size
from hadal.engine.prefix import PrefixStore
from hadal.models.cache import Widths

PADDING = 8
"""Tokens of a row in a pass over prompts come in multiples of this, so that no pass has few rows."""

PARTS = 8
"""Parts at most in which sequences move to longer runs: each copies what is left of their lane."""


def reading_size(tokens: int) -> int:
    """Columns for reading so many tokens, with the padding of the last pass."""
    return -(-tokens // PADDING) * PADDING + PADDING


class Runs:
    """The lanes by the size of their runs, and the prefix store, inside a budget of columns.

    overhang: columns behind a sequence's last token that a pass may write to.
    """

    def __init__(self, budget: int, overhang: int, widths: Sequence[Widths], like: Tensor) -> None:
        self.budget, self.overhang = budget, overhang
        self.most = budget // STEP * STEP
        """The longest run: all that there is."""
        self.widths, self.like = widths, like
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
        lanes = [*self.lanes.values(), *([self.reading] if self.reading is not None else [])]
        return sum(lane.rows * lane.size for lane in lanes)

    def longest(self) -> int:
        """The most columns that a sequence can come to with nothing else there."""
        return self.most - self.overhang

    def size(self, columns: int) -> int:
        """The size of a run for so many columns, which are not more than there are."""
        return min(run_size(columns), self.most)

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
        return Lane(size, self.widths, self.like)

    def is_free(self, size: int) -> bool:
        """Whether nobody runs in the lane of that size, so that another can take its place."""
        return size not in self.lanes or len(self.lanes[size]) == 0

    def adopt(self, lane: Lane, slots: Tensor, columns: int) -> None:
        """Let a sequence go on in the lane that its prompt was read in, where that size is free."""
        for part in lane.parts:
            part[:, :, :, columns : lane.ready] = 0  # what the last pass was padded with
        lane.slots = slots
        self.lanes[lane.size] = lane

    def lane(self, size: int) -> Lane:
        """The lane of runs of a size."""
        if size not in self.lanes:
            self.lanes[size] = self.new_lane(size)
        return self.lanes[size]

    def reserve(self, lane: Lane, more: int) -> None:
        """Have memory for so many rows more, which fit the budget.

        A lane that has rows gets some to spare where much of the budget is free: it is copied each time it gets more,
        and sequences come to it a few at a time.
        """
        rows = len(lane) + more
        if rows > lane.rows:
            free = self.budget - self.used() - (rows - lane.rows) * lane.size - self.store.columns
            lane.resize(rows + max(min(len(lane) // 2, free // (2 * lane.size)), 0))

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
        """Move sequences that have filled their runs to longer ones; False where there is no room for all of them.

        They move in parts where both runs of all of them do not fit at once: what has moved makes room for the next.
        """
        for lane in self.busy():
            while count := int((full := length[lane.slots] + self.overhang > lane.size).sum()):
                wider = self.lane(self.size(lane.size + self.overhang))
                moving = self._fitting(wider, count)
                if moving < max(count // PARTS, 1):
                    return False
                rows = full.nonzero()[:moving, 0]
                leaving = torch.zeros_like(full)
                leaving[rows] = True
                self.reserve(wider, moving)
                wider.join(lane.slots[rows], lane, rows, lane.size)
                lane.leave(leaving, lane.size)
            if len(lane) == 0:
                lane.resize(0)
        return True

    def _fitting(self, lane: Lane, rows: int) -> int:
        """How many of so many more rows a lane can have, after spare rows elsewhere and kept prefixes were given up."""
        spare = lane.rows - len(lane)
        if rows <= spare or self.make_room((rows - spare) * lane.size):
            return rows
        more = max(self.budget - self.used(), 0) // lane.size  # spare rows are given back now, the lane's own as well
        self.make_room(more * lane.size)
        return more

    def slots(self) -> Tensor:
        """The slots of all sequences that have a run, lane by lane."""
        return torch.cat([lane.slots for lane in self.busy()])
