"""Dates: 'It is 12 March 2024. What is the date after 20, then 35 days?' Difficulty is how many waits there are."""

from __future__ import annotations

import re
from calendar import isleap

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task
from hadal.tasks.clock import LINKS

MONTHS = "January February March April May June July August September October November December".split()
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
LONGEST = 40  # a wait
YEARS = range(2000, 2100)


def length(month: int, year: int) -> int:
    """Days of a month, January being 0."""
    return LENGTHS[month] + (month == 1 and isleap(year))


def read_date(text: str) -> tuple[int, int, int] | None:
    """(year, month from 0, day) of '1 April 2024', 'April 1st, 2024' or '2024-04-01'; None for anything else."""
    text = text.strip().rstrip(".").lower()
    day, name, year = r"(?P<d>[0-9]{1,2})(?:st|nd|rd|th)?", r"(?P<m>[a-z]{3,9})\.?", r"(?P<y>[0-9]{4})"
    iso = r"(?P<y>[0-9]{4})-(?P<m>[0-9]{2})-(?P<d>[0-9]{2})"
    for form in (rf"{day}\.? (?:of )?{name},? {year}", rf"{name} {day},? {year}", iso):
        match = re.fullmatch(form, text)
        if match:
            named = match["m"]
            months = [i for i, month in enumerate(MONTHS) if named in (month.lower(), month[:3].lower(), f"{i + 1:02}")]
            return (int(match["y"]), months[0], int(match["d"])) if months else None
    return None


class Dates(Task):
    """The thought adds one wait at a time and goes over to the next month where the days are too many."""

    name = "dates"
    about = "tell the date after several waits"
    phrasings = (
        "It is {start}. What is the date after {waits} days?",
        "From {start}, {waits} days go by. Which date is it then?",
        "Start on {start} and go on by {waits} days. What day do you reach?",
        "A ship leaves on {start} and sails for {waits} days. When does it arrive?",
    )
    gold_limit = 6
    default_difficulty = 5
    difficulties = range(1, 17)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        year, month = rng.choice(YEARS), rng.below(12)
        start = f"{rng.between(1, length(month, year))} {MONTHS[month]} {year}"
        waits = rng.sample(range(2, LONGEST + 1), difficulty)
        spoken = str(waits[0]) + "".join(f"{rng.choice(LINKS)}{wait}" for wait in waits[1:])
        return {"start": start, "waits": spoken}, f"{start} : {' '.join(map(str, sorted(waits)))}"

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        date = read_date(fields["start"])
        waits = [int(wait) for wait in re.findall("[0-9]{1,3}", fields["waits"])]
        if date is None or not waits or re.search("[0-9]{4}", fields["waits"]):
            return None
        year, month, day = date
        if not 1 <= day <= length(month, year):
            return None
        thought = f" {day} {MONTHS[month]}"
        for wait in waits:
            day += wait
            thought += f" {wait} ={day}"
            while day > length(month, year):
                day -= length(month, year)
                year, month = (year, month + 1) if month < 11 else (year + 1, 0)
                thought += f" over ={day} {MONTHS[month]}" + (f" {year}" if month == 0 else "")
        return f"{day} {MONTHS[month]} {year}", thought

    def judge(self, problem: Problem, answer: str) -> bool:
        return read_date(answer) == read_date(problem.answer)

    def canonical(self, problem: Problem, answer: str) -> str:
        date = read_date(answer)
        return super().canonical(problem, answer) if date is None else "-".join(map(str, date))

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        found = read_date(problem.answer)
        assert found is not None
        year, month, day = found
        other = 1 + day % length(month, year)
        near = [(year, month, other), (year, month, 1 + other % 28), (year + 1, month, day)]
        near += [(year, (month + 1) % 12, day), (year, (month + 11) % 12, day)]
        return [f"{d} {MONTHS[m]} {y}" for y, m, d in near]
