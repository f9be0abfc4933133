"""One job: fork the process that runs the program, watch it, end it and all it started, and report.

A guard lives for one job. It never trusts what comes from the program's side: it reads at most so many bytes of it,
and takes nothing from it but text, and a word that only a program that ran to the end of its tests can know.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import select
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from . import cell, frames, linux
from .job import READY, STARTED, run_job
from .processes import kill_children
from .tree import bytes_below, remove_below

LOOK = 0.1  # seconds between looks at a private folder that no mount bounds
PIECE = 1 << 16


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


class Watch:
    """The running job as its guard sees it."""

    def __init__(self, place: Place, job: dict[str, Any], folder: str) -> None:
        self.job, self.folder, self.requests = job, folder, place.requests
        self.bounded = "namespaces" in place.layers  # the private folder is a mount of limited size
        self.out, out_end = os.pipe()
        self.err, err_end = os.pipe()
        control, control_end = socket.socketpair()
        stdin, self.tests = _file(job["stdin"].encode("utf-8", "surrogatepass")), _file(b"")
        self.start = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            run_job(place, job, folder, (stdin, out_end, err_end, control_end.fileno(), self.tests))
        for fd in (stdin, out_end, err_end):
            os.close(fd)
        control_end.close()
        self.control = control.detach()
        self.read = {fd: bytearray() for fd in (self.out, self.err, self.control)}
        for fd in self.read:
            os.set_blocking(fd, False)
        # Read after the fork, and handed over when the program has run: its process cannot have the tests before.
        self.checks = frames.read(place.requests) if job["checked"] else None
        self.word = secrets.token_hex(16).encode()
        self.ended: tuple[int, int, Any] | None = None

    def result(self) -> dict[str, Any]:
        """Wait for the end, or bring it about, and say how it went."""
        status, note = self.wait()
        seconds = time.monotonic() - self.start
        _kill(self.pid)
        _, ended, used = self.ended or os.wait4(self.pid, 0)
        kill_children()
        for fd in self.read:  # what was written before the end
            while not status and self.take(fd):
                status, note = self.too_much()
        code = os.waitstatus_to_exitcode(ended)
        cap = self.job["output"]
        out, err = (self.read[fd][:cap].decode("utf-8", "replace") for fd in (self.out, self.err))
        if not status:
            status, note = self.verdict(code, err, used.ru_utime + used.ru_stime)
        peak = used.ru_maxrss * (1024 if sys.platform == "linux" else 1)
        return {"status": status, "exit_code": code, "stdout": out, "stderr": err, "seconds": seconds, "peak": peak,
                "note": note}  # fmt: skip

    def wait(self) -> tuple[str, str]:
        """Until the program ends ("", ""), or until it has to be stopped (status and reason)."""
        poll, ending = select.poll(), _ending(self.pid)
        poll.register(self.requests, 0)  # only whether the other end is gone
        for fd in (*self.read, *([] if ending is None else [ending])):
            poll.register(fd, select.POLLIN)
        look = self.start + LOOK
        while True:
            now = time.monotonic()
            left = self.start + self.job["seconds"] - now
            if left <= 0:
                return "timeout", f"ran for more than {self.job['seconds']:g} s"
            if not self.bounded and now >= look:
                if bytes_below(self.folder, self.job["disk"]) >= self.job["disk"]:
                    return "output", "more in files than allowed"
                look = now + LOOK
            pause = min(left, LOOK if ending is not None else LOOK / 10)
            for fd, _ in poll.poll(math.ceil(pause * 1000)):
                if fd == self.requests:
                    return "refused", "nobody waits for the result"
                if fd == ending:
                    os.close(ending)
                    return "", ""
                if not self.take(fd):
                    poll.unregister(fd)
                if (stop := self.too_much())[0]:
                    return stop
                if fd == self.control and self.checks is not None and self.read[fd] == STARTED + READY:
                    self.hand_over()
            if ending is None and (ended := os.wait4(self.pid, os.WNOHANG))[0]:
                self.ended = ended
                return "", ""

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

    def hand_over(self) -> None:
        """Give the tests to a program that has run to its end, with the word that says so."""
        _fill(self.tests, json.dumps({"tests": self.checks, "word": self.word.decode()}).encode())
        self.checks = None
        try:
            os.write(self.control, b"!")
        except OSError:  # it said that it was ready, and hung up
            pass

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
        if self.job["checked"] and said != STARTED + READY + self.word:
            return "error", "ended before its tests had run"
        return "ok", ""


def _file(content: bytes) -> int:
    """An open file without a name, at its beginning."""
    if sys.platform == "linux":
        fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    _fill(fd, content)
    return fd


def _fill(fd: int, content: bytes) -> None:
    """Make a file hold this alone, whatever was written to it and wherever it was left."""
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)


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
