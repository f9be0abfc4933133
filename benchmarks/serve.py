"""The server under load: how near it comes to the bare engine, and what holds when clients come, break off and err.

Speed: 64 streams at once through `hadal serve`, beside the same prompts and seeds given to the engine directly, turn by
turn, each in a process of its own; the client is a process of its own as well, so on two cores it takes its share. The
ratio is the median of those of each turn.

Load: for two minutes 200 workers ask, half of them through the page's endpoints and half through the public API; a
quarter of the streams is cut off at a random moment, one request in twenty is malformed. Every reply must be the right
one, the server's memory must stay flat, and every answer of the page must be in the history once and whole.

    python benchmarks/serve.py runs/dense-seed0
    python benchmarks/serve.py --quick --json serve.json        # a small random model, a few seconds
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STREAMS = 64
CACHE = "150MB"  # less than the load could fill: memory that grows beyond it is lost
WORDS = ["Sort 4, 9, 2, 7.", "What is 3 + 4 - 2 + 9?", "How many r in strawberry?", "I start at 3 and wait."]
BAD = [b"{", b'{"messages": []}',
       b'{"messages": 7}', b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}',
       b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}']  # fmt: skip


def question(number: int) -> str:
    return f"{WORDS[number % len(WORDS)]} ({number})"


# ------------------------------------------------------------------------------------- the sides


BARE = """
import json, sys, time
import prepared  # noqa: F401

from hadal.engine import LLM, EngineConfig, SamplingParams
from hadal.engine.llm import generation_defaults
from hadal.terminal.model import R1_SAMPLING
from pathlib import Path
folder, streams, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
questions = json.loads(sys.argv[4])
llm = LLM.load(folder, form="auto", config=EngineConfig(rows=256, keep_replies=True))
settings = R1_SAMPLING | generation_defaults(Path(folder))
prompts = [llm.tokenizer.chat([{"role": "user", "content": q}], True) for q in questions]
params = [SamplingParams(**settings, seed=i, max_tokens=most, thinking=True) for i in range(streams)]
llm.generate(prompts[:2], params[:2])
for _ in sys.stdin:  # a turn for each line
    llm.engine.kv.prefix.clear()
    began = time.perf_counter()
    out = llm.generate(prompts, params)
    tokens = sum(len(o.outputs[0].token_ids) for o in out)
    print(json.dumps([tokens, time.perf_counter() - began]), flush=True)
"""


class Served:
    """A `hadal serve` of its own process."""

    def __init__(self, model: str, db: Path, threads: int, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "hadal", "serve", f"bench={model}", "--port", str(self.port), "--db", str(db)]
        command += more
        began = time.perf_counter()
        self.process = subprocess.Popen(command, env=environment(threads), stderr=subprocess.DEVNULL)
        while asyncio.run(self._up()) is False:
            if self.process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.02)
        self.started = time.perf_counter() - began

    async def _up(self) -> bool:
        try:
            return (await call(self.port, "GET", "/healthz"))[0] == 200
        except OSError:
            return False

    @property
    def memory(self) -> float:
        """Resident MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


async def opened(port: int, method: str, path: str, body: bytes | None) -> tuple[int, Any, asyncio.StreamWriter]:
    """Send a request; its status, the reader behind the headers, and the writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"\r\n" + (body or b""))
    headers = await reader.readuntil(b"\r\n\r\n")
    return int(headers.split(b" ", 2)[1]), reader, writer


async def call(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A request with one JSON reply."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    status, reader, writer = await opened(port, method, path, data)
    text = await reader.read()
    writer.close()
    return status, json.loads(text) if text.strip() else None


async def lines(reader: Any) -> Any:
    """The data lines of an event stream, each with its event's name."""
    name = b""
    while line := await reader.readline():
        if line.startswith(b"event: "):
            name = line[7:].strip()
        elif line.startswith(b"data: "):
            yield name, line[6:].strip()


# ------------------------------------------------------------------------------------- speed


async def stream_all(port: int, streams: int, most: int) -> tuple[int, float, list[float]]:
    """Tokens, seconds, and each stream's seconds to its first token."""
    first: list[float] = []

    async def one(number: int) -> int:
        asked = [{"role": "user", "content": question(number)}]
        body = {"model": "bench", "messages": asked, "seed": number, "stream": True, "max_tokens": most,
                "thinking": {"type": "enabled"}, "stream_options": {"include_usage": True},
                "user": str(began)}  # fmt: skip
        status, reader, writer = await opened(port, "POST", "/v1/chat/completions", json.dumps(body).encode())
        assert status == 200, status
        usage = b""
        heard = 0
        async for _, data in lines(reader):
            heard += 1
            if heard == 2:
                first.append(time.perf_counter() - began)
            if b'"choices":[]' in data:
                usage = data
        writer.close()
        return int(json.loads(usage)["usage"]["completion_tokens"])

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(number) for number in range(streams))))
    return tokens, time.perf_counter() - began, first


