"""One job: fork the process that runs the program, and one for its tests; watch them, end them and all they started,
and report.

A guard lives for one job. It never trusts what comes from the program's side: it reads at most so many bytes of it,
and takes nothing from it but text. Whether tests passed it hears from their own process alone.
"""

from __future__ import annotations

import json
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

from . import cell, frames, linux
from .job import READY, STARTED, run_job, run_tests
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


def serve(place: Place) -> int:
    """Read one job, run it and answer; 0, or 1 where the pipe was closed."""
    if sys.platform == "linux":
        linux.die_with_parent()
        linux.adopt_orphans()
    job = frames.read(place.requests)
    if job is None:
        return 1
    own_mount = "namespaces" in place.layers
    if own_mount:
        folder = cell.open_work(job["disk"], place.uid, place.uid if "uid" in place.layers else os.getgid())
    else:
        folder = tempfile.mkdtemp(dir=place.folder)
        if "uid" in place.layers:
            os.chown(folder, place.uid, place.uid)
    try:
        answer = Watch(place, job, folder).result()
    finally:
        if own_mount:
            cell.close_work()
        else:
            os.chmod(folder, 0o700)
            remove_below(folder)
            os.rmdir(folder)
    frames.write(place.answers, answer)
    return 0


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
        _kill(self.pid)
        self.ended = self.ended or os.wait4(self.pid, 0)[1:]
        return os.waitstatus_to_exitcode(self.ended[0]), self.ended[1]


