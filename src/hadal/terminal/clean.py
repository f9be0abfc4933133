"""Text from a model or a file, made safe to print: it cannot move the cursor or turn text round."""

import re

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor moves
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, device strings
    r"|\x1b[ -/]*[0-~]?"  # the short ones
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the direction of text
    "\u2028\u2029\ufeff\ud800-\udfff]"  # line separators, the byte order mark, surrogates
)


def clean(text: str) -> str:
    """`text` without escape sequences and control characters; tabs and newlines stay."""
    return strip_controls(_ESCAPES.sub("", text.replace("\r\n", "\n")))


def strip_controls(text: str) -> str:
    """`text` without control characters, one piece of a stream at a time.

    Of an escape sequence that is cut in two by the stream, what is left is harmless text.
    """
    return _CONTROLS.sub("", text)


def one_line(text: str, width: int | None = None) -> str:
    """`text` clean and on one line, cut to `width` characters with an ellipsis."""
    line = " ".join(clean(text).split())
    return line if width is None or len(line) <= width else line[: max(0, width - 1)] + "…"
