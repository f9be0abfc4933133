"""HTTP as a client: connections that stay open, time limits, retries, and what goes wrong as one line. On httpx.

A `Pool` belongs to one event loop, such as the server's. A `Client` is for everyone else: it has a pool on a loop of
its own thread, so requests run side by side without a thread each, and can be cancelled while they wait for an answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx

from hadal.errors import UserError

T = TypeVar("T")
Response = httpx.Response
LARGEST = 64 << 20  # bytes of an answer
LONGEST_WAIT = 60.0  # seconds between two attempts
LONGEST_ASKED = 600.0  # the same where the server asks for it
_PASSING = {408, 409, 425, 429}  # and all from 500 on

Kind = Literal["nobody", "unreachable", "slow", "broken"]


class Failed(Exception):
    """A request without an answer, and why in a line; worth another attempt.

    kind: nobody listens there, it cannot be reached, nothing came in time, or what came is not whole. after: seconds
    that the server asks to wait.
    """

    def __init__(self, reason: str, kind: Kind = "broken", after: float = 0.0) -> None:
        super().__init__(reason)
        self.kind, self.after = kind, after


@dataclass(frozen=True)
class Answer:
    """An answer that came whole, or up to the most that was to be read of it."""

    status: int
    reason: str
    body: bytes
    after: float = 0.0
    """Seconds that the server asks to wait before the next attempt."""

    @property
    def passing(self) -> bool:
        """Whether it is an error that another attempt may not meet."""
        return self.status in _PASSING or self.status >= 500

    def json(self) -> Any:
        """The body's value; ValueError where it is not JSON."""
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None

    def told(self) -> str:
        """`429 Too Many Requests, slow down`: the status with the message of an error's body."""
        try:
            data = self.json()
            error = data.get("error", data)
            said = shown(str(error.get("message", error) if isinstance(error, dict) else error).encode())
        except (ValueError, AttributeError):
            said = shown(self.body)
        return f"{self.status} {self.reason}, {said}".rstrip(", ")


def shown(text: bytes) -> str:
    """The beginning of a body as a message can hold it."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text[:2000].decode(errors="replace")).split())
    return line if len(line) <= 200 else line[:199] + "…"


def address(url: str, example: str) -> SplitResult:
    """The parts of a server's address; UserError, with an example, for what is not one."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # a port that is no number, half an IPv6 address
        pass
    raise UserError(f"{url} is not the address of a server.", f"It looks like {example}.")


class Pool:
    """Connections of one event loop.

    headers: of every request. timeout: seconds of silence that a server may keep; connect: the same for a connection.
    connections: at once at most; what comes above them waits for as long as it takes. UserError for a proxy in the
    environment that cannot be used.
    """

    def __init__(
        self, headers: Mapping[str, str] | None = None, timeout: float = 600.0, connect: float | None = None,
        connections: int | None = None,
    ) -> None:  # fmt: skip
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=connect or timeout, pool=None),
                limits=httpx.Limits(max_connections=connections),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            cause = f"The proxy that the environment names cannot be used ({' '.join(str(error).split())})."
            raise UserError(cause, "Change HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or set NO_PROXY.") from None

    async def send(
        self, method: str, url: str, data: Any = None, timeout: float | None = None, most: int = LARGEST
    ) -> Answer:
        """The answer to a request, of which no more than `most` bytes are read. data: sent as JSON. Raises Failed."""
        async with self.open(method, url, data, timeout) as response:
            body = await read(response, most)
            after = response.headers.get("Retry-After", "")
            wait = min(float(after), LONGEST_ASKED) if after.isdecimal() else 0.0
            return Answer(response.status_code, response.reason_phrase, body, wait)

    @asynccontextmanager
    async def open(
        self, method: str, url: str, data: Any = None, timeout: float | None = None
    ) -> AsyncIterator[Response]:
        """The response to a request, its body still to be read; Failed for whatever goes wrong until the block ends."""
        content = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"} if content else None
        limit: Any = httpx.USE_CLIENT_DEFAULT if timeout is None else httpx.Timeout(timeout, pool=None)
        try:
            async with self._client.stream(method, url, content=content, headers=headers, timeout=limit) as response:
                yield response
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise _failed(error) from None

    async def close(self) -> None:
        await self._client.aclose()


async def read(response: Response, most: int) -> bytes:
    """The body of a response, no more than `most` bytes of it."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) >= most:
            break
    return bytes(body[:most])


def _failed(error: Exception) -> Failed:
    causes = list(_causes(error))
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return Failed("connection refused", "nobody")
    unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    if isinstance(error, httpx.TimeoutException):
        return Failed("timed out", "unreachable" if unreachable else "slow")
    reason = next((line for cause in causes if (line := " ".join(str(cause).split())[:200])), type(error).__name__)
    return Failed(reason, "unreachable" if unreachable else "broken")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of, the first cause first: libraries wrap what says most."""
    if (cause := error.__cause__ or error.__context__) is not None:
        yield from _causes(cause)
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _causes(one)
    yield error


async def tried(
    once: Callable[[], Awaitable[T]], attempts: int, first_wait: float, note: Callable[[str], None]
) -> T:
    """What `once` comes to, which is called up to `attempts` times while it raises Failed; the last one goes on.

    Waits double from `first_wait` seconds up to a minute, up to half of each left to chance, and are at least what the
    server asks for. note: is told of each.
    """
    for attempt in range(attempts):
        try:
            return await once()
        except Failed as error:
            if attempt + 1 == attempts:
                raise
            pause = min(first_wait * 2**attempt, LONGEST_WAIT) * (1 + random.random()) / 2
            pause = max(pause, error.after)
            note(f"{error}; again in {pause:.0f} s")
        await asyncio.sleep(pause)
    raise ValueError(f"{attempts} attempts")


class Client:
    """A pool for code that is not asynchronous, from any thread; arguments as for `Pool`. Closing it ends what runs."""

    def __init__(self, **settings: Any) -> None:
        self._pool = Pool(**settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Pool], Coroutine[Any, Any, T]]) -> Future[T]:
        """Begin what `work` does with the pool; to cancel it lets go of its connection."""
        return asyncio.run_coroutine_threadsafe(work(self._pool), self._loop)

    def send(self, *request: Any, **settings: Any) -> Answer:
        """As `Pool.send`."""
        return self.submit(lambda pool: pool.send(*request, **settings)).result()

    def close(self) -> None:
        """End what is under way, and the connections."""
        if sys.is_finalizing():  # the thread does not run any more
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
