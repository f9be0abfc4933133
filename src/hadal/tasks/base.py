"""What a task is: problems from a seed, and a check of any answer.

A task draws problems of a given difficulty. Training and held-out problems are apart by construction: the
problem's key (its content without its wording, twins merged) is hashed, and one key in eight is held out.
Gold thoughts exist up to the task's `gold_limit` and nowhere above it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Literal

from hadal.errors import UserError
from hadal.rng import Rng
from hadal.tasks.answers import Verdict
from hadal.text.parse import parse_response

CLOSINGS = ("Thanks!", "Please.", "Please be careful.", "Take your time.")
"""What people add to a question."""

FEWEST = 10  # different problems in 100 draws at the default difficulty
SAME_RNG = "Take all randomness from rng, and none from the random module or the clock."

Split = Literal["train", "held_out"]


@dataclass
class Problem:
    """A question, its answer, what the scorer needs besides (`meta`), and a worked thought if there is one."""

    prompt: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)
    thought: str | None = None


@dataclass(frozen=True)
class Reward:
    """total is what training maximises; parts are its components, unweighted; note says why. right: whether the answer
    counts as right (pass@k, the curriculum); broke: what judges it came to no verdict."""

    total: float
    parts: dict[str, float]
    note: str = ""
    right: bool = False
    broke: bool = False


def split_of(key: str) -> Split:
    """Which side a problem is on, from its key alone."""
    return "held_out" if split_order(key)[0] % 8 == 0 else "train"


def split_order(key: str) -> bytes:
    """A random-looking order of keys."""
    return blake2b(key.encode(), digest_size=8).digest()


class Task:
    """Base class: a subclass draws problems and judges answers; seeds, splits and wording are done here."""

    name: ClassVar[str]
    about: ClassVar[str]
    phrasings: ClassVar[tuple[str, ...]]
    """Wordings with {fields}; the last one is never trained on."""
    gold_limit: int
    default_difficulty: int
    difficulties: range
    right_at: float = 1.0
    """The score from which on an answer counts as right."""

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        """The fields of a random problem, and its key."""
        raise NotImplementedError

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        """Answer and thought for the fields of a problem; None if they are not a problem of this task."""
        raise NotImplementedError

    def judge(self, problem: Problem, answer: str) -> bool:
        """Whether an answer is right, by meaning."""
        return answer.lower().rstrip(".") == problem.answer

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        """Whether an answer is right, and why not where that can be told."""
        return Verdict(self.judge(problem, answer))

    def canonical(self, problem: Problem, answer: str) -> str:
        """An answer in the form that all of its meaning share, to count votes by; empty if it is none."""
        number = as_number(answer)
        return plainly(answer) if number is None else str(number)

    def source(self) -> str:
        """Which task this is: its name, and for one of the user's own what its files hold."""
        return self.name

    def side(self, key: str) -> Split:
        """The side that a key is on."""
        return split_of(f"{self.name}:{key}")

    def generate(self, seed: int, split: Split, difficulty: int, new_phrasing: bool = False) -> Problem:
        """A problem of the given side; the same arguments always give the same one.

        new_phrasing: worded in the way that training never uses.
        """
        rng = Rng(self.name, seed, split, difficulty)
        for _ in range(10_000):
            problem = self.propose(rng, difficulty, new_phrasing)
            if self.side(problem.meta["key"]) == split:
                if difficulty > self.gold_limit:
                    problem.thought = None
                return problem
        raise UserError(
            f"Task {self.name} found no {split} problem of difficulty {difficulty} in 10,000 draws.",
            "It has too few different problems there.",
        )

    def for_reward(self, problem: Problem) -> Problem:
        """A problem as it is posed where its answers are rewarded, as in reinforcement learning, and not measured:
        its prompt gives away nothing by which a wrong answer would be right."""
        return problem

    def listed(self, split: Split, difficulty: int) -> list[Problem] | None:
        """All problems of a side, in a fixed order, where there is a list of them; None where they are drawn."""
        return None

    def propose(self, rng: Rng, difficulty: int, new_phrasing: bool) -> Problem:
        """A random problem of either side, with its thought."""
        fields, key = self.draw(rng, difficulty)
        template = self.phrasings[-1] if new_phrasing else rng.choice(self.phrasings[:-1])
        slips = 0 if new_phrasing or rng.below(4) else rng.between(1, 3)
        for _ in range(slips):
            template = misspell(template, rng)
        closing = f" {rng.choice(CLOSINGS)}" if rng.below(3) == 0 else ""
        meta = {"key": key, "difficulty": difficulty, "slips": slips}
        return self._problem(template.format(**fields) + closing, fields, meta)

    def _problem(self, prompt: str, fields: dict[str, str], meta: dict[str, Any]) -> Problem:
        solved = self.solve(fields)
        assert solved is not None, f"{self.name} drew a problem that it cannot solve: {fields}"
        return Problem(prompt, solved[0], {"task": self.name, "fields": fields} | meta, solved[1])

    def score(self, problem: Problem, response: str) -> Reward:
        """The score of the answer behind the thought, from 0 to 1; 0 where there is none. The note says why."""
        return self.score_all(problem, [response])[0]

    def score_all(self, problem: Problem, responses: Sequence[str]) -> list[Reward]:
        """`score` of each response to a problem; equal answers are judged once."""
        verdicts: dict[str, Verdict] = {}
        rewards = []
        for parsed in map(parse_response, responses):
            verdict = Verdict(False, "no answer" if parsed.closed else "the thought was not closed")
            if parsed.closed and parsed.answer:
                if parsed.answer not in verdicts:
                    verdicts[parsed.answer] = self.verdict(problem, parsed.answer)
                verdict = verdicts[parsed.answer]
            note = verdict.note or ("right" if verdict.right else "wrong")
            rewards.append(Reward(verdict.score, {"accuracy": verdict.score}, note, verdict.right, verdict.broke))
        return rewards

    def tests_passed(self, problem: Problem, response: str) -> float:
        """The share of a program's tests that a response passes; 0 where a task has none."""
        return 0.0

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        """Answers that look like the right one and are wrong; here a number or a word that is slightly off."""
        return near_numbers(problem.answer, rng) or near_words(problem.answer, rng)

    def validate(self, n: int = 50) -> None:
        """Check n problems of each side, at levels from the easiest to the hardest. UserError names the first fault.

        The gold answer is right; near misses, empty answers and mere thoughts are not; the same seed gives the same
        problem; no question is asked on both sides; there are enough different ones to learn from.
        """
        levels = self.difficulties
        asked: dict[Split, set[str]] = {"train": set(), "held_out": set()}
        for split, questions in asked.items():
            for i in range(n):
                seed, level = (7 << 32) + i, levels[i * len(levels) // n]
                problem = self.generate(seed, split, level)
                if self.generate(seed, split, level) != problem:
                    raise UserError(f"Task {self.name} gives a different problem for the same seed.", SAME_RNG)
                fault = self.fault(problem)
                if fault:
                    raise UserError(f"Task {self.name}: {fault} The question was {problem.prompt!r}.")
                questions.add(" ".join(problem.prompt.split()))
        both = asked["train"] & asked["held_out"]
        if both:
            raise UserError(
                f"Task {self.name} asks the same on both sides: {min(both)!r} is trained on and held out.",
                'A problem\'s meta["key"] must be the same whenever its question is.',
            )
        drawn = {self.generate((7 << 32) + i, "train", self.default_difficulty).meta["key"] for i in range(100)}
        if len(drawn) < FEWEST:
            raise UserError(
                f"Task {self.name} has too few different problems at difficulty {self.default_difficulty}: "
                f"{len(drawn)} in 100 draws.",
                f"Fewer than {FEWEST} would be learned by heart.",
            )

    def fault(self, problem: Problem) -> str:
        """What is wrong with a problem, in a sentence; empty if nothing is."""
        gold = self.score(problem, f"<think>{problem.thought or ''}</think> {problem.answer}")
        if not gold.right:
            return f"the gold answer {problem.answer!r} scores {gold.total:g} and not {self.right_at:g}."
        thought_only = (f"<think> {problem.answer}", f"<think> {problem.answer}</think>")
        for wrong in ("", "<think> hm", "<think> hm </think>", "<think></think>", "no idea", *thought_only):
            if self.score(problem, wrong).right:
                return f"the response {wrong!r} counts as right."
        for wrong in self.near_misses(problem, Rng("near misses", problem.prompt)):
            if self.score(problem, wrong).right:
                return f"the wrong answer {wrong!r} counts as right, like the gold answer {problem.answer!r}."
        return ""

    def recognise(self, text: str) -> Problem | None:
        """The problem in a person's own words, if it is worded in one of the known ways."""
        plain = " ".join(text.lower().split())
        for closing in CLOSINGS:
            plain = plain.removesuffix(closing.lower()).strip()
        plain = plain.rstrip("?.! ")
        for template in self.phrasings:
            pattern = re.escape(" ".join(template.lower().split()).rstrip("?.! "))
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", pattern)
            match = re.fullmatch(pattern, plain)
            if match:
                solved = self.solve(match.groupdict())
                if solved is not None:
                    return Problem(text, solved[0], {"task": self.name, "fields": match.groupdict()}, solved[1])
        return None


def misspell(template: str, rng: Rng) -> str:
    """The wording with a slip in one of its own words, as people type: so a model learns to read past unknown words."""
    words = template.split(" ")
    places = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 1]
    if not places:
        return template
    place = rng.choice(places)
    word, cut = words[place], rng.below(len(words[place]))
    slip = rng.below(3)
    if slip == 0:
        word = word[:cut] + word[cut + 1 :]
    elif slip == 1:
        word = word[:cut] + word[cut] + word[cut:]
    else:
        word = word[:cut] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[cut + 1 :]
    words[place] = word
    return " ".join(words)


