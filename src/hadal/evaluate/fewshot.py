"""Prompts with worked examples, for base models, which have no chat form: a text that the model carries on.

    Question: ...
    Thought: ...            where the examples have thoughts and the model is not to answer at once
    Answer: ...

Examples are training problems, so that no held-out one is shown.
"""

from __future__ import annotations

from hadal.errors import UserError
from hadal.tasks import Problem, Task
from hadal.text.tokenizer import END_THINK, THINK

QUESTION, THOUGHT, ANSWER = "Question:", "Thought:", "Answer:"
STOP = f"\n\n{QUESTION}"
_STREAM = 5 << 32


class FewShot:
    """The prompt of a task's problems behind `shots` of its training problems, and how to read what comes.

    thinking: whether the examples' thoughts are shown; None: if all of them have one.
    """

    def __init__(self, task: Task, shots: int, difficulty: int, thinking: bool | None) -> None:
        examples: dict[str, Problem] = {}
        for i in range(20 * shots):
            problem = task.generate(_STREAM + i, "train", min(difficulty, max(task.gold_limit, task.difficulties[0])))
            examples.setdefault(problem.meta["key"], problem)
            if len(examples) == shots:
                break
        else:
            found = len(examples)
            raise UserError(f"{task.name} has {found} training problems to show.", f"Give --shots {found}.")
        has_thoughts = all(problem.thought for problem in examples.values())
        if thinking and not has_thoughts:
            raise UserError(f"The training problems of {task.name} have no worked thoughts.", "Leave --think out.")
        self.thinks = has_thoughts if thinking is None else thinking
        self.head = "".join(f"{self._question(p)} {self._solution(p)}{STOP[:2]}" for p in examples.values())

    def _question(self, problem: Problem) -> str:
        return f"{QUESTION} {problem.prompt.strip()}\n{THOUGHT if self.thinks else ANSWER}"

    def _solution(self, problem: Problem) -> str:
        thought = f"{(problem.thought or '').strip()}\n{ANSWER} " if self.thinks else ""
        return thought + problem.answer.strip()

    def prompt(self, problem: Problem) -> str:
        """The text that ends where the model goes on."""
        return self.head + self._question(problem)

    def response(self, text: str) -> str:
        """What it went on with, as a response with its thought in tags."""
        text = text.split(STOP)[0]
        if not self.thinks:
            return text.strip()
        thought, mark, answer = text.rpartition(f"\n{ANSWER}")
        return f"{THINK}{thought}{END_THINK}{answer.strip()}" if mark else f"{THINK}{text}"
