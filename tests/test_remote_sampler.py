"""Servers that speak OpenAI's chat completions, asked over HTTP by a real client: what they say, and how they fail."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from local_server import LocalServer

from hadal.cli import main
from hadal.engine.remote import RemoteRollout
from hadal.errors import UserError
from hadal.rollout import Query, Sample, SamplingParams

Answer = tuple[int, dict[str, str], bytes]


def completion(content: str | None, tokens: int | None = 3, finish: str = "stop", **message: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 9}}
    return 200, {}, json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], **usage}).encode()


class Server(LocalServer):
    """Says what `reply` makes of a request; counts requests and connections."""

    def __init__(self, reply: Callable[[dict[str, Any]], Answer], port: int = 0) -> None:
        self.reply, self.asked, self.connections = reply, [], 0
        self.headers: list[dict[str, str]] = []
        super().__init__(Handler, port)
        self.url = f"{self.address}/v1"
        self.start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send(200 if self.path == "/v1/models" else 404, {}, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.startswith("/v1/"):
            self.send(404, {}, b"{}")
            return
        self.server.asked.append(body | {"path": self.path})
        self.server.headers.append(dict(self.headers))
        status, headers, text = self.server.reply(body)
        if status == 0:  # hang up without a word
            self.close_connection = True
            self.connection.close()
            return
        self.send(status, headers, text)

    def send(self, status: int, headers: dict[str, str], text: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[dict[str, Any]], Answer], port: int = 0) -> Server:
        servers.append(Server(reply, port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def query(text: str = "What?", samples: int = 1, **settings: Any) -> Query:
    params = SamplingParams(0.6, 0.95, 100, seed=7, n=samples, **settings)
    return Query([{"role": "user", "content": text}], params, range(samples))


def ask(url: str, *queries: Query, **settings: Any) -> dict[tuple[int, int], Sample]:
    remote = RemoteRollout(url, "r1", **{"first_wait": 0.01, **settings})
    return {(number, index): reply for number, index, reply in remote.sample(queries)}


@pytest.mark.parametrize(
    ("answer", "text", "tokens", "finish"),
    [
        (completion("7", reasoning_content="hm"), "<think>hm</think>7", 3, "stop"),  # DeepSeek
        (completion("7", reasoning="hm", reasoning_content=None), "<think>hm</think>7", 3, "stop"),  # vLLM
        (completion("<think>hm</think>7", tokens=None), "<think>hm</think>7", None, "stop"),
        (completion("hm</think>7"), "hm</think>7", 3, "stop"),  # a template opened it, and no parser looked
        (completion("7", reasoning_content=""), "7", 3, "stop"),
        (completion(None, finish="length", reasoning_content="hm"), "<think>hm", 3, "length"),
        (completion("7 an", finish="length", reasoning_content="hm"), "<think>hm</think>7 an", 3, "length"),
        (completion(None), "", 3, "stop"),
    ],
)
def test_thoughts_are_found_where_servers_put_them(
    answer: Answer, text: str, tokens: int | None, finish: str, serve: Callable[..., Server]
) -> None:
    (reply,) = ask(serve(lambda _: answer).url, query()).values()
    assert (reply.text, reply.tokens, reply.finish_reason) == (text, tokens, finish)


def test_what_is_asked(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    server = serve(lambda body: completion(str(body["seed"])))
    replies = ask(server.url, query(samples=3), query("Why?", thinking=True), key_from="MY_KEY")
    assert len(server.asked) == 4 and {h["Authorization"] for h in server.headers} == {"Bearer s3cret"}
    first, last = server.asked[0], next(body for body in server.asked if body["messages"][0]["content"] == "Why?")
    assert first["messages"] == [{"role": "user", "content": "What?"}] and first["model"] == "r1"
    assert (first["temperature"], first["top_p"], first["max_tokens"], first["stream"]) == (0.6, 0.95, 100, False)
    assert "thinking" not in first and last["thinking"] == {"type": "enabled"}
    assert last["chat_template_kwargs"] == {"thinking": True, "enable_thinking": True}
    assert len({replies[0, i].text for i in range(3)}) == 3  # each sample has a seed of its own
    text = serve(lambda body: (200, {}, json.dumps({"choices": [{"text": " 7", "finish_reason": "stop"}]}).encode()))
    (reply,) = ask(text.url, Query("2 + 5 =", SamplingParams(seed=0, stop="\n"), [0])).values()
    assert reply.text == " 7" and text.asked[0]["path"] == "/v1/completions" and text.asked[0]["stop"] == ["\n"]


def test_connections_stay_open_and_a_bare_host_finds_v1(serve: Callable[..., Server]) -> None:
    server = serve(lambda _: completion("7"))
    assert len(ask(server.url.removesuffix("/v1"), *(query(str(i)) for i in range(60)), connections=4)) == 60
    assert len(server.asked) == 60 and server.connections <= 4 + 1


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, b"oh"), (503, {"Retry-After": "0"}, b""), (429, {}, b'{"error": {"message": "slow down"}}'),
        (200, {}, b"{junk"), (200, {}, b"[]"), (200, {}, b"{}"), (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [3]}'), (200, {}, b"[" * 100_000),
        (200, {}, b'{"choices": [{"message": {"content": 7}}]}'), (0, {}, b""),
        completion("half", finish="insufficient_system_resource"),
        (200, {"Content-Length": "999", "Connection": "close"}, b"{}"),
    ],
)  # fmt: skip
def test_what_fails_is_tried_again(fault: Answer, serve: Callable[..., Server]) -> None:
    answers = iter([fault, fault])
    server = serve(lambda _: next(answers, None) or completion("7"))
    notes: list[str] = []
    (reply,) = ask(server.url, query(), note=notes.append).values()
    assert reply.text == "7" and len(notes) == 2


def test_silence_ends_at_the_deadline(serve: Callable[..., Server]) -> None:
    calls: list[float] = []

    def slow(_: Any) -> Answer:
        calls.append(time.monotonic())
        time.sleep(1.5 if len(calls) == 1 else 0)
        return completion("7")

    (reply,) = ask(serve(slow).url, query(), timeout=0.3).values()
    assert reply.text == "7" and len(calls) == 2


def test_a_server_that_stays_down_is_named_and_nobody_waits_for_the_others(serve: Callable[..., Server]) -> None:
    def reply(body: dict[str, Any]) -> Answer:
        if body["messages"][0]["content"] == "slow":
            time.sleep(60)
        return 502, {}, b""

    began = time.monotonic()
    with pytest.raises(UserError, match="failed 3 times in a row .502"):
        ask(serve(reply).url, query("slow"), query(), attempts=3)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, b'{"error": {"message": "no such key"}}', "401 Unauthorized, no such key. Put a key into"),
        (404, b'{"message": "no model r2"}', "no model r2. Check the address"),
        (400, b'{"error": {"message": "too many"}}', "refuses: 400 Bad Request, too many"),
    ],
)
def test_what_is_refused_is_said_at_once(status: int, text: bytes, said: str, serve: Callable[..., Server]) -> None:
    server = serve(lambda _: (status, {}, text))
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        ask(server.url, query(), connections=1)
    assert len(server.asked) == 1


def test_one_question_that_is_refused_costs_only_its_own(serve: Callable[..., Server]) -> None:
    server = serve(lambda b: (400, {}, b"too long") if len(b["messages"][0]["content"]) > 9 else completion("7"))
    replies = ask(server.url, query(), query("a long question"), query(), connections=1)
    assert [replies[i, 0].text for i in range(3)] == ["7", "", "7"]
    assert replies[1, 0].finish_reason == "error" and "too long" in replies[1, 0].error


def test_an_endpoint_is_measured_and_carries_on_when_it_comes_back(
    serve: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hadal.http.LONGEST_WAIT", 0.01)

    def total(question: str) -> str:
        """Right on sums without a minus."""
        return str(sum(int(number) for number in re.findall(r"\d+", question)))

    def adds(body: dict[str, Any]) -> Answer:
        return completion(total(body["messages"][-1]["content"]), tokens=20, reasoning_content="I add.")

    server = serve(lambda body: adds(body) if len(server.asked) <= 30 else (500, {}, b"down"))
    words = ["eval", server.url, "--model", "r1", "--tasks", "sums", "--difficulty", "4", "--problems", "30",
             "--samples", "2", "--connections", "2", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "failed 8 times in a row (500" in error and "carries on" in error
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 30
    server.reply = adds
    before = len(server.asked)
    assert main(words) == 0
    assert len(server.asked) - before == 30  # what was answered is not asked again
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    problems = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    expected = sum(total(p["prompt"]) == p["answer"] for p in problems)
    figures = found["tasks"]["sums"]["figures"]
    assert figures["pass@1"]["value"] == pytest.approx(expected / 30) and 0 < expected < 30
    assert figures["tokens"]["value"] == 20 and figures["thinks"]["value"] == figures["format"]["value"] == 1
