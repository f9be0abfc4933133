"""Multiple choice as in GPQA: the answer is a letter, and the options are shuffled, once and for all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from hadal.rng import Rng
from hadal.tasks.answers import Verdict, final_answer
from hadal.tasks.base import Problem, Split
from hadal.tasks.datasets import DataSet, RowError, field
from hadal.tasks.quantities import tidy
from hadal.tasks.rows import HubFile, Row

INSTRUCTION = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before answering."
)
"""The prompt of simple-evals (openai/simple-evals, MIT), by which R1 was evaluated (arXiv 2501.12948, section 3)."""

_LETTER = re.compile(r"(?:(?:option|choice)\s*)?\(?([A-Z])\)?(?:\s*[).:]\s*.*)?", re.DOTALL)


class GPQA(DataSet):
    """Rein et al. 2023, arXiv 2311.12022: the 198 questions of the Diamond set, four options each. Gated on the hub."""

    name = "gpqa"
    about = "graduate-level science questions, four options (GPQA Diamond)"
    held_out = (HubFile("Idavidrein/gpqa", "gpqa_diamond.csv"),)

    def read(self, row: Row, split: Split) -> Problem:
        question = field(row, "Question", "question").strip()
        right, options = _options(row)
        options = Rng("options", question).sample(options, len(options))
        letters = ascii_uppercase[: len(options)]
        listed = "\n".join(f"{letter}) {option}" for letter, option in zip(letters, options, strict=True))
        meta = {"options": dict(zip(letters, options, strict=True))}
        prompt = f"{INSTRUCTION.format(letters=letters)}\n\n{question}\n\n{listed}"
        return Problem(prompt, letters[options.index(right)], meta)

    def canonical(self, problem: Problem, answer: str) -> str:
        return choose(answer, problem.meta["options"]) or ""

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        chosen = choose(answer, problem.meta["options"])
        if chosen is None:
            return Verdict(False, "not a single choice")
        return Verdict(True) if chosen == problem.answer else Verdict(False, f"chose {chosen}")


def _options(row: Row) -> tuple[str, list[str]]:
    """The right option and all: from GPQA's own columns, or `choices` (a list) and `answer` (text, letter or index)."""
    choices: Sequence[object] | None = row.get("choices") or row.get("options")
    if choices is None:
        wrong = [field(row, f"Incorrect Answer {i}") for i in (1, 2, 3)]
        options = [field(row, "Correct Answer"), *wrong]
        right: object = options[0]
    else:
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise RowError("its choices are not a list of texts")
        options, right = [str(choice) for choice in choices], row.get("answer")
        if isinstance(right, str) and right not in options and right in ascii_uppercase:
            right = ascii_uppercase.index(right)
        if isinstance(right, int) and 0 <= right < len(options):
            right = options[right]
    options = [option.strip() for option in options]
    right = str(right).strip()
    if right not in options or len(set(options)) < len(options) or not 2 <= len(options) <= 26:
        raise RowError("it needs two or more different choices, one of them the answer")
    return right, options


def choose(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that a reply ends up with, by itself or by the wording of its option."""
    final = final_answer(text)
    if final is None:
        return None
    stated = tidy(final.text)
    letter = _LETTER.fullmatch(stated.rstrip(". "))
    if letter and letter[1] in options:
        return letter[1]
    same = [key for key, option in options.items() if tidy(option).rstrip(".") == stated.rstrip(".")]
    return same[0] if len(same) == 1 else None
