"""The whole server as one ASGI application."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from hadal import __version__
from hadal.errors import UserError
from hadal.server import chats, completions, duels
from hadal.server.bodies import complaint
from hadal.server.context import Context
from hadal.server.faults import CODES, Refusal, body, documented, refusal_of
from hadal.server.guard import Guard
from hadal.server.local import LocalModel
from hadal.server.streams import Gone

PAGE = Path(__file__).parent / "page"
ADDRESSES = re.compile(r"/|/c/[^/]+|/side-by-side(/[^/]+)?")  # of the page, as its web/src/route.ts has them
BODY_SIZE = 4_000_000


def make_app(
    context: Context, *, local: bool = True, body_size: int = BODY_SIZE, origins: Collection[str] = (),
    page: Path = PAGE,
) -> FastAPI:  # fmt: skip
    """local: whether only this machine is served; origins: other pages that may use the API."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await context.close()
        context.store.close()

    app = FastAPI(
        title="hadal", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False,
        description="DeepSeek's and OpenAI's API over models here and upstream, and what the page uses (/api).",
    )  # fmt: skip
    app.state.context = context
    app.add_middleware(Guard, key=context.key, local=local, size=body_size, origins=origins)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(UserError, _users)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _elsewhere(app, page))
    app.add_exception_handler(Gone, _left)
    app.add_exception_handler(Exception, _bug)
    for part in (completions, chats, duels):
        app.include_router(part.router)

    @app.get("/healthz", tags=["API"], responses=documented(403))
    async def healthz() -> dict[str, str]:
        """Whether the server serves."""
        return {"status": "ok"}

    @app.get("/metrics", tags=["API"], response_class=PlainTextResponse, responses=documented(401, 403))
    async def metrics(request: Request) -> PlainTextResponse:
        """Counters in Prometheus' text form."""
        local = [m for m in context.models.local if isinstance(m, LocalModel)]
        waiting, drafts = {m.card.id: m.waiting for m in local}, {m.card.id: m.drafts for m in local}
        text = context.meter.text(waiting, drafts)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def _refused(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(body(error.status, error.message, error.param), error.status)


async def _users(request: Request, error: Any) -> JSONResponse:
    return await _refused(request, refusal_of(error))


def _elsewhere(app: FastAPI, page: Path) -> Callable[[Request, Any], Awaitable[Response]]:
    """What an address gets that is none of the API's: the page, and else an error."""
    files = {f"/{file.relative_to(page).as_posix()}": file for file in page.rglob("*") if file.is_file()}

    async def answer(request: Request, error: Any) -> Response:
        path = request.scope["path"]
        file = files.get("/index.html" if ADDRESSES.fullmatch(path) else path)
        if error.status_code == 404 and file is not None and request.method in ("GET", "HEAD"):
            lasting = path.startswith("/assets/")
            cache = "public, max-age=31536000, immutable" if lasting else "no-cache"
            return FileResponse(file, headers={"cache-control": cache})
        allowed = ["GET", "HEAD"] if file is not None else _methods(app, request.scope)
        if error.status_code == 405 or (error.status_code == 404 and file is not None):
            message = f"{request.method} is not for this address, which takes {' and '.join(allowed)}."
            return JSONResponse(body(405, message), 405, {"allow": ", ".join(allowed)})
        if error.status_code == 404 and path == "/":
            return JSONResponse(body(404, "This installation has no page; its API works."), 404)
        said = {400: "The body is not valid JSON.", 404: "There is nothing at this address."}
        status = error.status_code if error.status_code in CODES else 400
        return JSONResponse(body(status, said.get(status, str(error.detail))), status)

    return answer


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that an address of the API takes."""
    asked = {method: {**scope, "method": method} for method in ("GET", "POST", "PUT", "PATCH", "DELETE")}
    return [m for m, as_if in asked.items() if any(r.matches(as_if)[0] is Match.FULL for r in app.router.routes)]


async def _left(request: Request, error: Any) -> Response:
    return Response(status_code=499)


async def _bug(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(body(500, "The server made a mistake; its log has the details."), 500)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """The first fault of a request, by the name of its field."""
    fault = error.errors()[0]
    if fault["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        return JSONResponse(body(415, "Send the body as application/json."), 415)
    if fault["loc"] == ("body",) and fault["type"] != "value_error":
        return JSONResponse(body(400, "The body is not a valid JSON object."), 400)
    return JSONResponse(body(422, *complaint(error.errors(), error.body)), 422)
