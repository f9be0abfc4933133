"""Reading arguments: a parser whose errors are one line, and the types of what it reads."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from typing import Any, NoReturn

from hadal.errors import UserError
from hadal.reading import shown


def nearest(word: str, known: Any, command: str | None = None) -> str:
    """The remedy for a mistyped word."""
    page = " ".join(["hadal", *([command] if command else []), "--help"])
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {matches[0]}? See {page}." if matches else f"See {page}."


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}.", f"See {self.prog} --help.")


# Types of arguments; argparse puts the message of an ArgumentTypeError behind the flag's name.


MOST = 2**63 - 1
"""The largest whole number that a generator of random ones takes for its seed."""


def whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if len(text) > 100 and text.isdecimal():
            raise argparse.ArgumentTypeError(f"a number of {len(text):,} digits is more than {MOST}")
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number of at least {least}")
        if value > MOST:
            raise argparse.ArgumentTypeError(f"{shown(text)} is more than {MOST}")
        return value

    return parse


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number above 0")
    return value


def assignment(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{shown(text)} is not of the form KEY=VALUE, such as grpo.steps=100")
    return text


def size(text: str) -> int:
    """Bytes, from `5GB` or `500MB`."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    unit = units.get(text[-2:].upper(), 0)
    try:
        return int(positive(text[:-2]) * unit) or 1 if unit else whole(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a size such as 5GB or 500MB") from None


def add_overrides(command: Parser, of: str = "the recipe") -> None:
    """`--set KEY=VALUE`, for what has no argument of its own."""
    command.add_argument(
        "--set",
        dest="overrides",
        type=assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one setting of {of}; may be given several times",
    )


Add = Callable[[str, Callable[[argparse.Namespace], int | None], str, str], Parser]
"""Makes the parser of a command from its name, function, purpose and example."""


# Options that several commands share


def add_dtype(command: argparse.ArgumentParser) -> None:
    """--dtype: how the engine holds weights."""
    command.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16", "int8", "int4"), default="auto",
        help="how weights are held (default: auto, the fastest here at full quality)",
    )  # fmt: skip


def add_engine(command: argparse.ArgumentParser) -> None:
    """How the engine holds weights and generates: --dtype, --speculate, --fast."""
    add_dtype(command)
    command.add_argument(
        "--speculate", choices=("ngram", "mtp"), metavar="HOW",
        help="guess tokens ahead, answers unchanged: ngram from the text so far, mtp by a DeepSeek model's own module",
    )  # fmt: skip
    command.add_argument(
        "--fast", action="store_true", help="let an answer's last bits depend on what runs beside it, for speed"
    )
