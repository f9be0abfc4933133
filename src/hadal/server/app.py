"""The whole server as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from hadal import __version__
from hadal.errors import UserError
from hadal.server import chats, completions, duels
from hadal.server.context import Context
from hadal.server.faults import CODES, Refusal, body, documented, refusal_of
from hadal.server.guard import Guard
from hadal.server.local import LocalModel
from hadal.server.streams import Gone

PAGE = Path(__file__).parent / "page"
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
        title="hadal", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="DeepSeek's and OpenAI's API over models here and upstream, and what the page uses (/api).",
    )  # fmt: skip
    app.state.context = context
    app.add_middleware(Guard, key=context.key, local=local, size=body_size, origins=origins)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(UserError, _users)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http)
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

    @app.get("/{path:path}", include_in_schema=False)
    async def static(path: str) -> Response:
        """The page's files; its own addresses, which have no dot, are its first file."""
        file = (page / (path or "index.html")).resolve()
        inside = file.is_relative_to(page.resolve())
        if (
            inside
            and "." not in path.rpartition("/")[2]
            and not file.is_file()
            and not path.startswith(("api/", "v1/"))
        ):
            file = page / "index.html"
        if not inside or not file.is_file():
            raise Refusal(
                404, "There is nothing at this address." if path else "This hadal has no page; its API works."
            )
        lasting = path.startswith("assets/")
        cache = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return FileResponse(file, headers={"cache-control": cache})

    return app


async def _refused(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(body(error.status, error.message, error.param), error.status)


async def _users(request: Request, error: Any) -> JSONResponse:
    return await _refused(request, refusal_of(error))


async def _http(request: Request, error: Any) -> JSONResponse:
    status = error.status_code if error.status_code in CODES else 400
    said = {404: "There is nothing at this address.", 405: f"{request.method} is not for this address."}
    message = said.get(status, "The body is no valid JSON." if status == 400 else str(error.detail))
    return JSONResponse(body(status, message), status, getattr(error, "headers", None))


async def _left(request: Request, error: Any) -> Response:
    return Response(status_code=499)


async def _bug(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(body(500, "The server made a mistake; its log has the details."), 500)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """The first fault of a request, by the name of its field."""
    fault = error.errors()[0]
    where = [str(part) for part in fault["loc"] if part not in ("body", "query", "path", "header")]
    field = ".".join(where) or None
    if fault["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        return JSONResponse(body(415, "Send the body as application/json."), 415)
    if fault["type"] == "json_invalid" or (field is None and fault["type"] != "value_error"):
        return JSONResponse(body(400, "The body is no valid JSON object."), 400)
    if fault["type"] == "extra_forbidden":
        message = f"{field} is not honoured by this server. Leave it out."
    elif fault["type"] == "missing":
        message = f"{field} is missing."
    elif fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
    else:
        message = f"{field or 'The body'}: {fault['msg'][:1].lower()}{fault['msg'][1:]}."
    message = message.encode("utf-8", "replace").decode()[:500]
    return JSONResponse(
        body(422, message, None if field is None else field.encode("utf-8", "replace").decode()[:200]), 422
    )
