"""Text to ids and back, with control tokens kept out of both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from tokenizers import Tokenizer as _Tokenizer

from hadal.errors import UserError
from hadal.text.length import most_bytes, too_many
from hadal.text.library import failures_told

LONG = 10_000
"""Characters from which on a text is encoded in a way that lets other threads run."""
UNREADABLE = "The tokenizer fails on a text"


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level vocabularies, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out, extra = [], 0
    for byte in range(256):
        if byte in printable:
            out.append(chr(byte))
        else:
            out.append(chr(256 + extra))
            extra += 1
    return out


_BYTES = {character: byte for byte, character in enumerate(byte_alphabet())}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Codec:
    """Encoding and decoding over a `tokenizers` object. controls: its control tokens, spelling to id."""

    def __init__(self, inner: _Tokenizer, controls: Mapping[str, int]) -> None:
        self.inner, self.controls = inner, controls
        self.control_ids = frozenset(controls.values())

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Ids of plain text; never a control id. UserError for lone surrogates, which are no Unicode text, and
        `TooLong` for more than `most` tokens, where the size already shows it without encoding any."""
        return self._encode(self.inner, text, most)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        with failures_told(UNREADABLE):
            encoded = self.inner.encode_batch(texts, add_special_tokens=False)
        return [
            self.encode(text) if self.control_ids.intersection(e.ids) else e.ids
            for text, e in zip(texts, encoded, strict=True)
        ]

    def _encode(self, inner: _Tokenizer, text: str, most: int | None = None, before: int = 0) -> list[int]:
        """before: how many of the `most` tokens are there already."""
        if most is not None and before + len(text) > most and before + (least := self._least(text)) > most:
            raise too_many(before + least, most, counted=False)
        try:
            with failures_told(UNREADABLE):
                if len(text) < LONG:
                    encoded = inner.encode(text, add_special_tokens=False)
                else:  # `encode` keeps all of Python waiting
                    (encoded,) = inner.encode_batch_fast([text], add_special_tokens=False)
        except TypeError:
            if not isinstance(text, str):
                raise
            raise UserError(f"{ascii(text[:100])} is not Unicode text.", "Give it in UTF-8.") from None
        if most is not None and before + len(encoded) > most:
            raise too_many(before + len(encoded), most, counted=not before)
        if self.control_ids.isdisjoint(encoded.ids):
            return encoded.ids
        # The vocabulary itself makes control tokens of plain text: cut the text inside each of them.
        if len(text) >= LONG:
            (encoded,) = inner.encode_batch([text], add_special_tokens=False)  # with the places of its tokens
        cuts = [0]
        for index, (begin, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if index in self.control_ids and end - begin < 2:
                raise UserError(f"The tokenizer reads {ascii(text[begin:end])} as a control token.", "Leave it out.")
            if index in self.control_ids:
                cuts.append(begin + 1)
        ids: list[int] = []
        for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            ids += self._encode(self._inside if begin else inner, text[begin:end])
        return ids

    def _least(self, text: str) -> int:
        """How many tokens a text certainly has, by its size."""
        return len(text.encode(errors="replace")) // self._most_bytes if self._most_bytes else 0

    @cached_property
    def _most_bytes(self) -> int:
        return most_bytes(self.inner, map(self.token_bytes, self.inner.get_vocab().values()))

    @cached_property
    def _inside(self) -> _Tokenizer:
        """The tokenizer for text that is not the beginning of its prompt."""
        state = json.loads(self.inner.to_str())
        step = state.get("pre_tokenizer") or {}
        steps = [s for s in step.get("pretokenizers", [step]) if s.get("prepend_scheme") == "first"]
        if not steps:
            return self.inner
        for s in steps:  # SentencePiece puts a space before the first word only
            s["prepend_scheme"] = "never"
        inner = _Tokenizer.from_str(json.dumps(state))
        inner.encode_special_tokens = True
        return inner

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids; control tokens are left out, or spelled where `special`."""
        kept = [i for i in ids if special or i not in self.control_ids]
        with failures_told(UNREADABLE):
            return self.inner.decode(kept, skip_special_tokens=False)

    def token_bytes(self, index: int) -> bytes:
        """What one token adds to a text; a token may be a part of a character."""
        spelled = self.inner.id_to_token(index) or ""
        if index in self.control_ids:
            return spelled.encode()
        if (byte := _BYTE.fullmatch(spelled)) and "ByteFallback" in self._decoders:
            return bytes([int(byte[1], 16)])
        if "ByteLevel" in self._decoders and all(character in _BYTES for character in spelled):
            return bytes(_BYTES[character] for character in spelled)
        with failures_told(UNREADABLE):
            return self.inner.decode([index], skip_special_tokens=False).encode()

    @cached_property
    def _decoders(self) -> set[str]:
        step = json.loads(self.inner.to_str()).get("decoder") or {}
        return {str(s.get("type")) for s in [step, *step.get("decoders", [])]}

    @cached_property
    def _flags(self) -> dict[int, tuple[bool, bool]]:
        """Which control tokens take the white space before and behind them."""
        return {i: (t.lstrip, t.rstrip) for i, t in self.inner.get_added_tokens_decoder().items()}
