"""Clock sums: 'It is 9 o'clock. What time is it after 5, 7 and 3 hours?' Difficulty is how many waits there are."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Task

DIAL = 12
LINKS = (", ", " and ", ", then ", ", and then ", ", plus ", ", after that another ")
"""Between waits, as people talk. Of uneven length, so that places cannot be told by distance."""


class Clock(Task):
    """The thought moves the hand, one wait a step."""

    name = "clock"
    about = "tell the time on a clock face after several waits"
    phrasings = (
        "It is {start} o'clock. What time is it after {waits} hours?",
        "A clock shows {start}. You wait {waits} hours. What does it show?",
        "I start at {start} o'clock and wait {waits} hours. What is the time then?",
        "From {start} o'clock, let {waits} hours go by. Where is the hand?",
    )
    gold_limit = 8
    default_difficulty = 7
    difficulties = range(1, 25)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        start = rng.between(1, DIAL)
        waits: list[int] = []
        while len(waits) < difficulty:
            waits += rng.sample(range(1, DIAL + 1), min(DIAL, difficulty - len(waits)))
        key = f"{start} : {' '.join(map(str, sorted(waits)))}"
        spoken = str(waits[0]) + "".join(f"{rng.choice(LINKS)}{wait}" for wait in waits[1:])
        return {"start": str(start), "waits": spoken}, key

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        waits = [int(n) for n in re.findall(r"\d{1,3}", fields["waits"])]
        if not waits or not re.fullmatch(r"\d{1,2}", fields["start"]) or not 1 <= int(fields["start"]) <= DIAL:
            return None
        time = int(fields["start"])
        thought = f" {time}"
        for wait in waits:
            time = (time + wait - 1) % DIAL + 1
            thought += f" {wait} ={time}"
        return str(time), thought
