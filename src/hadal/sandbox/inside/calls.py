"""A program's functions, called from the process of its tests: `answer` on the program's side, `Program` on the tests'.

A request is (number, what, object, ...), its reply (the same number, kind, value). Numbers are random, so that nothing
can be answered before it was asked. What cannot be sent as a plain value stays with the program, such as its functions
and instances of its classes; the tests then have a `Held` of it.
"""

from __future__ import annotations

import builtins
import secrets
from collections.abc import Sequence
from typing import Any

from .plain import TYPES, Gone, Malformed, NotPlain, decode, encode, receive, send


class Lost(BaseException):
    """The program ended, or said what is no reply. No test can catch it as one of the program's exceptions."""


def answer(channel: int, names: dict[str, Any]) -> None:
    """Do what the tests ask for, until they close the channel. What ends a program, such as SystemExit, ends it."""
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    while True:
        try:
            number, what, thing, *given = decode(receive(channel), lambda index, _: objects[index])
        except Gone:
            return
        value: Any = None
        try:
            if what == "names":
                value = names
            elif what == "call":
                value = thing(*given[0], **given[1])
            elif what == "get":
                value = getattr(thing, given[0])
            else:
                setattr(thing, given[0], given[1])
            data = encode((number, "value", value), keep)
        except NotPlain as error:
            data = encode((number, "unfit", str(error)), keep)
        except Exception as error:
            data = _raised(number, error)
        try:
            send(channel, data)
        except NotPlain as error:
            send(channel, encode((number, "unfit", str(error)), keep))
        except Gone:
            return


def _raised(number: int, error: Exception) -> bytes:
    """An exception by the name of the nearest kind that the tests' process has as well."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        return encode((number, "raised", (kinds[0], type(error).__name__, error.args)), _no_objects)
    except NotPlain:
        return encode((number, "raised", (kinds[0], type(error).__name__, (str(error)[:1000],))), _no_objects)


def _no_objects(value: Any) -> int:
    raise NotPlain(f"a {type(value).__name__} cannot be sent")


class Program:
    """The other side of a channel, as the tests have it."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.lost = ""  # why, once it is

    def names(self, wanted: Sequence[str]) -> dict[str, Any]:
        """Those of its names that it has."""
        found = self.ask("names", None)
        if type(found) is not dict or not all(name in wanted for name in found):
            raise self.lose("it has other names than it was asked for")
        return found

    def ask(self, what: str, thing: Held | None, *given: Any) -> Any:
        """Send a request and wait. Raises what the program raised, TypeError for what cannot be sent, and Lost."""
        if self.lost:
            raise Lost(self.lost)
        number = secrets.randbits(62)
        try:
            request = encode((number, what, thing, *given), self.number_of)
        except NotPlain as error:
            raise TypeError(f"a test hands the program something that cannot be sent: {error}") from None
        try:
            send(self.channel, request)
            reply = decode(receive(self.channel), self.held)
        except NotPlain as error:
            raise TypeError(f"a test hands the program something that cannot be sent: {error}") from None
        except Gone:
            raise self.lose("the program ended in its tests") from None
        except Malformed as error:
            raise self.lose(f"the program's reply is not valid: {error}") from None
        if type(reply) is not tuple or len(reply) != 3 or type(reply[0]) is not int or reply[0] != number:
            raise self.lose("the program's reply is not to what it was asked")
        kind, value = reply[1:]
        if kind == "value":
            return value
        if kind == "unfit":
            raise TypeError(f"the program's value cannot be sent: {str(value)[:200]}")
        if kind == "raised":
            raise _exception(value) or self.lose("the program's exception is not valid")
        raise self.lose("the program's reply is of an unknown kind")

    def lose(self, why: str) -> Lost:
        self.lost = why
        return Lost(why)

    def held(self, index: int, kind: str) -> Held:
        """What stands here for an object of the program's."""
        return Held(self, index, kind)

    def number_of(self, value: Any) -> int:
        if type(value) is Held and value._program is self:
            return value._index
        raise NotPlain(f"a {type(value).__name__} cannot be sent")


class Held:
    """Something that stays with the program. It can be called, handed back, and asked for its attributes, by which
    data sets build trees; it is equal to nothing but itself, and what it does is never done here."""

    __slots__ = ("_index", "_kind", "_program")

    def __init__(self, program: Program, index: int, kind: str) -> None:
        for name, value in (("_program", program), ("_index", index), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._program.ask("call", self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("set", self, name, value)

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        raise TypeError(f"the program gave a {self._kind}, which tests cannot compare: plain values alone are sent")

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<a {self._kind} of the program>"


def _exception(value: Any) -> Exception | None:
    """The exception that a reply stands for, of a kind that Python has."""
    if type(value) is not tuple or [type(part) for part in value] != [str, str, tuple]:
        return None
    name, own, arguments = value
    kind = getattr(builtins, name, None)
    if name in TYPES or not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        made = kind(*arguments)
    except (TypeError, ValueError):  # one that wants arguments of certain types
        made = None
    return made if isinstance(made, Exception) else RuntimeError(f"{own}: {arguments}"[:300])
