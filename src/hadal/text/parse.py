"""Taking a response apart into thought and answer."""

from __future__ import annotations

from dataclasses import dataclass

from hadal.text.tokenizer import END_THINK, THINK


@dataclass(frozen=True)
class Parsed:
    """thought: None where there was none; closed: whether an opened thought was ended."""

    thought: str | None
    answer: str
    closed: bool


def parse_response(text: str) -> Parsed:
    """Split a finished or half-finished response at `<think>` and the last `</think>`."""
    opened = text.lstrip().startswith(THINK)
    head, mark, tail = text.rpartition(END_THINK)
    if mark:
        return Parsed(head.strip().removeprefix(THINK).strip(), tail.strip(), closed=True)
    if opened:
        return Parsed(text.strip().removeprefix(THINK).strip(), "", closed=False)
    return Parsed(None, text.strip(), closed=True)
