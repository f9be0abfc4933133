"""The tasks of reasoning-gym (https://github.com/open-thought/reasoning-gym) under `rg/NAME`.

They need the extra `rg`, whose own requirements need a C compiler: nothing else in hadal does. Problems, difficulties
(the package's curricula) and scorers are the package's; seeds and sides are hadal's. There are no gold thoughts.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from hadal.errors import UserError
from hadal.reading import nearest
from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, plainly

PREFIX = "rg/"
INDICES = 1 << 31
ATTEMPTS = 20
LEFT_OUT = {"composite", "codeio"}
"""A mixture of others; and one that runs pieces of found code, whose outcome changes from run to run."""


class GymTask(Task):
    """One of the package's data sets; a random index is a random problem. An answer is right if it scores 1 in full."""

    phrasings = ()
    gold_limit = 0

    def __init__(self, name: str) -> None:
        factory = gym()
        known = factory.DATASETS.keys() - LEFT_OUT
        if name not in known:
            raise UserError(f"reasoning-gym has no task {name!r}.", nearest(name, known))
        self.dataset_name = name
        self.name = PREFIX + name  # type: ignore[misc]
        self.about = f"reasoning-gym's {name.replace('_', ' ')}"  # type: ignore[misc]
        self.levels = self.accepted()
        self.difficulties = range(1, 1 + len(self.levels))
        self.default_difficulty = self.difficulties[len(self.difficulties) // 2]
        self.dataset = cache(self.open_level)

    def accepted(self) -> list[Any]:
        """The package's configurations along its curriculum, each of its dials as far as it goes.

        Some levels break the package's own rules and are left out; where no other is there, its default stands in.
        """
        factory = gym()
        found: list[Any] = []
        if self.dataset_name in factory.CURRICULA:
            attributes = factory.create_curriculum(self.dataset_name).attributes.values()
            for level in range(max(len(attribute.levels) for attribute in attributes)):
                curriculum = factory.create_curriculum(self.dataset_name)
                for attribute in curriculum.attributes.values():
                    curriculum.set_attr_level(attribute.name, min(level, len(attribute.levels) - 1))
                settings = curriculum.generate_configuration({"seed": 0})
                try:
                    settings.validate()
                except (AssertionError, ValueError):
                    continue
                found.append(settings)
        return found or [factory.DATASETS[self.dataset_name][1](seed=0)]

    def open_level(self, difficulty: int) -> Any:
        return gym().DATASETS[self.dataset_name][0](config=self.levels[difficulty - 1])

    def propose(self, rng: Rng, difficulty: int, new_phrasing: bool) -> Problem:
        entry = self.entry(rng, difficulty)
        meta = {"task": self.name, "key": plainly(entry["question"]), "difficulty": difficulty, "entry": entry}
        return Problem(entry["question"], "" if entry["answer"] is None else str(entry["answer"]), meta)

    def entry(self, rng: Rng, difficulty: int) -> Any:
        """What the package has at a random index; it gives up on some, so a few are tried."""
        dataset = self.dataset(difficulty)
        for _ in range(ATTEMPTS):
            index = rng.below(INDICES)
            try:
                try:
                    return dataset[index]
                except IndexError:  # some data sets are a list of `size` problems
                    return dataset[index % len(dataset)]
            except Exception as error:
                failure = error
        raise UserError(f"reasoning-gym has no {self.dataset_name} problem at difficulty {difficulty} ({failure}).")

    def judge(self, problem: Problem, answer: str) -> bool:
        try:
            score = self.dataset(problem.meta["difficulty"]).score_answer(answer, problem.meta["entry"])
        except Exception:  # some of the package's scorers raise on text that they cannot parse
            return False
        return float(score) == 1.0

    def fault(self, problem: Problem) -> str:
        return super().fault(problem) if problem.answer else ""  # some data sets have a scorer and no gold answer

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        return []  # what is near and wrong is the package's business

    def recognise(self, text: str) -> Problem | None:
        return None


def gym() -> Any:
    """The package's registry of data sets."""
    try:
        import_module("reasoning_gym")
    except ImportError as error:
        raise UserError(
            f"Tasks under {PREFIX} need the package reasoning-gym ({error}).",
            "Install it with pip install 'hadal[rg]'; it needs a C compiler.",
        ) from None
    return import_module("reasoning_gym.factory")
