"""What passes from the scheduler to the runner, and from it to the outputs: prompts, running sequences, logits."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hadal.engine.kv.buckets import Bucket
from hadal.engine.kv.prefix import PrefixCache
from hadal.engine.request import Request, Sequence


@dataclass
class Job:
    """Tokens to prefill for some sequences: a prompt for all its samples, or all that one had when it was preempted."""

    request: Request
    sequences: list[Sequence]
    tokens: list[int]
    resumed: bool = False

    @cached_property
    def keys(self) -> list[bytes]:
        """Of its full blocks in the prefix cache."""
        return PrefixCache.keys(self.tokens, self.request.salt)


@dataclass
class Prefill:
    """Jobs whose tokens are read together, in chunks, in a bucket of their own."""

    jobs: list[Job]
    bucket: Bucket
    done: Tensor  # tokens [P] that are read
    total: Tensor  # tokens [P] to read
    last: Tensor  # hidden [P, D] of each row's last token, once read
    generation: int  # of the weights, when it began
    in_place: bool  # whether the bucket has the size that its only sequence needs, and it can decode there


@dataclass(frozen=True)
class Decode:
    """All running sequences, for one token more of each."""

    buckets: List[Bucket]
    slots: Tensor  # slots [N], bucket by bucket


@dataclass(frozen=True)
class Computed:
    """What a forward pass gives N sequences, each for its last token and the T - 1 draft tokens behind it."""

    slots: Tensor  # slots [N]
    begin: Tensor  # tokens [N] that each had in the cache before these
    drafts: Tensor  # tokens [N, T - 1], -1 for none
    hidden: Tensor  # hidden [N, T, D]
    logits: Tensor  # logits [N, T, V]; rows behind them are padding
