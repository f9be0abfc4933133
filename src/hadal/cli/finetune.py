"""The command `hadal sft`."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from hadal.cli.arguments import Add, add_overrides, positive, whole


def add_sft(add: Add) -> None:
    command = add(
        "sft",
        sft,
        "Fine-tune a model, or adapters for it, on your conversations",
        "  hadal sft deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B mine.jsonl --out tuned --lora 16 \\\n"
        "      --checkpoint-activations\n\n"
        'Each line of the file is {"messages": [{"role": "user", "content": "..."}, ...]}.\n'
        "Stopped at any moment, the same command carries on where it was.",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint folder, a finished run or a Hugging Face id")
    command.add_argument("data", type=Path, metavar="DATA", help="JSON lines of messages, as in the OpenAI form")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result")
    command.add_argument("--lora", type=whole(0), metavar="RANK", help="train adapters of this rank (default: none)")
    command.add_argument("--merge", action="store_true", help="merge the adapters: the result is one whole model")
    command.add_argument("--epochs", type=whole(1), metavar="N", help="passes over the data (default: 2)")
    command.add_argument("--lr", type=positive, metavar="X", help="learning rate (default: 1e-5, for adapters 2e-4)")
    command.add_argument("--batch-tokens", type=whole(1), metavar="N", help="tokens per update (default: 16384)")
    command.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], help="default: auto, the faster one here")
    command.add_argument(
        "--checkpoint-activations", action="store_true", help="less memory, for a third more computation"
    )
    command.add_argument("--seed", type=whole(0), metavar="N", help="order of the data, new adapters (default: 0)")
    command.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    add_overrides(command, "the stage, such as lora.alpha=32 or pass_tokens=2048")


def sft(options: argparse.Namespace) -> None:
    import shlex

    from hadal.reading import apply_override, read_dataclass
    from hadal.recipe.finetune import SftConfig, finetune
    from hadal.terminal.view import make_view

    data: dict[str, Any] = {}
    for name in ("epochs", "batch_tokens", "dtype", "seed"):
        if getattr(options, name) is not None:
            data[name] = getattr(options, name)
    data["checkpoint_activations"] = options.checkpoint_activations
    if options.lora is not None:
        data["lora"] = {"rank": options.lora}
    if options.lr is not None:
        data["optimizer"] = {"lr": options.lr}
    for override in options.overrides:
        apply_override(data, override)
    words = ["hadal", "sft", options.model, str(options.data), "--out", str(options.out)]
    words += ["--merge"] if options.merge else []
    words += [word for key, value in _flat(data) for word in ("--set", f"{key}={value}")]
    with closing(make_view(json=options.json)) as view:
        finetune(
            options.model, options.data, options.out, read_dataclass(SftConfig, data, ""), view, options.merge,
            shlex.join(words),
        )  # fmt: skip


def _flat(data: dict[str, Any], where: str = "") -> list[tuple[str, str]]:
    """Settings as `--set` takes them."""
    import json

    found = []
    for key, value in data.items():
        found += _flat(value, f"{where}{key}.") if isinstance(value, dict) else [(where + key, json.dumps(value))]
    return found
