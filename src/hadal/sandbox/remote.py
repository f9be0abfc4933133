"""A sandbox elsewhere: any HTTP service that speaks SandboxFusion's `POST /run_code`."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any

from hadal.errors import UserError

from .places import in_threads
from .result import Job, Limits, Result

LAYERS = ("remote",)
NO_ANSWER = "no valid answer from the service"
_EXTRA_SECONDS = 30.0  # for the way there and back and the service's queue


class RemoteSandbox:
    """Runs programs on a service, `connections` at once. Its result is what the service says: how well it isolates,
    and whether it holds to limits of memory and processor time, is the service's affair."""

    def __init__(self, url: str, connections: int = 16, limits: Limits | None = None) -> None:
        from hadal.http import Client, address  # httpx takes a fifth of a second, and most sandboxes are here

        address(url, "http://localhost:8080")
        self.url = url.rstrip("/").removesuffix("/run_code") + "/run_code"
        self.connections, self.limits = connections, limits or Limits()
        self._client = Client(headers={"Connection": "close"}, connections=connections)

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
        result = self._ask(body, limits)
        if tests is None or not result.ok:
            return result
        before, found, after = result.stdout.rpartition(word)
        if not found or after.strip():
            return Result("error", result.exit_code, result.stdout, result.stderr, result.seconds, 0, LAYERS,
                          "ended before its tests had run")  # fmt: skip
        return Result("ok", result.exit_code, before, result.stderr, result.seconds, 0, LAYERS)

    def _ask(self, body: dict[str, Any], limits: Limits) -> Result:
        """What the service says. UserError where there is none at the address."""
        from hadal.http import Failed

        start, most = time.monotonic(), 16 * limits.output + (1 << 16)
        try:
            answer = self._client.send("POST", self.url, body, limits.seconds + _EXTRA_SECONDS, most)
            if answer.status in (401, 403, 404, 405):
                raise UserError(f"{self.url} answers {answer.status} {answer.reason}.", "Check the address.")
            if not 200 <= answer.status < 300:
                return _refused(f"the service answers {answer.status} {answer.reason}")
            return read_answer(answer.json(), limits, time.monotonic() - start)
        except Failed as error:
            if error.kind == "nobody":
                raise UserError(f"Nothing listens at {self.url}.", "Start the service or check the address.") from None
            unreached = error.kind == "unreachable"
            return _refused(f"{'the service cannot be reached' if unreached else NO_ANSWER}: {error}")
        except ValueError as error:
            return _refused(f"{NO_ANSWER}: {error}")

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
