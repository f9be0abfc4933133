"""Answers over HTTP while they are made: kept alive while nothing comes, and ended when the client has gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hadal.server.store import dumps

KEEP_ALIVE = 10.0  # seconds
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""A stream, for the OpenAPI document."""

T = TypeVar("T")


class Gone(Exception):
    """The client went away."""


class Live(Response):
    """A body in pieces. While none comes `idle` is sent; when the client goes the source is closed at once."""

    def __init__(self, source: AsyncGenerator[bytes], media_type: str, idle: bytes) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type)
        del self.headers["content-length"]
        self.source, self.idle, self.sent = source, idle, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pump = asyncio.create_task(self._pump(send))
        others = [asyncio.create_task(_gone(receive)), asyncio.create_task(self._keep_alive(send))]
        try:
            await asyncio.wait([pump, *others], return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            for task in (pump, *others):
                task.cancel()
            await asyncio.gather(pump, *others, return_exceptions=True)

    async def _pump(self, send: Send) -> None:
        try:
            async for data in self.source:
                self.sent = time.monotonic()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            self.sent = float("inf")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self.source.aclose()

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(min(KEEP_ALIVE, max(0.1, self.sent + KEEP_ALIVE - time.monotonic())))
            if time.monotonic() >= self.sent + KEEP_ALIVE:
                self.sent = time.monotonic()
                await send({"type": "http.response.body", "body": self.idle, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def begin(request: Request, source: AsyncGenerator[T]) -> asyncio.Task[T]:
    """The first of some events: raised if it is an error, waited for unless that takes long."""
    first, gone = asyncio.create_task(anext(source)), asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({first, gone}, timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            first.result()
        elif gone.done():
            raise Gone
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await source.aclose()
        raise
    finally:
        gone.cancel()
    return first


async def one_reply(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """The JSON of some work. Empty lines are sent while it takes long; it is given up when the client goes."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return Response(dumps(task.result()), media_type="application/json")
        if gone.done():
            raise Gone
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    finally:
        gone.cancel()
    return Live(_later(task), "application/json", b"\n")


async def _later(task: asyncio.Task[dict[str, Any]]) -> AsyncGenerator[bytes]:
    from hadal.server.faults import Refusal, body

    try:
        yield dumps(await task).encode()
    except Refusal as refusal:
        yield dumps(body(refusal.status, refusal.message, refusal.param)).encode()
    finally:
        task.cancel()


def event(data: Any, name: str = "", number: int | None = None) -> bytes:
    """One server-sent event."""
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {name}\n" if name else "")
    return f"{head}data: {data if isinstance(data, str) else dumps(data)}\n\n".encode()
