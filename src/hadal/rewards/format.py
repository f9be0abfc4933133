"""The form of a response: a thought, then an answer."""

from __future__ import annotations

from hadal.rewards import Answer, Options
from hadal.text.tokenizer import END_THINK, THINK


def format_reward(text: str) -> float:
    """1 for `<think>`, a thought, `</think>`, an answer, each once and not empty; else 0 (R1's format reward)."""
    opening, thought, answer = "", "", ""
    if text.count(THINK) == 1 and text.count(END_THINK) == 1:
        opening, _, rest = text.partition(THINK)
        thought, _, answer = rest.partition(END_THINK)
    return float(not opening.strip() and bool(thought.strip()) and bool(answer.strip()))


def reward(answer: Answer, options: Options) -> float:
    """1 or 0."""
    return format_reward(answer.text)


__all__ = ["Options", "format_reward", "reward"]