class Bare:
    """The engine without a server, in a process of its own; it waits between its turns."""

    def __init__(self, model: str, threads: int, most: int) -> None:
        questions = json.dumps([question(number) for number in range(STREAMS)])
        command = [sys.executable, "-c", BARE, model, str(STREAMS), str(most), questions]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment(threads), text=True, **pipes)

    def turn(self) -> tuple[int, float]:
        """Tokens and seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        tokens, seconds = json.loads(self.process.stdout.readline())
        return tokens, seconds

    def end(self) -> None:
        self.process.communicate()


def speed(model: str, folder: Path, threads: int, most: int, rounds: int) -> dict[str, Any]:
    """Both sides wait while the other has its turn, so that a slow minute of the machine meets both."""
    bare_rates: list[float] = []
    served_rates: list[float] = []
    firsts: list[float] = []
    server = Served(model, folder / "speed.db", threads)
    bare = Bare(model, threads, most)
    try:
        asyncio.run(stream_all(server.port, 2, 8))
        for _ in range(rounds):
            made, seconds = bare.turn()
            bare_rates.append(made / seconds)
            tokens, seconds, first = asyncio.run(stream_all(server.port, STREAMS, most))
            assert tokens == made, f"the server made {tokens} tokens and the engine {made}"
            served_rates.append(tokens / seconds)
            firsts += first
            print(f"engine {bare_rates[-1]:,.0f}, served {served_rates[-1]:,.0f} tokens/s", file=sys.stderr)
    finally:
        bare.end()
        server.end()
    rates = statistics.median(bare_rates), statistics.median(served_rates)
    ratio = statistics.median(s / b for b, s in zip(bare_rates, served_rates, strict=True))
    return {
        "streams": STREAMS, "tokens": made, "engine": rates[0], "served": rates[1], "ratio": ratio,
        "first_token_seconds": statistics.median(firsts), "start_seconds": server.started,
        "engine_rates": bare_rates, "served_rates": served_rates,
    }  # fmt: skip


# ------------------------------------------------------------------------------------- load


@dataclass
class Tally:
    """What the workers met. answers: of the page, by id, with what was seen of them at their end."""

    replies: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    answers: dict[str, str | None] = field(default_factory=dict)
    cut: int = 0


async def worker(port: int, number: int, until: float, most: int, tally: Tally) -> None:
    rng = random.Random(number)
    while time.monotonic() < until:
        cut = rng.random() < 0.25
        if rng.random() < 0.05:
            status, said = await call(port, "POST", "/v1/chat/completions", rng.choice(BAD))
            tally.replies[f"malformed {status}"] += 1
            if status not in (400, 404, 422) or "error" not in said:
                tally.wrong.append(f"malformed: {status}")
        elif rng.random() < 0.5:
            await through_the_page(port, rng, cut, most, tally)
        else:
            await through_the_api(port, rng, cut, most, tally)


async def through_the_page(port: int, rng: random.Random, cut: bool, most: int, tally: Tally) -> None:
    status, chat = await call(port, "POST", "/api/chats", {})
    settings = {"max_tokens": most, "thinking": True}
    body = {"content": question(rng.randrange(1000)), "settings": settings}
    status, began = await call(port, "POST", f"/api/chats/{chat['id']}/answers", body)
    tally.replies[f"page {status}"] += 1
    if status != 202:
        tally.wrong.append(f"page: {status}")
        return
    answer = began["answer"]["id"]
    tally.answers[answer] = None
    status, reader, writer = await opened(port, "GET", f"/api/answers/{answer}/events", None)
    leave = time.monotonic() + rng.random() * 2 if cut else float("inf")
    async for name, data in lines(reader):
        if name == b"done":
            tally.answers[answer] = json.loads(data)["message"]["content"]
        if time.monotonic() > leave:
            tally.cut += 1
            break
    writer.close()


async def through_the_api(port: int, rng: random.Random, cut: bool, most: int, tally: Tally) -> None:
    asked = [{"role": "user", "content": question(rng.randrange(1000))}]
    body = {"messages": asked, "stream": True, "max_tokens": most,
            "thinking": {"type": "enabled"}}  # fmt: skip
    status, reader, writer = await opened(port, "POST", "/v1/chat/completions", json.dumps(body).encode())
    tally.replies[f"api {status}"] += 1
    leave = time.monotonic() + rng.random() * 2 if cut else float("inf")
    last = b""
    async for _, data in lines(reader):
        last = data
        if time.monotonic() > leave:
            tally.cut += 1
            writer.close()
            return
    writer.close()
    if status != 200 or last != b"[DONE]":
        tally.wrong.append(f"api: {status} {last[:80]!r}")


async def storm(server: Served, workers: int, seconds: float, most: int, tally: Tally) -> list[tuple[float, float]]:
    """All workers at once; the server's memory by the second."""
    began = time.monotonic()
    memory: list[tuple[float, float]] = []

    async def watch() -> None:
        while True:
            memory.append((time.monotonic() - began, server.memory))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    try:
        await asyncio.gather(*(worker(server.port, i, began + seconds, most, tally) for i in range(workers)))
    finally:
        watching.cancel()
    for _ in range(600):  # answers go on when their readers have left
        _, text = await metrics(server.port)
        if not any(
            line.startswith("hadal_requests_running{") and not line.endswith(" 0") for line in text.splitlines()
        ):
            break
        await asyncio.sleep(0.1)
    memory.append((time.monotonic() - began, server.memory))
    return memory


