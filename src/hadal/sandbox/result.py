"""What a job may use, and what came of it: the same for the sandbox here and for a service elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Status = Literal["ok", "error", "timeout", "memory", "output", "refused"]
STATUSES: tuple[str, ...] = get_args(Status)
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one job may use. Sizes are bytes.

    `memory` bounds the address space of the job's one process, the interpreter (about 30 MB) included; `disk` all that
    is in its private folder, and each file; `output` each of stdout and stderr. Processor time counts all threads.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 512 * MIB
    disk: int = 32 * MIB
    output: int = 256 << 10
    files: int = 64

    def __post_init__(self) -> None:
        bad = [name for name, value in vars(self).items() if not (value > 0 and math.isfinite(value))]
        if bad:
            raise ValueError(f"{', '.join(bad)} must be above zero")


@dataclass(frozen=True)
class Job:
    """A Python program, what it reads from stdin, and, where given, tests that call it from a process of their own.

    `names`: what the tests have of the program; None for all names that they do not define and Python does not have.
    """

    program: str
    stdin: str = ""
    tests: str | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Result:
    """How a job ended.

    `status`: ok (ended with 0, and its tests passed where it had some), error (any other end), timeout, memory,
    output (wrote more than allowed, to a stream or to files), refused (was not run; `note` says why).
    `exit_code`: negative for a signal, 1 where tests failed, None where there was no process. `peak_memory` in bytes,
    resident.
    `layers`: what held the job. stdout and stderr are the program's own words: hostile text, cut at the limit.
    """

    status: Status
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    peak_memory: int = 0
    layers: tuple[str, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def result_from(message: Any, limits: Limits, layers: tuple[str, ...]) -> Result:
    """Check a keeper's report. Raises ValueError where it is not one."""
    if not isinstance(message, dict):
        raise ValueError("no object")
    status, code = message.get("status"), message.get("exit_code")
    if status not in STATUSES or not (code is None or type(code) is int):
        raise ValueError("no status")
    seconds, peak = message.get("seconds"), message.get("peak")
    if not (isinstance(seconds, float) and math.isfinite(seconds) and type(peak) is int):
        raise ValueError("no figures")
    texts = [message.get(name) for name in ("stdout", "stderr", "note")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("no text")
    out, err, note = (str(text)[: limits.output] for text in texts)
    return Result(status, code, out, err, seconds, peak, layers, note)
