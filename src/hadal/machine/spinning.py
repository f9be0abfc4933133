"""How long threads wait awake for their partners: long while the cores are free, hardly at all beside other programs.

OpenMP's threads spin for a while before they sleep, since the next piece of work is mostly a few microseconds away.
Where another program has the partner's core they spin for nothing for as long as it runs, and a training step of two
threads takes up to twenty times its time. A fixed limit short enough to mend this costs small models up to two fifths
when nothing else runs (docs/log.md).

GNU's OpenMP has two limits: a short one applies while it counts more threads than there are CPUs. Here a thread looks
at how long the process's threads were ready and had no CPU (the scheduler tells for each). Where that is much, idle
threads are added to the count, and where it has been little for a while, they are taken away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path

INTERVAL, LOOKS = 0.2, 5
"""Seconds between two looks, and how many are judged together: for a moment a run's own threads wait as well."""
CROWDED, FREE = 0.3, 0.1
"""Time of waiting for a CPU by time of having one: above the first threads begin to spin briefly, below the second for
long again. Two threads on two cores have .04 alone, at most .1 over a second; beside one busy program .4 to 1 while
they spin for long, and .2 to .5 while they do not."""
TASKS, MAPS = Path("/proc/self/task"), Path("/proc/self/maps")

_started = threading.Lock()


def can_watch() -> bool:
    """Whether the scheduler tells what threads wait."""
    return Path("/proc/self/schedstat").exists()


def start() -> None:
    """Watch for as long as the process lives; the second call and those after it do nothing."""
    if _started.acquire(blocking=False):
        threading.Thread(target=_watch, name="spinning", daemon=True).start()


def _watch() -> None:
    while "torch._C" not in sys.modules:  # a process may never need torch
        time.sleep(INTERVAL)
    if (library := _library()) is None:
        return
    crowd: Crowd | None = None
    seen = deque([(_waited(), time.process_time())], LOOKS + 1)
    while True:
        time.sleep(INTERVAL)
        seen.append((_waited(), time.process_time()))
        waited, ran = (last - first for last, first in zip(seen[-1], seen[0], strict=True))
        share = waited / max(ran, INTERVAL)
        if crowd is None and share > CROWDED:
            crowd = Crowd(library)
        elif crowd and share < FREE:
            crowd.leave()
            crowd = None


def _library() -> ctypes.CDLL | None:
    """The OpenMP that torch has loaded; None where that is not GNU's."""
    with MAPS.open(encoding="utf-8", errors="replace") as lines:
        fields = [line.split(maxsplit=5) for line in lines]
    paths = {line[5].strip() for line in fields if len(line) == 6 and "libgomp" in line[5]}
    with contextlib.suppress(OSError):
        return ctypes.CDLL(min(paths, key=lambda path: "torch" not in path)) if paths else None
    return None


def _waited() -> float:
    """Seconds that the threads that there are have been ready without a CPU."""
    total = 0
    for task in os.listdir(TASKS):
        try:
            total += int((TASKS / task / "schedstat").read_bytes().split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return total / 1e9


class Crowd:
    """Idle threads, more than there are CPUs, that OpenMP counts among its own."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._over = library, threading.Event()
        threading.Thread(target=self._stand, name="crowd", daemon=True).start()

    def _stand(self) -> None:
        """A team belongs to the thread that calls for it and ends with it. What its members are called for is nothing:
        `free` of no memory, the one function of this signature that every process has."""
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        members = self._library.omp_get_num_procs() + 1
        self._library.GOMP_parallel(nothing, None, ctypes.c_uint(members), ctypes.c_uint(0))
        self._over.wait()

    def leave(self) -> None:
        self._over.set()
