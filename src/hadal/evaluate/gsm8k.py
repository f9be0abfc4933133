"""GSM8K (arXiv 2110.14168): its problems from a file or from the hub, and what counts as right."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from hadal.errors import UserError

ROWS = "https://datasets-server.huggingface.co/rows?dataset=openai/gsm8k&config=main&split=test&offset={}&length={}"
PAGE = 100  # rows that the service gives at once
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""What DeepSeek-R1's card asks to be put behind a mathematical question."""

PUBLISHED: dict[str, tuple[float, str]] = {
    "deepseek-v2-lite-chat": (0.720, "the card of DeepSeek-V2-Lite-Chat"),
    "deepseek-v2-chat": (0.922, "the card of DeepSeek-V2-Chat, after RL"),
}
"""Accuracy without worked examples in the prompt, by name. The cards of V3, R1 and the distilled models give none."""

_NUMBER = re.compile(r"[-+]?\$?\s?(\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*(\d+))?")


@dataclass(frozen=True)
class Item:
    """A question and its final answer, a number as text."""

    question: str
    answer: str


def read_items(n: int, file: Path | None = None, rows: str = ROWS) -> list[Item]:
    """The first n problems of a JSON-lines file, or else of the test set on the hub."""
    found = _from_file(file) if file is not None else _from_hub(n, rows)
    if not found:
        raise UserError("There is no GSM8K problem.", "Give a file of JSON lines with question and answer.")
    return found[:n]


def _from_file(file: Path) -> list[Item]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{file} is no text file.", "Give GSM8K's test set as JSON lines.") from None
    out = []
    for number, line in enumerate(lines, 1):
        try:
            out += [_item(json.loads(line))] if line.strip() else []
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}, line {number}, is no GSM8K problem.", "It needs a question, and an answer ending in #### N."
            ) from None
    return out


def _from_hub(n: int, rows: str) -> list[Item]:
    out: list[Item] = []
    while len(out) < n:
        try:
            with urllib.request.urlopen(rows.format(len(out), min(PAGE, n - len(out))), timeout=60) as answer:
                page = [_item(row["row"]) for row in json.loads(answer.read())["rows"]]
        except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError) as error:
            line = " ".join(str(error).split())[:200]
            raise UserError(f"GSM8K cannot be downloaded ({line}).", "Give its test set with --gsm8k FILE.") from None
        if not page:
            break
        out += page
    return out


def _item(row: dict[str, Any]) -> Item:
    solution, mark, answer = row["answer"].rpartition("####")
    if not mark or value(answer) is None:
        raise ValueError("no final answer")
    return Item(row["question"], answer.strip())


def value(text: str) -> Fraction | None:
    """The number that a text is or ends with; None where it has none."""
    found = list(_NUMBER.finditer(text.replace("\\!", "").replace("{,}", ",").replace("\\$", "$")))
    if not found:
        return None
    number = Fraction(found[-1][1].replace(",", ""))
    number = number / int(found[-1][2]) if found[-1][2] and int(found[-1][2]) else number
    return -number if found[-1][0].startswith("-") else number


def is_right(item: Item, answer: str) -> bool:
    """Whether an answer's last `\\boxed{}`, or without one its last number, is the gold answer."""
    boxed = _last_boxed(answer)
    given = value(answer if boxed is None else boxed)
    return given is not None and given == value(item.answer)


def _last_boxed(text: str) -> str | None:
    _, mark, rest = text.rpartition("\\boxed{")
    depth = 1
    for i, sign in enumerate(rest if mark else ""):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return _without_fractions(rest[:i])
    return None


def _without_fractions(text: str) -> str:
    return re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
