"""A task of one's own: a Python file with a generator and, if it likes, a scorer.

    about = "read Roman numerals"           what the task is, in a few words
    difficulties = range(1, 9)              levels, easiest first
    gold_limit = 6                          optional: thoughts exist up to this level (default: all levels)
    default_difficulty = 4                  optional: where it is evaluated (default: the middle)

    def generate(rng, difficulty):          -> Problem(prompt, answer, thought="...")
    def score(problem, answer):             optional -> True or False, or a number from 0 to 1 (default: the same text)
    right_at = 0.8                          optional: the score from which on an answer counts as right (default: 1)
    def near_misses(problem, rng):          optional -> wrong answers, which must not be right when the task is checked
    score_seconds = 5.0                     optional: what the scorer may take for an answer

The scorer runs in processes of its own with a deadline and a bound on memory: an answer on which it hangs, eats memory,
raises, dies or returns anything else scores 0, and the note says why. When the task is checked, that is a fault.

The generator takes all its randomness from `rng`, so that the same seed gives the same problem. The file is
run as it stands: only name files that you trust.
"""

from __future__ import annotations

import importlib.util
import json
import reprlib
import traceback
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from hadal.errors import UserError
from hadal.rng import Rng
from hadal.sandbox import Workers
from hadal.tasks.answers import Verdict
from hadal.tasks.base import SAME_RNG, Problem, Task, near_numbers

SECONDS = 5.0  # that a scorer may take for an answer
MEMORY = 1 << 30  # bytes that its process may take beyond what loading the file takes
ROUNDING = 1e-9  # by which a sum of shares may miss 1
PAIRS = 40  # of a problem and another one's answer that a scorer is tried on


