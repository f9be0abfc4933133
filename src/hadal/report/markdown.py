"""Pieces of Markdown, for terminals, issues and diffs."""

import re
from typing import Any

from hadal.report.words import bounds, cut, percent, printable

_MARKS = re.compile(r"([\\`*_\[\]<>#|~$&])")


def inline(text: Any) -> str:
    """Text that Markdown shows as it is, on one line, also inside a table."""
    return _MARKS.sub(r"\\\1", " ".join(printable(str(text)).split()))


def block(text: str) -> str:
    """Text in a fence that nothing inside it can close."""
    text = cut(printable(text))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def share(estimate: dict[str, Any] | None) -> str:
    """`93% (92–94%, n 500)`, or a dash."""
    if not estimate or estimate.get("accuracy") is None:
        return "–"
    return f"{percent(estimate['accuracy'])} ({bounds(estimate)}, n {estimate['n']})"
