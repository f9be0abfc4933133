"""A task's problems as people look at them."""

from __future__ import annotations

from hadal.errors import UserError
from hadal.tasks.base import Task


def preview(task: Task, n: int, difficulty: int | None = None, seed: int = 0) -> str:
    """n training problems, with thought and answer; at the task's own difficulty where none is given."""
    difficulty = task.default_difficulty if difficulty is None else difficulty
    if difficulty not in task.difficulties:
        first, last = task.difficulties[0], task.difficulties[-1]
        raise UserError(f"{task.name} has no difficulty {difficulty}.", f"Its range is {first} to {last}.")
    problems = [task.generate(seed + number, "train", difficulty) for number in range(n)]
    return "".join(
        f"question  {problem.prompt}\n"
        f"thought   {(problem.thought or '(none at this difficulty)').strip()}\n"
        f"answer    {problem.answer}\n\n"
        for problem in problems
    )