class UserTask(Task):
    """The file's functions behind the interface of every task."""

    phrasings = ()
    longest = 400  # characters of a question; a small model reads about a thousand tokens in all

    def __init__(self, path: Path, module: ModuleType, difficulties: range) -> None:
        self.path, self.module, self.difficulties = path, module, difficulties
        self.score_seconds: Any = getattr(module, "score_seconds", SECONDS)
        if not isinstance(self.score_seconds, int | float) or not 0 < self.score_seconds < float("inf"):
            raise UserError(f"{path}: score_seconds is {self.score_seconds!r}.", "It must be a number above 0.")
        self.right_at = getattr(module, "right_at", 1.0)
        if isinstance(self.right_at, bool) or not isinstance(self.right_at, int | float) or not 0 < self.right_at <= 1:
            raise UserError(f"{path}: right_at is {self.right_at!r}.", "It must be a number above 0 and at most 1.")
        self._checking = False  # whether an answer that the scorer cannot judge is a fault
        self.name = path.stem  # type: ignore[misc]
        self.about = str(getattr(module, "about", self.name))  # type: ignore[misc]
        last = self.difficulties[-1]
        self.gold_limit = getattr(module, "gold_limit", last)
        middle = self.difficulties[len(self.difficulties) // 2]
        self.default_difficulty = getattr(module, "default_difficulty", middle)

    def propose(self, rng: Rng, difficulty: int, new_phrasing: bool) -> Problem:
        problem = self.call("generate", rng, difficulty)
        if not isinstance(problem, Problem):
            raise UserError(f"{self.path}: generate returned {type(problem).__name__} and not a hadal.tasks.Problem.")
        for name in ("prompt", "answer"):
            value = getattr(problem, name)
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{self.path}: a problem's {name} is {value!r}.", "It must be text that is not empty.")
        if problem.thought is not None and not isinstance(problem.thought, str):
            raise UserError(f"{self.path}: a problem's thought is {problem.thought!r}.", "It must be text or None.")
        if len(problem.prompt) > self.longest:
            raise UserError(
                f"{self.path}: a question has {len(problem.prompt)} characters.", f"{self.longest} is the limit."
            )
        if problem.thought is not None and not problem.thought.startswith(" "):
            problem.thought = " " + problem.thought
        problem.meta = {"key": problem.prompt, **problem.meta, "task": self.name, "difficulty": difficulty}
        if self.scores and not _is_plain(problem.meta):
            fault = next(name for name, value in problem.meta.items() if not _is_plain({name: value}))
            raise UserError(
                f"{self.path}: {fault!r} in a problem's meta, {problem.meta[fault]!r}, is not JSON for the scorer.",
                "Use texts, numbers, lists, and dicts with text for keys.",
            )
        return problem

    @property
    def scores(self) -> bool:
        """Whether there is a scorer."""
        return hasattr(self.module, "score")

    @cached_property
    def _scorer(self) -> Workers:
        file = str(self.module.__file__)
        return Workers("hadal.tasks.user_worker:scorer", seconds=self.score_seconds, memory=MEMORY, made_of=[file])

    def judge(self, problem: Problem, answer: str) -> bool:
        return self.verdict(problem, answer).right

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        """Wrong, with the reason, where the scorer comes to no verdict; a UserError while the task is checked."""
        if not self.scores:
            return Verdict(" ".join(answer.split()) == " ".join(problem.answer.split()))
        outcome = self._scorer.call([problem.prompt, problem.answer, problem.meta, problem.thought], answer)
        score, fault = outcome.value if outcome.ok else (0.0, outcome.note)
        if fault and self._checking:
            raise UserError(
                f"{self.path}: score broke off on the answer {answer!r}: {fault}.",
                "A scorer must judge whatever a model can say, by True, False or a number from 0 to 1.",
            )
        if fault:
            return Verdict(False, f"the scorer broke off: {fault}", broke=True)
        return Verdict(score >= self.right_at - ROUNDING, f"scored {score:.3g}" if 0 < score < 1 else "", score)

    def source(self) -> str:
        files = sorted({self.path, Path(getattr(self.module, "__file__", None) or self.path)})
        return f"{self.name} {blake2b(b''.join(file.read_bytes() for file in files), digest_size=8).hexdigest()}"

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        if hasattr(self.module, "near_misses"):
            return [str(wrong) for wrong in self.call("near_misses", problem, rng)]
        # A scorer of one's own may take what looks wrong: `lenience` judges it in the large.
        return [] if self.scores else super().near_misses(problem, rng)

    def call(self, name: str, *arguments: Any) -> Any:
        """A function of the file; UserError says where it raised."""
        try:
            return getattr(self.module, name)(*arguments)
        except Exception as error:
            raise UserError(
                f"{self.path}: {name} raised {type(error).__name__}: {error} ({where(error, self.path)})."
            ) from None

    def recognise(self, text: str) -> Problem | None:
        return None

    def validate(self, n: int = 50) -> None:
        self._checking = True
        try:
            self.check(n)
        finally:
            self._checking = False

    def check(self, n: int) -> None:
        """What `validate` looks at."""
        for seed in range(3):
            level = self.difficulties[0]
            first, second = (self.propose(Rng("same", seed), level, False) for _ in range(2))
            if (first.prompt, first.answer, first.thought) != (second.prompt, second.answer, second.thought):
                raise UserError(f"{self.path}: generate gives a different problem for the same rng.", SAME_RNG)
        super().validate(n)
        for wrong in ("7", "x" * 300, "\x00", "日本", "-", "1/0"):
            self.judge(first, wrong)
        self.lenience()

    def lenience(self) -> None:
        """UserError if a scorer takes other problems' answers, or other numbers, more often than not."""
        if not self.scores:
            return
        rng = Rng("lenience")
        problems = [self.generate((6 << 32) + i, "train", self.default_difficulty) for i in range(PAIRS)]
        answers = list(dict.fromkeys(problem.answer for problem in problems))
        tried: list[tuple[Problem, str]] = []
        for problem in problems:
            others = [answer for answer in answers if answer != problem.answer] or [""]
            tried += [(problem, wrong) for wrong in [rng.choice(others), *near_numbers(problem.answer, rng)[:1]]]
        passed = [(problem, wrong) for problem, wrong in tried if self.judge(problem, wrong)]
        if 2 * len(passed) > len(tried):
            problem, wrong = passed[0]
            raise UserError(
                f"{self.path}: the scorer lets wrong answers pass, such as {wrong!r} for {problem.answer!r} "
                f"({len(passed)} of {len(tried)}).",
                "Compare the answer with the problem's own.",
            )


def load_module(path: Path) -> ModuleType:
    """A Python file, run; UserError names what is wrong with it, with the line."""
    spec = importlib.util.spec_from_file_location(f"hadal_user_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be read as Python.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path} is not valid Python: {error.msg} (line {error.lineno}).") from None
    except Exception as error:
        raise UserError(f"{path} raised {type(error).__name__}: {error} ({where(error, path)}).") from None
    return module


def load_task_file(path: Path) -> UserTask:
    """The task in a Python file; UserError names what it lacks, with the line where it fails."""
    if not path.is_file():
        raise UserError(f"There is no task file {path}.", "Give the path of a Python file.")
    module = load_module(path)
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
    return UserTask(path, module, levels)


def as_score(value: Any) -> float:
    """What a scorer returned, as a score from 0 to 1: a truth value, a number, or a scalar of numpy or torch.

    ValueError names anything else: NaN, infinity, -1, 2, texts, None.
    """
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, int | float | Fraction) and -ROUNDING <= number <= 1 + ROUNDING:
        return min(1.0, max(0.0, float(number)))
    raise ValueError(f"it returned {reprlib.repr(value)}, which is neither True or False nor a number from 0 to 1")


def where(error: BaseException, path: Path) -> str:
    """The line of the user's own file in which an error came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return f"line {frames[-1].lineno}" if frames else "outside the file"


def _is_plain(value: Any) -> bool:
    """Whether JSON brings a value back as it was: no tuples, and no keys but text."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
