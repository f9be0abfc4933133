"""Who may come in: the key, the page's session, the Host and Origin of requests, the size of bodies, and the headers
that keep a page from being turned against its user."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadal.server.faults import body

COOKIE = "hadal"
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
        origin = headers.get("origin")
        allowed = origin if origin in self.origins else None

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = HEADERS | ({"access-control-allow-origin": allowed, "vary": "origin"} if allowed else {})
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        if allowed and scope["method"] == "OPTIONS":
            preflight = {
                "access-control-allow-headers": "authorization, content-type",
                "access-control-allow-methods": "*",
            }
            await JSONResponse(None, headers=preflight)(scope, receive, answer)
            return
        refused = self._refused(scope, headers)
        if refused is not None:
            status, message = refused
            await JSONResponse(body(status, message), status)(scope, receive, answer)
            return
        limit = IMPORT_SIZE if scope["path"] == IMPORT else self.size
        await self.app(scope, _limited(receive, limit), answer)

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname if host else None
        if self.local and not (name and is_loopback(name)):
            return 403, f"This server is for this machine only, and {host[:100]!r} is not its name."
        origin = headers.get("origin")
        if origin and origin not in self.origins and urlsplit(origin).netloc != host:
            return 403, f"Pages of {origin[:100]} may not use this server. Start it with --origin to allow it."
        cross = headers.get("sec-fetch-site") in ("cross-site", "same-site") and not origin
        path: str = scope["path"]
        if cross and (scope["method"] != "GET" or path.startswith("/api/")):
            return 403, "Other pages may not use this server."
        length = headers.get("content-length", "0")
        limit = IMPORT_SIZE if path == IMPORT else self.size
        if not length.isdigit() or int(length) > limit:
            return 413, f"The request is larger than {limit} bytes."
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


def _limited(receive: Receive, limit: int) -> Receive:
    """A body that ends in an error where it grows over the limit: it need not say its length."""
    got = 0

    async def limited() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > limit:
            raise HTTPException(413, f"The request is larger than {limit} bytes.")
        return message

    return limited
