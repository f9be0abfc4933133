"""Passing a ball: 'a throws to d, d to b, b to a. It starts with a. Who has it after 5 throws?'

Difficulty is the number of players; the throws asked for are few, so a thought stays short however many play.
"""

from __future__ import annotations

import re

from hadal.tasks.base import Rng, Task, listing

FEWEST, MOST = 3, 6  # throws asked for


class Ball(Task):
    """The thought follows the ball throw by throw, each with its number."""

    name = "ball"
    about = "follow a ball that is passed around"
    phrasings = (
        "The ball goes {throws}. It starts with {start}. Who has it after {count} throws?",
        "Players throw {throws}. {start} begins. Where is the ball after {count} throws?",
        "If the throws are {throws}, who holds the ball {count} throws after {start} has it?",
        "Starting with {start}, the ball goes {throws}. Who has it after {count} throws?",
    )
    gold_limit = 8
    default_difficulty = 7
    difficulties = range(3, 25)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        players = rng.sample("abcdefghijklmnopqrstuvwxyz", difficulty)
        pairs = zip(players, [*players[1:], players[0]], strict=True)  # one round, so that nobody sits out
        throws = rng.sample([f"{a} to {b}" for a, b in pairs], difficulty)
        start, count = rng.choice(players), str(rng.between(FEWEST, MOST))
        return {
            "throws": listing(throws),
            "start": start,
            "count": count,
        }, f"{' '.join(sorted(throws))} : {start} {count}"

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        pairs = re.findall(r"([a-z]) to ([a-z])", fields["throws"])
        count, holder = fields["count"], fields["start"]
        if listing([f"{a} to {b}" for a, b in pairs]) != fields["throws"] or not re.fullmatch(r"\d{1,3}", count):
            return None
        after, thought = dict(pairs), ""
        for i in range(1, int(count) + 1):
            if holder not in after:
                return None
            holder = after[holder]
            thought += f" {i} {holder}"
        return holder, thought
