"""Shortest ways: 'Roads join a - b, b - c, ... Shortest way from a to f?' Difficulty is how many places there are."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, listing
from hadal.tasks.twins import without_names

PLACES = "abcdefghijklmnopqrstuvwxyz"
LEAST = 2  # roads on the way


def read_roads(text: str) -> dict[str, list[str]] | None:
    """The neighbours of each place, as the roads name them; None for what is no list of roads."""
    roads = [re.fullmatch(r"\s*([a-z])\s*-\s*([a-z])\s*", road) for road in text.split(",")]
    near: dict[str, list[str]] = {}
    for road in roads:
        if road is None or road[1] == road[2]:
            return None
        near.setdefault(road[1], []).append(road[2])
        near.setdefault(road[2], []).append(road[1])
    return near


def search(near: Mapping[str, list[str]], start: str) -> tuple[list[str], dict[str, str], dict[str, int]]:
    """Places in the order in which a breadth-first search finds them, from where each was found, how far it is."""
    order, found_from, distance = [start], {}, {start: 0}
    for place in order:  # grows while it is read
        for other in near[place]:
            if other not in distance:
                order.append(other)
                found_from[other], distance[other] = place, distance[place] + 1
    return order, found_from, distance


class Paths(Task):
    """The thought searches breadth first, place by place with what is new from there, then walks back from the end."""

    name = "paths"
    about = "find a shortest way along roads"
    phrasings = (
        "Roads join {roads}. What is a shortest way from {start} to {end}?",
        "There are roads {roads}. Go from {start} to {end} by as few roads as you can.",
        "Which way from {start} to {end} is shortest, if roads join {roads}?",
        "Given the roads {roads}, name a shortest way from {start} to {end}.",
    )
    gold_limit = 9
    default_difficulty = 8
    difficulties = range(5, 21)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        while True:
            # A random tree holds the places together, a few roads more make ways that differ.
            tree = {(rng.between(max(0, i - 4), i - 1), i) for i in range(1, difficulty)}
            more = {tuple(sorted(rng.sample(range(difficulty), 2))) for _ in range(1 + difficulty // 3)}
            roads = sorted(tree | more)
            names = rng.sample(PLACES, difficulty)
            near: dict[str, list[str]] = {name: [] for name in names}
            for one, other in roads:
                near[names[one]].append(names[other])
                near[names[other]].append(names[one])
            start = rng.choice(names)
            distance = search(near, start)[2]
            far = sorted(place for place, steps in distance.items() if steps >= max(LEAST, difficulty // 3))
            if far:
                break
        end = rng.choice(far)
        listed = [rng.sample((names[one], names[other]), 2) for one, other in rng.sample(roads, len(roads))]
        ends = [str(int(name in (start, end))) for name in names]
        links = [(one, "-", (other,)) for pair in roads for one, other in (pair, pair[::-1])]
        fields = {"roads": listing([f"{one} - {other}" for one, other in listed]), "start": start, "end": end}
        return fields, without_names(ends, links)

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        near, start, end = read_roads(fields["roads"]), fields["start"], fields["end"]
        if near is None or start not in near or end not in near or start == end:
            return None
        order, found_from, _ = search(near, start)
        if end not in found_from:
            return None
        thought, known = "", {start}
        for place in order:
            new = [other for other in dict.fromkeys(near[place]) if other not in known]
            known.update(new)
            thought += f" {place} :" + "".join(f" {other}" for other in new)
            if end in known:
                break
        way = [end]
        while way[-1] != start:
            way.append(found_from[way[-1]])
        return " ".join(way[::-1]), thought + " back " + " ".join(way)

    def judge(self, problem: Problem, answer: str) -> bool:
        fields = problem.meta["fields"]
        near = read_roads(fields["roads"])
        if near is None or not re.fullmatch(r"[a-z](( |,|-|>|→|\bto\b)+[a-z])*\.?", answer.strip().lower()):
            return False
        way = re.findall(r"\b[a-z]\b", answer.lower())
        joined = all(other in near.get(place, ()) for place, other in zip(way, way[1:], strict=False))
        return joined and way[0] == fields["start"] and way[-1] == fields["end"] and len(way) == len(
            problem.answer.split()
        )

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        way = problem.answer.split()
        place = rng.between(1, len(way) - 1)
        longer = way[: place + 1] + way[place - 1 :]  # there, back and there again
        nowhere = rng.choice([name for name in PLACES if name not in problem.meta["fields"]["roads"]])
        return [
            " ".join(row)
            for row in (way[:-1], way[1:], way[::-1], longer, way[: place - 1] + [nowhere] + way[place:])
        ]
