"""Calls of tools in the shape that a chat template prints: found out by trying it on a call that no program knows.

OpenAI's form gives a call's arguments as JSON text. Most templates write `arguments | tojson` and want the object,
DeepSeek's join the text, some print calls only where the content is null, and a template that knows no tools prints
an answer of no words. None of them complains: what comes out is quoted text, or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hadal.errors import UserError

NAME, KEY, VALUE, TOOL, SAID = (f"hadal-{word}-7f3a9c" for word in ("name", "key", "value", "tool", "said"))
"""Words that stand in no template."""
Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, Sequence[Mapping[str, Any]] | None], str]
"""The text that a template makes of messages and tools; UserError where it makes none."""
ASKED = {"role": "user", "content": "a"}
PROBED_TOOL = {
    "type": "function",
    "function": {"name": TOOL, "description": TOOL, "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class Shape:
    """How a template wants calls: arguments as objects or as JSON text, and the content of a message without any."""

    objects: bool
    silence: str | None

    def of(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message with its calls in this shape."""
        calls = []
        for call in message["tool_calls"]:
            function = call.get("function", call)
            arguments = function.get("arguments") or {}
            if self.objects:
                arguments = _object(arguments, function["name"])
            elif not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            shaped = {**function, "arguments": arguments}
            calls.append({**call, "function": shaped} if "function" in call else shaped)
        return {**message, "content": message.get("content") or self.silence, "tool_calls": calls}


SHAPES = [Shape(objects, silence) for objects in (True, False) for silence in ("", None)]


class CallShapes:
    """What a template wants, tried once for each kind of message."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._found: dict[tuple[bool, bool], Shape | None] = {}

    def shaped(self, messages: Messages, tools: bool) -> list[dict[str, Any]]:
        """Messages with their calls as the template prints them; UserError where it would leave out calls or tools."""
        if tools and not self._shows_tools:
            if self._shape(False, False) is None:
                raise _knows_none()
            raise UserError(
                "The chat template does not show tools to the model.", "Describe them in the system message instead."
            )
        out = []
        for message in messages:
            if not message.get("tool_calls"):  # empty, the key alone makes a call of an answer in R1's release
                out.append({key: value for key, value in message.items() if key != "tool_calls"})
                continue
            shape = self._shape(bool(message.get("content")), tools)
            if shape is None and self._shape(False, tools) is not None:
                raise UserError("The chat template drops calls that come with content.", "Leave out the content.")
            if shape is None:
                raise _knows_none()
            out.append(shape.of(message))
        return out

    @cached_property
    def _shows_tools(self) -> bool:
        return TOOL in self._try([ASKED], True)

    def _shape(self, said: bool, tools: bool) -> Shape | None:
        """The shape in which a call is printed whole, in a message that says something besides or nothing."""
        if (said, tools) not in self._found:
            self._found[said, tools] = next((s for s in SHAPES if self._prints(s, said, tools)), None)
        return self._found[said, tools]

    def _prints(self, shape: Shape, said: bool, tools: bool) -> bool:
        function = {"name": NAME, "arguments": {KEY: VALUE}}
        call = {"id": "abcdefghi", "type": "function", "function": function}
        asked = {"role": "assistant", "content": SAID if said else None, "tool_calls": [call]}
        told = {"role": "tool", "tool_call_id": "abcdefghi", "name": NAME, "content": "b"}
        text = self._try([ASKED, shape.of(asked), told], tools)
        called = text.partition(NAME)[2]
        quoted = f"'{KEY}'" in called or f'\\"{KEY}' in called  # Python's way to write an object, or text within text
        silent = "None" not in text or "None" in self._try([ASKED, {"role": "assistant", "content": "b"}, ASKED], tools)
        return KEY in called and VALUE in called and (SAID in text or not said) and silent and not quoted

    def _try(self, messages: Messages, tools: bool) -> str:
        try:
            return self._render(messages, [PROBED_TOOL] if tools else None)
        except UserError:
            return ""


def called(messages: Messages) -> Iterator[str]:
    """The names of all functions that are called."""
    for message in messages:
        for call in message.get("tool_calls") or []:
            yield call.get("function", call)["name"]


def _knows_none() -> UserError:
    return UserError("The chat template does not support tools.", "Leave them out, or choose a model that does.")


def _object(arguments: Any, name: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"The arguments of a call of {name} are {ascii(arguments)[:80]}.", "Give a JSON object, or one as text."
        )
    return value
