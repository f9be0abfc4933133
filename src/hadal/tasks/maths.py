"""Data sets of mathematics with answers that can be checked: GSM8K, MATH, MATH-500, AIME."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from hadal.tasks.answers import Verdict, canonical, decide, final_answer
from hadal.tasks.base import Problem, Split
from hadal.tasks.datasets import DataSet, RowError, field
from hadal.tasks.quantities import quantity
from hadal.tasks.rows import HubFile, Row
from hadal.tasks.symbolic import require_math_verify, shared_checker

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""What the card of DeepSeek-R1 asks to be put behind a mathematical question."""

_PERCENTAGE = re.compile(r"(?<!\d )(?<!\d)\bpercent(?:age)?\b", re.IGNORECASE)


def asks_for_percentage(question: str) -> bool:
    """Whether a percentage is asked for, and not only talked about: by a sentence with the bare word."""
    sentences = re.split(r"(?<=[.?!])\s+", question.strip())
    asking = [sentence for sentence in sentences if sentence.endswith("?")] or sentences[-1:]
    return any(
        _PERCENTAGE.search(sentence) and not re.search(r"how (?:much|many) (?!percent)", sentence, re.IGNORECASE)
        for sentence in asking
    )


class Maths(DataSet):
    """A question, R1's instruction, and an answer that `hadal.tasks.answers` judges."""

    symbolic: ClassVar[bool] = False
    """Whether answers are more than plain numbers, so that math-verify is needed."""

    def __init__(self, path: Path | None = None) -> None:
        if self.symbolic:
            require_math_verify()
        super().__init__(path)

    def pose(self, question: str, answer: str, thought: str | None, difficulty: int | None = None) -> Problem:
        """The problem; RowError where its answer is none of this kind."""
        answer = answer.strip()
        if not answer or (not self.symbolic and quantity(answer) is None):
            raise RowError(f"its answer {answer!r} is not a number")
        meta: dict[str, object] = {"percent": asks_for_percentage(question)}
        meta |= {"difficulty": difficulty} if difficulty else {}
        thought = f"\n{thought.strip()}\n" if thought else None
        return Problem(f"{question.strip()}\n{INSTRUCTION}", answer, meta, thought)

    def canonical(self, problem: Problem, answer: str) -> str:
        return canonical(answer)

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        percent = problem.meta["percent"]
        if self.symbolic:
            return shared_checker()(problem.answer, answer, percent)
        return decide(problem.answer, answer, percent) or Verdict(False, "not a plain number")


class GSM8K(Maths):
    """Cobbe et al. 2021, arXiv 2110.14168: 7,473 training and 1,319 test problems, answers are whole numbers."""

    name = "gsm8k"
    about = "grade-school word problems (GSM8K)"
    train = (HubFile("openai/gsm8k", "main/train-00000-of-00001.parquet"),)
    held_out = (HubFile("openai/gsm8k", "main/test-00000-of-00001.parquet"),)

    def read(self, row: Row, split: Split) -> Problem:
        solution, mark, answer = field(row, "answer").rpartition("####")
        if not mark:
            raise RowError("its answer does not end in #### and a number")
        return self.pose(field(row, "question"), answer, re.sub(r"<<[^>]*>>", "", solution))


class MATH(Maths):
    """Hendrycks et al. 2021, arXiv 2103.03874: 7,500 training and 5,000 test problems of levels 1 to 5.

    Difficulty d is levels 1 to d; the default is all of them.
    """

    name = "math"
    about = "competition mathematics (MATH)"
    symbolic = True
    default_difficulty = 5
    difficulties = range(1, 6)
    _subjects = (
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    )
    train = tuple(HubFile("EleutherAI/hendrycks_math", f"{s}/train-00000-of-00001.parquet") for s in _subjects)
    held_out = tuple(HubFile("EleutherAI/hendrycks_math", f"{s}/test-00000-of-00001.parquet") for s in _subjects)

    def read(self, row: Row, split: Split) -> Problem:
        solution = field(row, "solution") if row.get("solution") else None
        if row.get("answer") not in (None, ""):
            answer = field(row, "answer")
        else:
            final = final_answer(solution or "")
            if final is None or not final.boxed:
                raise RowError("it has neither an answer nor a solution with a \\boxed{} one")
            answer = final.text
        level = re.search("[1-5]", str(row.get("level", "")))  # MATH itself has two rows of "Level ?"
        return self.pose(field(row, "problem", "question"), answer, solution, int(level[0]) if level else 5)


class MATH500(MATH):
    """The 500 of MATH's test problems that Lightman et al. 2023 (arXiv 2305.20050) kept out of all training."""

    name = "math500"
    about = "500 problems of competition mathematics (MATH-500)"
    held_out = (HubFile("HuggingFaceH4/MATH-500", "test.jsonl"),)


class AIME24(Maths):
    """The 30 problems of the American Invitational Mathematics Examination of 2024; answers are 0 to 999."""

    name = "aime24"
    about = "30 problems of AIME 2024"
    held_out = (HubFile("HuggingFaceH4/aime_2024", "data/train-00000-of-00001.parquet"),)

    def read(self, row: Row, split: Split) -> Problem:
        solution = field(row, "solution", "Solution") if row.get("solution") or row.get("Solution") else None
        return self.pose(field(row, "problem", "Problem", "question"), field(row, "answer", "Answer"), solution)


class AIME25(AIME24):
    """The 30 problems of 2025."""

    name = "aime25"
    about = "30 problems of AIME 2025"
    held_out = (HubFile("math-ai/aime25", "test.jsonl"),)
