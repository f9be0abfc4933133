"""A tokenizer.json as the `tokenizers` library's object. Where that fails, it is told in one line.

The library's parser takes some files on which it then panics, at once or at the first text: a panic comes as an
exception that is no `Exception`, and any other failure as a bare one.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenizers import Tokenizer

from hadal.errors import UserError

TRIAL = "Hello wörld, 12 <x>\n\t日本 \U0001f600 "


class failures_told:  # noqa: N801  (a context, read as a phrase)
    """What the library fails on, as a UserError; `what` begins the sentence. Cheap enough for every token."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and (kind is Exception or kind.__name__ == "PanicException"):
            line = " ".join(str(error).split())[:200]
            raise UserError(f"{self.what} ({line}).", "Restore it from where the model came from.") from None


def read_tokenizer(data: bytes, path: Path) -> Tokenizer:
    """The tokenizer in a file's contents; UserError where it is none or does not work.

    A file may keep what a training cut and padded its texts to, and how often it left out merges at random: a text is
    read whole and always alike.
    """
    with failures_told(f"{path} cannot be read"):
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise Exception(error) from None
        _refuse_prefix(text, path)
        inner = Tokenizer.from_str(text)
    inner.no_truncation()
    inner.no_padding()
    if getattr(inner.model, "dropout", None):
        inner.model.dropout = None
    with failures_told(f"{path} does not work"):
        ids = inner.encode(TRIAL, add_special_tokens=False).ids
        inner.decode(ids, skip_special_tokens=False)
        inner.encode("", add_special_tokens=False)
    return inner


def _refuse_prefix(text: str, path: Path) -> None:
    """UserError for merges that do not go with the prefix of their inner pieces, on which the library panics aloud."""
    if '"continuing_subword_prefix"' not in text:
        return
    try:
        model: Any = json.loads(text)["model"]
        prefix, merges = model.get("continuing_subword_prefix"), model.get("merges") or []
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
        wrong = [pair for pair in pairs if prefix and not pair[1].startswith(prefix)]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return  # which the library says in its own words
    if wrong:
        raise UserError(
            f"{path} has a merge of {ascii(wrong[0])[:60]} without its continuing_subword_prefix {ascii(prefix)[:40]}.",
            "Restore it from where the model came from.",
        )
