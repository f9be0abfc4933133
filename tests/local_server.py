"""An HTTP server of a test's own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer(ThreadingHTTPServer):
    """On a free port of this machine unless one is named. A client that leaves early is no error of it, and its threads
    write nothing about that: the test that runs by then may be reading what is on standard error."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[LocalServer]:
    """A server of `handler` for as long as the block runs."""
    server = LocalServer(handler)
    server.start()
    try:
        yield server
    finally:
        server.stop()
