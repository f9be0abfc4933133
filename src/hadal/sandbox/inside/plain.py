"""Plain values as bytes: all that a program and the process of its tests ever say to each other.

A value is None, a bool, int, float, complex, str or bytes, or a list, tuple, dict, set, frozenset or iterator of such,
or one of these types itself. What arrives is of exactly these types, whatever was sent: a subclass arrives as what it
is a subclass of. Anything else stays where it is, and a number stands for it. Who reads trusts nothing: sizes, counts,
depth and every byte are checked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LARGEST = 8 << 20  # bytes of a message
DEEPEST = 100  # containers within each other

TYPES = {each.__name__: each for each in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
_SIZE, _FLOAT, _COMPLEX = struct.Struct("<I"), struct.Struct("<d"), struct.Struct("<dd")


Keep = Callable[[Any], int]
Kept = Callable[[int, str], Any]


class NotPlain(Exception):
    """A value that cannot be sent; the message says why."""


class Malformed(Exception):
    """Bytes that are no message."""


class Gone(Exception):
    """The other side has closed the channel."""


def encode(value: Any, keep: Keep) -> bytes:
    """A value as bytes; `keep` gives the number that stands for what is not plain. Raises NotPlain."""
    out = bytearray()
    _put(out, value, keep, 0)
    return bytes(out)


def decode(data: bytes, kept: Kept) -> Any:
    """The value in bytes; `kept` gives what stands here for a number, and the name of its type. Raises Malformed."""
    reader = _Reader(data, kept)
    try:
        value = reader.value(0)
    except (TypeError, ValueError, IndexError, struct.error) as error:  # not hashable, no UTF-8, cut short
        raise Malformed(str(error)) from None
    if reader.at != len(data):
        raise Malformed("there is more than one value")
    return value


def send(fd: int, data: bytes) -> None:
    """Write a message whole. Raises Gone."""
    if len(data) > LARGEST:
        raise NotPlain(f"it takes more than {LARGEST} bytes")
    left = memoryview(_SIZE.pack(len(data)) + data)
    try:
        while left:
            left = left[os.write(fd, left) :]
    except OSError as error:
        raise Gone(str(error)) from None


def receive(fd: int) -> bytes:
    """Read a message whole. Raises Gone, Malformed."""
    (size,) = _SIZE.unpack(_exactly(fd, _SIZE.size))
    if size > LARGEST:
        raise Malformed(f"a message of {size} bytes")
    return _exactly(fd, size)


def _exactly(fd: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        try:
            part = os.read(fd, count - len(data))
        except OSError as error:
            raise Gone(str(error)) from None
        if not part:
            raise Gone("it was closed")
        data += part
    return bytes(data)


def _put(out: bytearray, value: Any, keep: Keep, depth: int) -> None:
    if depth > DEEPEST:
        raise NotPlain(f"it is nested more than {DEEPEST} deep")
    if len(out) > LARGEST:
        raise NotPlain(f"it takes more than {LARGEST} bytes")
    put = _PUT.get(type(value))
    if put is None:
        kinds = [kind for kind in type(value).__mro__ if kind in _PUT]  # of a subclass, what it is a subclass of
        put = _PUT[kinds[0]] if kinds else _put_iterator if hasattr(type(value), "__next__") else _put_kept
    put(out, value, keep, depth)


def _put_int(out: bytearray, value: int, keep: Keep, depth: int) -> None:
    number = int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True)
    out += b"i" + _SIZE.pack(len(number)) + number


def _put_float(out: bytearray, value: float, keep: Keep, depth: int) -> None:
    out += b"f" + _FLOAT.pack(value)


def _put_complex(out: bytearray, value: complex, keep: Keep, depth: int) -> None:
    out += b"c" + _COMPLEX.pack(value.real, value.imag)


def _put_str(out: bytearray, value: str, keep: Keep, depth: int) -> None:
    text = str.encode(value, "utf-8", "surrogatepass")
    out += b"u" + _SIZE.pack(len(text)) + text


def _put_bytes(out: bytearray, value: bytes, keep: Keep, depth: int) -> None:
    out += b"b" + _SIZE.pack(len(value)) + bytes(value)


def _put_dict(out: bytearray, value: dict[Any, Any], keep: Keep, depth: int) -> None:
    _put_all(out, b"d", [part for pair in dict.items(value) for part in pair], keep, depth)


def _put_iterator(out: bytearray, value: Iterator[Any], keep: Keep, depth: int) -> None:
    _put_all(out, b"n", value, keep, depth)


def _put_kept(out: bytearray, value: Any, keep: Keep, depth: int) -> None:
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        out += b"k"
    else:
        out += b"r" + _SIZE.pack(keep(value))
        value = type(value)
    _put_str(out, value.__name__[:100], keep, depth)


def _put_all(out: bytearray, tag: bytes, items: Iterable[Any], keep: Keep, depth: int) -> None:
    out += tag
    at, count = len(out), 0
    out += bytes(_SIZE.size)
    for item in items:
        _put(out, item, keep, depth + 1)
        count += 1
    _SIZE.pack_into(out, at, count)


def _each(tag: bytes, kind: Any) -> Callable[[bytearray, Any, Keep, int], None]:
    return lambda out, value, keep, depth: _put_all(out, tag, list(kind.__iter__(value)), keep, depth)


_PUT: dict[type, Callable[[bytearray, Any, Keep, int], None]] = {
    type(None): lambda out, *_: out.extend(b"N"),
    bool: lambda out, value, *_: out.extend(b"T" if value else b"F"),
    int: _put_int, float: _put_float, complex: _put_complex, str: _put_str, bytes: _put_bytes, dict: _put_dict,
    list: _each(b"l", list), tuple: _each(b"t", tuple), set: _each(b"s", set), frozenset: _each(b"z", frozenset),
}  # fmt: skip


class _Reader:
    def __init__(self, data: bytes, kept: Kept) -> None:
        self.data, self.kept, self.at = data, kept, 0

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise Malformed("nested too deep")
        tag = self.take(1)
        if (make := _MAKERS.get(tag)) is not None:
            count = self.size()
            if count > len(self.data) - self.at:
                raise Malformed("more is announced than there is")
            return make([self.value(depth + 1) for _ in range(count)])
        if (get := _GET.get(tag)) is None:
            raise Malformed("no value")
        return get(self)

    def size(self) -> int:
        size: int = _SIZE.unpack(self.take(_SIZE.size))[0]
        return size

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Malformed("cut short")
        self.at, taken = end, self.data[self.at : end]
        return taken

    def text(self) -> str:
        if self.take(1) != b"u":
            raise Malformed("no name")
        return self.take(self.size()).decode("utf-8", "surrogatepass")

    def type(self) -> type:
        if (name := self.text()) not in TYPES:
            raise Malformed("a type that is not one of these")
        return TYPES[name]


_GET: dict[bytes, Callable[[_Reader], Any]] = {
    b"N": lambda reader: None,
    b"T": lambda reader: True,
    b"F": lambda reader: False,
    b"i": lambda reader: int.from_bytes(reader.take(reader.size()), "little", signed=True),
    b"f": lambda reader: _FLOAT.unpack(reader.take(_FLOAT.size))[0],
    b"c": lambda reader: complex(*_COMPLEX.unpack(reader.take(_COMPLEX.size))),
    b"u": lambda reader: reader.take(reader.size()).decode("utf-8", "surrogatepass"),
    b"b": lambda reader: reader.take(reader.size()),
    b"k": _Reader.type,
    b"r": lambda reader: reader.kept(reader.size(), reader.text()),
}


def _set(kind: type) -> Callable[[list[Any]], Any]:
    def make(items: list[Any]) -> Any:
        if len(made := kind(items)) != len(items):
            raise Malformed("a set that holds something twice")
        return made

    return make


def _dict(items: list[Any]) -> dict[Any, Any]:
    made = dict(zip(items[::2], items[1::2], strict=True))
    if 2 * len(made) != len(items):
        raise Malformed("a dictionary that holds a key twice")
    return made


_MAKERS: dict[bytes, Callable[[list[Any]], Any]] = {
    b"l": list, b"t": tuple, b"s": _set(set), b"z": _set(frozenset), b"d": _dict, b"n": iter
}  # fmt: skip
