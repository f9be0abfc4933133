"""Long sums: 'What is 7 + 12 - 5?' Difficulty is the number of terms."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Task

LARGEST, CEILING = 16, 32
"""Terms lie below LARGEST and differ as long as there are enough of them; totals stay between 0 and CEILING."""


class Sums(Task):
    """The thought carries a running total, one term a step."""

    name = "sums"
    about = "add and subtract a row of numbers"
    phrasings = (
        "What is {expression}?",
        "Work out {expression}.",
        "{expression} = ?",
        "How much is {expression}?",
        "Please calculate {expression}.",
    )
    gold_limit = 8
    default_difficulty = 7
    difficulties = range(2, 17)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        total = rng.between(1, LARGEST)
        terms = [total]
        for _ in range(difficulty - 1):
            unused = set(range(1, LARGEST + 1)) - set(map(abs, terms)) or set(range(1, LARGEST + 1))
            up = sorted(v for v in unused if total + v <= CEILING)
            down = sorted(-v for v in unused if v <= total)
            step = rng.choice(up if not down or (up and rng.below(2)) else down)
            terms.append(step)
            total += step
        expression = str(terms[0]) + "".join(f" {'+' if t > 0 else '-'} {abs(t)}" for t in terms[1:])
        return {"expression": expression}, " ".join(map(str, sorted(terms)))

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        text = fields["expression"].replace(" ", "")
        if not re.fullmatch(r"\d{1,6}([+-]\d{1,6}){1,200}", text):
            return None
        first, *rest = re.findall(r"[+-]?\d+", text)
        total = int(first)
        thought = f" {total}"
        for term in rest:
            total += int(term)
            thought += f" {term[0]} {int(term[1:])} ={total}"
        return str(total), thought
