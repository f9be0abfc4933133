"""The sandbox: a few keepers, each of which runs one job after another."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from hadal.errors import UserError
from hadal.machine.cores import cores

from . import layers
from .child import Child, ChildEnded, ChildLate
from .judge import free_names
from .places import Places
from .result import Job, Limits, Result, result_from

LARGEST = 16 << 20  # of a program with its input and tests, in letters


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
        given = layers.chosen() if only is None else set(only)
        self.layers = tuple(layer for layer in layers.LAYERS if layer in given)
        if not layers.isolates(self.layers) and not allow_unsandboxed:
            reasons = "; ".join(f"{name}: {why}" for name, why in layers.available().items() if why)
            raise UserError(
                f"Nothing here isolates a program well enough to run it ({reasons or 'layers left out'}).",
                "Use a sandbox service, or allow programs to run unsandboxed, with your own rights.",
            )
        self.limits = limits or Limits()
        self._places = Places(_Place(self.layers, number) for number in range(places or cores()))

    def run(
        self,
        program: str,
        stdin: str = "",
        tests: str | None = None,
        limits: Limits | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Result:
        """Run one program to its end; waits for a free place. What the program does is in the result, and never
        raises; UserError means that the sandbox itself does not start. `tests` and `names` are those of a `Job`."""
        with self._places.one() as place:
            return place.run(Job(program, stdin, tests, names), limits or self.limits)

    def map(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Run jobs on all places at once; results in the order of the jobs."""
        return self._places.map(lambda job: self.run(job.program, job.stdin, job.tests, names=job.names), jobs)

    def close(self) -> None:
        """End the keepers, and with them all jobs, and remove their folders."""
        self._places.close()

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
        self.closing = False

    def run(self, job: Job, limits: Limits) -> Result:
        size = len(job.program) + len(job.stdin) + len(job.tests or "")
        if size > LARGEST:
            return Result("refused", layers=self.held, note=f"a program of {size} characters: {LARGEST} are allowed")
        try:
            return result_from(self.ask(job, limits), limits, self.held)
        except (ChildEnded, ChildLate, ValueError) as error:
            self.stop()
            return Result("error", layers=self.held, note=f"its keeper was lost ({error or 'no answer'})")
        except BaseException:  # Ctrl-C in the middle: what the keeper says later must not answer the next job
            self.stop()
            raise

    def ask(self, job: Job, limits: Limits) -> Any:
        names = job.names if job.names is not None or job.tests is None else free_names(job.tests)
        message = {"program": job.program, "stdin": job.stdin, "tests": job.tests, "names": names}
        if self.keeper is not None and self.keeper.process.poll() is not None:
            self.stop()  # it died since its last job, say for want of memory: that costs no job
        answer = layers.run_in(self.keeper or self.start(), vars(limits), message)
        if answer.pop("last", False):
            self.stop()
        return answer

    def start(self) -> Child:
        self.folder = tempfile.mkdtemp(prefix="hadal-sandbox-")
        os.chmod(self.folder, 0o711)  # a job of another uid must get through to its own folder
        try:
            self.keeper = layers.start_keeper(self.held, self.folder, self.number)
        except layers.CannotStart as error:
            names = ", ".join(self.held) or "no layer"
            raise UserError(f"The sandbox ({names}) does not start: {error}.", "Run: hadal doctor") from None
        if self.closing:  # the interruption may have come before there was a keeper to kill
            raise ChildEnded("the sandbox was closed")
        return self.keeper

    def interrupt(self) -> None:
        self.closing = True
        if (keeper := self.keeper) is not None:
            keeper.interrupt()

    def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.kill()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.keeper = self.folder = None
