"""What passes from the scheduler to the runner, and from it to the outputs: prompts, running sequences, logits."""

from __future__ import annotations

from collections.abc import Sequence as List
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


@dataclass(frozen=True)
class Decode:
    """All running sequences, for one token more of each."""

    lanes: List[Lane]
    slots: Tensor  # slots [N], lane by lane


@dataclass(frozen=True)
class Computed:
    """What a pass gives N sequences, of which each had its last token read and T - 1 that were guessed behind it."""

    slots: Tensor  # slots [N]
    begin: Tensor  # columns [N] that each had before these tokens
    guessed: Tensor  # tokens [N, T - 1], -1 for none
    hidden: Tensor  # hidden [N, T, D]
    logits: Tensor  # logits [N, T, V]; rows behind them are padding
