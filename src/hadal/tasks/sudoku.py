"""Small sudoku: 'Fill in this 4x4 sudoku: 1 _ 3 4 / _ 4 1 _ / ...' Difficulty is how many cells are empty."""

from __future__ import annotations

import re
from functools import cache

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task

EMPTY = "_"
LARGER = 12  # empty cells from which on the board is 6 by 6


class Board:
    """Rows, columns and boxes of a sudoku of 4x4 (boxes 2 by 2) or 6x6 cells (boxes 2 high and 3 wide)."""

    def __init__(self, size: int) -> None:
        self.size, self.cells, wide = size, size * size, size // 2
        self.digits = "123456"[:size]
        one = range(size)
        self.houses = (
            [("row", [size * r + c for c in one]) for r in one]
            + [("column", [size * r + c for r in one]) for c in one]
            + [
                ("box", [size * (r + i) + c + j for i in range(2) for j in range(wide)])
                for r in range(0, size, 2)
                for c in range(0, size, wide)
            ]
        )
        self.own = [[(name, house) for name, house in self.houses if cell in house] for cell in range(self.cells)]
        self.peers = [
            sorted({other for _, house in own for other in house} - {cell}) for cell, own in enumerate(self.own)
        ]

    def seen(self, cells: list[str], cell: int) -> set[str]:
        """The digits that a cell cannot hold, since its row, column or box has them."""
        return {cells[peer] for peer in self.peers[cell]} - {EMPTY}

    def full(self, rng: Rng) -> list[str]:
        """A random full grid, by search."""
        cells = [EMPTY] * self.cells

        def place(cell: int) -> bool:
            if cell == self.cells:
                return True
            taken = self.seen(cells, cell)
            for digit in rng.sample(self.digits, self.size):
                if digit not in taken:
                    cells[cell] = digit
                    if place(cell + 1):
                        return True
            cells[cell] = EMPTY
            return False

        place(0)
        return cells

    def forced(self, cells: list[str], cell: int, digit: str) -> bool:
        """Whether a step of `fill` gives this empty cell this digit: nothing else fits, or it fits nowhere else."""
        if len(self.seen(cells, cell)) == self.size - 1:
            return True
        return any(
            all(cells[o] != EMPTY or o == cell or digit in self.seen(cells, o) for o in house)
            for _, house in self.own[cell]
        )

    def fill(self, given: list[str]) -> tuple[list[str], str] | None:
        """Full grid and thought, cell by cell where a single digit fits or a house has no other place for one.

        None for what such steps do not solve; so what they solve has no other solution.
        """
        cells, thought = list(given), ""
        while EMPTY in cells:
            seen = {i: self.seen(cells, i) for i in range(self.cells) if cells[i] == EMPTY}
            single = next((i for i, digits in seen.items() if len(digits) == self.size - 1), None)
            if single is not None:
                cell, (digit,) = single, set(self.digits) - seen[single]
                thought += f" #{cell + 1} not {' '.join(sorted(seen[cell]))} ={digit}"
            else:
                only = (
                    (name, places[0], digit)
                    for name, house in self.houses
                    for digit in self.digits
                    if len(places := [i for i in house if i in seen and digit not in seen[i]]) == 1
                )
                name, cell, digit = next(only, ("", -1, ""))
                if cell < 0:
                    return None
                thought += f" #{cell + 1} {name} ={digit}"
            cells[cell] = digit
        return cells, thought

    def valid(self, cells: list[str]) -> bool:
        """Whether every row, column and box of a full grid holds every digit."""
        return all({cells[i] for i in house} == set(self.digits) for _, house in self.houses)

    def written(self, cells: list[str]) -> str:
        """The cells as people write them."""
        return " / ".join(" ".join(cells[row : row + self.size]) for row in range(0, self.cells, self.size))


@cache
def board(size: int) -> Board:
    """The board of this size, made once."""
    return Board(size)


def unnamed(cells: list[str]) -> str:
    """The same for all puzzles that differ in the names of the digits alone."""
    names = {digit: str(i) for i, digit in enumerate(dict.fromkeys(c for c in cells if c != EMPTY))}
    return "".join(names.get(cell, EMPTY) for cell in cells)


class Sudoku(Task):
    """The thought numbers the cells from 1 on and names what is around each, and so what is left for it."""

    name = "sudoku"
    about = "fill in a small sudoku"
    phrasings = (
        "Fill in this {size} sudoku: {grid}",
        "Solve the small sudoku {grid}, which is {size}.",
        "Each row, column and box of a {size} sudoku holds all numbers. Complete {grid}",
        "Here is a sudoku of {size} cells: {grid}. What is the full grid?",
    )
    gold_limit = 8
    default_difficulty = 7
    difficulties = range(2, 16)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        on = board(4 if difficulty < LARGER else 6)
        empty = 0
        while empty < difficulty:
            cells, empty = on.full(rng), 0
            for cell in rng.sample(range(on.cells), on.cells):
                # Emptied only where a step leads back to it: backwards, these are steps that solve the puzzle.
                digit, cells[cell] = cells[cell], EMPTY
                if on.forced(cells, cell, digit):
                    empty += 1
                    if empty == difficulty:
                        break
                else:
                    cells[cell] = digit
        return {"size": f"{on.size}x{on.size}", "grid": on.written(cells)}, unnamed(cells)

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        size = {"4x4": 4, "6x6": 6}.get(fields["size"])
        if size is None or not re.fullmatch(rf"[1-{size}_ /]+", fields["grid"]):
            return None
        on, cells = board(size), re.findall(r"[1-6_]", fields["grid"])
        found = on.fill(cells) if len(cells) == on.cells else None
        return (on.written(found[0]), found[1]) if found and on.valid(found[0]) else None

    def judge(self, problem: Problem, answer: str) -> bool:
        if not re.fullmatch(r"[1-6\s/|,;.]+", answer):
            return False
        return re.findall("[1-6]", answer) == re.findall("[1-6]", problem.answer)

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        digits = re.findall("[1-6]", problem.answer)
        on = board(6 if len(digits) == 36 else 4)
        one = rng.choice([i for i in range(on.cells) if digits[i] != digits[0]])
        swapped = [digits[one], *digits[1:one], digits[0], *digits[one + 1 :]]
        turned = [{"1": "2", "2": "1", "3": "4", "4": "3"}.get(digit, digit) for digit in digits]
        moved = digits[on.size :] + digits[: on.size]
        return [*map(on.written, (swapped, turned, moved, digits[:-1])), f"{problem.answer} 1"]
