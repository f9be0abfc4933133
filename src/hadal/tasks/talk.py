"""Small talk: 'Say hello to Anna and Tom.' Nothing to think about. Difficulty is how many names there are.

What R1's recipe calls non-reasoning data, in the smallest form that a rule can check: a reply is right where it does
what was asked, names everybody once and keeps to it. So a model has to learn when to answer at once, and in words.
"""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task

NAMES = """Anna Ben Carl Dora Emil Fay Gus Hana Ivan June Kim Leo Mia Noah Olga Paul Rosa Sam Tom Uma Vera Will Yara
Zoe""".split()
REQUESTS = {
    "Say hello to": "Hello, {}!",
    "Thank": "Thank you, {}!",
    "Wish good night to": "Good night, {}!",
    "Say sorry to": "I am sorry, {}.",
    "Introduce yourself to": "I am hadal, {}.",
    "Congratulate": "Well done, {}!",
}
"""What is asked for, and the words that do it."""
MOST_MORE = 4
"""Words that a reply may have beyond those that are needed."""


def spoken(names: list[str]) -> str:
    """'Anna', 'Anna and Tom', 'Anna, Tom and Zoe'."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


class Talk(Task):
    """It has no thoughts at any level: whoever thinks about it wastes tokens, and a rule says what helps."""

    name = "talk"
    about = "say something short and kind to somebody"
    phrasings = (
        "{request} {people}.",
        "{request} {people}, please.",
        "Would you do this: {request} {people}?",
        "I ask you: {request} {people}.",
    )
    gold_limit = 0
    default_difficulty = 2
    difficulties = range(1, 5)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        request, names = rng.choice(tuple(REQUESTS)), rng.sample(NAMES, max(1, difficulty))
        return {"request": request, "people": spoken(names)}, f"{request} : {' '.join(sorted(names))}"

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        names = [name for name in re.split(r", | and ", fields["people"]) if name in NAMES]
        reply = next((reply for request, reply in REQUESTS.items() if request.lower() == fields["request"].lower()), "")
        return (reply.format(spoken(names)), "") if reply and names else None

    def recognise(self, text: str) -> Problem | None:
        known = "|".join(map(re.escape, REQUESTS))
        match = re.fullmatch(rf"(?:.*[:,]\s*)?({known})\s+(.+?)(?:,?\s+please)?[.?!\s]*", text.strip(), re.IGNORECASE)
        if match is None:
            return None
        people = re.sub(r"\b(?!and\b)[a-z]", lambda letter: letter[0].upper(), match[2].lower())
        fields = {"request": match[1], "people": people}
        solved = self.solve(fields)
        return Problem(text, solved[0], {"task": self.name, "fields": fields}, None) if solved else None

    def judge(self, problem: Problem, answer: str) -> bool:
        """Helpful: it holds the words that do what was asked, each name once and no other, and little else."""
        need, said = [word for word in words(problem.answer) if word != "and"], words(answer)
        known = {name.lower() for name in NAMES}
        return (
            all(word in said for word in need)
            and sorted(w for w in said if w in known) == sorted(w for w in need if w in known)
            and len(said) <= len(need) + MOST_MORE
        )

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        fields = problem.meta["fields"]
        names = re.split(r", | and ", fields["people"])
        other = rng.choice([name for name in NAMES if name not in names])
        swapped = problem.answer.replace(names[-1], other)
        said = problem.answer
        return [swapped, fields["people"], f"{said} {other}", f"{said} {names[0]}", fields["request"]]
