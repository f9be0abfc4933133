"""From what the command line says to a server that runs: the port first, then the models, then the page."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import uvicorn

from hadal.cost.prices import ApiPrice
from hadal.engine import EngineConfig
from hadal.engine.memory import cache_budget
from hadal.errors import UserError
from hadal.server.answers import Answers
from hadal.server.app import BODY_SIZE, make_app
from hadal.server.context import Context
from hadal.server.duels import make_judge
from hadal.server.guard import is_loopback
from hadal.server.local import LocalModel, load
from hadal.server.meter import Meter
from hadal.server.models import Models
from hadal.server.store import Store, Taken
from hadal.server.upstream import Upstream
from hadal.tasks import BUILT_IN, Task

PORT = 8000
PORTS = 20  # tried in turn where any will do


@dataclass(frozen=True)
class Settings:
    """What `hadal serve` may be told."""

    models: Sequence[str] = ()
    upstreams: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int | None = None
    """None: the first free one from 8000."""
    api_key: str | None = None
    db: Path | None = None
    dtype: str = "auto"
    speculate: Literal["ngram", "mtp"] | None = None
    fast: bool = False
    cache: int | None = None
    max_tokens: int | None = None
    max_running: int = 256
    max_waiting: int = 256
    max_body: int = BODY_SIZE
    origins: Sequence[str] = ()
    prices: Sequence[str] = ()
    timeout: float = 600.0
    quickstart: bool = False


def default_db() -> Path:
    """Where the history is kept unless --db says otherwise."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "hadal" / "history.db"


def serve(
    settings: Settings, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
) -> None:
    """Serve until a signal comes. UserError for whatever keeps it from beginning."""
    if not settings.models and not settings.upstreams:
        raise UserError("There is nothing to serve.", "Name a model, or give --upstream URL.")
    if not is_loopback(settings.host) and not settings.api_key:
        raise UserError(
            f"{settings.host} is open to others.", "Give --api-key KEY (or HADAL_API_KEY), or leave --host out."
        )
    listening = bind(settings.host, settings.port)
    try:
        context = prepare(settings, say)
    except BaseException:
        listening.close()
        raise
    app = make_app(context, local=is_loopback(settings.host), body_size=settings.max_body, origins=settings.origins)
    host, port = settings.host, listening.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    say(f"hadal serves {', '.join(m.card.id for m in context.models.all()) or 'no model yet'}")
    say(f"Open http://{name}:{port}/ (the API is at /v1). Ctrl-C ends it.")
    Server(context, app).run_on(listening)


def prepare(settings: Settings, say: Callable[[str], None]) -> Context:
    """The history opened and the models loaded."""
    prices = dict(price(text) for text in settings.prices)
    upstreams = [Upstream(given, prices, settings.timeout) for given in settings.upstreams]
    store = _open(settings)
    local: list[LocalModel] = []
    try:
        # A run is two models, itself and its base, and all share what is free.
        cache = cache_budget(None) // max(2 * len(settings.models), 1) if settings.cache is None else settings.cache
        config = EngineConfig(
            rows=settings.max_running, keep_replies=True, cache_bytes=cache, exact=not settings.fast,
            speculate=settings.speculate,
        )  # fmt: skip
        for given in settings.models:
            local += load(given, dtype=settings.dtype, config=config, waiting=settings.max_waiting,
                          most_tokens=settings.max_tokens, say=say)  # fmt: skip
        names = [model.card.id for model in local]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"Two models have the name {twice}.", f"Name one of them: other={twice}.")
        asyncio.run(_ask_upstreams(upstreams, alone=not local, say=say))
    except BaseException:
        for model in local:
            model.close()
        store.close()
        raise
    tasks: dict[str, Task] = {task.name: task for model in local for task in model.tasks}
    tasks = tasks | {name: kind() for name, kind in BUILT_IN.items() if name not in tasks}
    meter = Meter()
    answers = Answers(store, meter, make_judge(store, tasks))
    return Context(Models(local, upstreams), store, meter, answers, tasks, settings.api_key, settings.quickstart)


def _open(settings: Settings) -> Store:
    """The history: a quickstart whose usual one is in use keeps its chats with the run."""
    try:
        return Store(settings.db or default_db())
    except Taken:
        if not settings.quickstart or settings.db is not None:
            raise
        return Store(Path(settings.models[0]) / "history.db")


async def _ask_upstreams(upstreams: Sequence[Upstream], alone: bool, say: Callable[[str], None]) -> None:
    """Their lists of models. One that is down is told, and comes in when it is up."""
    await asyncio.gather(*(upstream.refresh() for upstream in upstreams))
    for upstream in upstreams:
        await upstream.renew()
    for upstream in upstreams:
        if upstream.error is not None:
            if alone and len(upstreams) == 1:
                raise UserError(upstream.error, "Start it, or check the address.")
            say(f"hadal: {upstream.error}")


def price(text: str) -> tuple[str, ApiPrice]:
    """MODEL=HIT,MISS,OUTPUT in dollars for a million tokens."""
    model, equals, numbers = text.rpartition("=")
    try:
        hit, miss, output = (float(number) for number in numbers.split(","))
    except ValueError:
        equals = ""
        hit = miss = output = 0.0
    if not equals or not model or min(hit, miss, output) < 0:
        raise UserError(f"{text!r} is not a price.", "Give MODEL=HIT,MISS,OUTPUT in dollars for a million tokens.")
    return model, ApiPrice(model, "", hit, miss, output, "given by --price")


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket, on the port or on the first free one. UserError where it cannot be had."""
    for wanted in [port] if port is not None else range(PORT, PORT + PORTS):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, wanted))
            listening.listen(2048)
            return listening
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE:
                reason = (error.strerror or str(error)).lower()
                raise UserError(
                    f"{host}:{wanted} cannot be opened: {reason}.", "Choose another with --host or --port."
                ) from None
    if port is None:
        raise UserError(f"The ports {PORT} to {PORT + PORTS - 1} are all taken.", "Choose one with --port.")
    raise UserError(f"Port {port} is taken: is hadal serving there already?", "Choose another with --port.")


class Server(uvicorn.Server):
    """uvicorn, which on a signal first lets every stream have its last event."""

    def __init__(self, context: Context, app: Any) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none",
                                        timeout_graceful_shutdown=10, lifespan="on"))  # fmt: skip
        self.context = context
        self.loop: asyncio.AbstractEventLoop | None = None
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every client that leaves in mid-stream
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.end()
        super().handle_exit(sig, frame)

    def end(self) -> None:
        """Begin to close; from any thread."""
        if self.loop is not None:
            asyncio.run_coroutine_threadsafe(self.context.close(), self.loop)

    def run_on(self, listening: socket.socket) -> None:
        try:
            self.run([listening])
        except KeyboardInterrupt:
            pass  # it has closed in order already
