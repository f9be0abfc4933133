"""Verifiable tasks: problems that a program can pose, and judge the answers to."""

from collections.abc import Sequence
from pathlib import Path

from hadal.configs.reading import nearest
from hadal.errors import UserError
from hadal.tasks.base import Problem, Reward, Rng, Split, Task
from hadal.tasks.choice import GPQA
from hadal.tasks.clock import Clock
from hadal.tasks.code import MBPP, HumanEval
from hadal.tasks.countdown import Countdown
from hadal.tasks.datasets import DataSet
from hadal.tasks.letters import Letters
from hadal.tasks.maths import AIME24, AIME25, GSM8K, MATH, MATH500
from hadal.tasks.sort import Sort
from hadal.tasks.sums import Sums

BUILT_IN: dict[str, type[Task]] = {task.name: task for task in (Sums, Letters, Countdown, Sort, Clock)}
DATA_SETS: dict[str, type[DataSet]] = {
    task.name: task for task in (GSM8K, MATH, MATH500, AIME24, AIME25, GPQA, HumanEval, MBPP)
}


def load_tasks(names: Sequence[str]) -> dict[str, Task]:
    """Tasks by name: built-in ones, data sets (`gsm8k`, or `gsm8k:PATH` for local files), and files of one's own
    (`./mine.py`)."""
    tasks: dict[str, Task] = {}
    for name in names:
        if name in BUILT_IN:
            task: Task = BUILT_IN[name]()
        elif (data_set := name.partition(":"))[0] in DATA_SETS:
            task = DATA_SETS[data_set[0]](Path(data_set[2]) if data_set[2] else None)
        elif name.endswith(".py"):
            from hadal.tasks.user import load_task_file

            task = load_task_file(Path(name))
        else:
            raise UserError(f"There is no task {name!r}.", nearest(name, [*BUILT_IN, *DATA_SETS]))
        tasks[task.name] = task
    return tasks


__all__ = ["BUILT_IN", "DATA_SETS", "Problem", "Reward", "Rng", "Split", "Task", "load_tasks"]
