"""How many tokens a text has at least, told from its size alone: what is far too long is refused without being read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

from hadal.errors import UserError

SHRINKS = 3  # at most so many bytes become one when a text is composed (NFC): three Hangul letters, one syllable


class TooLong(UserError):
    """A request of more tokens than there can be.

    field: what of it is at fault, `prompt` or `max_tokens`; of_memory: a larger cache would hold it.
    """

    def __init__(self, cause: str, remedy: str, field: str, of_memory: bool = False) -> None:
        super().__init__(cause, remedy)
        self.field, self.of_memory = field, of_memory


def too_many(tokens: int, most: int, counted: bool = True) -> TooLong:
    """The error for a prompt of more than `most` tokens. counted: whether `tokens` is all of them."""
    found = str(tokens) if counted else f"at least {tokens}"
    return TooLong(f"The prompt has {found} tokens, and at most {most} are read.", "Shorten it.", "prompt")


def most_bytes(inner: _Tokenizer, tokens: Iterable[bytes]) -> int:
    """The most bytes of text that one token can stand for; 0 where nothing is certain.

    It is the longest of the vocabulary where every byte goes into some token: in byte-level BPE without a normaliser
    (composing apart), whose pre-tokenizer drops nothing and whose added tokens take no white space beside them.
    """
    state = json.loads(inner.to_str())
    model, normal = state["model"], _steps(state.get("normalizer"), "normalizers")
    cuts = _steps(state.get("pre_tokenizer"), "pretokenizers")
    kinds = {step["type"] for step in cuts}
    certain = (
        model.get("type") == "BPE"
        and "ByteLevel" in kinds
        and kinds <= {"ByteLevel", "Split", "Digits"}
        and all(step.get("behavior") != "Removed" for step in cuts)
        and {step["type"] for step in normal} <= {"NFC"}
        and not any(token.lstrip or token.rstrip for token in inner.get_added_tokens_decoder().values())
    )
    return max(map(len, tokens), default=0) * (SHRINKS if normal else 1) if certain else 0


def _steps(part: Any, inside: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer's file, which has one, several or none."""
    if not part:
        return []
    return part.get(inside, [part])
