"""Verifiable tasks: problems that a program can pose, and judge the answers to."""

import os
from collections.abc import Sequence
from pathlib import Path

from hadal.errors import UserError
from hadal.reading import nearest
from hadal.rng import Rng
from hadal.tasks.arithmetic import Arithmetic
from hadal.tasks.base import Problem, Reward, Split, Task
from hadal.tasks.choice import GPQA
from hadal.tasks.cipher import Cipher
from hadal.tasks.clock import Clock
from hadal.tasks.code import MBPP, HumanEval
from hadal.tasks.countdown import Countdown
from hadal.tasks.datasets import DataSet
from hadal.tasks.dates import Dates
from hadal.tasks.knights import Knights
from hadal.tasks.letters import Letters
from hadal.tasks.maths import AIME24, AIME25, GSM8K, MATH, MATH500
from hadal.tasks.paths import Paths
from hadal.tasks.program import Program
from hadal.tasks.sort import Sort
from hadal.tasks.strings import Strings
from hadal.tasks.sudoku import Sudoku
from hadal.tasks.sums import Sums
from hadal.tasks.talk import Talk
from hadal.tasks.units import Units

BUILT_IN: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Sums, Letters, Countdown, Sort, Clock,
        Arithmetic, Paths, Knights, Sudoku, Program, Strings, Cipher, Dates, Units,
    )
}  # fmt: skip
TALK: dict[str, type[Task]] = {Talk.name: Talk}
"""What needs no thought."""
DATA_SETS: dict[str, type[DataSet]] = {
    task.name: task for task in (GSM8K, MATH, MATH500, AIME24, AIME25, GPQA, HumanEval, MBPP)
}


def load_tasks(names: Sequence[str]) -> dict[str, Task]:
    """Tasks by name: built-in ones, data sets (`gsm8k`, or `gsm8k:PATH` for local files), reasoning-gym's (`rg/NAME`),
    and files of one's own (`./mine.py`, `./mine.jsonl`)."""
    tasks: dict[str, Task] = {}
    for name in names:
        if name in (own := BUILT_IN | TALK):
            task: Task = own[name]()
        elif (data_set := name.partition(":"))[0] in DATA_SETS:
            task = DATA_SETS[data_set[0]](Path(data_set[2]) if data_set[2] else None)
        elif name.endswith(".py"):
            from hadal.tasks.user import load_task_file

            task = load_task_file(Path(name))
        elif name.endswith(".jsonl"):
            from hadal.tasks.jsonl import load_jsonl

            task = load_jsonl(Path(name))
        elif name.startswith("rg/"):
            from hadal.tasks.gym import GymTask

            task = GymTask(name.removeprefix("rg/"))
        elif os.path.exists(name) or "/" in name or Path(name).suffix:
            raise UserError(*_no_task_file(Path(name)))
        else:
            raise UserError(f"There is no task {name!r}.", nearest(name, [*own, *DATA_SETS]))
        tasks[task.name] = task
    return tasks


def _no_task_file(path: Path) -> tuple[str, str]:
    """What is wrong with a path that is none of a task, and what to do about it."""
    kinds = "A task is a Python file (.py) or a file of JSON lines (.jsonl)."
    if not path.exists():
        return f"There is no task file {path}.", kinds
    if path.suffix == ".json":
        return f"{path} is not a task file by its name.", f"Put one problem on each line and call it {path.stem}.jsonl."
    return f"{path} is {'a folder' if path.is_dir() else 'not a task file by its name'}.", kinds


def files_of(name: str) -> list[Path]:
    """The files that a task is read from; Python ones among them are run."""
    if name.partition(":")[0] in DATA_SETS:
        return []
    path = Path(name)
    if path.suffix == ".py":
        return [path]
    return [path, *(p for p in [path.with_suffix(".py")] if p.is_file())] if path.suffix == ".jsonl" else []


__all__ = ["BUILT_IN", "DATA_SETS", "Problem", "Reward", "Rng", "Split", "Task", "files_of", "load_tasks"]
