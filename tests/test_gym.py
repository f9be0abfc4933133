"""reasoning-gym's tasks, where it is installed; without it one line says what is missing."""

from __future__ import annotations

import importlib.util

import pytest

from hadal.errors import UserError
from hadal.tasks import load_tasks
from hadal.tasks.gym import LEFT_OUT

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None


@pytest.mark.skipif(INSTALLED, reason="reasoning-gym is installed")
def test_without_the_package_one_line_names_the_extra() -> None:
    with pytest.raises(UserError, match="hadal\\[rg\\]"):
        load_tasks(["rg/chain_sum"])


FAULTY = {"game_of_life_halting", "n_queens"}
"""Data sets of version 0.1.25: one's scorer takes what is no answer, one has hardly any problems at its first level."""


def fault(name: str, n: int) -> str:
    """What does not hold of a data set, at its first and its middle level; empty if all does."""
    (task,) = load_tasks([f"rg/{name}"]).values()
    for level in sorted({task.difficulties[0], task.default_difficulty}):
        for seed in range(n):
            problem = task.generate(seed, "train", level)
            if task.generate(seed, "train", level) != problem:
                return f"level {level} has another problem for the same seed"
            if problem.answer and task.score(problem, f"<think>x</think> {problem.answer}").total != 1:
                return f"the gold answer of level {level} is wrong: {problem.answer!r}"
            if task.score(problem, "<think>x</think> no idea").total:
                return f"no answer is right at level {level}"
            if task.generate(seed, "held_out", level).prompt == problem.prompt:
                return f"level {level} asks the same on both sides"
    return ""


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
@pytest.mark.parametrize("name", ["chain_sum", "maze", "knights_knaves", "acre", "caesar_cipher", "boxnet"])
def test_a_data_set_of_the_package_is_a_task(name: str) -> None:
    assert fault(name, 3) == ""


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
def test_a_scorer_that_takes_anything_is_found() -> None:
    with pytest.raises(UserError, match="'no idea' scores above 0"):
        load_tasks(["rg/game_of_life_halting"])["rg/game_of_life_halting"].validate(20)


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
@pytest.mark.long
def test_every_data_set_of_the_package_is_a_task() -> None:
    from reasoning_gym.factory import DATASETS

    faults = {}
    for name in sorted(DATASETS.keys() - LEFT_OUT):
        try:
            faults[name] = fault(name, 2)
        except UserError as error:
            faults[name] = str(error)
    assert {name for name, text in faults.items() if text} == FAULTY, faults


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match="chain_sum"):
        load_tasks(["rg/chainsum"])
