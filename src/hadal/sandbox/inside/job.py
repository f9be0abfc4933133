"""The process that runs the program, and the one that runs its tests: each gives up what it may not have first.

Whatever a program does from then on, the fences are the kernel's. Nothing here keeps a program in; it only makes the
program's life that of a plain `python program.py`. The tests are held in the same way, since they come from data sets;
their process is never the program's, which calls cross as `calls` says.
"""

from __future__ import annotations

import atexit
import linecache
import os
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from . import calls, frames, landlock, linux, seccomp

if TYPE_CHECKING:
    from .guard import Place

STARTED, READY = b"s", b"r"
TESTS_UID = 300  # from a place's uid to that of its tests
OPEN_FILES = 256  # of a keeper and its guards; so a job knows the highest number that it has to close
_CONTROL, _CHANNEL = 3, 4
_PACKAGE = __name__.partition(".")[0]
# Spelled out, since a look through all modules would copy the pages that a job shares with its keeper.
OURS = (_PACKAGE, *(f"{_PACKAGE}.{name}" for name in (
    "calls", "cell", "frames", "guard", "job", "keeper", "landlock", "linux", "plain", "processes", "seccomp", "tree",
)))  # fmt: skip


def run_job(place: Place, job: dict[str, Any], folder: str, fds: tuple[int, ...]) -> NoReturn:
    """In the forked child: lock up, run, and never come back. `fds` become stdin, stdout, stderr, control, channel."""
    leave, code = os._exit, 70
    try:
        lock_up(place, job, folder, fds, place.uid)
        os.write(_CONTROL, STARTED)
        code = run(job["program"], job["names"])
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        leave(code)


def run_tests(place: Place, job: dict[str, Any], tests: str, fds: tuple[int, ...]) -> NoReturn:
    """The same for the tests, which have no folder: call the program over the channel, and say on the control what
    came of it."""
    code = 70
    try:
        lock_up(place, job, None, fds, place.uid + TESTS_UID)
        code = judge(tests, job["names"])
    except BaseException as error:
        frames.write(_CONTROL, {"unable": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(code)


def lock_up(place: Place, job: dict[str, Any], folder: str | None, fds: tuple[int, ...], uid: int) -> None:
    """Everything that only the process itself can do, in the order in which it can be done."""
    home = folder or "/"
    os.setsid()
    high = [os.dup(fd) for fd in fds]  # all above those that they shall become
    for fd, given in enumerate(high):
        os.dup2(given, fd)
    os.closerange(len(high), OPEN_FILES)
    os.chdir(home)
    os.umask(0o077)
    os.environ.update(HOME=home, TMPDIR=home)
    for limit, soft, hard in _limits(place, job):
        resource.setrlimit(limit, (soft, hard))
    if "uid" in place.layers:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        linux.die_with_parent()  # after the uid, which takes it back
        linux.no_new_privileges()
        linux.drop_capabilities()
    if "landlock" in place.layers:
        landlock.restrict(place.readable, [folder] if folder else [], place.devices)
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


def run(program: str, names: list[str] | None) -> int:
    """Run a program as `python program.py` would, or, where it has tests, as a module of which they call these
    names; returns the exit status."""
    _fresh_interpreter()
    main = sys.modules["__main__"] = types.ModuleType("__main__" if names is None else "program")
    sys.modules[main.__name__] = main
    code = _execute(program, "program.py", main)
    if names is not None and (code is None or all(name in main.__dict__ for name in names)):
        # What a module raises behind its functions, as from a demonstration that reads input, is on stderr and harms
        # no function.
        os.write(_CONTROL, READY)
        found = {name: main.__dict__[name] for name in names if name in main.__dict__}
        code = _status(lambda: calls.answer(_CHANNEL, found))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return code or 120
    return code or 0


def _fresh_interpreter() -> None:
    for name in OURS:
        sys.modules.pop(name, None)
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
    return _status(lambda: exec(compile(source, name, "exec", dont_inherit=True), main.__dict__))


def _status(act: Callable[[], object]) -> int | None:
    """Do something as a program; None where it came to its end, else the exit status."""
    try:
        act()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        inner = error.__traceback__.tb_next.tb_next if error.__traceback__ and error.__traceback__.tb_next else None
        traceback.print_exception(type(error), error, inner)
        return 1
    return None


def judge(tests: str, names: list[str]) -> int:
    """Run tests that call the program by these names; 0 where they passed."""
    program = calls.Program(_CHANNEL)
    try:
        space = {"__name__": "tests", **program.names(names)}
        exec(compile(tests, "tests.py", "exec", dont_inherit=True), space)
        note = program.lost
    except calls.Lost:
        note = program.lost
    except BaseException as error:  # also SystemExit: tests that leave have not passed
        note = " ".join(f"{type(error).__name__}: {error}".split()) + _line_of(error, tests)
    frames.write(_CONTROL, {"passed": not note, "lost": bool(program.lost), "note": note[:500]})
    return int(bool(note))


def _line_of(error: BaseException, tests: str) -> str:
    """The last line of the tests that an exception came through."""
    at, number = error.__traceback__, 0
    while at is not None:
        number = at.tb_lineno if at.tb_frame.f_code.co_filename == "tests.py" else number
        at = at.tb_next
    return f" ({tests.splitlines()[number - 1].strip()})" if number else ""
