"""The `hadal` command: one thin function for each subcommand.

Nothing heavy is imported at the top, so that `hadal --help` answers at once and works where
torch does not. A function here reads its arguments and calls the room that does the work.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hadal import __version__
from hadal.cli.ablate import add_ablate
from hadal.cli.arguments import Parser, add_engine, add_overrides, nearest, positive, whole
from hadal.cli.evaluate import add_eval
from hadal.cli.finetune import add_sft
from hadal.cli.models import add_model, add_verify
from hadal.cli.rollouts import add_rollouts
from hadal.cli.serve import add_serve
from hadal.errors import UserError
from hadal.machine.environment import prepare

if TYPE_CHECKING:  # torch is loaded when a model is
    from hadal.engine import EngineConfig

CARRIES_ON = {"quickstart", "train", "sft", "eval"}  # commands that resume where they were stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for a user's error, 130 for Ctrl-C."""
    prepare()
    tolerate(sys.stdin, sys.stdout)
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    try:
        try:
            status = dispatch(arguments)
        except SystemExit as end:  # argparse's way out of --help and --version
            status = int(end.code or 0)
        sys.stdout.flush()  # a broken pipe must show here and not at the interpreter's exit
        return status
    except UserError as error:
        print(f"hadal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        carry_on = "; the same command carries on" if command in CARRIES_ON else ""
        if carry_on and "--fresh" in arguments:
            carry_on = "; the same command without --fresh carries on"
        print(f"\nhadal: stopped{carry_on}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        drop_stdout()  # the reader has gone (`| head`)
        return 141
    except OSError as error:
        print(f"hadal: {explain(error)}", file=sys.stderr)
        if error.filename is None:
            drop_stdout()
        return 2


def tolerate(*streams: TextIO) -> None:
    """Bytes that are no text, and characters that a terminal lacks, become `?` instead of ending the command."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_stdout() -> None:
    """Let what is still buffered go nowhere: written at the interpreter's exit, it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: OSError) -> str:
    """One line for what the machine refuses; any other OSError is a bug and is raised again."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{where}. Free some space and run the same command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return f"{error.filename} may not be read or written. Change its permissions or choose another place."
    raise error


def dispatch(arguments: list[str]) -> int:
    parser, commands = build_parser()
    if arguments[:1] == ["test"] and arguments[1:] not in (["--help"], ["-h"]):
        return test(arguments[1:])  # everything after it is pytest's
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UserError(f"There is no command {arguments[0]!r}.", nearest(arguments[0], commands))
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = commands[options.command]._option_string_actions if options.command else {}
        flag = unknown[0].split("=")[0]
        raise UserError(f"There is no argument {unknown[0]!r} here.", nearest(flag, known, options.command))
    if options.command is None:
        parser.print_help()
        return 0
    run: Callable[[argparse.Namespace], int | None] = options.run
    return run(options) or 0


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The whole parser, and each command's own."""
    parser = Parser(
        prog="hadal",
        description="Grow a reasoning model from nothing, see it learn to think, talk to it.",
        epilog="Example:\n  hadal quickstart\n\n`hadal COMMAND --help` shows each command's own arguments.",
    )
    parser.add_argument("--version", action="version", version=f"hadal {__version__}")
    parser.set_defaults(command=None)
    group = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands: dict[str, Parser] = {}

    def add(name: str, run: Callable[[argparse.Namespace], int | None], about: str, example: str) -> Parser:
        commands[name] = group.add_parser(
            name, help=about, description=f"{about}.", epilog=f"Example:\n{example}"
        )
        commands[name].set_defaults(run=run)
        return commands[name]

    command = add(
        "quickstart",
        quickstart,
        "Grow a reasoning model on this machine, then serve a page to talk to it",
        "  hadal quickstart --minutes 10\n  hadal quickstart --task ./mine.py --out runs/mine\n\n"
        "Stopped at any moment, the same command carries on where it was.",
    )
    command.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="seed of everything random (default: 0)"
    )
    command.add_argument(
        "--minutes",
        type=positive,
        default=10.0,
        metavar="M",
        help="how long to grow the model: 10, 60, 480 (default: 10)",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder (default: by architecture and seed, in runs/)"
    )
    command.add_argument(
        "--arch", choices=["dense", "deepseek"], help="the model's block (default: as in the recipe)"
    )
    command.add_argument("--task", type=Path, metavar="FILE", help="a Python or JSON Lines file with your own task")
    command.add_argument("--fresh", action="store_true", help="start anew, even where a run could carry on")
    command.add_argument("--no-chat", action="store_true", help="end after the report and serve nothing")
    command.add_argument("--json", action="store_true", help="progress as JSON lines on stdout, and no page")
    add_overrides(command)
    _add_threads(command)

    command = add(
        "train",
        train,
        "Run or resume a recipe",
        "  hadal train r1\n  hadal train recipe.toml --out runs/mine --set pretrain.steps=500",
    )
    command.add_argument("recipe", metavar="RECIPE", help="a TOML file of stages, or a shipped recipe such as r1")
    command.add_argument("--seed", type=whole(0), metavar="N", help="seed of everything random (default: the recipe's)")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder (default: the recipe's name, and the seed, in runs/)"
    )
    add_overrides(command)
    _add_threads(command)
    command.add_argument(
        "--dry-run", action="store_true", help="print the recipe as a run would freeze it, and its cost; run nothing"
    )
    command.add_argument("--trust", action="store_true", help="let the recipe run the Python files it names as tasks")
    command.add_argument("--fresh", action="store_true", help="start anew, even where a run could carry on")
    command.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    command.add_argument(
        "--sink", dest="sinks", action="append", default=[], metavar="NAME",
        help="also send metrics to wandb, tensorboard or trackio; may be given several times",
    )  # fmt: skip

    add_rollouts(add)
    add_sft(add)
    add_ablate(add)

    command = add(
        "chat", chat, "Talk to a model in the terminal, its thoughts shown", "  hadal chat runs/dense-seed0"
    )
    command.add_argument("model", metavar="MODEL", help="a run, a checkpoint folder, adapters, or a Hugging Face id")
    _sampling_options(command)

    command = add(
        "ask", ask, "Ask a model one question", '  hadal ask runs/dense-seed0 "How many r are in strawberry?"'
    )
    command.add_argument("model", metavar="MODEL", help="a run, a checkpoint folder, adapters, or a Hugging Face id")
    command.add_argument("question", help="the question, in quotes")
    _sampling_options(command)
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--think", action="store_true", help="make it think first")
    mode.add_argument("--direct", action="store_true", help="make it answer at once")

    add_serve(add)

    command = add(
        "tasks",
        tasks,
        "List, preview or check the tasks a model can be grown on",
        "  hadal tasks list\n  hadal tasks show sums -n 5\n  hadal tasks validate ./mine.py",
    )
    actions = command.add_subparsers(dest="action", metavar="ACTION", title="actions")
    actions.add_parser("list", help="the built-in tasks", epilog="Example:\n  hadal tasks list")
    action = actions.add_parser(
        "show", help="sample problems of a task", epilog="Example:\n  hadal tasks show sums -n 5"
    )
    action.add_argument(
        "task", metavar="NAME", help="a built-in task, a data set, rg/NAME, or a file of your own (.py, .jsonl)"
    )
    action.add_argument("-n", type=whole(1), default=5, metavar="N", help="how many problems (default: 5)")
    action.add_argument("--difficulty", type=whole(0), metavar="D", help="default: the task's own")
    action.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    action = actions.add_parser(
        "validate",
        help="check that tasks prove themselves",
        epilog="Example:\n  hadal tasks validate ./mine.py",
    )
    action.add_argument(
        "tasks", nargs="*", metavar="NAME", help="tasks, or files of your own: .py, .jsonl (default: all built-in)"
    )
    action.add_argument("--all", action="store_true", help="all built-in tasks")

    add_eval(add)
    add_model(add)
    add_verify(add)

    command = add(
        "doctor", doctor, "Say what works on this machine, what does not, and the remedy", "  hadal doctor"
    )
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")

    add(
        "test",
        lambda _: None,
        "Run hadal's own tests (from a clone); arguments go to pytest",
        "  ./hadal test -k cost",
    )
    return parser, commands


# The commands


def quickstart(options: argparse.Namespace) -> None:
    from hadal.recipe.quickstart import quickstart
    from hadal.terminal.view import make_view

    with closing(make_view(json=options.json)) as view:
        run = quickstart(
            seed=options.seed,
            minutes=options.minutes,
            out=options.out,
            arch=options.arch,
            task=options.task,
            fresh=options.fresh,
            view=view,
            overrides=options.overrides,
            threads=options.threads,
        )
    if sys.stdin.isatty() and sys.stdout.isatty() and not options.no_chat and not options.json:
        from hadal.server.launch import Settings, serve

        serve(Settings(models=[str(run)], quickstart=True))


def train(options: argparse.Namespace) -> None:
    from hadal.recipe.runner import train
    from hadal.terminal.view import make_view

    threads = [f"threads={options.threads}"] if options.threads else []
    # What --dry-run prints is a recipe: what is said beside it must not be in its way.
    with closing(make_view(json=options.json, stream=sys.stderr if options.dry_run else None)) as view:
        train(
            recipe_path=options.recipe,
            out=options.out,
            seed=options.seed,
            overrides=[*options.overrides, *threads],
            dry_run=options.dry_run,
            view=view,
            trust=options.trust,
            fresh=options.fresh,
            sinks=options.sinks,
        )


def _add_threads(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threads", type=whole(1), metavar="N", help="CPU threads (default: what measures fastest)"
    )


def _sampling_options(command: argparse.ArgumentParser) -> None:
    add_engine(command)
    command.add_argument("--budget", type=whole(0), metavar="N", help="tokens that a thought may have")


def _engine_of(options: argparse.Namespace) -> EngineConfig:
    from hadal.engine import EngineConfig

    return EngineConfig(exact=not options.fast, speculate=options.speculate)


def chat(options: argparse.Namespace) -> None:
    from hadal.terminal.chat import chat

    chat(options.model, options.dtype, options.budget, _engine_of(options))


def ask(options: argparse.Namespace) -> None:
    from hadal.terminal.chat import ask

    thinking = True if options.think else False if options.direct else None
    ask(
        options.model, options.question, thinking, options.json, options.dtype, options.budget, _engine_of(options)
    )  # fmt: skip


def tasks(options: argparse.Namespace) -> None:
    from hadal.tasks import BUILT_IN, DATA_SETS, load_tasks
    from hadal.tasks.show import preview

    if options.action == "show":
        for task in load_tasks([options.task]).values():
            print(preview(task, options.n, options.difficulty, options.seed), end="", flush=True)
        return
    if options.action == "validate" and options.tasks and options.all:
        raise UserError("Both --all and names are given.", "Give one of them.")
    for task in load_tasks(getattr(options, "tasks", None) or list(BUILT_IN)).values():
        if options.action == "validate":
            task.validate()
            print(f"{task.name:<12} holds", flush=True)
        else:
            print(f"{task.name:<12} {task.about}")
    if options.action in (None, "list"):
        for data_set in DATA_SETS.values():
            print(f"{data_set.name:<12} {data_set.about}; published data, NAME:PATH for local files")
        print(f"{'rg/NAME':<12} the tasks of reasoning-gym, with the extra hadal[rg]")


def doctor(options: argparse.Namespace) -> int:
    from hadal.terminal.doctor import doctor

    return doctor(json=options.json)


def test(arguments: list[str]) -> int:
    """Run pytest over the clone; paths among the arguments stay relative to the caller's folder.

    All of the tests are spread over two processes, file by file: most of them keep no more than one core busy.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "tests").is_dir():
        raise UserError(
            "The tests are not part of the installed package.", "Clone the repository and run ./hadal test."
        )
    try:
        import pytest
    except ImportError:
        raise UserError("The tools of the tests are not installed.", f"Run {root / 'hadal'} test.") from None
    here = Path.cwd()
    alone = ("-k", "-m", "-n", "-p", "-s", "--pdb", "--trace")
    some = any(not argument.startswith("-") or argument.startswith(alone) for argument in arguments)
    placed = [] if some or (os.cpu_count() or 1) < 2 else ["--numprocesses=2", "--dist=loadfile"]
    for argument in arguments:
        path, colons, case = argument.partition("::")
        exists = not argument.startswith("-") and (here / path).exists()
        placed.append(f"{here / path}{colons}{case}" if exists else argument)
    os.chdir(root)
    return int(pytest.main(placed))

