"""The process of a worker: loads one function, and calls it with what it is sent."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import resource
import select
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import frames


def main(given: dict[str, Any]) -> None:
    """Load, say hello, and serve until the other end closes the pipe."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # what the function prints must not end up among the answers
        os.dup2(null, fd)
    threading.Thread(target=_end_with, args=(requests,), daemon=True).start()
    try:
        function = _load(given["module"], given["name"])
        if given["made_of"] is not None:
            function = function(*given["made_of"])
    except BaseException as error:
        frames.write(answers, {"failed": _line(error)})
        return
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + given["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    frames.write(answers, {"ready": True})
    while (arguments := frames.read(requests)) is not None:
        _bound_time(given["seconds"])
        answer = _call(function, arguments)
        try:
            frames.write(answers, answer)
        except (TypeError, ValueError, RecursionError) as error:
            frames.write(answers, {"raised": f"its value is not JSON: {_line(error)}"})


def _call(function: Callable[..., Any], arguments: list[Any]) -> dict[str, Any]:
    try:
        return {"value": function(*arguments)}
    except MemoryError:
        return {"memory": True}
    except BaseException as error:  # also SystemExit: a scorer that leaves must not take the worker along
        return {"raised": _line(error)}


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _load(module: str, name: str) -> Callable[..., Any]:
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location("__hadal_worker__", module)
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    function: Callable[..., Any] = getattr(loaded, name)
    return function


def _end_with(requests: int) -> None:
    """End when the other side is gone, also in the middle of a call that sleeps for ever."""
    poll = select.poll()
    poll.register(requests, 0)
    poll.poll()
    os._exit(1)


def _bound_time(seconds: float) -> None:
    """The same for a call that computes for ever and lets no other thread run: the kernel ends it, though later than
    the deadline, which is the other side's to hold."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + 4 * seconds + 10)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