def whole_numbers(text: str) -> list[int] | None:
    """The numbers of '3, 8 and 5'; None if there is anything else."""
    parts = re.split(r"\s*,\s*|\s+and\s+|\s+", text.replace(", and ", ", ").strip())
    if not parts or not all(re.fullmatch(r"\d{1,6}", part) for part in parts):
        return None
    return [int(part) for part in parts]


def listing(items: Sequence[object]) -> str:
    """'3, 8, 5' as people write it."""
    return ", ".join(map(str, items))


def plainly(text: str) -> str:
    """A question without case, punctuation and white space, as a key: spelled otherwise it stays on its side."""
    return " ".join(re.findall(r"\w+|[^\w\s.,;:!?]", text.lower()))


def as_number(text: str) -> int | None:
    """The whole number that an answer is ('14', '14.', '+14', '14.0'); None if it is none."""
    match = re.fullmatch(r"([+-]?[0-9]{1,18})(\.0*)?", text.strip())
    return int(match[1]) if match else None


def bare(text: str) -> str:
    """A word as it is meant: without case, quotes, a final stop and gaps between its letters."""
    return re.sub(r"[\s'\"`-]", "", text.lower()).removesuffix(".")


def near_numbers(answer: str, rng: Rng) -> list[str]:
    """Five other whole numbers near a whole number; none where the answer is no number."""
    number = as_number(answer)
    if number is None:
        return []
    others = {number - 1, number + 1, number + 10, number * 10, 10 * number + 1, number - 10, -number, number + 2}
    return [str(other) for other in rng.sample(sorted(others - {number}), 5)]


def near_words(answer: str, rng: Rng) -> list[str]:
    """Five texts that differ from the answer in a letter or digit: one changed, dropped, doubled, added at an end."""
    places = [i for i, character in enumerate(answer) if character.isalnum()]
    if not places:
        return []
    place, letter = rng.choice(places), rng.choice("abcdefghijklmnopqrstuvwxyz")
    while letter == answer[place].lower():
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    before, at, after = answer[:place], answer[place], answer[place + 1 :]
    return [before + letter + after, before + after, before + at + at + after, letter + answer, answer + letter]
