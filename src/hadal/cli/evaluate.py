"""The command `hadal eval`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hadal.cli.arguments import Add, add_dtype, positive, whole
from hadal.errors import UserError


def add_eval(add: Add) -> None:
    command = add(
        "eval",
        evaluate,
        "Measure a model on tasks: pass@1, pass@k, cons@k with intervals; compare two",
        "  hadal eval runs/dense-seed0 --tasks sums,clock --samples 8\n"
        "  hadal eval runs/dense-seed0 --tasks sums --against runs/dense-seed0/stages/pretrain\n"
        "  hadal eval http://localhost:8000/v1 --model qwen --tasks gsm8k:test.jsonl,./mine.py\n"
        "  hadal eval evals/dense-seed0-1a2b3c4d --failures\n\n"
        "Stopped at any moment, the same command carries on where it was.",
    )
    command.add_argument(
        "model", metavar="MODEL",
        help="a run, a checkpoint folder, adapters, a Hugging Face id, or the address of an OpenAI-compatible server; "
        "or the folder of an evaluation, to look at it again",
    )  # fmt: skip
    command.add_argument("--tasks", metavar="NAMES", help="separated by commas: as hadal tasks list has them, or files")
    command.add_argument("--samples", type=whole(1), default=4, metavar="K", help="per problem (default: 4)")
    command.add_argument("--problems", type=whole(1), metavar="N", help="per task (default: 200; all of a data set)")
    command.add_argument("--difficulty", type=level, metavar="D", help="a number or hardest (default: each task's own)")
    command.add_argument("--temperature", type=nonnegative, default=0.6, metavar="T", help="default: 0.6, as for R1")
    command.add_argument("--top-p", type=share, default=0.95, metavar="P", help="default: 0.95, as for R1")
    command.add_argument(
        "--max-tokens", type=whole(1), default=32768, metavar="N", help="per response (default: 32768, as for R1)"
    )
    command.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--think", action="store_true", help="make it think first")
    mode.add_argument("--direct", action="store_true", help="make it answer at once")
    command.add_argument(
        "--shots", type=whole(0), default=0, metavar="N", help="worked examples in the prompt, for base models"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="folder (default: by model and settings, in evals/)")
    command.add_argument("--against", metavar="OTHER", help="a model or a finished evaluation to compare with")
    command.add_argument("--model", dest="served", metavar="NAME", help="which model of the server")
    command.add_argument("--against-model", metavar="NAME", help="the same for --against (default: as --model)")
    command.add_argument(
        "--key-from", default="HADAL_API_KEY", metavar="VARIABLE",
        help="environment variable that holds the server's key (default: HADAL_API_KEY)",
    )  # fmt: skip
    command.add_argument(
        "--connections", type=whole(1), default=16, metavar="N", help="requests at once to a server (default: 16)"
    )
    add_dtype(command)
    command.add_argument("--failures", action="store_true", help="browse the wrong answers, problem by problem")
    command.add_argument("--json", action="store_true", help="the results as one JSON object on stdout")


def level(text: str) -> int | str:
    return text if text == "hardest" else whole(0)(text)


def nonnegative(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def share(text: str) -> float:
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return value


def evaluate(options: argparse.Namespace) -> None:
    import json
    import sys

    from hadal.evaluate import run
    from hadal.evaluate.samples import Settings
    from hadal.report.evaluation import write_pages
    from hadal.terminal.evaluation import Meter, browse, summary

    meter = Meter(sys.stderr)
    other: Any = None
    if options.against:
        other = run.finished(options.against) or _subject(options, options.against, options.against_model)
    evaluation = run.finished(options.model)
    if evaluation is not None:
        if options.tasks:
            raise UserError(f"{options.model} is an evaluation.", "Leave out --tasks, or give a model.")
        if isinstance(other, run.Subject):
            raise UserError(f"{options.against} is a model.", "Give a model first as well, or two evaluations.")
        folder = Path(options.model)
        results = run.write_results(folder, evaluation, other)
    else:
        if not options.tasks:
            raise UserError("No task is named.", "Give --tasks, such as --tasks sums,clock; see hadal tasks list.")
        thinking = True if options.think else False if options.direct else None
        settings = Settings(
            options.samples, options.problems, options.difficulty, options.temperature, options.top_p,
            options.max_tokens, options.seed, thinking, options.shots,
        )  # fmt: skip
        names = [name.strip() for name in options.tasks.split(",") if name.strip()]
        subject = _subject(options, options.model, options.served)
        outcome = run.evaluate(subject, names, settings, options.out, other, meter, meter.write)
        folder, evaluation, results = outcome.folder, outcome.evaluation, outcome.results
    write_pages(folder, results)
    if options.json:
        print(json.dumps(results))
    elif options.failures:
        browse(evaluation)
    else:
        print(summary(results))
        print(f"\n{folder / 'results.html'} has the plots, {folder / 'results.md'} all figures.")


def _subject(options: argparse.Namespace, model: str, served: str | None) -> Any:
    from hadal.engine.remote import is_url
    from hadal.evaluate.run import subject

    served = served or (options.served if is_url(model) else None)
    return subject(model, served, options.key_from, options.connections, options.dtype)
