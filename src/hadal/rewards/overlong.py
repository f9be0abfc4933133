"""A soft punishment of responses that come near the limit (DAPO, arXiv 2503.14476, equation 13)."""

from __future__ import annotations

from dataclasses import dataclass

from hadal import rewards
from hadal.rewards import Answer


@dataclass(frozen=True)
class Options(rewards.Options):
    """How long it has to grow."""

    overlong_tokens: int = 32
    """The last tokens before the limit, over which the overlong penalty grows from 0 to -1."""


def overlong_penalty(tokens: int, max_tokens: int, buffer: int) -> float:
    """0 up to max_tokens - buffer, then falling in a line to -1 at max_tokens."""
    over = tokens - (max_tokens - buffer)
    return 0.0 if over <= 0 else -min(over / buffer, 1.0)


def reward(answer: Answer, options: Options) -> float:
    """From 0 down to -1."""
    return overlong_penalty(len(answer.token_ids), answer.max_tokens, options.overlong_tokens)
