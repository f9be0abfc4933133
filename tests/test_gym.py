"""reasoning-gym's tasks, where it is installed; without it one line says what is missing."""

from __future__ import annotations

import importlib.util

import pytest

from hadal.errors import UserError
from hadal.tasks import load_tasks

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None


@pytest.mark.skipif(INSTALLED, reason="reasoning-gym is installed")
def test_without_the_package_one_line_names_the_extra() -> None:
    with pytest.raises(UserError, match="hadal\\[rg\\]"):
        load_tasks(["rg/chain_sum"])


FAULTY = {
    "codeio": "another problem for the same seed",
    "game_of_life_halting": "'no idea' scores above 0",
}
"""What is wrong with data sets of version 0.1.25, and is found."""


def check(name: str, n: int) -> None:
    (task,) = load_tasks([f"rg/{name}"]).values()
    if name in FAULTY:
        with pytest.raises(UserError, match=FAULTY[name]):
            task.validate(n)
        return
    for level in {task.difficulties[0], task.default_difficulty}:
        for seed in range(n):
            problem = task.generate(seed, "train", level)
            assert task.generate(seed, "train", level) == problem
            assert not problem.answer or task.score(problem, f"<think>x</think> {problem.answer}").total == 1
            assert task.score(problem, "<think>x</think> no idea").total == 0
            assert task.generate(seed, "held_out", level).prompt != problem.prompt


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
@pytest.mark.parametrize("name", ["chain_sum", "maze", "knights_knaves", "acre", "caesar_cipher", "codeio"])
def test_a_data_set_of_the_package_is_a_task(name: str) -> None:
    check(name, 3)


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
@pytest.mark.long
def test_every_data_set_of_the_package_is_a_task() -> None:
    from reasoning_gym.factory import DATASETS

    for name in sorted(set(DATASETS) - {"composite"}):
        check(name, 2)


@pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")
def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match="chain_sum"):
        load_tasks(["rg/chainsum"])
