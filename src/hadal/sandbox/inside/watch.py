"""One job: fork the process that runs the program, and one for its tests; watch them, end them and all they started,
and report.

This runs in the keeper, whose memory every later job inherits, so nothing of a job ever enters it. The processes of the
job read the program and the tests themselves; what they write goes from a pipe to a file to a pipe inside the kernel.
All that is read here is how far a program has come, and what its tests came to, by their exit status.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from . import cell, frames
from .job import ENDED, LOST, OUT_OF_MEMORY, READY, STARTED, UNABLE, run_job, run_tests
from .processes import kill_children
from .tree import bytes_below, remove_below

LOOK = 0.1  # seconds between looks at a private folder that no mount bounds
PIECE = 1 << 16
PATIENCE = 1.0  # seconds for a program to end that its tests have lost


@dataclass(frozen=True)
class Place:
    """What a keeper was started with."""

    layers: frozenset[str]  # which of namespaces, bubblewrap, landlock, seccomp, uid to hold jobs in
    readable: tuple[str, ...]  # what a program may read: Python's library and the system's
    devices: tuple[str, ...]
    folder: str  # where private folders are made; unused in a cell of its own
    uid: int  # the job's uid and gid
    threads: int  # RLIMIT_NPROC; 0 for none
    requests: int  # where jobs come from
    answers: int  # where results go


def serve(place: Place) -> bool:
    """Read what one job may use, run it and answer; False where this was the last that the keeper can do."""
    limits = frames.read(place.requests)
    if limits is None:
        return False
    folder = _open_folder(place, limits["disk"])
    watch = Watch(place, limits, folder)
    try:
        answer = watch.result()
    finally:
        kill_children()
        clean(place)
    watch.send(answer)
    watch.close()
    return not watch.last


def _open_folder(place: Place, size: int) -> str:
    if "namespaces" in place.layers:
        return cell.open_work(size, place.uid, place.uid if "uid" in place.layers else os.getgid())
    folder = tempfile.mkdtemp(dir=place.folder)
    if "uid" in place.layers:
        os.chown(folder, place.uid, place.uid)
    return folder


def clean(place: Place) -> None:
    """Remove the private folder with all that is in it."""
    if "namespaces" in place.layers:
        cell.close_work()
    else:
        for name in os.listdir(place.folder):
            folder = os.path.join(place.folder, name)
            os.chmod(folder, 0o700)
            remove_below(folder)
            os.rmdir(folder)


class Stream:
    """What a process writes: moved from its pipe into a file by the kernel."""

    def __init__(self) -> None:
        self.pipe, self.end = os.pipe()
        self.file, self.size = _file(), 0
        os.set_blocking(self.pipe, False)

    def take(self) -> bool:
        """Move what there is, at most one piece; False at the end, or where there is nothing now."""
        try:
            if sys.platform == "linux":
                moved = os.splice(self.pipe, self.file, PIECE)
            else:
                moved = os.write(self.file, os.read(self.pipe, PIECE))
        except BlockingIOError:
            return False
        self.size += moved
        return moved > 0

    def send(self, answers: int, size: int) -> None:
        """Write the file's first bytes to a pipe."""
        at = 0
        while at < size:
            if sys.platform == "linux":
                at += os.sendfile(answers, self.file, at, size - at)
            else:
                at += os.write(answers, os.pread(self.file, min(size - at, PIECE), at))

    def close(self) -> None:
        os.close(self.pipe)
        os.close(self.file)


