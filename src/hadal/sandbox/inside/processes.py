"""Finding and ending what a job left running."""

from __future__ import annotations

import os
import signal
import time


def kill_children(patience: float = 5.0) -> None:
    """Kill and wait for every child of this process until there is none: orphans come to it, since it adopts them,
    so that a descendant is found whatever group or session it moved to. Gives up after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            for child in _children():
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.001)


def _children() -> list[int]:
    """The children of this process, where the system says; a cell has no /proc, and a job in it no children."""
    try:
        with open("/proc/thread-self/children") as file:
            return [int(each) for each in file.read().split()]
    except OSError:
        return []


def of_this_user() -> int:
    """How many processes and threads the user has by now; 0 where the system does not say."""
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:  # it has ended
            continue
    return count
