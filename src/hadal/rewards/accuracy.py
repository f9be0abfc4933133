"""Accuracy: the task's verdict, whatever stands behind it."""

from __future__ import annotations

from hadal.rewards import Answer, Options


def reward(answer: Answer, options: Options) -> float:
    """1 for a right answer, else 0; what a scorer of the user's own gives in between."""
    return answer.verdict.total


__all__ = ["Options", "reward"]
