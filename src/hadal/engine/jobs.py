"""What waits to be read, and what is being read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hadal.engine.lanes import Lane
from hadal.engine.prefix import PrefixStore
from hadal.engine.request import Request, Sequence


@dataclass
class Job:
    """Tokens to read for some sequences: a prompt for all its samples, or all that one put off had."""

    request: Request
    sequences: list[Sequence]
    tokens: list[int]
    resumed: bool = False

    @cached_property
    def keys(self) -> list[bytes]:
        """Of its full blocks in the prefix store."""
        return PrefixStore.keys(self.tokens, self.request.salt)


@dataclass
class Reading:
    """Jobs whose tokens are being read together."""

    jobs: list[Job]
    lane: Lane
    done: Tensor  # columns [P] that are read
    total: Tensor  # columns [P] to read
    last: Tensor  # hidden [P, D] of each row's last token, once read
    generation: int  # of the weights, when it began
    own: bool  # whether the lane is a run as its only sequence needs one, and it can go on there
