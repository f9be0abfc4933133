"""Whether a program passes its tests: by what it prints, or by asserts, as HumanEval and MBPP have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .result import Limits, Result


class Runner(Protocol):
    """What runs a program: `Sandbox` here, `RemoteSandbox` elsewhere."""

    def run(
        self, program: str, stdin: str = "", tests: str | None = None, limits: Limits | None = None
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
            return Verdict(passed, len(cases), f"test {passed + 1}: another output than expected", result)
    return Verdict(len(cases), len(cases), last=result)


def check_asserts(runner: Runner, program: str, tests: str, limits: Limits | None = None) -> Verdict:
    """Run a program and then its tests in the same namespace; they count as one. A program that leaves early, whatever
    its exit status, has not passed; but one that is written to fool these tests can (docs/sandbox.md)."""
    result = runner.run(program, tests=tests, limits=limits)
    return Verdict(int(result.ok), 1, "" if result.ok else f"{result.status}, {result.note}", result)


def same_output(given: str, expected: str) -> bool:
    """Equal but for white space at the end of lines and empty lines at the end."""
    return [line.rstrip() for line in given.rstrip().splitlines()] == [
        line.rstrip() for line in expected.rstrip().splitlines()
    ]
