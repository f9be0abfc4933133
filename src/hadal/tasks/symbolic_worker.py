"""What a worker process of `hadal.tasks.symbolic` runs. Loading it loads math-verify, before any deadline counts."""

from __future__ import annotations

import math_verify  # noqa: F401

from hadal.tasks.answers import check


def compare(gold: str, answer: str, percent: bool) -> tuple[bool, str]:
    """`check`, as what JSON can carry."""
    verdict = check(gold, answer, percent)
    return verdict.right, verdict.note
