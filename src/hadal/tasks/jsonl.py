"""A task of one's own from a file of problems: JSON lines with `prompt` and `answer`.

    {"prompt": "What is the capital of France?", "answer": "Paris"}
    {"prompt": "...", "answer": "...", "thought": "...", "difficulty": 2}      the last two are optional

A Python file of the same name beside it (`mine.py` beside `mine.jsonl`) may hold `score(problem, answer)`, `about` and
`near_misses(problem, rng)`, as in a task with a generator; it is run as it stands.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from hadal.errors import UserError
from hadal.files import read_json_lines
from hadal.rng import Rng
from hadal.tasks.base import Problem, Split, plainly, split_order
from hadal.tasks.user import UserTask, load_module

HELD_OUT_SHARE = 8  # one question in so many, and at least one at each difficulty


class JsonlTask(UserTask):
    """The file's problems; a seed picks one of those of the side and difficulty that are asked for."""

    longest = 20_000

    def __init__(self, path: Path, module: ModuleType, problems: list[Problem]) -> None:
        levels = sorted({p.meta["difficulty"] for p in problems})
        super().__init__(path, module, range(levels[0], levels[-1] + 1))
        # Evaluated where most of the problems are.
        self.default_difficulty = Counter(p.meta["difficulty"] for p in problems).most_common(1)[0][0]
        self.problems = problems
        self.by_side: dict[tuple[str, int], list[Problem]] = {}
        for level in self.difficulties:
            here = [p for p in problems if p.meta["difficulty"] == level]
            keys = sorted({p.meta["key"] for p in here}, key=lambda key: split_order(f"{self.name}:{key}"))
            if len(keys) < 2:
                raise UserError(
                    f"{path}: there are {len(keys)} problems of difficulty {level}.",
                    "Each difficulty needs one to train on and one to hold out.",
                )
            held_out = set(keys[: -(-len(keys) // HELD_OUT_SHARE)])
            self.by_side["held_out", level] = [p for p in here if p.meta["key"] in held_out]
            self.by_side["train", level] = [p for p in here if p.meta["key"] not in held_out]

    def generate(self, seed: int, split: Split, difficulty: int, new_phrasing: bool = False) -> Problem:
        chosen = Rng(self.name, seed, split, difficulty).choice(self.by_side[split, difficulty])
        return Problem(chosen.prompt, chosen.answer, dict(chosen.meta), chosen.thought)

    def propose(self, rng: Rng, difficulty: int, new_phrasing: bool) -> Problem:
        return rng.choice(self.by_side["train", difficulty])

    def listed(self, split: Split, difficulty: int) -> list[Problem]:
        return self.by_side[split, difficulty]

    def check(self, n: int) -> None:
        lines: dict[str, Problem] = {}
        for problem in self.problems:
            first = lines.setdefault(" ".join(problem.prompt.split()), problem)
            if first is not problem:
                same = "with the same answer" if first.answer == problem.answer else "with another answer"
                raise UserError(
                    f"{self.path}: lines {first.meta['line']} and {problem.meta['line']} ask the same, {same}.",
                    f"Remove one of them: {problem.prompt!r}.",
                )
            fault = self.fault(problem)
            if fault:
                raise UserError(f"{self.path}, line {problem.meta['line']}: {fault}")
        super().check(n)


def load_jsonl(path: Path) -> JsonlTask:
    """The task in a file of JSON lines; UserError names the line that is none of its problems."""
    problems = [read_problem(row, path, number) for number, row in read_json_lines(path)]
    if not problems:
        raise UserError(f"{path} holds no problems.", 'A line is {"prompt": "...", "answer": "..."}.')
    scorer = path.with_suffix(".py")
    module = load_module(scorer) if scorer.is_file() else ModuleType(path.stem)
    return JsonlTask(path, module, problems)


def read_problem(row: Any, path: Path, number: int) -> Problem:
    """The problem in a line's value."""
    where = f"{path}, line {number}"
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object.", 'Write {"prompt": "...", "answer": "..."}.')
    answer: Any = row.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    for name, value in {"prompt": row.get("prompt"), "answer": answer}.items():
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: {name} is {value!r}.", "It must be text that is not empty.")
    prompt, thought, level = row["prompt"], row.get("thought"), row.get("difficulty", 1)
    if thought is not None and not isinstance(thought, str):
        raise UserError(f"{where}: thought is {thought!r}.", "It must be text.")
    if not isinstance(level, int) or isinstance(level, bool) or level < 0:
        raise UserError(f"{where}: difficulty is {level!r}.", "It must be a whole number of at least 0.")
    if len(prompt) > JsonlTask.longest:
        raise UserError(f"{where}: the question has {len(prompt)} characters.", f"{JsonlTask.longest} is the limit.")
    meta = {"task": path.stem, "key": plainly(prompt), "difficulty": level, "line": number, "row": row}
    return Problem(prompt, answer.strip(), meta, f" {thought.strip()}" if thought else None)
