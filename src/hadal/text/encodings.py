"""The built-in chat forms, put together from ids: hadal's own, and those of DeepSeek V3, R1 and V3.1.

Each function returns the pieces of a prompt: text, and control tokens as `Token`. The same conversation comes out
as by the released templates, except that a message's text never becomes control. Sources: the releases' chat
templates and DeepSeek-V3.1's model card.

Messages are those of the OpenAI API: `role` (system, user, assistant, tool), `content`, and `tool_calls` of an
assistant, each with `function.name` and `function.arguments` (JSON as text, or an object).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NewType

from hadal.errors import UserError

Token = NewType("Token", bytes)
"""The spelling of a control token; bytes, so that no text is taken for one."""

Message = Mapping[str, Any]


def token(spelling: str) -> Token:
    return Token(spelling.encode())


BOS, EOS = token("<｜begin▁of▁sentence｜>"), token("<｜end▁of▁sentence｜>")
USER, ASSISTANT = token("<｜User｜>"), token("<｜Assistant｜>")
THINK, END_THINK = token("<think>"), token("</think>")
CALLS, END_CALLS = token("<｜tool▁calls▁begin｜>"), token("<｜tool▁calls▁end｜>")
CALL, END_CALL, SEP = token("<｜tool▁call▁begin｜>"), token("<｜tool▁call▁end｜>"), token("<｜tool▁sep｜>")
OUTPUTS, END_OUTPUTS = token("<｜tool▁outputs▁begin｜>"), token("<｜tool▁outputs▁end｜>")
OUTPUT, END_OUTPUT = token("<｜tool▁output▁begin｜>"), token("<｜tool▁output▁end｜>")

Parts = list[str | Token]


def after_thought(content: str) -> str:
    """What of an earlier answer stays in the history: the text after the last `</think>`."""
    return content.rpartition("</think>")[2]


def own(messages: Sequence[Message], thinking: bool | None, tools: Sequence[Any] | None) -> Parts:
    """The form that models grown by hadal know. Without `thinking` the first token is left to the model."""
    if tools or any(message.get("tool_calls") for message in messages):
        raise UserError("A model grown by hadal does not support tools.", "Leave them out.")
    parts: Parts = [BOS, *(content(m) for m in messages if m["role"] == "system")]
    for message in messages:
        match message["role"]:
            case "system":
                pass
            case "user":
                parts += [USER, content(message)]
            case "assistant":
                parts += [ASSISTANT, after_thought(content(message)), EOS]
            case role:
                raise unknown(role)
    return [*parts, ASSISTANT, THINK] if thinking else [*parts, ASSISTANT]


def v3(messages: Sequence[Message], thinking: bool | None, tools: Sequence[Any] | None) -> Parts:
    """DeepSeek-V3 of December 2024, which has no thoughts of its own."""
    if thinking:
        raise UserError("DeepSeek-V3 has no thinking form.", "Name r1 or v3.1.")
    return _r1_turns(messages, tools, [])


def r1(messages: Sequence[Message], thinking: bool | None, tools: Sequence[Any] | None) -> Parts:
    """DeepSeek-R1: every answer begins with an opened thought.

    R1 has no form without thinking; `thinking=False` gives it a thought that is opened and closed at once.
    """
    return _r1_turns(messages, tools, [THINK, "\n\n", END_THINK, "\n\n"] if thinking is False else [THINK, "\n"])


def v3_1(messages: Sequence[Message], thinking: bool | None, tools: Sequence[Any] | None) -> Parts:
    """DeepSeek-V3.1, thinking or not (the default); a call of tools always stands behind a closed thought."""
    parts: Parts = [BOS, "\n\n".join(content(m) for m in messages if m["role"] == "system")]
    if tools:
        parts += ["\n\n", *_v3_1_tools(tools)]
    asked = False  # whether the turn is the assistant's, and not yet opened
    for message in messages:
        match message["role"]:
            case "system":
                pass
            case "user":
                parts += [USER, content(message)]
                asked = True
            case "assistant":
                parts += [ASSISTANT, END_THINK] if asked else []
                parts += [after_thought(content(message)), *_calls(message, _v3_1_call, ""), EOS]
                asked = False
            case "tool":
                parts += [OUTPUT, content(message), END_OUTPUT]
                asked = False
            case role:
                raise unknown(role)
    return [*parts, ASSISTANT, THINK if thinking else END_THINK] if asked else parts


ENCODINGS: dict[str, Callable[[Sequence[Message], bool | None, Sequence[Any] | None], Parts]] = {
    "own": own, "v3": v3, "r1": r1, "v3.1": v3_1,
}  # fmt: skip


def _r1_turns(messages: Sequence[Message], tools: Sequence[Any] | None, opening: Parts) -> Parts:
    """V3's and R1's conversation. Behind the outputs of tools the model goes on without a new turn."""
    parts: Parts = [BOS, "\n\n".join(content(m) for m in messages if m["role"] == "system")]
    if tools:
        parts += ["\n\n", *_r1_tools(tools)]
    outputs = 0  # of tools, since the last assistant's turn
    for message in messages:
        if outputs and message["role"] not in ("tool", "system"):
            parts.append(END_OUTPUTS)
        match message["role"]:
            case "system":
                continue
            case "user":
                parts += [USER, content(message)]
            case "assistant":
                parts += [] if outputs else [ASSISTANT]
                parts += [after_thought(content(message)), *_calls(message, _r1_call, "\n"), EOS]
            case "tool":
                parts += ["\n" if outputs else OUTPUTS, OUTPUT, content(message), END_OUTPUT]
            case role:
                raise unknown(role)
        outputs = outputs + 1 if message["role"] == "tool" else 0
    return [*parts, END_OUTPUTS] if outputs else [*parts, ASSISTANT, *opening]


def _calls(message: Message, one: Callable[[Message], Parts], between: str) -> Parts:
    parts: Parts = []
    for call in message.get("tool_calls") or []:
        parts += [between if parts else CALLS, *one(call)]
    return [*parts, END_CALLS] if parts else []


def _r1_call(call: Message) -> Parts:
    name, arguments = _function(call)
    return [CALL, "function", SEP, f"{name}\n```json\n{arguments}\n```", END_CALL]


def _v3_1_call(call: Message) -> Parts:
    name, arguments = _function(call)
    return [CALL, name, SEP, arguments, END_CALL]


def _r1_tools(tools: Sequence[Any]) -> Parts:
    """R1's release says nothing of tools in the system prompt; the form of a call is that of its template."""
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return [
        f"## Tools\n{described}\n\nCall them in this form, with arguments that are valid JSON:\n",
        CALLS, CALL, "function", SEP, 'NAME\n```json\n{"argument": "value"}\n```', END_CALL, END_CALLS,
    ]  # fmt: skip


def _v3_1_tools(tools: Sequence[Any]) -> Parts:
    """The section of V3.1's model card, word for word, as the model was trained on it."""
    described = ""
    for tool in tools:
        function = tool.get("function", tool)
        parameters = json.dumps(function.get("parameters", {}), ensure_ascii=False)
        description = function.get("description", "")
        described += f"\n### {function['name']}\nDescription: {description}\n\nParameters: {parameters}\n"
    return [
        f"## Tools\nYou have access to the following tools:\n{described}\n"
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n",
        CALLS, CALL, "tool_call_name", SEP, "tool_call_arguments", END_CALL, "{additional_tool_calls}", END_CALLS,
        "\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n",
    ]  # fmt: skip


def _function(call: Message) -> tuple[str, str]:
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    return function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def content(message: Message) -> str:
    """A message's text; the text parts of one that is given in parts."""
    value = message.get("content")
    if isinstance(value, list):
        return "".join(part.get("text", "") for part in value)
    return value or ""


def unknown(role: str) -> UserError:
    return UserError(f"A message has the role {role!r}.", "Known: system, user, assistant and tool.")
