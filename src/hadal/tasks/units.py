"""Units: 'Add 3 ft 7 in, 29 in and 2 ft.' Difficulty is how many amounts there are."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, listing

PAIRS = {
    "ft": ("in", 12), "yd": ("ft", 3), "lb": ("oz", 16), "st": ("lb", 14), "gal": ("qt", 4), "h": ("min", 60),
    "min": ("s", 60), "d": ("h", 24), "wk": ("d", 7), "m": ("cm", 100), "cm": ("mm", 10),
}  # fmt: skip
"""A unit, the smaller one below it, and how many of those it has."""
SPOKEN = {
    "ft": "foot feet", "in": "inch inches", "yd": "yard yards", "lb": "lbs pound pounds", "oz": "ounce ounces",
    "st": "stone stones", "gal": "gallon gallons", "qt": "quart quarts", "h": "hr hrs hour hours",
    "min": "mins minute minutes", "s": "sec second seconds", "d": "day days", "wk": "week weeks",
    "m": "metre metres meter meters", "cm": "centimetre centimetres", "mm": "millimetre millimetres",
}  # fmt: skip
UNIT = {word: unit for unit, words in SPOKEN.items() for word in (unit, *words.split())}


def read_amount(text: str) -> list[tuple[int, str]] | None:
    """[(3, 'ft'), (7, 'in')] of '3 ft 7 in', '3 feet and 7 inches' or '3ft 7in'; None for anything else."""
    text = text.strip().lower().rstrip(".")
    if not re.fullmatch(r"[0-9]{1,6} ?[a-z]+(?:(?:,| and)? [0-9]{1,6} ?[a-z]+)*", text):
        return None
    parts = [(int(number), UNIT.get(word, "")) for number, word in re.findall(r"([0-9]+) ?([a-z]+)", text)]
    return parts if all(unit for _, unit in parts) else None


class Units(Task):
    """The thought keeps a running amount in both units, and turns the smaller one over where it is too large."""

    name = "units"
    about = "add amounts in mixed units"
    phrasings = (
        "Add {amounts}. How many {big} and {small} is that?",
        "What do {amounts} make together, in {big} and {small}?",
        "Put together {amounts} and give it in {big} and {small}.",
        "Somebody needs {amounts}. Say in {big} and {small} how much it is in all.",
    )
    gold_limit = 6
    default_difficulty = 5
    difficulties = range(1, 17)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        big = rng.choice(tuple(PAIRS))
        small, factor = PAIRS[big]
        amounts = []
        for _ in range(difficulty):
            much, few = rng.between(1, 9), rng.between(1, factor - 1)
            over = rng.between(factor, min(3 * factor, 99)) if factor < 99 else rng.between(10, 99)
            kind = rng.below(3) if difficulty > 1 else 2
            amounts.append((f"{much} {big} {few} {small}", f"{much} {big}", f"{over} {small}")[kind])
        fields = {"amounts": listing(amounts), "big": big, "small": small}
        return fields, f"{big} : {listing(sorted(amounts))}"

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        big, small = fields["big"], fields["small"]
        if PAIRS.get(big, ("", 0))[0] != small:
            return None
        factor = PAIRS[big][1]
        much = few = 0
        thought = ""
        for amount in fields["amounts"].split(", "):
            parts = read_amount(amount)
            if parts is None or len(parts) > 2 or not {unit for _, unit in parts} <= {big, small}:
                return None
            for number, unit in parts:
                thought += f" {number} {unit}"
                if unit == big:
                    much += number
                    thought += f" ={much}"
                    continue
                few += number
                thought += f" ={few}"
                while few >= factor:
                    few, much = few - factor, much + 1
                    thought += f" over ={few} {big} ={much}"
        return f"{much} {big} {few} {small}", thought

    def total(self, fields: dict[str, str], amount: str) -> int | None:
        """An amount in the smaller unit, however it is divided; None if it is none in these units."""
        value = {fields["small"]: 1, fields["big"]: PAIRS[fields["big"]][1]}
        parts = read_amount(amount)
        if parts is None or any(unit not in value for _, unit in parts):
            return None
        return sum(number * value[unit] for number, unit in parts)

    def judge(self, problem: Problem, answer: str) -> bool:
        fields = problem.meta["fields"]
        return self.total(fields, answer) == self.total(fields, problem.answer)

    def canonical(self, problem: Problem, answer: str) -> str:
        amount = self.total(problem.meta["fields"], answer)
        return super().canonical(problem, answer) if amount is None else str(amount)

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        much, big, few, small = problem.answer.split()
        m, f = int(much), int(few)
        return [
            f"{m + 1} {big} {f} {small}", f"{m} {big} {f + 1} {small}", f"{m} {small} {f + 1} {big}",
            f"{m} {big} {f}", f"{m + 1} {big}",
        ]  # fmt: skip
