"""A cipher: 'Each letter of khoor was moved 3 on. What was the word?' Difficulty is the length of the word."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, bare
from hadal.tasks.letters import word_of_length

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
FURTHEST = 9


def moved(word: str, by: int) -> str:
    """The word with each letter moved on in the alphabet, z being followed by a."""
    return "".join(ALPHABET[(ALPHABET.index(letter) + by) % 26] for letter in word)


class Cipher(Task):
    """The thought turns letter after letter, each with its number."""

    name = "cipher"
    about = "read a word whose letters were moved in the alphabet"
    phrasings = (
        "Each letter of {code} was moved {shift} on in the alphabet. What was the word?",
        "Which word becomes {code} if every letter goes {shift} on?",
        "Decode {code}: move each letter {shift} back.",
        "The code {code} was made by moving letters {shift} on. Read it.",
    )
    gold_limit = 9
    default_difficulty = 8
    difficulties = range(3, 21)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        word, shift = word_of_length(rng, difficulty), rng.between(1, FURTHEST)
        return {"code": moved(word, shift), "shift": str(shift)}, word

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        code, shift = fields["code"].strip("'\""), fields["shift"]
        if not re.fullmatch("[a-z]{1,60}", code) or not re.fullmatch("[0-9]{1,2}", shift):
            return None
        word = moved(code, -int(shift))
        pairs = enumerate(zip(code, word, strict=True), 1)
        return word, "".join(f" #{i} {given} {meant}" for i, (given, meant) in pairs)

    def judge(self, problem: Problem, answer: str) -> bool:
        return bare(answer) == problem.answer
