"""The process that runs the program: it gives up what it may not have, and then is the program's.

Whatever it does from then on, the fences are the kernel's. Nothing here keeps a program in; it only makes the
program's life that of a plain `python program.py`.
"""

from __future__ import annotations

import atexit
import json
import linecache
import os
import resource
import signal
import sys
import threading
import traceback
import types
from typing import TYPE_CHECKING, Any, NoReturn

from . import landlock, linux, seccomp

if TYPE_CHECKING:
    from .guard import Place

STARTED, READY = b"s", b"r"
OPEN_FILES = 256  # of a keeper and its guards; so a job knows the highest number that it has to close
_CONTROL, _TESTS = 3, 4


def run_job(place: Place, job: dict[str, Any], folder: str, fds: tuple[int, int, int, int, int]) -> NoReturn:
    """In the forked child: lock up, run, and never come back. `fds` become stdin, stdout, stderr, control, tests."""
    leave, code = os._exit, 70
    try:
        lock_up(place, job, folder, fds)
        os.write(_CONTROL, STARTED)
        code = run(job["program"], job["checked"])
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        leave(code)


def lock_up(place: Place, job: dict[str, Any], folder: str, fds: tuple[int, ...]) -> None:
    """Everything that only the process itself can do, in the order in which it can be done."""
    os.setsid()
    high = [os.dup(fd) for fd in fds]  # all above those that they shall become
    for fd, given in enumerate(high):
        os.dup2(given, fd)
    os.closerange(len(high), OPEN_FILES)
    os.chdir(folder)
    os.umask(0o077)
    os.environ.update(HOME=folder, TMPDIR=folder)
    for limit, soft, hard in _limits(place, job):
        resource.setrlimit(limit, (soft, hard))
    if "uid" in place.layers:
        os.setgroups([])
        os.setresgid(place.uid, place.uid, place.uid)
        os.setresuid(place.uid, place.uid, place.uid)
    if sys.platform == "linux":
        linux.die_with_parent()  # after the uid, which takes it back
        linux.no_new_privileges()
        linux.drop_capabilities()
    if "landlock" in place.layers:
        landlock.restrict(place.readable, [folder], place.devices)
    if "seccomp" in place.layers:
        seccomp.restrict(os.getpid())


def _limits(place: Place, job: dict[str, Any]) -> list[tuple[int, int, int]]:
    cpu = job["cpu_seconds"]
    limits = [
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, job["disk"], job["disk"]),
        (resource.RLIMIT_NOFILE, job["files"], job["files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ]
    if sys.platform == "linux":
        limits += [(resource.RLIMIT_AS, job["memory"], job["memory"]), (resource.RLIMIT_MSGQUEUE, 0, 0)]
    if place.threads:
        limits.append((resource.RLIMIT_NPROC, place.threads, place.threads))
    return limits


def run(program: str, checked: bool) -> int:
    """Run a program, then its tests in the same namespace, as `python program.py` would; returns the exit status."""
    _fresh_interpreter()
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    code = _execute(program, "program.py", main)
    if checked and code is None:
        os.write(_CONTROL, READY)
        os.read(_CONTROL, 1)
        with open(_TESTS, "rb", closefd=False) as file:
            given = json.loads(file.read())
        code = _execute(given["tests"], "tests.py", main)
        if code is None:
            os.write(_CONTROL, given["word"].encode())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return code or 120
    return code or 0


def _fresh_interpreter() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__.partition(".")[0]]:
        del sys.modules[name]
    sys.argv, sys.orig_argv = ["program.py"], ["python", "program.py"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))


def _execute(source: str, name: str, main: types.ModuleType) -> int | None:
    """Run one source in a module; None where it came to its end, else the exit status."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        inner = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, inner)
        return 1
    return None
