"""Sorting: 'Sort 31, 7, 19, 4. Which is number 3?' Difficulty is how many numbers there are."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Task, listing, whole_numbers

LARGEST = 99
PLACES = 8
"""The places asked for are the first eight of up to 16 numbers, so that thoughts stay short, and then the eight up to
the middle: the smallest of many numbers are seen at a glance."""


class Sort(Task):
    """The thought counts upwards through the numbers, smallest first, until the place asked for."""

    name = "sort"
    about = "put numbers in order and name the one in a given place"
    phrasings = (
        "Sort {numbers}. Which is number {place}?",
        "Put {numbers} in order. What stands in place {place}?",
        "From small to large, which of {numbers} is number {place}?",
        "If you sort {numbers}, what comes in place {place}?",
    )
    gold_limit = 12
    default_difficulty = 12
    difficulties = range(3, 25)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        numbers = rng.sample(range(1, LARGEST + 1), difficulty)
        deepest = min(difficulty, max(PLACES, difficulty // 2))
        place = rng.between(max(1, deepest - PLACES + 1), deepest)
        key = f"{' '.join(map(str, sorted(numbers)))} : {place}"
        return {"numbers": listing(numbers), "place": str(place)}, key

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        numbers = whole_numbers(fields["numbers"])
        place = re.fullmatch(r"\d{1,3}", fields["place"])
        if not numbers or not place or not 1 <= int(place[0]) <= len(numbers):
            return None
        ordered = sorted(numbers)[: int(place[0])]
        return str(ordered[-1]), "".join(f" #{i} {value}" for i, value in enumerate(ordered, 1))
