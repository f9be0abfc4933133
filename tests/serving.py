"""Servers for the tests: hadal's own with a small untrained model, and a scripted upstream. Not a test itself."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from hadal.configs.models import DenseConfig
from hadal.library.record import write_run
from hadal.models.checkpoint import build, save_model
from hadal.server.app import make_app
from hadal.server.launch import Server, Settings, bind, prepare
from hadal.text.tokenizer import Tokenizer

CONTEXT = 1024
QUESTION = "How many r in strawberry?"


def make_run(folder: Path, seed: int = 0, words: Sequence[str] = ("strawberry", " many", "How")) -> Path:
    """A run folder whose model, and its base, are real and untrained: they say anything, at a normal speed."""
    tokenizer = Tokenizer.from_words(words)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": CONTEXT}
    config = DenseConfig(vocab_size=tokenizer.size, **sizes)
    for number, place in enumerate((folder, folder / "stages" / "pretrain")):
        torch.manual_seed(seed + number)
        model = build(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        place.mkdir(parents=True, exist_ok=True)
        save_model(place, config, model.state_dict())
        tokenizer.save(place)
    record = {"name": "tiny", "arch": "dense", "status": "complete", "config": {"tasks": ["letters", "sums"]}}
    write_run(folder, record)
    return folder


@contextmanager
def hadal_server(db: Path, say=lambda line: None, **settings) -> Iterator[str]:
    """hadal's server in a thread, ended in order; its address."""
    wanted = Settings(db=db, **settings)
    listening = bind("127.0.0.1", 0)
    context = prepare(wanted, say)
    server = Server(context, make_app(context, body_size=wanted.max_body, origins=wanted.origins))
    thread = threading.Thread(target=server.run_on, args=[listening], daemon=True)
    thread.start()
    assert server.ready.wait(30)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.end()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def scripted(
    chunks=(), *, models=None, raw=None, status=200, kind="text/event-stream", pause=0.0
) -> Iterator[tuple[str, list]]:
    """An upstream that answers every chat with the given deltas (or raw bytes); its address, and the bodies it got."""
    got = []

    async def chat(request: Request):
        got.append(await request.json())
        if status != 200:
            return JSONResponse({"error": {"message": "no such luck"}}, status)

        async def body():
            scenario = [*(event(dict(chunk)) for chunk in chunks), b"data: [DONE]\n\n"]
            for piece in scenario if raw is None else raw:
                if pause:
                    time.sleep(pause)
                yield piece

        return StreamingResponse(body(), media_type=kind)

    async def listed(request: Request):
        if isinstance(models, str):
            return PlainTextResponse(models)
        return JSONResponse({"data": models or [{"id": "r1"}]})

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", listed)])
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=[[listening]], daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", got
    finally:
        server.should_exit = True
        thread.join(10)


def event(delta: dict, **more) -> bytes:
    reason = delta.pop("finish_reason", None)
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n".encode()


def follow(client: httpx.Client, answer: str, after: int | None = None) -> list[tuple[int, str, dict]]:
    """All events of an answer, to its end: number, name, data."""
    events = []
    params = {} if after is None else {"after": after}
    with client.stream("GET", f"/api/answers/{answer}/events", params=params) as reply:
        assert reply.status_code == 200
        number, name = 0, ""
        for line in reply.iter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                number = int(value)
            elif field == "event":
                name = value
            elif field == "data":
                events.append((number, name, json.loads(value)))
    return events


def ask(client: httpx.Client, content: str = QUESTION, chat: str | None = None, parent=None, **more) -> dict:
    """Ask in a chat (a new one by default) and return what the server began."""
    chat = chat or client.post("/api/chats", json={}).json()["id"]
    reply = client.post(f"/api/chats/{chat}/answers", json={"content": content, "parent": parent, **more})
    assert reply.status_code == 202, reply.text
    return reply.json()
