"""The share of a program's tests that pass."""

from __future__ import annotations

from hadal.rewards import Answer, Options


def reward(answer: Answer, options: Options) -> float:
    """From 0 to 1, of those tests that the prompt does not show; where a task has none, 1 for a right answer."""
    return 1.0 if answer.verdict.right else answer.task.tests_passed(answer.problem, answer.text)


__all__ = ["Options", "reward"]
