"""Countdown with plus and minus: 'Make 16 from 12, 7 and 3.' Difficulty is how many numbers there are."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, listing, whole_numbers

LARGEST, CEILING = 19, 49


class Countdown(Task):
    """The thought tries the signs of all but the last number in turn, and sees whether that one fits what is left."""

    name = "countdown"
    about = "reach a target from given numbers with plus and minus"
    phrasings = (
        "Make {target} from {numbers} using + and -.",
        "Use + and - on {numbers} to get {target}.",
        "How do you get {target} from {numbers} with + and -?",
        "With + and - only, turn {numbers} into {target}.",
    )
    gold_limit = 5
    default_difficulty = 5
    difficulties = range(3, 9)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        while True:
            numbers = rng.sample(range(1, LARGEST + 1), difficulty)
            numbers.sort(reverse=True)
            signs = [1] + [1 if rng.below(2) else -1 for _ in numbers[1:]]
            target = sum(s * v for s, v in zip(signs, numbers, strict=True))
            if 0 < target <= CEILING and sum(numbers) <= 99:
                key = f"{' '.join(map(str, numbers))} : {target}"
                return {"numbers": listing(numbers), "target": str(target)}, key

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        numbers = whole_numbers(fields["numbers"])
        if not numbers or not 2 <= len(numbers) <= 12 or not re.fullmatch(r"\d{1,6}", fields["target"]):
            return None
        target, thought = int(fields["target"]), ""
        first, *middle, last = numbers
        for pattern in range(1 << len(middle)):
            total, answer = first, str(first)
            thought += f" {total}"
            for place, value in enumerate(middle):
                minus = (pattern >> (len(middle) - 1 - place)) & 1
                total += -value if minus else value
                step = f" {'-' if minus else '+'} {value}"
                answer += step
                thought += f"{step} ={total}"
            left = target - total
            thought += f" {'left' if left > 0 else 'over'} {abs(left)}"
            if abs(left) == last:
                return f"{answer} {'+' if left > 0 else '-'} {last}", thought + " yes"
            thought += " no"
        return None

    def judge(self, problem: Problem, answer: str) -> bool:
        fields = problem.meta["fields"]
        text = answer.replace(" ", "").rstrip(".")
        if not re.fullmatch(r"\d{1,6}([+-]\d{1,6}){1,20}", text):
            return False
        terms = [int(term) for term in re.findall(r"[+-]?\d+", text)]
        return sorted(map(abs, terms)) == sorted(whole_numbers(fields["numbers"]) or []) and sum(terms) == int(
            fields["target"]
        )
