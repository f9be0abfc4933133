"""Knights and knaves: 'Anna says Ben is a knave. ... Who are the knights?' Difficulty is how many people there are."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task
from hadal.tasks.twins import without_names

NAMES = "Anna Ben Carl Dora Emil Fay Gus Hana Ivan Jill".split()
NOBODY = "nobody"
CLAIMS = {
    "knight": "{0} is a knight",
    "knave": "{0} is a knave",
    "same": "{0} and {1} are of the same kind",
    "other": "{0} and {1} are of different kinds",
    "both": "{0} and {1} are both knights",
    "not both": "at least one of {0} and {1} is a knave",
    "either": "at least one of {0} and {1} is a knight",
    "neither": "{0} and {1} are both knaves",
}
OPPOSITE = {"knight": "knave", "same": "other", "both": "not both", "either": "neither"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}


class Claim(NamedTuple):
    """What a person (by number) says about others."""

    speaker: int
    kind: str
    about: tuple[int, ...]

    def holds(self, knights: list[bool]) -> bool:
        first, last = knights[self.about[0]], knights[self.about[-1]]
        return {
            "knight": first, "knave": not first, "same": first == last, "other": first != last,
            "both": first and last, "not both": not (first and last),
            "either": first or last, "neither": not (first or last),
        }[self.kind]  # fmt: skip


@cache
def worlds(people: int) -> tuple[int, list[int]]:
    """All 2^people worlds as bits of one number, and for each person the worlds in which they are a knight."""
    count = 1 << people
    return (1 << count) - 1, [sum(1 << w for w in range(count) if w >> i & 1) for i in range(people)]


def possible(people: int, claims: list[Claim]) -> int:
    """How many worlds agree with all claims."""
    left, knight = worlds(people)
    for speaker, kind, about in claims:
        first, last = knight[about[0]], knight[about[-1]]
        truth = {
            "knight": first, "knave": ~first, "same": ~(first ^ last), "other": first ^ last,
            "both": first & last, "not both": ~(first & last),
            "either": first | last, "neither": ~(first | last),
        }[kind]  # fmt: skip
        left &= ~(knight[speaker] ^ truth)  # knights say what is true, knaves what is not
    return left.bit_count()


def named(answer: str) -> list[str]:
    """The names in an answer, in lower case."""
    words = [word for word in re.split(r"[\s,]+|\band\b", answer.lower().strip().rstrip(".")) if word]
    return [NOBODY] if words in (["nobody"], ["none"], ["no", "one"]) else words


class Knights(Task):
    """The thought gives each person a kind in turn, knight first, and writes the row anew after each contradiction."""

    name = "knights"
    about = "tell knights, who always speak the truth, from knaves, who always lie"
    phrasings = (
        "Knights tell the truth, knaves lie. {claims} Who are the knights?",
        "Knaves always lie and knights never do. {claims} Name the knights.",
        "{claims} If knights tell the truth and knaves lie, who are the knights?",
        "On an island of knights, who are honest, and knaves, who lie, you hear this. {claims} Which are the knights?",
    )
    gold_limit = 4
    default_difficulty = 4
    difficulties = range(3, 11)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        while True:
            knights = [rng.below(2) == 1 for _ in range(difficulty)]
            claims = [self.claim(rng, speaker, knights) for speaker in range(difficulty)]
            if possible(difficulty, claims) == 1:
                break
        names = rng.sample(NAMES, difficulty)
        spoken = [
            f"{names[c.speaker]} says {CLAIMS[c.kind].format(*(names[i] for i in c.about))}."
            for c in rng.sample(claims, difficulty)
        ]
        return {"claims": " ".join(spoken)}, without_names([""] * difficulty, claims)

    def claim(self, rng: Rng, speaker: int, knights: list[bool]) -> Claim:
        """What a person of this kind can say."""
        others = [i for i in range(len(knights)) if i != speaker]
        kind = rng.choice(("knight", "same", "both", "either"))
        claim = Claim(speaker, kind, tuple(rng.sample(others, 1 if kind == "knight" else 2)))
        if claim.holds(knights) != knights[speaker]:
            claim = claim._replace(kind=OPPOSITE[kind])
        return claim

    def read(self, text: str) -> tuple[list[str], list[Claim]] | None:
        """The speakers in order, and what they say."""
        sentences = [s.strip() for s in text.lower().split(".") if s.strip()]
        split = [s.partition(" says ") for s in sentences]
        names = [name.capitalize() for name, _, _ in split]
        claims = []
        for speaker, (_, _, said) in enumerate(split):
            for kind, form in CLAIMS.items():
                match = re.fullmatch(form.format("([a-z]+)", "([a-z]+)"), said)
                if match:
                    about = [name.capitalize() for name in match.groups()]
                    if not set(about) <= set(names):
                        return None
                    claims.append(Claim(speaker, kind, tuple(map(names.index, about))))
                    break
        if not 2 <= len(names) <= 12 or len(set(names)) < len(names) or len(claims) < len(names):
            return None
        return names, claims

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        found = self.read(fields["claims"])
        if found is None or possible(len(found[0]), found[1]) != 1:
            return None
        names, claims = found
        # A claim can be checked as soon as the last person that it needs has a kind.
        ready = [[c for c in claims if max(c.speaker, *c.about) == i] for i in range(len(names))]
        knights: list[bool] = []
        thought = ""
        while True:
            for i in range(len(knights), len(names) + 1):
                fits = not knights or all(c.holds(knights) == knights[c.speaker] for c in ready[i - 1])
                if not fits or i == len(names):
                    break
                knights.append(True)
            row = zip(names, knights, strict=False)
            thought += "".join(f" {name} {'knight' if honest else 'knave'}" for name, honest in row)
            if fits:
                break
            thought += " no"
            while not knights[-1]:
                knights.pop()
            knights[-1] = False
        honest = [name for name, knight in zip(names, knights, strict=True) if knight]
        return ", ".join(honest) or NOBODY, thought + " yes"

    def judge(self, problem: Problem, answer: str) -> bool:
        words = named(answer)
        return len(words) == len(set(words)) and set(words) == set(problem.answer.lower().split(", "))

    def canonical(self, problem: Problem, answer: str) -> str:
        return " ".join(sorted(named(answer)))

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        found = self.read(problem.meta["fields"]["claims"])
        assert found is not None
        honest = set(problem.answer.split(", ")) - {NOBODY}
        turned = [honest ^ {name} for name in found[0]] + [set(found[0]) - honest, honest | {"Zoe"}]
        return [", ".join(sorted(row)) or NOBODY for row in rng.sample(turned, 5)]
