"""One place of the sandbox: a process that forks those of each job, watches them, and never sees a job itself.

Since they read the job, the keeper's memory, which every later job inherits, holds nothing of any job.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from typing import Any

from . import cell, frames, linux, seccomp
from .job import OPEN_FILES
from .processes import of_this_user
from .watch import Place, clean, serve

# What programs import most, loaded once: a fork then starts in a millisecond or two, a new interpreter in 15 to 70.
USUAL = """abc array base64 bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal enum
fractions functools hashlib heapq io itertools json linecache math numbers operator os pprint queue random re
statistics string struct sys textwrap threading time traceback types typing unicodedata""".split()
# Character devices that may be opened, for reading and writing.
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/full")


THREADS = 72  # and the few processes of the cell itself


def main(given: dict[str, Any]) -> None:
    """Set up, say hello, and serve until the other end closes the pipe."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    try:
        try:
            place = set_up(given, requests, answers)
        except OSError as error:
            frames.write(answers, {"failed": str(error)})
            return
        os.dup2(null, 2)
        frames.write(answers, {"ready": True})
        try:
            while serve(place):
                pass
        finally:
            clean(place)
    finally:
        if {"namespaces", "bubblewrap"}.isdisjoint(given["layers"]):  # in a cell it is out of sight
            os.rmdir(given["folder"])


def set_up(given: dict[str, Any], requests: int, answers: int) -> Place:
    """Load what jobs will want, and move into the cell. Raises OSError where the system does not allow it."""
    for name in USUAL:
        __import__(name)
    layers = frozenset(given["layers"])
    uid = given["uid"] if "uid" in layers else os.getuid()
    threads = threads_allowed(layers)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, most))
    if "namespaces" in layers:
        cell.enter(given["readable"], DEVICES, given["folder"])
    if sys.platform == "linux":
        linux.adopt_orphans()
        linux.forbid_attaching()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asked; it closes the pipe
    if "seccomp" in layers:
        seccomp.prepare()
    gc.freeze()  # so that a job's collector does not touch, and thereby copy, what it shares with the keeper
    return Place(layers, (*given["readable"],), DEVICES, given["folder"], uid, threads, requests, answers)


def threads_allowed(layers: frozenset[str]) -> int:
    """RLIMIT_NPROC for a job: exact where its uid is its own or is counted in its cell, else over all the user has."""
    if "uid" in layers or "namespaces" in layers:
        return THREADS
    mine = of_this_user()
    return mine + 16 * THREADS if mine else 0