class Watch:
    """The running job as its guard sees it."""

    def __init__(self, place: Place, job: dict[str, Any], folder: str) -> None:
        self.place, self.job, self.folder = place, job, folder
        self.bounded = "namespaces" in place.layers  # the private folder is a mount of limited size
        self.out, out_end = os.pipe()
        self.err, err_end = os.pipe()
        self.control, control_end = os.pipe()
        channel, channel_end = socket.socketpair()
        stdin = _file(job["stdin"].encode("utf-8", "surrogatepass"))
        self.start = time.monotonic()
        pid = os.fork()
        if not pid:
            run_job(place, job, folder, (stdin, out_end, err_end, control_end, channel_end.fileno()))
        for fd in (stdin, out_end, err_end, control_end):
            os.close(fd)
        channel_end.close()
        self.program, self.channel = Process(pid), channel
        self.read = {fd: bytearray() for fd in (self.out, self.err, self.control)}
        for fd in self.read:
            os.set_blocking(fd, False)
        # Read after the fork: nothing of the tests was ever in the memory of the program's process.
        self.tests: str | None = None if job["names"] is None else frames.read(place.requests)
        self.judge: Process | None = None
        self.report = -1  # where the tests' process says what came of them
        self.passed, self.lost = False, ""  # or why the tests lost the program
        self.end = self.start + job["seconds"]

    def result(self) -> dict[str, Any]:
        """Wait for the end, or bring it about, and say how it went."""
        status, note = self.wait()
        seconds = time.monotonic() - self.start
        code, used = self.program.end()
        if self.judge is not None:
            self.judge.end()
        kill_children()
        for fd in self.read:  # what was written before the end
            while not status and self.take(fd):
                status, note = self.too_much()
        cap = self.job["output"]
        out, err = (self.read[fd][:cap].decode("utf-8", "replace") for fd in (self.out, self.err))
        if not status:
            status, note = self.verdict(code, err, used.ru_utime + used.ru_stime)
        elif self.judge is not None and self.judge.over and not self.passed:
            code = 1
        peak = used.ru_maxrss * (1024 if sys.platform == "linux" else 1)
        return {"status": status, "exit_code": code, "stdout": out, "stderr": err, "seconds": seconds, "peak": peak,
                "note": note}  # fmt: skip

    def wait(self) -> tuple[str, str]:
        """Until the program ends ("", ""), or until it has to be stopped (status and reason)."""
        self.poll = select.poll()
        self.poll.register(self.place.requests, 0)  # only whether the other end is gone
        for fd in self.read:
            self.poll.register(fd, select.POLLIN)
        self.expect(self.program)
        look = self.start + LOOK
        while True:
            now = time.monotonic()
            if now >= self.end:
                return ("error", self.lost) if self.lost else self.too_long()
            if not self.bounded and now >= look:
                if bytes_below(self.folder, self.job["disk"]) >= self.job["disk"]:
                    return "output", "more in files than allowed"
                look = now + LOOK
            pause = min(self.end - now, LOOK if self.program.ending is not None else LOOK / 10)
            for fd, _ in self.poll.poll(math.ceil(pause * 1000)):
                if fd == self.place.requests:
                    return "refused", "nobody waits for the result"
                if fd in self.read and self.take(fd):
                    if (stop := self.too_much())[0]:
                        return stop
                    if self.tests is not None and self.read[self.control] == STARTED + READY:
                        self.start_tests(self.tests)
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

    def start_tests(self, tests: str) -> None:
        """The program is there to be called: fork the process of its tests, which has the channel from now on."""
        self.report, report_end = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        pid = os.fork()
        if not pid:
            run_tests(self.place, self.job, tests, (null, null, null, report_end, self.channel.fileno()))
        os.close(null)
        os.close(report_end)
        self.channel.close()
        self.tests, self.judge = None, Process(pid)
        self.expect(self.judge)

    def hear(self, judge: Process) -> tuple[str, str]:
        """What the process of the tests said before it ended; ("", "") where the program's end is to be awaited."""
        code, used = judge.end()
        limit = self.job["cpu_seconds"]
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and used.ru_utime + used.ru_stime >= limit):
            return "timeout", f"its tests took more than {limit} s of processor time"
        try:
            said = json.loads(os.read(self.report, PIECE)[8:])
        except ValueError:
            return "error", f"its tests ended with {code}"
        if "unable" in said:
            return "refused", f"the sandbox could not be set up: {said['unable']}"
        if said["note"].startswith("MemoryError"):
            return "memory", f"asked for more than {self.job['memory']} bytes"
        self.passed = said["passed"]
        if said["lost"]:  # a program that has ended says better by its own end why
            self.lost = said["note"]
            self.end = min(self.end, time.monotonic() + PATIENCE)
        return ("", "") if self.passed or self.lost else ("error", said["note"])

    def too_long(self) -> tuple[str, str]:
        return "timeout", f"ran for more than {self.job['seconds']:g} s"

    def take(self, fd: int) -> bool:
        """Read what there is, at most one piece; False at the end, or where there is nothing now."""
        try:
            piece = os.read(fd, PIECE)
        except (BlockingIOError, ConnectionResetError):
            return False
        self.read[fd] += piece
        return bool(piece)

    def too_much(self) -> tuple[str, str]:
        if max(len(self.read[self.out]), len(self.read[self.err])) > self.job["output"]:
            return "output", f"wrote more than {self.job['output']} bytes"
        if len(self.read[self.control]) > PIECE:
            return "output", "wrote more than is its due to the sandbox"
        return "", ""

    def verdict(self, code: int, err: str, cpu: float) -> tuple[str, str]:
        """What an end that the guard did not bring about means."""
        said, limit = bytes(self.read[self.control]), self.job["cpu_seconds"]
        if not said.startswith(STARTED):
            return "refused", f"the sandbox could not be set up: {err.strip()[-300:]}"
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu >= limit):
            return "timeout", f"took more than {limit} s of processor time"
        if code == -signal.SIGKILL:
            return "memory", "killed, as the system does where memory runs out"
        if code and err.rstrip().rpartition("\n")[2].startswith("MemoryError"):
            return "memory", f"asked for more than {self.job['memory']} bytes"
        if code:
            return "error", f"exit status {code}" if code > 0 else f"ended by signal {-code}"
        if self.job["names"] is not None and not self.passed:
            return "error", self.lost or "ended before its tests had run"
        return "ok", ""


def _file(content: bytes) -> int:
    """An open file without a name that holds this, at its beginning."""
    if sys.platform == "linux":
        fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as unnamed:
            fd = os.dup(unnamed.fileno())
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


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
