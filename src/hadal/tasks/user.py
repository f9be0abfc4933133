"""A task of one's own: a Python file with a generator and, if it likes, a scorer.

    about = "read Roman numerals"           what the task is, in a few words
    difficulties = range(1, 9)              levels, easiest first
    gold_limit = 6                          optional: thoughts exist up to this level (default: all levels)
    default_difficulty = 4                  optional: where it is evaluated (default: the middle)

    def generate(rng, difficulty):          -> Problem(prompt, answer, thought="...")
    def score(problem, answer):             optional -> True or False (default: the same text)

The generator takes all its randomness from `rng`, so that the same seed gives the same problem. The file is
run as it stands: only name files that you trust.
"""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from hadal.errors import UserError
from hadal.tasks.base import Problem, Rng, Task

LONGEST = 400  # characters of a question; a small model reads about a thousand tokens in all


class UserTask(Task):
    """The file's functions behind the interface of every task."""

    phrasings = ()

    def __init__(self, path: Path, module: ModuleType) -> None:
        self.path, self.module = path, module
        self.name = path.stem  # type: ignore[misc]
        self.about = str(getattr(module, "about", self.name))  # type: ignore[misc]
        self.difficulties = module.difficulties
        last = self.difficulties[-1]
        self.gold_limit = getattr(module, "gold_limit", last)
        middle = self.difficulties[len(self.difficulties) // 2]
        self.default_difficulty = getattr(module, "default_difficulty", middle)

    def propose(self, rng: Rng, difficulty: int, new_phrasing: bool) -> Problem:
        try:
            problem = self.module.generate(rng, difficulty)
        except Exception as error:
            raise UserError(
                f"{self.path}: generate raised {type(error).__name__}: {error} ({_line(error, self.path)})."
            ) from None
        if not isinstance(problem, Problem):
            raise UserError(f"{self.path}: generate returned {type(problem).__name__} and not a hadal.tasks.Problem.")
        for name in ("prompt", "answer"):
            value = getattr(problem, name)
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{self.path}: a problem's {name} is {value!r}.", "It must be text that is not empty.")
        if problem.thought is not None and not isinstance(problem.thought, str):
            raise UserError(f"{self.path}: a problem's thought is {problem.thought!r}.", "It must be text or None.")
        if len(problem.prompt) > LONGEST:
            raise UserError(f"{self.path}: a question has {len(problem.prompt)} characters.", f"{LONGEST} is the most.")
        if problem.thought is not None and not problem.thought.startswith(" "):
            problem.thought = " " + problem.thought
        problem.meta = {"key": problem.prompt, **problem.meta, "task": self.name, "difficulty": difficulty}
        return problem

    def judge(self, problem: Problem, answer: str) -> bool:
        scorer = getattr(self.module, "score", None)
        if scorer is None:
            return " ".join(answer.split()) == " ".join(problem.answer.split())
        try:
            return bool(scorer(problem, answer))
        except Exception as error:
            raise UserError(
                f"{self.path}: score raised {type(error).__name__} on the answer {answer!r}: {error} "
                f"({_line(error, self.path)}).",
                "A scorer must judge whatever a model can say.",
            ) from None

    def recognise(self, text: str) -> Problem | None:
        return None

    def validate(self, n: int = 50) -> None:
        for seed in range(3):
            level = self.difficulties[0]
            first, second = (self.propose(Rng("same", seed), level, False) for _ in range(2))
            if (first.prompt, first.answer, first.thought) != (second.prompt, second.answer, second.thought):
                raise UserError(
                    f"{self.path}: generate gives another problem for the same rng.",
                    "Take all randomness from rng, and none from the random module or the clock.",
                )
        super().validate(n)
        for wrong in ("7", "x" * 300, "\x00", "日本", "-", "1/0"):
            self.judge(first, wrong)


def load_task_file(path: Path) -> UserTask:
    """The task in a Python file; UserError names what it lacks, with the line where it fails."""
    if not path.is_file():
        raise UserError(f"There is no task file {path}.", "Give the path of a Python file.")
    spec = importlib.util.spec_from_file_location(f"hadal_user_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be read as Python.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path} is not valid Python: {error.msg} (line {error.lineno}).") from None
    except Exception as error:
        raise UserError(f"{path} raised {type(error).__name__}: {error} ({_line(error, path)}).") from None
    if not callable(getattr(module, "generate", None)):
        raise UserError(f"{path} has no function generate(rng, difficulty).", "examples/roman.py shows one.")
    levels: Any = getattr(module, "difficulties", None)
    if not isinstance(levels, range) or len(levels) == 0:
        raise UserError(f"{path} has no difficulties.", "Write, for example, difficulties = range(1, 9).")
    for name in ("gold_limit", "default_difficulty"):
        value = getattr(module, name, levels[0])
        if not isinstance(value, int):
            raise UserError(f"{path}: {name} is {value!r}.", "It must be a whole number.")
    if getattr(module, "default_difficulty", levels[0]) not in levels:
        raise UserError(f"{path}: default_difficulty is not one of {levels}.")
    return UserTask(path, module)


def _line(error: BaseException, path: Path) -> str:
    """The line of the user's own file in which an error came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return f"line {frames[-1].lineno}" if frames else "outside the file"
