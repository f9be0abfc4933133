"""The sandbox: a few keepers, each of which runs one job after another."""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hadal.errors import UserError

from . import layers
from .child import Child, ChildEnded, ChildLate
from .result import Limits, Result, result_from

GRACE = 10.0  # seconds past a job's own deadline in which its guard must have reported
LARGEST = 16 << 20  # of a program with its input and tests


@dataclass(frozen=True)
class Job:
    """A Python program, what it reads from stdin, and, where given, tests that run in its namespace after it."""

    program: str
    stdin: str = ""
    tests: str | None = None
    limits: Limits | None = None


class Sandbox:
    """Runs programs that nobody trusts, as many at once as there are cores.

    Use it as a context manager, from any number of threads. Raises UserError where this machine can isolate nothing,
    unless `allow_unsandboxed`: then programs run with limits and deadlines alone, with your rights.
    `only` names the layers to use instead of all that there are; for tests and for looking into a fault.
    """

    def __init__(
        self,
        places: int | None = None,
        limits: Limits | None = None,
        allow_unsandboxed: bool = False,
        only: Iterable[str] | None = None,
    ) -> None:
        self.layers = layers.chosen() if only is None else tuple(layer for layer in layers.LAYERS if layer in set(only))
        if not layers.isolates(self.layers) and not allow_unsandboxed:
            reasons = "; ".join(f"{name}: {why}" for name, why in layers.available().items() if why)
            raise UserError(
                f"Nothing on this machine can isolate a program ({reasons}).",
                "Give the address of a sandbox service, or allow programs to run unsandboxed, with your own rights.",
            )
        self.limits = limits or Limits()
        count = places or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._places = [_Place(self.layers, number) for number in range(count)]
        self._free: queue.SimpleQueue[_Place] = queue.SimpleQueue()
        for place in self._places:
            self._free.put(place)
        self._closed = threading.Event()

    def run(
        self, program: str, stdin: str = "", tests: str | None = None, limits: Limits | None = None
    ) -> Result:
        """Run one program to its end; waits for a free place. Never raises for what the program does."""
        if self._closed.is_set():
            raise ValueError("the sandbox is closed")
        place = self._free.get()
        try:
            return place.run(Job(program, stdin, tests, limits or self.limits))
        finally:
            self._free.put(place)

    def map(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Run jobs on all places at once; results in the order of the jobs."""
        with ThreadPoolExecutor(len(self._places)) as threads:
            yield from threads.map(lambda job: self.run(job.program, job.stdin, job.tests, job.limits), jobs)

    def close(self) -> None:
        """End the keepers, and with them all jobs, and remove their folders."""
        self._closed.set()
        for place in self._places:
            place.stop()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Place:
    """A keeper and the folder it works in; started at its first job, and again whenever one was lost."""

    def __init__(self, held: tuple[str, ...], number: int) -> None:
        self.held, self.number = held, number
        self.keeper: Child | None = None
        self.folder: str | None = None

    def run(self, job: Job) -> Result:
        limits = job.limits or Limits()
        size = len(job.program) + len(job.stdin) + len(job.tests or "")
        if size > LARGEST:
            return Result("refused", layers=self.held, note=f"a program of {size} letters, of {LARGEST} allowed")
        try:
            answer = self.ask(job, limits)
            return result_from(answer, limits, self.held)
        except (ChildEnded, ChildLate, ValueError) as error:
            self.stop()
            return Result("error", layers=self.held, note=f"its keeper was lost ({error or 'no answer'})")
        except BaseException:  # Ctrl-C in the middle: what the keeper sends later must not answer the next job
            self.stop()
            raise

    def ask(self, job: Job, limits: Limits) -> Any:
        message = {"program": job.program, "stdin": job.stdin, "checked": job.tests is not None, **vars(limits)}
        for attempt in range(2):  # a keeper that has died since its last job, say for want of memory, costs no job
            if self.keeper is None:
                self.start()
            assert self.keeper is not None
            try:
                self.keeper.send(message, GRACE)
                if job.tests is not None:
                    self.keeper.send(job.tests, GRACE)
                break
            except ChildEnded:
                self.stop()
                if attempt:
                    raise
        assert self.keeper is not None
        return self.keeper.receive(limits.seconds + GRACE, 16 * limits.output + (1 << 16))

    def start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="hadal-sandbox-")
        os.chmod(self.folder, 0o711)  # a job of another uid must get through to its own folder
        try:
            self.keeper = layers.start_keeper(self.held, self.folder, self.number)
        except BaseException as error:
            self.stop()
            if isinstance(error, layers.CannotStart):
                raise UserError(
                    f"The sandbox ({', '.join(self.held) or 'no layer'}) does not start: {error}.", "Run: hadal doctor"
                ) from None
            raise

    def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.kill()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.keeper = self.folder = None
