"""`hadal.tasks.answers.check` in processes of its own, with a deadline and a memory cap (`hadal.sandbox.Workers`).

mpmath's precision is the process's own. And math-verify, which compares what `hadal.tasks.forms` cannot read, is
trusted but fragile: a formula that a model wrote can keep it busy for ever or fill the memory, and it takes signals for
itself, so that it works in no thread but the first. A problem that it breaks on costs that problem a zero with the
reason noted, and never the run.
"""

from __future__ import annotations

import functools
import importlib.util

from hadal.errors import UserError
from hadal.sandbox import Workers
from hadal.tasks.answers import Verdict, decide

DEADLINE = 10.0  # seconds for an answer: most take a tenth of one, on a machine that is not busy
MEMORY = 2 << 30  # bytes that a process may take beyond what loading takes


def require_math_verify() -> None:
    """UserError where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("Symbolic answers are compared by math-verify.", "Install it: pip install 'hadal[maths]'.")


class Checker:
    """check(gold, answer, percent), from any thread. Processes start when they are first needed."""

    def __init__(self, deadline: float = DEADLINE, memory: int = MEMORY) -> None:
        self._workers = Workers("hadal.tasks.symbolic_worker:compare", seconds=deadline, memory=memory)

    def __call__(self, gold: str, answer: str, percent: bool = False) -> Verdict:
        """The verdict; wrong, with the reason, where it takes too long or breaks the process."""
        decided = decide(gold, answer, percent)
        if decided is not None:
            return decided
        outcome = self._workers.call(gold, answer, percent)
        if not outcome.ok:
            return Verdict(False, f"the check broke off: {outcome.note}", broke=True)
        return Verdict(*outcome.value)

    def close(self) -> None:
        """End the processes."""
        self._workers.close()


@functools.cache
def shared_checker() -> Checker:
    """The one that all tasks ask."""
    return Checker()
