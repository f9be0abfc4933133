"""What a worker process of a `UserTask` runs: the scorer of the user's own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hadal.tasks.base import Problem
from hadal.tasks.user import as_score, load_module, where


def scorer(file: str) -> Callable[[list[Any], str], tuple[float, str]]:
    """The file's `score`, from a problem's fields and an answer to its score, and why there is none."""
    module = load_module(Path(file))

    def judge(problem: list[Any], answer: str) -> tuple[float, str]:
        try:
            value = module.score(Problem(*problem), answer)
        except MemoryError:
            raise  # what the process holds by now, nobody knows: it is replaced
        except Exception as error:
            return 0.0, f"{type(error).__name__}: {error} ({where(error, Path(file))})"
        try:
            return as_score(value), ""
        except ValueError as error:
            return 0.0, str(error)

    return judge
