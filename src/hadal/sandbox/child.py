"""A child process that answers messages, each within a deadline, or is killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .inside import frames


class ChildEnded(Exception):
    """The child closed its pipe, was killed, or said what is no message."""


class ChildLate(Exception):
    """No answer came before the deadline."""


class Child:
    """A process in a session of its own, spoken to over its stdin and stdout. Not for two threads at once."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=dict(environment), cwd=folder, start_new_session=True, bufsize=0,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)

    def send(self, message: Any, seconds: float) -> None:
        """Write one message. Raises ChildEnded, ChildLate."""
        data, end = memoryview(frames.pack(message)), time.monotonic() + seconds
        while data:
            self._wait(self._to, select.POLLOUT, end)
            try:
                data = data[os.write(self._to, data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise ChildEnded(str(error)) from None

    def receive(self, seconds: float, most: int) -> Any:
        """Read one message of at most `most` bytes. Raises ChildEnded, ChildLate."""
        end = time.monotonic() + seconds
        size = int.from_bytes(self._exactly(8, end), "little")
        if size > most:
            raise ChildEnded(f"a message of {size} bytes, of {most} allowed")
        try:
            return json.loads(self._exactly(size, end))
        except (ValueError, RecursionError) as error:
            raise ChildEnded(f"no message: {error}") from None

    def read(self, count: int, seconds: float) -> bytes:
        """Read so many bytes. Raises ChildEnded, ChildLate."""
        return self._exactly(count, time.monotonic() + seconds)

    def interrupt(self) -> None:
        """Kill the child and its group; whoever waits for it in another thread learns that it ended."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it is gone; macOS says the second of a group of zombies
            pass

    def kill(self) -> int:
        """End the child and its group, and wait; returns its exit status, negative for a signal."""
        self.interrupt()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return self.process.wait()

    def _exactly(self, count: int, end: float) -> bytes:
        parts: list[bytes] = []
        while count:
            self._wait(self._from, select.POLLIN, end)
            try:
                piece = os.read(self._from, min(count, 1 << 20))
            except BlockingIOError:
                continue
            if not piece:
                raise ChildEnded("closed its pipe")
            parts.append(piece)
            count -= len(piece)
        return b"".join(parts)

    def _wait(self, fd: int, event: int, end: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise ChildLate
