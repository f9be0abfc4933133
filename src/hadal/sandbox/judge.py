"""Whether a program passes its tests: by what it prints, or by asserts, as HumanEval and MBPP have them."""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .result import Limits, Result


class Runner(Protocol):
    """What runs a program: `Sandbox` here, `RemoteSandbox` elsewhere."""

    def run(
        self,
        program: str,
        stdin: str = "",
        tests: str | None = None,
        limits: Limits | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Result: ...


@dataclass(frozen=True)
class Verdict:
    """`passed` of `total` tests, counted up to the first that failed; `note` says how that one did. `last` is the
    result of the last run; None where there was no test to run."""

    passed: int
    total: int
    note: str = ""
    last: Result | None = None

    @property
    def ok(self) -> bool:
        """All passed, and there was at least one."""
        return 0 < self.total == self.passed


def check_stdin(
    runner: Runner, program: str, cases: Sequence[tuple[str, str]], limits: Limits | None = None
) -> Verdict:
    """Run a program on each (stdin, expected stdout), up to the first failure. The program's process never holds
    what is expected, so no trick in it can know."""
    result = None
    for passed, (stdin, expected) in enumerate(cases):
        result = runner.run(program, stdin=stdin, limits=limits)
        if not result.ok:
            return Verdict(passed, len(cases), f"test {passed + 1}: {result.status}, {result.note}", result)
        if not same_output(result.stdout, expected):
            return Verdict(passed, len(cases), f"test {passed + 1}: the output is not what was expected", result)
    return Verdict(len(cases), len(cases), last=result)


def check_asserts(
    runner: Runner, program: str, tests: str, limits: Limits | None = None, names: tuple[str, ...] | None = None
) -> Verdict:
    """Run tests that call a program; they count as one. In `Sandbox` they run in a process of their own: the program
    learns what it is called with, and never what is expected. `names` are what they have of it (see `Job`)."""
    result = runner.run(program, tests=tests, limits=limits, names=names)
    return Verdict(int(result.ok), 1, "" if result.ok else f"{result.status}, {result.note}", result)


@functools.lru_cache(maxsize=4096)
def free_names(tests: str) -> tuple[str, ...]:
    """The names that tests use, do not define, and that Python does not have; none where they are no Python."""
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    used, defined = set[str](), set(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return tuple(sorted(used - defined))


def same_output(given: str, expected: str) -> bool:
    """Equal but for white space at the end of lines and empty lines at the end."""
    return [line.rstrip() for line in given.rstrip().splitlines()] == [
        line.rstrip() for line in expected.rstrip().splitlines()
    ]
