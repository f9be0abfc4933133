"""Whether an answer is right, found by brute force from the question's fields, apart from the tasks' own judges.

Each function says by its own reading what an answer means. Nothing of `hadal.tasks` is used here.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import re
from collections.abc import Callable
from functools import cache

Fields = dict[str, str]


def number(answer: str) -> float | None:
    try:
        return float(answer)
    except ValueError:
        return None


def sums(fields: Fields, answer: str) -> bool:
    return number(answer) == eval(fields["expression"], {"__builtins__": {}})


def letters(fields: Fields, answer: str) -> bool:
    return number(answer) == sum(letter == fields["letter"] for letter in fields["word"])


def countdown(fields: Fields, answer: str) -> bool:
    """Among all signed sums of all orders, the answer's own text; the first number has no sign."""
    numbers, target = fields["numbers"].split(", "), int(fields["target"])
    terms = answer.replace("-", "+-").replace(" ", "").split("+")
    if sorted(term.lstrip("-") for term in terms) != sorted(numbers) or terms[0].startswith("-"):
        return False
    total = 0
    for term in terms:
        for _ in range(abs(int(term))):
            total += -1 if term.startswith("-") else 1
    return total == target


def sort(fields: Fields, answer: str) -> bool:
    numbers = [int(n) for n in fields["numbers"].split(", ")]
    value = number(answer)
    return value in numbers and sum(n < value for n in numbers) == int(fields["place"]) - 1


def clock(fields: Fields, answer: str) -> bool:
    hours = int(fields["start"])
    for wait in re.findall(r"\d+", fields["waits"]):
        for _ in range(int(wait)):  # the hand goes round hour by hour
            hours = 1 if hours == 12 else hours + 1
    return number(answer) == hours


def arithmetic(fields: Fields, answer: str) -> bool:
    return number(answer) == eval(fields["expression"], {"__builtins__": {}})


@cache
def shortest(listed: str, start: str, end: str) -> list[list[str]]:
    """All ways are walked, one road longer each time, until some arrive."""
    roads = [road.split(" - ") for road in listed.split(", ")]
    roads += [road[::-1] for road in roads]
    ways = [[start]]
    while not any(way[-1] == end for way in ways):
        ways = [[*way, far] for way in ways for near, far in roads if near == way[-1] and far not in way]
    return [way for way in ways if way[-1] == end]


def paths(fields: Fields, answer: str) -> bool:
    return answer.split() in shortest(fields["roads"], fields["start"], fields["end"])


@cache
def honest(spoken: str) -> list[str]:
    """Every way to name the people is tried on every sentence as it is worded; just one must fit."""
    said = re.findall(r"(\w+) says (.+?)\.(?: |$)", spoken)
    people = [name for name, _ in said]

    claims = [(name, claim, re.findall(r"\b[A-Z]\w+", claim)) for name, claim in said]

    def true(claim: str, about: list[str], knight: dict[str, bool]) -> bool:
        kinds = [knight[name] for name in about]
        if "same kind" in claim:
            return kinds[0] == kinds[1]
        if "different kinds" in claim:
            return kinds[0] != kinds[1]
        if "both knights" in claim:
            return all(kinds)
        if "both knaves" in claim:
            return not any(kinds)
        if "at least one" in claim:
            return any(kinds) if claim.endswith("a knight") else not all(kinds)
        return kinds[0] if claim.endswith("a knight") else not kinds[0]

    found = []
    for kinds in itertools.product((True, False), repeat=len(people)):
        knight = dict(zip(people, kinds, strict=True))
        if all(true(claim, about, knight) == knight[speaker] for speaker, claim, about in claims):
            found.append(sorted(name for name in people if knight[name]))
    assert len(found) == 1, spoken
    return found[0] or ["nobody"]


def knights(fields: Fields, answer: str) -> bool:
    return sorted(re.findall(r"\w+", answer)) == honest(fields["claims"])


def sudoku(fields: Fields, answer: str) -> bool:
    """The given cells stand, and every row, column and box holds each digit; and no other filling does so."""
    size = int(fields["size"][0])
    digits, wide = "123456"[:size], size // 2
    given = fields["grid"].replace("/", " ").split()
    rows = [row.split() for row in answer.split(" / ")]
    if [len(row) for row in rows] != [size] * size:
        return False
    starts = itertools.product(range(0, size, 2), range(0, size, wide))
    boxes = [[rows[r + i][c + j] for i in (0, 1) for j in range(wide)] for r, c in starts]
    columns = [list(column) for column in zip(*rows, strict=True)]
    full = all(sorted(house) == list(digits) for house in rows + columns + boxes)
    return full and all(g in ("_", a) for g, a in zip(given, itertools.chain(*rows), strict=True))


@cache
def printed(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {"__builtins__": {"range": range, "print": print}})
    return out.getvalue()


def program(fields: Fields, answer: str) -> bool:
    return number(answer) == int(printed(fields["program"]))


def strings(fields: Fields, answer: str) -> bool:
    row = list(fields["word"])
    for step in fields["steps"].split(", then "):
        words = step.split()
        if step == "reverse it":
            row.reverse()
        elif words[0] == "swap":
            row[0], row[-1] = row[-1], row[0]
        elif words[0] == "move":
            row.insert(len(row) if "end" in words else 0, row.pop(0 if "first" in words else -1))
            if "end" in words:
                assert step.startswith("move the first")
        elif words[0] == "drop":
            del row[0 if "first" in words else -1]
        elif words[0] == "double":
            row += row[-1:]
        elif words[0] == "put":
            row.insert(0 if "front" in words else len(row), words[1])
        else:
            row = [words[4] if letter == words[2] else letter for letter in row]
    return answer == "".join(row)


def cipher(fields: Fields, answer: str) -> bool:
    """Moving the answer's letters on, one place at a time, gives the code."""
    following = dict(zip("abcdefghijklmnopqrstuvwxyz", "bcdefghijklmnopqrstuvwxyza", strict=True))
    for _ in range(int(fields["shift"])):
        answer = "".join(following.get(letter, "?") for letter in answer)
    return answer == fields["code"]


def dates(fields: Fields, answer: str) -> bool:
    day = datetime.datetime.strptime(fields["start"], "%d %B %Y")
    for wait in re.findall(r"\d+", fields["waits"]):
        day += datetime.timedelta(days=int(wait))
    for form in ("%d %B %Y", "%B %d %Y"):
        with contextlib.suppress(ValueError):
            return datetime.datetime.strptime(answer, form) == day
    return False


LENGTHS = {  # in a unit of each kind that all others are whole multiples of
    "mm": 1, "cm": 10, "m": 1000, "in": 1, "ft": 12, "yd": 36, "oz": 1, "lb": 16, "st": 224, "qt": 1, "gal": 4,
    "s": 1, "min": 60, "h": 3600, "d": 86400, "wk": 604800,
}  # fmt: skip


def units(fields: Fields, answer: str) -> bool:
    words = answer.split()
    if len(words) % 2 or not set(words[1::2]) <= {fields["big"], fields["small"]}:
        return False
    asked = fields["amounts"].replace(",", "").split()
    both = [sum(int(n) * LENGTHS[u] for n, u in zip(w[::2], w[1::2], strict=True)) for w in (asked, words)]
    return both[0] == both[1]


RIGHT: dict[str, Callable[[Fields, str], bool]] = {
    judge.__name__: judge
    for judge in (
        sums, letters, countdown, sort, clock,
        arithmetic, paths, knights, sudoku, program, strings, cipher, dates, units,
    )
}  # fmt: skip
