"""Small sudoku, 4 by 4: 'Fill in 1 _ 3 4 / _ 4 1 _ / ...' Difficulty is how many cells are empty."""

from __future__ import annotations

import re
from functools import cache
from itertools import permutations

from hadal.tasks.base import Problem, Rng, Task

EMPTY = "_"
HOUSES = (
    [("row", [4 * r + c for c in range(4)]) for r in range(4)]
    + [("column", [4 * r + c for r in range(4)]) for c in range(4)]
    + [("box", [4 * (r + i) + c + j for i in (0, 1) for j in (0, 1)]) for r in (0, 2) for c in (0, 2)]
)
PEERS = [sorted({other for _, house in HOUSES if cell in house for other in house} - {cell}) for cell in range(16)]


@cache
def grids() -> list[str]:
    """All 288 full grids, as 16 digits."""
    rows = ["".join(row) for row in permutations("1234")]
    halves = [a + b for a in rows for b in rows if not set(a[:2]) & set(b[:2])]
    return [
        top + bottom
        for top in halves
        for bottom in halves
        if all(len({half[c] for half in (top[:4], top[4:], bottom[:4], bottom[4:])}) == 4 for c in range(4))
    ]


@cache
def holding() -> list[dict[str, int]]:
    """For each cell and digit the grids that have it there, as bits of one number."""
    return [
        {digit: sum(1 << i for i, grid in enumerate(grids()) if grid[cell] == digit) for digit in "1234"}
        for cell in range(16)
    ]


def solutions(cells: list[str]) -> int:
    """How many full grids agree with the given cells."""
    left = (1 << len(grids())) - 1
    for known, digit in zip(holding(), cells, strict=True):
        if digit != EMPTY:
            left &= known[digit]
    return left.bit_count()


def fill(given: list[str]) -> tuple[str, str] | None:
    """Full grid and thought, cell by cell where a single digit fits or a house has no other place for one.

    None for what such steps do not solve.
    """
    cells, thought = list(given), ""
    while EMPTY in cells:
        seen = {i: sorted({cells[p] for p in PEERS[i]} - {EMPTY}) for i in range(16) if cells[i] == EMPTY}
        for cell, digits in seen.items():
            if len(digits) == 3:
                (digit,) = set("1234") - set(digits)
                thought += f" #{cell + 1} not {' '.join(digits)} ={digit}"
                break
        else:
            only = (
                (name, places[0], digit)
                for name, house in HOUSES
                for digit in "1234"
                if len(places := [i for i in house if i in seen and digit not in seen[i]]) == 1
            )
            name, cell, digit = next(only, ("", -1, ""))
            if cell < 0:
                return None
            thought += f" #{cell + 1} {name} ={digit}"
        cells[cell] = digit
    return "".join(cells), thought


def written(cells: str | list[str]) -> str:
    """Sixteen cells as people write them."""
    return " / ".join(" ".join(cells[row : row + 4]) for row in range(0, 16, 4))


def unnamed(cells: list[str]) -> str:
    """The same for all puzzles that differ in the names of the digits alone."""
    names = {digit: str(i) for i, digit in enumerate(dict.fromkeys(c for c in cells if c != EMPTY))}
    return "".join(names.get(cell, EMPTY) for cell in cells)


class Sudoku(Task):
    """The thought numbers the cells from 1 to 16 and names what is around each, and so what is left for it."""

    name = "sudoku"
    about = "fill in a 4 by 4 sudoku"
    phrasings = (
        "Fill in this 4x4 sudoku: {grid}",
        "Solve the small sudoku {grid} with the numbers 1 to 4.",
        "Each row, column and 2x2 box holds 1 to 4. Complete {grid}",
        "Here is a sudoku of four rows: {grid}. What is the full grid?",
    )
    gold_limit = 8
    default_difficulty = 7
    difficulties = range(2, 12)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        while True:
            cells = list(rng.choice(grids()))
            for cell in rng.sample(range(16), 16):
                digit, cells[cell] = cells[cell], EMPTY
                if solutions(cells) > 1:
                    cells[cell] = digit
                if cells.count(EMPTY) == difficulty:
                    break
            if cells.count(EMPTY) == difficulty and fill(cells):
                break
        return {"grid": written(cells)}, unnamed(cells)

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        cells = re.findall(r"[1-4_]", fields["grid"])
        if not re.fullmatch(r"[1-4_ /]+", fields["grid"]) or len(cells) != 16 or solutions(cells) != 1:
            return None
        found = fill(cells)
        return found and (written(found[0]), found[1])

    def judge(self, problem: Problem, answer: str) -> bool:
        if not re.fullmatch(r"[1-4\s/|,;.]+", answer):
            return False
        return re.findall("[1-4]", answer) == re.findall("[1-4]", problem.answer)

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        digits = problem.answer.replace(" / ", "").replace(" ", "")
        one = rng.choice([i for i in range(16) if digits[i] != digits[0]])
        swapped = digits[one] + digits[1:one] + digits[0] + digits[one + 1 :]
        turned = digits.translate(str.maketrans("1234", "2143"))
        grids = [written(cells) for cells in (swapped, turned, digits[4:] + digits[:4], digits[:15])]
        return [*grids, f"{problem.answer} 1"]
