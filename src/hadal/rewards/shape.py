"""Rewards for the shape of a response: its form, its length, its repetitions."""

from __future__ import annotations

from collections.abc import Sequence

from hadal.text.tokenizer import END_THINK, THINK


def format_reward(text: str) -> float:
    """1 for `<think>`, a thought, `</think>`, an answer, each once and not empty; else 0 (R1's format reward)."""
    opening, thought, answer = "", "", ""
    if text.count(THINK) == 1 and text.count(END_THINK) == 1:
        opening, _, rest = text.partition(THINK)
        thought, _, answer = rest.partition(END_THINK)
    return float(not opening.strip() and bool(thought.strip()) and bool(answer.strip()))


def overlong_penalty(tokens: int, max_tokens: int, buffer: int) -> float:
    """0 up to max_tokens - buffer, then falling in a line to -1 at max_tokens (DAPO, arXiv 2503.14476, equation 13)."""
    over = tokens - (max_tokens - buffer)
    return 0.0 if over <= 0 else -min(over / buffer, 1.0)


def length_rewards(tokens: Sequence[int], right: Sequence[bool]) -> list[float]:
    """From 0.5 for the shortest of a group to -0.5 for the longest; a wrong response earns at most 0, and a group of
    equal lengths nothing (Kimi k1.5, arXiv 2501.12599, section 2.3.3)."""
    shortest, longest = min(tokens), max(tokens)
    if shortest == longest:
        return [0.0] * len(tokens)
    shares = [0.5 - (n - shortest) / (longest - shortest) for n in tokens]
    return [share if good else min(0.0, share) for share, good in zip(shares, right, strict=True)]


def repetition_penalty(token_ids: Sequence[int], n: int) -> float:
    """Minus the share of the n-grams of tokens that came before: 0 where none comes twice, near -1 in a loop."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return len(set(grams)) / len(grams) - 1 if grams else 0.0
