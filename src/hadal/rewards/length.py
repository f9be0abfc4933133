"""A reward for being shorter than the other responses to the problem (Kimi k1.5, arXiv 2501.12599, section 2.3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from hadal.rewards import Answer, Options


def length_rewards(tokens: Sequence[int], right: Sequence[bool]) -> list[float]:
    """From 0.5 for the shortest of a group to -0.5 for the longest; a wrong response earns at most 0, and a group of
    equal lengths nothing."""
    shortest, longest = min(tokens), max(tokens)
    if shortest == longest:
        return [0.0] * len(tokens)
    shares = [0.5 - (n - shortest) / (longest - shortest) for n in tokens]
    return [share if good else min(0.0, share) for share, good in zip(shares, right, strict=True)]


def compare(answers: Sequence[Answer], options: Options) -> list[float]:
    """From 0.5 to -0.5 each."""
    return length_rewards([len(a.token_ids) for a in answers], [a.verdict.right for a in answers])


__all__ = ["Options", "compare", "length_rewards"]
