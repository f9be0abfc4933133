"""The commands about models as files: `hadal model` and `hadal verify`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hadal.cli.arguments import Add, size, whole

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Each dtype's name in safetensors files."""


def add_model(add: Add) -> None:
    command = add(
        "model",
        model,
        "Sizes and costs of a model from its config; its weights in another form",
        "  hadal model info r1-distill-qwen-1.5b\n  hadal model convert models/v3 models/v3-bf16 --dtype bfloat16",
    )
    actions = command.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    action = actions.add_parser(
        "info",
        help="parameters, FLOPs, cache and memory, from the config alone",
        epilog="Example:\n  hadal model info v3 --context 32768",
    )
    action.add_argument("model", metavar="MODEL", help="a folder, a config.json, a Hugging Face id or a short name")
    action.add_argument("--context", type=whole(1), metavar="N", help="position the FLOPs are for (default: 4096)")
    action.add_argument("--json", action="store_true", help="one JSON object instead of text")
    action = actions.add_parser(
        "convert",
        help="write a checkpoint in another dtype, FP8 as bf16, in one file or in shards",
        epilog="Example:\n  hadal model convert models/v3 models/v3-bf16 --dtype bfloat16 --shard 5GB",
    )
    action.add_argument("source", metavar="SRC", help="a checkpoint folder or a Hugging Face id")
    action.add_argument("target", type=Path, metavar="DST", help="a folder, made if it is not there")
    action.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="default: bfloat16")
    action.add_argument(
        "--shard", type=size, default=5_000_000_000, metavar="SIZE", help="largest file, such as 5GB (default: 5GB)"
    )


def add_verify(add: Add) -> None:
    command = add(
        "verify",
        verify,
        "Compare a model with its reference implementation, where its weights are",
        "  hadal verify deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --dtype bfloat16\n"
        "  hadal verify models/mine --gsm8k test.jsonl --items 20",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint folder or a Hugging Face id")
    command.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default: float32")
    command.add_argument("--items", type=whole(0), default=100, metavar="N", help="GSM8K problems (default: 100)")
    command.add_argument("--gsm8k", type=Path, metavar="FILE", help="GSM8K as JSON lines (default: from the hub)")
    command.add_argument("--max-tokens", type=whole(1), default=4096, metavar="N", help="per answer (default: 4096)")
    command.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")


def model(options: argparse.Namespace) -> None:
    if options.action == "info":
        import json

        from hadal.library.info import describe, model_info

        info = model_info(options.model, options.context)
        print(json.dumps(info, indent=2) if options.json else describe(info))
        return
    from hadal.checkpoints.safetensors import DTYPES as TORCH
    from hadal.checkpoints.save import convert
    from hadal.library.find import find_model

    convert(find_model(options.source), options.target, TORCH[DTYPES[options.dtype]], options.shard)
    print(f"{options.target} holds {options.source} in {options.dtype}.")


def verify(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from hadal.checkpoints.safetensors import DTYPES as TORCH
    from hadal.evaluate.verify import verdict, verify

    checks = verify(
        options.model,
        dtype=TORCH[DTYPES[options.dtype]],
        items=options.items,
        max_tokens=options.max_tokens,
        gsm8k=options.gsm8k,
        seed=options.seed,
        report=lambda c: None if options.json else print(f"{c.name:<7} {c.status}: {c.detail}", flush=True),
    )
    if options.json:
        print(json.dumps({"verdict": verdict(checks), "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(f"verdict {verdict(checks)}")
    return int(verdict(checks) == "fails")
