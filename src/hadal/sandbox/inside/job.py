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
    from .watch import Place

STARTED, READY, ENDED = b"s", b"r", b"e"
TESTS_UID = 300  # from a place's uid to that of its tests
OPEN_FILES = 256  # of a keeper; so a job knows the highest number that it has to close
FAILED, LOST, OUT_OF_MEMORY, UNABLE = 1, 2, 3, 70  # exit statuses of tests, 0 where they passed
NOTE = 500  # bytes of what tests say
_CONTROL, _CHANNEL, _NOTE = 3, 4, 5
_PACKAGE = __name__.partition(".")[0]
# Spelled out, since a look through all modules would copy the pages that a job shares with its keeper.
OURS = (_PACKAGE, *(f"{_PACKAGE}.{name}" for name in (
    "calls", "cell", "frames", "job", "keeper", "landlock", "linux", "plain", "processes", "seccomp", "tree", "watch",
)))  # fmt: skip


def run_job(place: Place, limits: dict[str, Any], folder: str, fds: tuple[int, ...]) -> NoReturn:
    """In the forked child: read the job, lock up, run, and never come back. `fds` become stdin, stdout, stderr,
    control, channel."""
    leave, code = os._exit, 70
    try:
        job = frames.read(place.requests)
        with open(fds[0], "wb", closefd=False) as stdin:
            stdin.write(job["stdin"].encode("utf-8", "surrogatepass"))
        os.lseek(fds[0], 0, os.SEEK_SET)
        lock_up(place, limits, folder, fds, place.uid)
        os.write(_CONTROL, STARTED)
        code = run(job["program"], job["names"] if limits["checked"] else None)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        leave(code)


def run_tests(place: Place, limits: dict[str, Any], fds: tuple[int, ...]) -> NoReturn:
    """The same for the tests, which have no folder. `fds` become stdin, stdout, stderr, control, channel, note; what
    came of the tests is the exit status."""
    code = UNABLE
    try:
        job = frames.read(place.requests)
        lock_up(place, limits, None, fds, place.uid + TESTS_UID)
        os.write(_CONTROL, STARTED)
        code, note = judge(job["tests"], job["names"])
        os.write(_NOTE, note.encode("utf-8", "replace")[:NOTE])
        os.write(_CONTROL, ENDED)  # tests that leave by another way have not passed, whatever their exit status
    except BaseException as error:
        os.write(fds[-1] if code == UNABLE else _NOTE, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
    finally:
        os._exit(code)


def lock_up(place: Place, limits: dict[str, Any], folder: str | None, fds: tuple[int, ...], uid: int) -> None:
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
    for limit, soft, hard in _limits(place, limits):
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


def _limits(place: Place, used: dict[str, Any]) -> list[tuple[int, int, int]]:
    cpu = used["cpu_seconds"]
    limits = [
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, used["disk"], used["disk"]),
        (resource.RLIMIT_NOFILE, used["files"], used["files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ]
    if sys.platform == "linux":
        limits += [(resource.RLIMIT_AS, used["memory"], used["memory"]), (resource.RLIMIT_MSGQUEUE, 0, 0)]
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


def judge(tests: str, names: list[str]) -> tuple[int, str]:
    """Run tests that call the program by these names; the exit status for what came of it, and why they failed."""
    program = calls.Program(_CHANNEL)
    try:
        space = {"__name__": "tests", **program.names(names)}
        exec(compile(tests, "tests.py", "exec", dont_inherit=True), space)
    except calls.Lost:
        pass  # as `lost` says, also where a test caught it
    except MemoryError:
        return OUT_OF_MEMORY, ""
    except BaseException as error:  # also SystemExit: tests that leave have not passed
        return FAILED, ": ".join(filter(None, (type(error).__name__, _words(error)))) + _line_of(error, tests)
    return (LOST, program.lost) if program.lost else (0, "")


def _words(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:  # such as a number with too many digits in an assertion's message
        return "it cannot be written"


def _line_of(error: BaseException, tests: str) -> str:
    """The last line of the tests that an exception came through."""
    at, number = error.__traceback__, 0
    while at is not None:
        number = at.tb_lineno if at.tb_frame.f_code.co_filename == "tests.py" else number
        at = at.tb_next
    return f" ({tests.splitlines()[number - 1].strip()})" if number else ""
