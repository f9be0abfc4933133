"""The vocabulary of a run, chosen from what its tasks say."""

from __future__ import annotations

from collections.abc import Sequence

from hadal.tasks.base import Task
from hadal.text.tokenizer import Tokenizer

LOOKED_AT = 400


def build_tokenizer(tasks: Sequence[Task], more: str = "") -> Tokenizer:
    """A tokenizer whose words are those that the tasks' training problems use again and again, and those of `more`."""
    texts = []
    for task in tasks:
        for i in range(LOOKED_AT):
            level = task.default_difficulty if i % 2 else min(task.gold_limit, task.difficulties[-1])
            problem = task.generate((8 << 32) + i, "train", level)
            texts.append(f"{problem.prompt}{problem.thought or ''} check {problem.answer}{more}")
    return Tokenizer.from_texts(texts)
