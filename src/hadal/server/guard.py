"""Who may come in: the key, the page's session, the Host and Origin of requests, the size of bodies, and the headers
that keep a page from being turned against its user."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadal.server.faults import Refusal, body

COOKIE = "hadal"
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?", re.ASCII)  # a name or address, and a port
PATIENCE = 30.0  # seconds in which the rest of a body that is refused has to come
OPEN = ("/healthz", "/api/session")  # what needs no key, besides the page's own files
CLOSED = ("/api/", "/v1/", "/chat/", "/models", "/completions", "/metrics", "/openapi.json")
IMPORT, IMPORT_SIZE = "/api/import", 32_000_000
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def session(key: str) -> str:
    """What the page's cookie holds: it opens the server and does not give the key away."""
    return hmac.new(key.encode(), b"hadal page session", hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware. local: only names of this machine are served (against DNS rebinding)."""

    def __init__(self, app: ASGIApp, key: str | None, local: bool, size: int, origins: Collection[str] = ()) -> None:
        self.app, self.key, self.local, self.size, self.origins = app, key, local, size, set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        scheme, absolute, rest = scope["path"].partition("://")
        if absolute and scheme in ("http", "https"):  # the whole address, as clients of a proxy send it
            headers["host"], _, path = rest.partition("/")
            scope = {**scope, "path": f"/{path}"}
        origin = headers.get("origin")
        allowed = origin if origin in self.origins else None
        incoming = _Incoming(receive, IMPORT_SIZE if scope["path"] == IMPORT else self.size, headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                await incoming.discard()
                extra = HEADERS | ({"access-control-allow-origin": allowed, "vary": "origin"} if allowed else {})
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        if allowed and scope["method"] == "OPTIONS":
            preflight = {
                "access-control-allow-headers": "authorization, content-type",
                "access-control-allow-methods": "*",
            }
            await JSONResponse(None, headers=preflight)(scope, incoming, answer)
            return
        refused = self._refused(scope, headers) or incoming.refused()
        if refused is not None:
            status, message = refused
            await JSONResponse(body(status, message), status)(scope, incoming, answer)
            return
        await self.app(scope, incoming, answer)

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = HOST.fullmatch(host)
        if self.local and not (name and is_loopback(name[1].lower())):
            return 403, f"This server is for this machine only, and {host[:100]!r} is not its name."
        origin = headers.get("origin")
        if origin and origin not in self.origins and origin.partition("://")[2] != host:
            return 403, f"Pages of {origin[:100]} may not use this server. Start it with --origin to allow it."
        cross = headers.get("sec-fetch-site") in ("cross-site", "same-site") and not origin
        path: str = scope["path"]
        if cross and (scope["method"] != "GET" or path.startswith("/api/")):
            return 403, "Other pages may not use this server."
        if self.key is not None and path.startswith(CLOSED) and path not in OPEN and not self._knows_key(headers):
            return 401, "The key is wrong or missing. Send it as `Authorization: Bearer KEY`."
        return None

    def _knows_key(self, headers: dict[str, str]) -> bool:
        assert self.key is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key.encode()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), session(self.key).encode())


class _Incoming:
    """A request's body as it comes. Refusal where it grows over `limit`.

    It is read to its end before anything is answered: a client that is still sending meets a closed connection
    otherwise, and never reads what it was told.
    """

    def __init__(self, receive: Receive, limit: int, headers: Mapping[str, str]) -> None:
        self.receive, self.limit = receive, limit
        length = headers.get("content-length", "0")
        self.length = int(length) if length.isascii() and length.isdigit() else limit + 1
        self.more = self.length > 0 or "transfer-encoding" in headers
        self.waits = headers.get("expect", "").lower() == "100-continue"  # it sends nothing until it is asked
        self.got = 0

    def refused(self) -> tuple[int, str] | None:
        return (413, f"The request is larger than {self.limit} bytes.") if self.length > self.limit else None

    async def __call__(self) -> Message:
        message = await self.receive()
        self.got += len(message.get("body", b""))
        self.more, self.waits = bool(message.get("more_body")), False
        if self.got > self.limit:
            raise Refusal(413, f"The request is larger than {self.limit} bytes.")
        return message

    async def discard(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.more and not self.waits:
                    self.more = bool((await self.receive()).get("more_body"))
