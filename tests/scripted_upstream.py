"""An OpenAI-compatible server that says what a test wants: the last question names the script.

It streams over real HTTP, at a stated pace, with thoughts in `reasoning_content`. It is no model; what a real model
does is tested against one that was grown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

from local_server import LocalServer

Piece = tuple[str, str]  # ("reasoning_content" or "content", text)
Script = Callable[[], Iterator[Piece | float]]  # a float is a pause in seconds


def words(field: str, text: str, pause: float = 0.0) -> Iterator[Piece | float]:
    """`text` in pieces of about a token, with a pause after each."""
    for start in range(0, len(text), 5):
        yield field, text[start : start + 5]
        if pause:
            yield pause


class ScriptedUpstream:
    """Serves the scripts by name; a question that names none gets the one called ''."""

    def __init__(self, scripts: dict[str, Script], models: tuple[str, ...] = ("scripted",)) -> None:
        self.scripts = scripts
        self.requests: list[dict] = []
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                upstream.requests.append(body)
                question = body["messages"][-1]["content"]
                name = max((name for name in upstream.scripts if name in question), key=len)
                if name == "refuse":
                    self.answer(400, {"error": {"message": "this upstream refuses the question", "code": 400}})
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                count = 0
                try:
                    for piece in upstream.scripts[name]():
                        if isinstance(piece, float):
                            time.sleep(piece)
                            continue
                        count += 1
                        self.chunk({"delta": {piece[0]: piece[1]}, "finish_reason": None, "index": 0})
                    self.chunk({"delta": {}, "finish_reason": "stop", "index": 0}, usage(count))
                    self.wfile.write(b"data: [DONE]\n\n")
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the reader left, as after Stop
                self.close_connection = True

            def chunk(self, choice: dict, usage: dict | None = None) -> None:
                event = {"id": "x", "object": "chat.completion.chunk", "model": models[0], "choices": [choice]}
                if usage is not None:
                    event["usage"] = usage
                self.wfile.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())

            def answer(self, status: int, body: dict) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = LocalServer(Handler)
        self.server.start()

    @property
    def url(self) -> str:
        return f"{self.server.address}/v1"

    def close(self) -> None:
        self.server.stop()


def usage(count: int) -> dict:
    return {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}
