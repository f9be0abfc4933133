"""Brackets: 'What is (3 + 4) * 2 - 9 / 3?' Difficulty is the number of operations."""

from __future__ import annotations

import re
from typing import NamedTuple

from hadal.rng import Rng
from hadal.tasks.base import Problem, Task, as_number, near_numbers

LARGEST, CEILING = 12, 99
"""Numbers in the question, and every result on the way."""
RANK = {"+": 1, "-": 1, "*": 2, "/": 2, "": 3}


class Term(NamedTuple):
    """text: as written; value; op: the outermost operation; parts: its operands without order or wording, as text."""

    text: str
    value: int
    op: str
    parts: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"({self.op.join(self.parts)})" if self.op else self.text


def join(left: Term, op: str, right: Term) -> Term:
    """The operation on two terms, in as few brackets as keep it what it is."""
    first = left.text if RANK[left.op] >= RANK[op] else f"({left.text})"
    second = right.text if RANK[right.op] > RANK[op] else f"({right.text})"
    value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[op](left.value, right.value)
    parts = tuple(part for term in (left, right) for part in (term.parts if term.op == op else (term.key,)))
    # 3 + 4 and 4 + 3 are twins, and so is any nesting of sums or of products.
    return Term(f"{first} {op} {second}", value, op, tuple(sorted(parts)) if op in "+*" else (left.key, right.key))


class Arithmetic(Task):
    """The thought works out one operation at a time, what stands in brackets first."""

    name = "arithmetic"
    about = "work out brackets, products, quotients, sums and differences"
    phrasings = (
        "What is {expression}?",
        "Work out {expression}.",
        "{expression} = ?",
        "Calculate {expression}, brackets first.",
        "Find the value of {expression}.",
    )
    gold_limit = 6
    default_difficulty = 5
    difficulties = range(2, 17)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        term = self.grow(rng, difficulty)
        return {"expression": term.text}, term.key

    def grow(self, rng: Rng, operations: int) -> Term:
        """A random term whose results all lie between 0 and CEILING."""
        if operations == 0:
            text = str(rng.between(1, LARGEST))
            return Term(text, int(text), "", (text,))
        inside = rng.below(operations)
        left, right = self.grow(rng, inside), self.grow(rng, operations - 1 - inside)
        a, b = left.value, right.value
        fitting = "+" * (a + b <= CEILING) + "-" * (a >= b) + "*" * (a * b <= CEILING) + "/" * (b > 1 and a % b == 0)
        return join(left, rng.choice(fitting), right) if fitting else join(right, "-", left)

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        text = fields["expression"]
        if not re.fullmatch(r"[0-9+*/() -]{1,200}", text) or text.count("(") > 40 or re.search("[0-9]{7}", text):
            return None
        tokens, steps = re.findall(r"[0-9]+|[^0-9 ]", text)[::-1], []

        def operand() -> int:
            token = tokens.pop()
            if token != "(":
                return int(token)
            value = operation(1)
            if tokens.pop() != ")":
                raise ValueError
            return value

        def operation(rank: int) -> int:
            value = operand() if rank == 3 else operation(rank + 1)
            while tokens and RANK.get(tokens[-1]) == rank:
                op = tokens.pop()
                other = operation(rank + 1)
                if op == "/" and value % other:
                    raise ValueError
                result = {"+": value + other, "-": value - other, "*": value * other}.get(op)
                result = value // other if result is None else result
                steps.append(f" {value} {op} {other} ={result}")
                value = result
            return value

        try:
            value = operation(1)
        except (ValueError, IndexError, ZeroDivisionError):
            return None
        return None if tokens or not steps else (str(value), "".join(steps))

    def judge(self, problem: Problem, answer: str) -> bool:
        return as_number(answer) == int(problem.answer)

    def near_misses(self, problem: Problem, rng: Rng) -> list[str]:
        return near_numbers(problem.answer, rng)
