"""A punishment of responses that go round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hadal import rewards
from hadal.rewards import Answer


@dataclass(frozen=True)
class Options(rewards.Options):
    """What is looked for."""

    repetition_ngram: int = 8
    """Tokens of a piece that counts as repeated when it comes again."""


def repetition_penalty(token_ids: Sequence[int], n: int) -> float:
    """Minus the share of the n-grams of tokens that came before: 0 where none comes twice, near -1 in a loop."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def reward(answer: Answer, options: Options) -> float:
    """From 0 down to nearly -1."""
    return repetition_penalty(answer.token_ids, options.repetition_ngram)