class Process:
    """A forked process, and how to learn that it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ending = _ending(pid)
        self.over = False
        self.ended: tuple[int, Any] | None = None  # its status and what it used

    def look(self) -> None:
        """Learn whether it has ended, where the system gives no descriptor for that."""
        if self.ending is None and not self.over:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            self.over, self.ended = bool(pid), (status, used) if pid else None

    def end(self) -> tuple[int, Any]:
        """Kill and wait: the exit status, negative for a signal, and what it used."""
        if self.ended is None or self.ending is None:
            _kill(self.pid)
        self.ended = self.ended or os.wait4(self.pid, 0)[1:]
        return os.waitstatus_to_exitcode(self.ended[0]), self.ended[1]


class Watch:
    """The running job as its keeper sees it."""

    def __init__(self, place: Place, limits: dict[str, Any], folder: str) -> None:
        self.place, self.limits, self.folder = place, limits, folder
        self.bounded = "namespaces" in place.layers  # the private folder is a mount of limited size
        self.out, self.err, self.note, self.control, self.begun = (Stream() for _ in range(5))
        self.channel, channel_end = socket.socketpair()
        stdin = _file()
        self.start = time.monotonic()
        self.end = self.start + limits["seconds"]
        pid = os.fork()
        if not pid:
            run_job(place, limits, folder, (stdin, self.out.end, self.err.end, self.control.end, channel_end.fileno()))
        for fd in (stdin, self.out.end, self.err.end, self.control.end):
            os.close(fd)
        channel_end.close()
        self.program = Process(pid)
        self.judge: Process | None = None
        self.passed, self.lost = False, False  # what the tests came to, or whether they lost the program
        self.last = False  # whether the keeper must end after this job

    def result(self) -> dict[str, Any]:
        """Wait for the end, or bring it about, and say how it went."""
        status, note = self.wait()
        seconds = time.monotonic() - self.start
        code, used = self.program.end()
        if self.judge is not None:
            self.judge.end()
        kill_children()
        for stream in (self.note, self.begun):
            stream.take()
        for stream in (self.out, self.err, self.control):  # what was written before the end
            while not status and stream.take():
                status, note = self.too_much()
        if not status:
            status, note = self.verdict(code, used.ru_utime + used.ru_stime)
        elif self.judge is not None and self.judge.over and not self.passed:
            code = 1
        # A process that was killed before it said that it had read its part of the job may have left it in the pipe.
        self.last = not self.control.size or (self.judge is not None and not self.begun.size)
        peak = used.ru_maxrss * (1024 if sys.platform == "linux" else 1)
        sizes = [min(stream.size, self.limits["output"]) for stream in (self.out, self.err, self.note)]
        return {"status": status, "exit_code": code, "seconds": seconds, "peak": peak, "note": note, "sizes": sizes,
                "last": self.last}  # fmt: skip

    def send(self, answer: dict[str, Any]) -> None:
        """Answer, with the bytes of stdout, of stderr and of what the tests said behind it."""
        frames.write(self.place.answers, answer)
        for stream, size in zip((self.out, self.err, self.note), answer["sizes"], strict=True):
            stream.send(self.place.answers, size)

    def close(self) -> None:
        """Give back what this process has open for the job."""
        for stream in (self.out, self.err, self.note, self.control, self.begun):
            stream.close()
        for process in (self.program, self.judge):
            if process is not None and process.ending is not None:
                os.close(process.ending)
        if self.judge is None:
            self.channel.close()
            os.close(self.note.end)
            os.close(self.begun.end)

    def wait(self) -> tuple[str, str]:
        """Until the program ends ("", ""), or until it has to be stopped (status and reason)."""
        self.poll = select.poll()
        self.poll.register(self.place.requests, 0)  # only whether the other end is gone
        streams = {stream.pipe: stream for stream in (self.out, self.err, self.control)}
        for fd in streams:
            self.poll.register(fd, select.POLLIN)
        self.expect(self.program)
        look = self.start + LOOK
        while True:
            now = time.monotonic()
            if now >= self.end:
                return ("error", "") if self.lost else ("timeout", f"ran for more than {self.limits['seconds']:g} s")
            if not self.bounded and now >= look:
                if bytes_below(self.folder, self.limits["disk"]) >= self.limits["disk"]:
                    return "output", "more in files than allowed"
                look = now + LOOK
            pause = min(self.end - now, LOOK if self.program.ending is not None else LOOK / 10)
            for fd, _ in self.poll.poll(math.ceil(pause * 1000)):
                if fd == self.place.requests:
                    return "refused", "nothing waits for the result"
                if fd in streams and streams[fd].take():
                    if (stop := self.too_much())[0]:
                        return stop
                    if self.limits["checked"] and self.judge is None and self.ready():
                        self.start_tests()
                else:  # the end of a stream or of a process
                    self.poll.unregister(fd)
                    for process in (self.program, self.judge):
                        if process is not None and fd == process.ending:
                            process.over = True
            if self.judge is not None and not self.passed and not self.lost:
                self.judge.look()
                if self.judge.over and (stop := self.hear(self.judge))[0]:
                    return stop
            self.program.look()
            if self.program.over and (self.judge is None or self.judge.over):
                return "", ""

    def expect(self, process: Process) -> None:
        if process.ending is not None:
            self.poll.register(process.ending, select.POLLIN)

    def too_much(self) -> tuple[str, str]:
        if max(self.out.size, self.err.size) > self.limits["output"]:
            return "output", f"wrote more than {self.limits['output']} bytes"
        if self.control.size > PIECE:
            return "output", "wrote more than is its due to the sandbox"
        return "", ""

    def ready(self) -> bool:
        """Whether the program is there to be called."""
        return self.control.size == 2 and os.pread(self.control.file, 2, 0) == STARTED + READY

    def start_tests(self) -> None:
        """Ask for the tests, and fork the process that reads and runs them, which has the channel from now on."""
        frames.write(self.place.answers, {"tests": True})
        null = os.open(os.devnull, os.O_RDWR)
        ends = self.begun.end, self.channel.fileno(), self.note.end
        pid = os.fork()
        if not pid:
            run_tests(self.place, self.limits, (null, null, null, *ends))
        for fd in (null, self.begun.end, self.note.end):
            os.close(fd)
        self.channel.close()
        self.judge = Process(pid)
        self.expect(self.judge)

    def hear(self, judge: Process) -> tuple[str, str]:
        """What the end of the tests' process means; ("", "") where the program's end is to be awaited."""
        code, used = judge.end()
        limit = self.limits["cpu_seconds"]
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and used.ru_utime + used.ru_stime >= limit):
            return "timeout", f"its tests took more than {limit} s of processor time"
        if code == UNABLE:
            return "refused", "the sandbox could not be set up"
        if code == OUT_OF_MEMORY:
            return "memory", f"asked for more than {self.limits['memory']} bytes"
        if code < 0:
            return "error", f"its tests were ended by signal {-code}"
        while self.begun.take():
            pass
        if self.begun.size != len(STARTED + ENDED):
            return "error", f"its tests left with exit status {code}"
        self.passed, self.lost = code == 0, code == LOST
        if self.lost:  # a program that has ended says better by its own end why
            self.end = min(self.end, time.monotonic() + PATIENCE)
        return ("", "") if self.passed or self.lost else ("error", "")

    def verdict(self, code: int, cpu: float) -> tuple[str, str]:
        """What an end that the keeper did not bring about means."""
        limit = self.limits["cpu_seconds"]
        if not self.control.size:
            return "refused", "the sandbox could not be set up"
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu >= limit):
            return "timeout", f"took more than {limit} s of processor time"
        if code == -signal.SIGKILL:
            return "memory", "killed, as the system does where memory runs out"
        if code:
            return "error", f"exit status {code}" if code > 0 else f"ended by signal {-code}"
        if self.limits["checked"] and not self.passed:
            return "error", "" if self.lost else "ended before its tests had run"
        return "ok", ""


def _file() -> int:
    """An open file without a name."""
    if sys.platform == "linux":
        return os.memfd_create("job", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno())


def _ending(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None where the system has none."""
    try:
        return os.pidfd_open(pid) if sys.platform == "linux" else None
    except OSError:
        return None


def _kill(pid: int) -> None:
    """The job's group, or the job where it has not come to make one."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
