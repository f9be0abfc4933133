"""`hadal.tasks.answers.check` in a process of its own, with a deadline and a memory cap.

math-verify is trusted but fragile: a formula that a model wrote can keep it busy for ever or fill the memory, and it
takes signals for itself, so that it works in no thread but the first. A problem that it breaks on costs that problem
a zero with the reason noted, and never the run.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import IO

from hadal.errors import UserError
from hadal.tasks.answers import Verdict, check, decide

DEADLINE = 5.0  # seconds for an answer
MEMORY = 2 << 30  # bytes of address space
START = 120.0  # seconds in which the process must be there: sympy is large, and machines are busy


def require_math_verify() -> None:
    """UserError where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("Symbolic answers are compared by math-verify.", "Install it: pip install 'hadal[maths]'.")


class Checker:
    """check(gold, answer, percent), one at a time, from any thread. The process starts when it is first needed."""

    def __init__(self, deadline: float = DEADLINE, memory: int = MEMORY) -> None:
        self.deadline, self.memory = deadline, memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, gold: str, answer: str, percent: bool = False) -> Verdict:
        """The verdict; wrong, with the reason, where it takes too long or breaks the process."""
        decided = decide(gold, answer, percent)
        if decided is not None:
            return decided
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps([gold, answer, percent]).encode() + b"\n")
                process.stdin.flush()
                line = _line(process.stdout, self.deadline)
            except BrokenPipeError:
                line = b""
            if line:
                right, note = json.loads(line)
                return Verdict(right, note)
            self._stop()
            late = line is None
            return Verdict(False, f"the check took over {self.deadline:g} s" if late else "the check broke down")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is the run's business
            )
            assert self._process.stdout is not None
            if not _line(self._process.stdout, START):
                self._stop()
                raise UserError(
                    "The process that checks answers does not start.",
                    f"See what `python -m {__name__} {self.memory}` says.",
                )
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@functools.cache
def shared_checker() -> Checker:
    """The one process that all tasks ask."""
    return Checker()


def _line(stream: IO[bytes], seconds: float) -> bytes | None:
    """The next line of a pipe; None where it does not come in time, and nothing where the writer is gone."""
    end, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            return None
        piece = os.read(stream.fileno(), 65536)
        if not piece:
            return b""
        line += piece
    return line


def main() -> None:
    """Answer lines of (gold, answer, percent) until there are no more."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no verdict
    import math_verify  # noqa: F401

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        try:
            verdict = check(*json.loads(line))
        except (Exception, MemoryError) as error:
            verdict = Verdict(False, f"{type(error).__name__} in the check")
        print(json.dumps([verdict.right, verdict.note]), file=out, flush=True)


if __name__ == "__main__":
    main()
