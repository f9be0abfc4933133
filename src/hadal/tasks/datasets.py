"""What all tasks from published data sets share: reading, sides, and the order in which problems come.

`gsm8k` is read from the hub, `gsm8k:PATH` from a file or a folder. A set's own training split is the training side
and its own test split the held-out one; a training question that is also a test question is left out. What each set
is, where it lies and under which licence: docs/datasets.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from hadal.errors import UserError
from hadal.library.hub import download_file
from hadal.rng import Rng
from hadal.tasks.answers import Verdict
from hadal.tasks.base import Problem, Split, Task, near_numbers
from hadal.tasks.rows import HubFile, Row, local_files, read_rows


class RowError(ValueError):
    """What is wrong with a row, as a clause."""


class DataSet(Task):
    """A task whose problems are read and not drawn. `seed` walks through them in a fixed shuffled order."""

    train: ClassVar[tuple[HubFile, ...]] = ()
    held_out: ClassVar[tuple[HubFile, ...]]
    phrasings = ()
    gold_limit = 5
    default_difficulty = 1
    difficulties = range(1, 2)

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._problems: dict[Split, list[Problem]] = {}
        self._orders: dict[tuple[Split, int], list[Problem]] = {}

    def read(self, row: Row, split: Split) -> Problem | None:
        """The problem in a row; None where the row is of another split. RowError says what is wrong with it."""
        raise NotImplementedError

    def problems(self, split: Split) -> list[Problem]:
        """All problems of a side, in the order of the files; none for `train` where a set has a test split only."""
        if split not in self._problems:
            held_out = {p.meta["key"] for p in self.problems("held_out")} if split == "train" else set()
            found = []
            for file in self._files(split):
                for where, row in read_rows(file):
                    try:
                        problem = self.read(row, split)
                    except RowError as error:
                        raise UserError(
                            f"{where}, is not a problem of {self.name}: {error}.", "docs/datasets.md lists the columns."
                        ) from None
                    if problem is not None:
                        key = " ".join(problem.prompt.split())
                        problem.meta |= {"task": self.name, "key": key}
                        problem.meta.setdefault("difficulty", self.default_difficulty)
                        found += [problem] if key not in held_out else []
            self._problems[split] = found
        return self._problems[split]

    def _files(self, split: Split) -> list[Path]:
        if self.path is None:
            return [download_file(*file) for file in (self.train if split == "train" else self.held_out)]
        if self.path.is_dir():
            files = local_files(self.path, "train" if split == "train" else "test")
            if not files and split == "held_out":
                raise UserError(
                    f"{self.path} has no test file.", "A folder holds test.jsonl and, to train, train.jsonl."
                )
            return files
        return [self.path] if split == ("train" if self.path.name.startswith("train") else "held_out") else []

    def generate(self, seed: int, split: Split, difficulty: int, new_phrasing: bool = False) -> Problem:
        """Problem number `seed` of those up to this difficulty, in shuffled order, over and over.

        So n seeds in a row give n different problems as long as there are so many. A data set has one wording.
        """
        order = self.listed(split, difficulty)
        if not order:
            side = "training" if split == "train" else "test"
            level = f" up to difficulty {difficulty}" if self.problems(split) else ""
            raise UserError(f"{self.name} has no {side} problems{level}.", "docs/datasets.md says what each set has.")
        return order[seed % len(order)]

    def listed(self, split: Split, difficulty: int) -> list[Problem]:
        if (split, difficulty) not in self._orders:
            found = [p for p in self.problems(split) if p.meta["difficulty"] <= difficulty]
            self._orders[split, difficulty] = Rng(self.name, split, difficulty).sample(found, len(found))
        return self._orders[split, difficulty]

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        """Whether an answer is right, and why not."""
        raise NotImplementedError

    def judge(self, problem: Problem, answer: str) -> bool:
        return self.verdict(problem, answer).right

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        """Other numbers, where the answer is one: what else is wrong in a text of maths or code, nobody knows."""
        return near_numbers(problem.answer, rng)

    def validate(self, n: int = 50) -> None:
        """Check that the gold answers of the first n problems of each side score 1, and nothing 0."""
        sides: tuple[Split, ...] = ("train", "held_out")
        for problem in (p for split in sides for p in self.problems(split)[:n]):
            fault = self.fault(problem)
            if fault:
                raise UserError(f"Task {self.name}: {fault} The question was {problem.prompt!r}.")

    def recognise(self, text: str) -> Problem | None:
        return None


def field(row: Row, *names: str) -> str:
    """The first of these columns that a row has, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            continue  # NaN is how tables without a gap write one
        if isinstance(value, str | int | float) and str(value).strip():
            return str(value)
    raise RowError(f"it has no {' or '.join(names)}")
