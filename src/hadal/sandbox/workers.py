"""Processes for functions that are ours but may hang or eat memory: a maths checker, a user's own scorer.

No fence against malice: the function has our rights. Each call has a deadline and a bound on memory; a worker that
breaks either is killed and replaced, and the caller is told.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadal.errors import UserError
from hadal.machine.cores import cores

from .child import Child, ChildEnded, ChildLate
from .places import Places

_BOOT = Path(__file__).resolve().parent / "inside" / "boot.py"
_LARGEST = 64 << 20  # of an answer


@dataclass(frozen=True)
class Outcome:
    """What a call returned, or, in `note`, why it did not."""

    value: Any = None
    note: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.note


class Workers:
    """Calls one function in processes of its own, as many at once as there are cores.

    `function` is "package.module:name" or "path/to/file.py:name"; arguments and the value travel as JSON. Where
    `made_of` is given, what is named is a maker: it is called with these when it is loaded, and returns the function.
    `seconds` bounds a call; `memory`, in bytes, what a process may take beyond what loading takes (Linux alone holds
    to it); `start_seconds` bounds loading. Calls run in a process's main thread. Use it as a context manager, from any
    number of threads.
    """

    def __init__(
        self,
        function: str,
        places: int | None = None,
        seconds: float = 5.0,
        memory: int = 1 << 30,
        start_seconds: float = 120.0,
        made_of: Sequence[Any] | None = None,
    ) -> None:
        module, _, name = function.rpartition(":")
        if not module or not name.isidentifier():
            raise UserError(f"{function} is not a function.", "Write package.module:name or path/to/file.py:name.")
        config = {"module": module, "name": name, "made_of": made_of, "seconds": seconds, "memory": memory}
        count = places or cores()
        self._places = Places(_Worker(function, config, seconds, start_seconds) for _ in range(count))

    def call(self, *arguments: Any) -> Outcome:
        """Call the function; waits for a free worker. Raises UserError where it cannot be loaded, TypeError or
        ValueError for arguments that are no JSON."""
        json.dumps(arguments, allow_nan=False)
        with self._places.one() as worker:
            return worker.call(arguments)

    def map(self, calls: Iterable[Sequence[Any]]) -> Iterator[Outcome]:
        """Call the function with each list of arguments, on all workers at once; outcomes in their order."""
        return self._places.map(lambda arguments: self.call(*arguments), calls)

    def close(self) -> None:
        self._places.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One process, started at the first call and after each loss."""

    def __init__(self, function: str, config: dict[str, Any], seconds: float, start_seconds: float) -> None:
        self.function, self.config = function, config
        self.seconds, self.start_seconds = seconds, start_seconds
        self.process: Child | None = None

    def call(self, arguments: Sequence[Any]) -> Outcome:
        start = time.monotonic()
        try:
            try:
                process = self.process or self.start()
                start = time.monotonic()
                process.send(arguments, self.seconds)
            except ChildEnded:  # it was lost since its last call
                self.stop()
                process = self.start()
                start = time.monotonic()
                process.send(arguments, self.seconds)
            answer = process.receive(start + self.seconds - time.monotonic(), _LARGEST)
        except ChildLate:
            self.stop()
            return Outcome(None, f"no answer in {self.seconds:g} s", time.monotonic() - start)
        except ChildEnded as error:
            code = self.stop()
            how = f"killed by signal {-code}" if code is not None and code < 0 else f"{error}"
            return Outcome(None, f"its process ended ({how})", time.monotonic() - start)
        except BaseException:  # Ctrl-C: its answer must not be the next call's
            self.stop()
            raise
        took = time.monotonic() - start
        if "memory" in answer:  # what it holds by now, nobody knows
            self.stop()
            return Outcome(None, f"asked for more than {self.config['memory']} bytes", took)
        return Outcome(answer.get("value"), answer.get("raised", ""), took)

    def start(self) -> Child:
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-P", str(_BOOT), "worker", json.dumps(self.config)]
        self.process = process = Child(command, environment, os.getcwd())
        try:
            hello = process.receive(self.start_seconds, _LARGEST)
        except (ChildLate, ChildEnded) as error:
            self.stop()
            hello = {"failed": f"no word from its process in {self.start_seconds:g} s ({error or 'it hangs'})"}
        if "failed" in hello:
            self.stop()
            raise UserError(f"{self.function} does not load: {hello['failed']}.", "Fix it, or name another.")
        return process

    def interrupt(self) -> None:
        if (process := self.process) is not None:
            process.interrupt()

    def stop(self) -> int | None:
        """End the process; returns how it had ended, if by itself."""
        code = None if self.process is None else self.process.kill()
        self.process = None
        return code
