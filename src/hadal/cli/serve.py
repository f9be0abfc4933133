"""`hadal serve`: the API and the page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from hadal.cli.arguments import Add, add_engine, positive, size, whole


def add_serve(add: Add) -> None:
    """Puts the command into the parser."""
    command = add(
        "serve",
        serve,
        "Serve models over DeepSeek's and OpenAI's API, with a page to talk to them",
        "  hadal serve runs/dense-seed0\n  hadal serve --upstream http://127.0.0.1:11434/v1",
    )
    command.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="a run (its base is served beside it), a checkpoint, adapters, a Hugging Face id; NAME=MODEL names it",
    )  # fmt: skip
    command.add_argument(
        "--upstream", action="append", default=[], dest="upstreams", metavar="[NAME=]URL",
        help="an OpenAI-compatible server whose models are served too; its key is read from NAME_API_KEY",
    )  # fmt: skip
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    command.add_argument("--port", type=whole(0), help="port (default: the first free one from 8000)")
    command.add_argument("--api-key", metavar="KEY", help="what clients must send (default: HADAL_API_KEY, or none)")
    command.add_argument("--origin", action="append", default=[], dest="origins", metavar="URL",
                         help="a web page elsewhere that may use the API, such as https://chat.example")  # fmt: skip
    command.add_argument("--db", type=Path, metavar="PATH", help="the history (default: in ~/.local/share/hadal)")
    add_engine(command)
    command.add_argument("--cache", type=size, metavar="SIZE", help="memory of each model's cache, such as 2GB")
    command.add_argument(
        "--max-tokens", type=whole(1), metavar="N", help="most tokens in an answer (default: the context)"
    )
    command.add_argument(
        "--max-running", type=whole(1), default=256, metavar="N", help="answers at once (default: 256)"
    )
    command.add_argument(
        "--max-waiting", type=whole(1), default=256, metavar="N", help="requests in the queue (default: 256)"
    )
    command.add_argument(
        "--max-body", type=size, default=4_000_000, metavar="SIZE", help="largest request (default: 4MB)"
    )
    command.add_argument("--price", action="append", default=[], dest="prices", metavar="MODEL=HIT,MISS,OUTPUT",
                         help="dollars for a million tokens of an upstream's model")  # fmt: skip
    command.add_argument("--timeout", type=positive, default=600.0, metavar="S",
                         help="seconds of silence after which an upstream is given up (default: 600)")  # fmt: skip


def serve(options: argparse.Namespace) -> None:
    from hadal.server.launch import Settings
    from hadal.server.launch import serve as run

    given = {name: value for name, value in vars(options).items() if name not in ("command", "run")}
    given["api_key"] = options.api_key or os.environ.get("HADAL_API_KEY") or None
    run(Settings(**given))
