"""The HTTP client against a server of this machine: connections, limits, what goes wrong, and another attempt."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from local_server import LocalServer

from hadal import http
from hadal.errors import UserError


class Server(LocalServer):
    """Does what the request's `do` says."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.connections = self.asked = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.server.asked += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        do = json.loads(body)["do"]
        if do == "wait":
            time.sleep(60)
        elif do == "hang up":
            self.close_connection = True
        elif do == "recover" and self.server.asked % 3:
            self.send(503, b'{"error": {"message": "come\\nback"}}', {"Retry-After": "0"})
        elif do == "cut":
            self.close_connection = True
            self.send(200, b"{", {"Content-Length": "99"})
        else:
            self.send(200, body)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


def test_requests_share_connections_that_stay_open(server: Server) -> None:
    with http.Client(connections=3) as client:
        waiting = [client.submit(lambda pool, n=n: pool.send("POST", server.address, {"do": n})) for n in range(40)]
        assert [future.result().json() for future in waiting] == [{"do": n} for n in range(40)]
    assert server.asked == 40 and server.connections <= 3


def test_no_more_is_read_than_was_wanted(server: Server) -> None:
    with http.Client() as client:
        assert client.send("POST", server.address, {"do": "say"}, most=5).body == b'{"do"'


@pytest.mark.parametrize(
    ("do", "kind", "told"), [("hang up", "broken", ""), ("cut", "broken", ""), ("wait", "slow", "timed out")]
)
def test_what_goes_wrong_is_one_line(do: str, kind: str, told: str, server: Server) -> None:
    with http.Client(timeout=0.5) as client, pytest.raises(http.Failed) as caught:
        client.send("POST", server.address, {"do": do})
    line = str(caught.value)
    assert caught.value.kind == kind and told in line and line and "\n" not in line


def test_an_address_without_a_server() -> None:
    with http.Client() as client:
        for url, kind in (("http://127.0.0.1:9", "nobody"), ("http://nowhere.invalid", "unreachable")):
            with pytest.raises(http.Failed) as caught:
                client.send("GET", url)
            assert caught.value.kind == kind
    for url in ("ftp://x", "http://", "localhost:8080", "http://[::1", "http://a:b"):
        with pytest.raises(UserError, match="is not the address of a server. It looks like http://localhost:1"):
            http.address(url, "http://localhost:1")


@pytest.mark.parametrize("proxy", ["socks5://localhost:1", "nonsense://localhost:1"])
def test_a_proxy_that_cannot_be_used_is_the_users_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # httpx wants it for these
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UserError, match="proxy .* cannot be used"):
        http.Client()


def test_another_attempt_is_made_and_noted(server: Server) -> None:
    notes: list[str] = []

    async def once(pool: http.Pool) -> int:
        answer = await pool.send("POST", server.address, {"do": "recover"})
        if answer.passing:
            raise http.Failed(answer.told(), after=answer.after)
        return answer.status

    def again(attempts: int) -> int:
        return client.submit(lambda pool: http.tried(lambda: once(pool), attempts, 0.01, notes.append)).result()

    with http.Client() as client:
        assert again(3) == 200
        assert notes == ["503 Service Unavailable, come back; again in 0 s"] * 2
        with pytest.raises(http.Failed, match="503"):
            again(2)


def test_closing_ends_what_is_under_way(server: Server) -> None:
    with http.Client() as client:
        waiting = client.submit(lambda pool: pool.send("POST", server.address, {"do": "wait"}))
        while not server.asked:
            time.sleep(0.01)
        began = time.monotonic()
    assert waiting.cancelled() and time.monotonic() - began < 5
