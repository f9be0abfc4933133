"""Letters moved about: 'Take plan: reverse it, then drop the last letter.' Difficulty is how many steps there are."""

from __future__ import annotations

import re
from collections.abc import Callable

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, bare
from hadal.tasks.letters import word_of_length

SHORTEST, LONGEST = 3, 8
STEPS: dict[str, Callable[[str, str, str], str]] = {
    "reverse it": lambda word, x, y: word[::-1],
    "swap the first and last letter": lambda word, x, y: word[-1] + word[1:-1] + word[0],
    "move the first letter to the end": lambda word, x, y: word[1:] + word[0],
    "move the last letter to the front": lambda word, x, y: word[-1] + word[:-1],
    "drop the first letter": lambda word, x, y: word[1:],
    "drop the last letter": lambda word, x, y: word[:-1],
    "double the last letter": lambda word, x, y: word + word[-1],
    "put {0} in front": lambda word, x, y: x + word,
    "put {0} at the end": lambda word, x, y: word + x,
    "turn each {0} into {1}": lambda word, x, y: word.replace(x, y),
}
THEN = ", then "
PATTERNS = [(re.compile(form.format("([a-z])", "([a-z])")), act) for form, act in STEPS.items()]


class Strings(Task):
    """The thought spells the word after each step."""

    name = "strings"
    about = "change a word step by step"
    phrasings = (
        "Take {word}: {steps}. What do you have?",
        "Start with {word}, {steps}. What is left?",
        "What becomes of {word} if you {steps}?",
        "Begin from {word} and {steps}. Write the outcome.",
    )
    gold_limit = 6
    default_difficulty = 5
    difficulties = range(1, 17)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        word = now = word_of_length(rng, rng.between(4, 6))
        steps: list[str] = []
        while len(steps) < difficulty:
            form = rng.choice(tuple(STEPS))
            x, y = rng.choice(now), rng.choice("abcdefghijklmnopqrstuvwxyz")
            after = STEPS[form](now, y if form.startswith("put") else x, y)
            if after != now and SHORTEST <= len(after) <= LONGEST:  # a step does something
                now = after
                steps.append(form.format(y if form.startswith("put") else x, y))
        return {"word": word, "steps": THEN.join(steps)}, f"{word} : {THEN.join(steps)}"

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        word = fields["word"].strip("'\"")
        if not re.fullmatch(r"[a-z]{2,30}", word):
            return None
        thought = ""
        for number, step in enumerate(fields["steps"].split(THEN), 1):
            found = next(((match, act) for form, act in PATTERNS if (match := form.fullmatch(step))), None)
            if found is None or len(word) < 2:
                return None
            match, act = found
            x, y = (*match.groups(), "", "")[:2]
            word = act(word, x, y)
            thought += f" #{number} " + " ".join(word)
        return word, thought

    def judge(self, problem: Problem, answer: str) -> bool:
        return bare(answer) == problem.answer