async def metrics(port: int) -> tuple[int, str]:
    status, reader, writer = await opened(port, "GET", "/metrics", None)
    text = (await reader.read()).decode()
    writer.close()
    return status, text


def load(model: str, folder: Path, threads: int, workers: int, seconds: float, most: int) -> dict[str, Any]:
    db = folder / "load.db"
    server = Served(model, db, threads, "--cache", CACHE)
    tally = Tally()
    try:
        memory = asyncio.run(storm(server, workers, seconds, most, tally))
    finally:
        server.end()
    import sqlite3

    with sqlite3.connect(db) as history:
        rows = history.execute("SELECT id, status, content FROM messages WHERE role = 'assistant'").fetchall()
    found = Counter(row[0] for row in rows)
    by_id = {row[0]: row for row in rows}
    lost = [a for a in tally.answers if found[a] != 1 or by_id[a][1] != "done"]
    lost += [a for a, text in tally.answers.items() if text is not None and a in by_id and by_id[a][2] != text]
    early = statistics.median(mb for at, mb in memory if seconds * 0.25 <= at <= seconds * 0.5)
    late = statistics.median(mb for at, mb in memory if at >= seconds * 0.75)
    return {
        "workers": workers, "seconds": seconds, "replies": dict(tally.replies), "cut": tally.cut,
        "wrong": tally.wrong[:20], "answers": len(tally.answers), "lost": len(lost),
        "memory_mb_second_quarter": early, "memory_mb_last_quarter": late,
        "memory_mb": [round(mb) for _, mb in memory],
    }  # fmt: skip


# ------------------------------------------------------------------------------------- the script


def random_model(folder: Path) -> Path:
    """A checkpoint with random weights: 1M parameters."""
    import torch

    from hadal.checkpoints.save import save_model
    from hadal.models.build import build
    from hadal.models.dense.config import DenseConfig
    from hadal.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_words(["strawberry"])
    torch.manual_seed(0)
    config = DenseConfig(tokenizer.size, 128, 5, 4, 2, head_dim=32, intermediate_size=384, max_position_embeddings=1024)
    model = build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_model(folder, config, model.state_dict())
    tokenizer.save(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a run or checkpoint (default: 1M random parameters)")
    parser.add_argument("--quick", action="store_true", help="few streams, few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--seconds", type=float, help="of the load (default: 120)")
    parser.add_argument("--only", choices=["speed", "load"])
    options = parser.parse_args()
    seconds = options.seconds or (6.0 if options.quick else 120.0)
    result: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                              "threads": options.threads, "quick": options.quick,
                              "model": options.model or "1M random"}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or str(random_model(folder / "model"))
        if options.only != "load":
            most, rounds = (64, 1) if options.quick else (512, 6)
            result["speed"] = s = speed(model, folder, options.threads, most, rounds)
            print(f"{STREAMS} streams: engine {s['engine']:,.0f} tokens/s, served {s['served']:,.0f}, "
                  f"ratio {s['ratio']:.2f}; first token after {s['first_token_seconds']:.2f} s; "
                  f"started in {s['start_seconds']:.1f} s")  # fmt: skip
        if options.only != "speed":
            workers = 40 if options.quick else 200
            result["load"] = r = load(model, folder, options.threads, workers, seconds, 64 if options.quick else 256)
            print(f"{workers} workers, {seconds:g} s: {r['replies']}, {r['cut']} cut, {len(r['wrong'])} wrong, "
                  f"{r['lost']} of {r['answers']} lost, memory {r['memory_mb_second_quarter']:.0f} then "
                  f"{r['memory_mb_last_quarter']:.0f} MB")  # fmt: skip
            for line in r["wrong"]:
                print("  ", line)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
