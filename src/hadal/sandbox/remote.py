"""A sandbox elsewhere: any HTTP service that speaks SandboxFusion's `POST /run_code`."""

from __future__ import annotations

import json
import math
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from hadal.errors import UserError

from .places import in_threads
from .result import Job, Limits, Result

LAYERS = ("remote",)
_EXTRA_SECONDS = 30.0  # for the way there and back and the service's queue


class RemoteSandbox:
    """Runs programs on a service, `connections` at once. Its result is what the service says: how well it isolates,
    and whether it holds to limits of memory and processor time, is the service's affair."""

    def __init__(self, url: str, connections: int = 16, limits: Limits | None = None) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"{url} is no address of a sandbox service.", "It looks like http://localhost:8080.")
        self.url = url.rstrip("/").removesuffix("/run_code") + "/run_code"
        self.connections, self.limits = connections, limits or Limits()

    def run(
        self,
        program: str,
        stdin: str = "",
        tests: str | None = None,
        limits: Limits | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Result:
        """Run one program; tests run behind it in its own process, with all of its names. A service that cannot be
        reached or talks nonsense gives status refused, with the reason; an address where there is none raises
        UserError."""
        limits = limits or self.limits
        word = secrets.token_hex(16)
        code = program if tests is None else f"{program}\n\n{tests}\n\nprint({word!r})\n"
        body = {
            "code": code, "language": "python", "stdin": stdin, "run_timeout": limits.seconds,
            "memory_limit_MB": limits.memory >> 20, "files": {}, "fetch_files": [],
        }  # fmt: skip
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        start = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=limits.seconds + _EXTRA_SECONDS) as answer:
                text = answer.read(16 * limits.output + (1 << 16))
            result = read_answer(json.loads(text), limits, time.monotonic() - start)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404, 405):
                raise UserError(f"{self.url} answers {error.code} {error.reason}.", "Check the address.") from None
            return _refused(f"the service answers {error.code} {error.reason}")
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                raise UserError(f"Nobody listens at {self.url}.", "Start the service or check the address.") from None
            return _refused(f"the service cannot be reached: {error.reason}")
        except (OSError, ValueError, RecursionError) as error:
            return _refused(f"no sound answer from the service: {error}")
        if tests is None or not result.ok:
            return result
        before, found, after = result.stdout.rpartition(word)
        if not found or after.strip():
            return Result("error", result.exit_code, result.stdout, result.stderr, result.seconds, 0, LAYERS,
                          "ended before its tests had run")  # fmt: skip
        return Result("ok", result.exit_code, before, result.stderr, result.seconds, 0, LAYERS)

    def map(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Run jobs over all connections at once; results in the order of the jobs."""
        return in_threads(self.connections, lambda job: self.run(job.program, job.stdin, job.tests), jobs)


def read_answer(answer: Any, limits: Limits, seconds: float) -> Result:
    """What a service's answer means. Raises ValueError where it is none. `seconds` stands in for a time that it does
    not give."""
    run = answer.get("run_result") if isinstance(answer, dict) else None
    if not isinstance(run, dict):
        told = answer.get("message") if isinstance(answer, dict) else None
        raise ValueError(f"it ran nothing: {str(told)[:200]}")
    status, code, took = run.get("status"), run.get("return_code"), run.get("execution_time")
    out, err = (run.get(name) or "" for name in ("stdout", "stderr"))
    if not isinstance(out, str) or not isinstance(err, str) or not (code is None or type(code) is int):
        raise ValueError("its result is not in the form of run_code")
    if isinstance(took, int | float) and not isinstance(took, bool) and math.isfinite(took):
        seconds = float(took)
    rest = (code, out[: limits.output], err[: limits.output], seconds, 0, LAYERS)
    if status == "TimeLimitExceeded":
        return Result("timeout", *rest, note=f"ran for more than {limits.seconds:g} s")
    if status != "Finished":
        raise ValueError(f"it says {str(status)[:100]!r}")
    if code == 0:
        return Result("ok", *rest)
    if err.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return Result("memory", *rest, note=f"asked for more than {limits.memory} bytes")
    return Result("error", *rest, note=f"exit status {code}")


def _refused(note: str) -> Result:
    return Result("refused", layers=LAYERS, note=" ".join(note.split())[:300])
