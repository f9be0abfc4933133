"""Calls of tools in the shape that each template prints, or refused: never as quoted text, never as an empty answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from real_models import BOTH, QWEN, SMOLLM2, real_model
from tokenizer_families import QWEN3, R1, write_tokenizer

from hadal.errors import UserError
from hadal.tasks.words import build_tokenizer
from hadal.text.tokenizer import Tokenizer
from hadal.train.conversations import Encoder, read_conversations

ARGUMENTS = {"city": "Paris", "days": [1, 2], "unit": None}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]

# What releases print of a call, in the ways in which they differ.
LISTED = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
TURN = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
HEAD = LISTED + TURN
TAIL = "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CALL = "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function.name + ': ' }}"
WANTS_OBJECT = HEAD + "{{ m.content or '' }}" + CALL + "{{ c.function.arguments | tojson }}{% endfor %}" + TAIL
WANTS_TEXT = HEAD + "{{ m.content or '' }}" + CALL + "{{ c.function.arguments }}{% endfor %}" + TAIL
BY_KEY = (
    HEAD + "{{ m.content or '' }}" + CALL + "{% for k, v in c.function.arguments | items %}{{ k ~ '=' ~ (v | tojson) }}"
    "{% endfor %}{% endfor %}" + TAIL
)
ONLY_WITHOUT_CONTENT = (
    HEAD + "{% if m.content is none %}" + CALL + "{{ c.function.arguments + '' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}" + TAIL
)
FIRST_ONLY = (
    HEAD + "{{ m.content or '' }}{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    "{{ f.name ~ (f.arguments | tojson) }}{% endif %}" + TAIL
)
KNOWS_NONE = TURN + "{{ m.content }}" + TAIL
PRESENCE = (  # as R1's release: what has the key is taken for calls, also where it is empty
    HEAD + "{% if 'tool_calls' in m %}" + CALL + "{{ c.function.arguments | tojson }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}" + TAIL
)


def conversation(arguments: Any, content: str | None = "", calls: int = 1) -> list[dict[str, Any]]:
    each = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": f"weather{i or ''}", "arguments": arguments}}
        for i in range(calls)
    ]
    return [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": content, "tool_calls": each},
        {"role": "tool", "content": "no", "tool_call_id": "abcdefgh0"},
    ]


def tokenizer(template: str, folder: Path) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(folder, "qwen3", template))


@pytest.mark.parametrize("template", [WANTS_OBJECT, BY_KEY, QWEN3])
@pytest.mark.parametrize("content", ["", None, "I look."])
def test_arguments_given_as_json_text_are_what_transformers_makes_of_the_object(
    template: str, content: str | None, tmp_path: Path
) -> None:
    ours = tokenizer(template, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for tools in (None, TOOLS):
        expected = theirs.apply_chat_template(
            conversation(ARGUMENTS, content), tools=tools, add_generation_prompt=True, return_dict=False
        )
        assert ours.chat(conversation(json.dumps(ARGUMENTS), content), tools=tools) == expected
        assert ours.chat(conversation(ARGUMENTS, content), tools=tools) == expected


@pytest.mark.parametrize("content", ["", None, "I look."])
def test_a_template_that_joins_text_gets_text(content: str | None, tmp_path: Path) -> None:
    for number, template in enumerate([WANTS_TEXT, R1]):
        ours = tokenizer(template, tmp_path / str(number))
        for given in (json.dumps(ARGUMENTS), ARGUMENTS):
            text = ours.decode(ours.chat(conversation(given, content)), special=True)
            assert '{"city": "Paris", "days": [1, 2], "unit": null}' in text


def test_a_template_that_prints_calls_of_a_silent_message_alone_gets_one(tmp_path: Path) -> None:
    ours = tokenizer(ONLY_WITHOUT_CONTENT, tmp_path)
    for content in ("", None):
        text = ours.decode(ours.chat(conversation(json.dumps(ARGUMENTS), content)), special=True)
        assert '<tool_call>weather: {"city": "Paris"' in text
    with pytest.raises(UserError, match="come with content") as error:
        ours.chat(conversation(json.dumps(ARGUMENTS), "I look."))
    assert error.value.remedy


@pytest.mark.parametrize("template", [WANTS_OBJECT, WANTS_TEXT, BY_KEY, QWEN3, FIRST_ONLY])
@pytest.mark.parametrize("empty", ["", None, {}, "{}"])
def test_a_call_without_arguments_has_an_empty_object(template: str, empty: Any, tmp_path: Path) -> None:
    ours = tokenizer(template, tmp_path)
    assert ours.chat(conversation(empty)) == ours.chat(conversation({}))


def test_a_template_that_knows_no_tools_refuses_them_in_one_line(tmp_path: Path) -> None:
    ours = tokenizer(KNOWS_NONE, tmp_path)
    with pytest.raises(UserError, match="does not support tools"):
        ours.chat(conversation("{}"))
    with pytest.raises(UserError, match="does not support tools"):
        ours.chat([{"role": "user", "content": "Rain?"}], tools=TOOLS)
    own = build_tokenizer([])
    with pytest.raises(UserError, match="does not support tools"):
        own.chat(conversation("{}")[:2])


def test_a_template_that_shows_calls_and_no_tools_refuses_those(tmp_path: Path) -> None:
    ours = tokenizer(R1, tmp_path)
    ours.chat(conversation("{}"))
    with pytest.raises(UserError, match="does not show tools") as error:
        ours.chat(conversation("{}"), tools=TOOLS)
    assert "system message" in error.value.remedy


def test_calls_that_a_template_leaves_out_are_refused_by_name(tmp_path: Path) -> None:
    ours = tokenizer(FIRST_ONLY, tmp_path)
    ours.chat(conversation("{}"))
    with pytest.raises(UserError, match="leaves out the call of weather1"):
        ours.chat(conversation("{}", calls=2))


def test_a_message_whose_calls_are_none_is_an_ordinary_answer(tmp_path: Path) -> None:
    ours = tokenizer(PRESENCE, tmp_path)
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for nothing in (None, []):
        assert ours.chat([plain[0], {**plain[1], "tool_calls": nothing}]) == ours.chat(plain)


@pytest.mark.parametrize("arguments", ["{nonsense", "[1]", '"Paris"', "5", 5, "[" * 100_000])
def test_arguments_that_are_no_object_are_named(arguments: Any, tmp_path: Path) -> None:
    ours = tokenizer(WANTS_OBJECT, tmp_path)
    with pytest.raises(UserError, match="weather") as error:
        ours.chat(conversation(arguments))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


# Conversations to learn from


def read(tok: Tokenizer, folder: Path, line: dict[str, Any]) -> list[str]:
    path = folder / "data.jsonl"
    path.write_text(json.dumps(line) + "\n")
    kept, _ = read_conversations(path, tok, 4096)
    return [tok.decode(c.ids[a:b], special=True) for c in kept for a, b in c.spans]


def test_what_is_learnt_of_a_call_is_the_form_that_inference_reads(tmp_path: Path) -> None:
    tok = tokenizer(QWEN3, tmp_path)
    line = {"messages": conversation(json.dumps(ARGUMENTS), None)[:2], "tools": TOOLS}
    (text,) = read(tok, tmp_path, line)
    called = text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
    assert json.loads(called) == {"name": "weather", "arguments": ARGUMENTS}


def test_calls_that_a_form_cannot_tell_are_no_empty_answers_to_learn(tmp_path: Path) -> None:
    asked = conversation("{}")
    for tok in (tokenizer(KNOWS_NONE, tmp_path), build_tokenizer([])):
        for messages in (asked[:2], [*asked, {"role": "assistant", "content": "No."}]):
            with pytest.raises(UserError, match=r"data.jsonl, line 1: .*does not support tools"):
                read(tok, tmp_path, {"messages": messages})


def test_the_older_form_of_a_call_is_named(tmp_path: Path) -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    with pytest.raises(UserError, match=r"message 2 has function_call") as error:
        read(tokenizer(QWEN3, tmp_path), tmp_path, {"messages": [{"role": "user", "content": "Rain?"}, old]})
    assert "tool_calls" in error.value.remedy


# Released checkpoints


@pytest.mark.real
@pytest.mark.parametrize("content", ["", None, "I look."])
def test_a_released_template_gets_its_calls(content: str | None) -> None:
    folder = real_model(QWEN)
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(
        conversation(ARGUMENTS, content), tools=TOOLS, add_generation_prompt=True, return_dict=False
    )
    assert ours.chat(conversation(json.dumps(ARGUMENTS), content), tools=TOOLS) == expected
    (learnt,) = Encoder(ours).encode(conversation(json.dumps(ARGUMENTS), "")[:2], TOOLS)
    text = ours.decode(learnt.ids[slice(*learnt.spans[0])], special=True)
    assert json.loads(text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0])["arguments"] == ARGUMENTS


@pytest.mark.real
def test_a_released_template_without_tools_says_so() -> None:
    ours = Tokenizer.load(real_model(SMOLLM2))
    with pytest.raises(UserError, match="does not support tools"):
        Encoder(ours).encode(conversation("{}", "")[:2])


@pytest.mark.real
@pytest.mark.parametrize("name", BOTH)
def test_plain_conversations_are_those_of_transformers(name: str) -> None:
    folder = real_model(name)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": None}]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [messages[0], {"role": "assistant", "content": "b"}, messages[0]]
    expected = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert Tokenizer.load(folder).chat([*messages, messages[0]]) == expected
