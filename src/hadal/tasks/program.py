"""What a small Python program prints. Difficulty is how many assignments it carries out."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, as_number, near_numbers

NAMES = "abc"
CEILING = 99  # values lie between 0 and this
_SET = r"[a-c] = (?:[a-c]|\d{1,2})(?: [-+*] (?:[a-c]|\d{1,2}))?"
_LINE = rf"(?:for _ in range\((\d)\): |if ([a-c]) ([<>]) (\d{{1,2}}): )?({_SET}(?:; {_SET})*)"
_PROGRAM = re.compile(rf"((?:{_LINE} )+)print\(([a-c])\)")
_LINES = re.compile(rf"{_LINE} ")
MOST_STEPS = 500


def run(line: re.Match[str], values: dict[str, int], trace: list[str]) -> None:
    """Carry out a line of the program. KeyError for a name without a value, ValueError for a value out of range."""
    times, name, sign, bound, body = line.groups()
    if name:
        holds = values[name] < int(bound) if sign == "<" else values[name] > int(bound)
        trace.append(f" if {values[name]} {sign} {bound} {'yes' if holds else 'no'}")
        times = int(holds)
    for number in range(int(times or 1) if times != 0 else 0):
        if line[1]:
            trace.append(f" #{number + 1}")
        for assignment in body.split("; "):
            target, _, first, *rest = assignment.split(" ")
            value = values[first] if first in NAMES else int(first)
            if rest:
                other = values[rest[1]] if rest[1] in NAMES else int(rest[1])
                value = {"+": value + other, "-": value - other, "*": value * other}[rest[0]]
            if not 0 <= value <= CEILING:
                raise ValueError
            values[target] = value
            trace.append(f" {target} ={value}")


def assignments(trace: list[str]) -> int:
    """How many assignments a trace has."""
    return sum("=" in step for step in trace)


class Program(Task):
    """The thought carries the program out, one assignment after the other."""

    name = "program"
    about = "say what a small Python program prints"
    phrasings = (
        "{program}\nWhat does this print?",
        "{program}\nWhat is the output?",
        "{program}\nRun this program. What do you see?",
        "Here is some Python.\n{program}\nWhat will it print?",
    )
    gold_limit = 9
    default_difficulty = 8
    difficulties = range(3, 25)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        lines = [f"{name} = {rng.between(1, 12)}" for name in NAMES[:2]]
        values = {line[0]: int(line[4:]) for line in lines}
        done = len(lines)
        shown = lines[-1][0]
        while done < difficulty:
            text = self.line(rng, sorted(values), difficulty - done)
            tried, trace = dict(values), list[str]()
            match = _LINES.fullmatch(text + " ")
            assert match is not None
            try:
                run(match, tried, trace)
            except ValueError:
                continue
            if "=" in trace[-1] and done + assignments(trace) <= difficulty:
                values, done = tried, done + assignments(trace)
                lines.append(text)
                shown = trace[-1][1]
        program = "\n".join([*lines, f"print({shown})"])  # what was assigned last, since most depends on it
        return {"program": program}, program

    def line(self, rng: Rng, names: list[str], room: int) -> str:
        """A random line with at most `room` assignments, give or take."""
        def assignment() -> str:
            target, first = rng.choice(NAMES if len(names) < 3 and rng.below(3) == 0 else names), rng.choice(names)
            sign = rng.choice("++--*")
            others = [name for name in names if name != first]
            other = rng.between(2, 3) if sign == "*" else rng.choice(others) if rng.below(2) else rng.between(1, 9)
            return f"{target} = {first} {sign} {other}"

        kind = rng.below(4)
        body = "; ".join(assignment() for _ in range(rng.between(1, 2)))
        if kind == 0 and room >= 4:
            return f"for _ in range({rng.between(2, 3)}): {body}"
        if kind == 1:
            return f"if {rng.choice(names)} {rng.choice('<>')} {rng.between(2, 20)}: {body}"
        return assignment()

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        match = _PROGRAM.fullmatch(" ".join(fields["program"].split()))
        if match is None:
            return None
        values: dict[str, int] = {}
        trace: list[str] = []
        try:
            for line in _LINES.finditer(match[1]):
                run(line, values, trace)
                if len(trace) > MOST_STEPS:
                    return None
            return str(values[match[match.re.groups]]), "".join(trace)
        except (KeyError, ValueError):
            return None

    def judge(self, problem: Problem, answer: str) -> bool:
        return as_number(answer) == int(problem.answer)

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        return near_numbers(problem.answer, rng)
