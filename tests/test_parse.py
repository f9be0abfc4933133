"""Replies taken apart: whole, broken off, and in pieces cut anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hadal.text.parse import TAGS, Delta, Parsed, ReplyParser, TokenParser, ToolCall, parse_response
from hadal.text.tokenizer import Tokenizer

R1_CALLS = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>rain\n```json\n{"in": "Paris"}\n```'
    "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V3_1_CALLS = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>rain<｜tool▁sep｜>{"in": "Paris"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
BOTH = (ToolCall("rain", '{"in": "Paris"}'), ToolCall("time", "{}"))

CASES = [
    ("", Parsed(None, "", True)),
    ("An answer.", Parsed(None, "An answer.", True)),
    ("<think>why</think>so", Parsed("why", "so", True)),
    ("<think>\nwhy\n</think>\n\nso\n", Parsed("why", "so", True)),
    ("\n <think>why</think>so", Parsed("why", "so", True)),
    ("<think>why", Parsed("why", "", False)),
    ("<think>", Parsed("", "", False)),
    ("<think></think>so", Parsed("", "so", True)),
    ("<think>\n\n</think>\n\nso", Parsed("", "so", True)),
    ("why</think>so", Parsed("why", "so", True)),  # the prompt had opened the thought
    ("</think>so", Parsed("", "so", True)),
    ("<think>a</think>b</think>c", Parsed("a", "b</think>c", True)),  # an answer may speak of the tag
    ("<think>a</think>Write `</think>`.\n</think>", Parsed("a", "Write `</think>`.\n</think>", True)),
    ("a</think>b</think>c", Parsed("a", "b</think>c", True)),
    ("<think>a <think> b</think>c", Parsed("a <think> b", "c", True)),
    ("so <think>is it", Parsed(None, "so <think>is it", True)),
    ("so <thi", Parsed(None, "so <thi", True)),
    ("<think>why</thi", Parsed("why</thi", "", False)),
    ("<thinking>no</thinking>", Parsed(None, "<thinking>no</thinking>", True)),
    # in fenced code a tag is text
    ("Write:\n```\n<think>x</think>\n```\ndone", Parsed(None, "Write:\n```\n<think>x</think>\n```\ndone", True)),
    ("<think>\n```\n</think>\n```\nyes</think>so", Parsed("```\n</think>\n```\nyes", "so", True)),
    ("<think>a</think>so\n~~~html\n</think>\n~~~", Parsed("a", "so\n~~~html\n</think>\n~~~", True)),
    ("<think>\n````\n```\n</think>\n````\na</think>so", Parsed("````\n```\n</think>\n````\na", "so", True)),
    ("<think>\n```\ncode\n```</think>so", Parsed("```\ncode\n```", "so", True)),
    ("<think>`</think>`", Parsed("`", "`", True)),  # code within a line is no fence
    ("<think>a ```</think>so", Parsed("a ```", "so", True)),
    # a fence that the thought never closed does not swallow the answer
    ("<think>\n```\ncode</think>so", Parsed("```\ncode", "so", True)),
    ("<think>\n```\ncode</think>so\n```py\n1\n```", Parsed("```\ncode", "so\n```py\n1\n```", True)),
    # tool calls
    (R1_CALLS, Parsed(None, "", True, BOTH)),
    (V3_1_CALLS, Parsed(None, "", True, BOTH)),
    ("<think>why</think>I look." + R1_CALLS, Parsed("why", "I look.", True, BOTH)),
    ("</think>I look." + V3_1_CALLS, Parsed("", "I look.", True, BOTH)),
    ("<think>why" + V3_1_CALLS, Parsed("why", "", True, BOTH)),
    ("```\n" + V3_1_CALLS + "\n```", Parsed(None, "```\n" + V3_1_CALLS + "\n```", True)),
    (V3_1_CALLS[:-45], Parsed(None, "", True, (BOTH[0],))),
    (V3_1_CALLS.partition(' "Paris')[0], Parsed(None, "", True, (ToolCall("rain", '{"in":', complete=False),))),
    (R1_CALLS.partition(' "Paris')[0], Parsed(None, "", True, (ToolCall("rain", '{"in":', complete=False),))),
    (R1_CALLS.partition("in\n")[0], Parsed(None, "", True)),
    (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>lost<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        Parsed(None, "lost", True),
    ),
    ("no call: <｜tool▁sep｜>", Parsed(None, "no call: <｜tool▁sep｜>", True)),
]


def together(parser: ReplyParser, batches: Iterable[list[Delta]]) -> Parsed:
    """What someone has who follows the deltas."""
    thought: str | None = None
    answer = ""
    calls: list[ToolCall] = []
    for batch in batches:
        for delta in batch:
            if delta.kind == "thought":
                thought = (thought or "") + delta.text
            elif delta.kind == "answer":
                answer += delta.text
            elif delta.kind == "moved":
                thought, answer, calls = parser.parsed.thought, "", []
            else:
                assert delta.call is not None
                calls.append(delta.call)
    parsed = parser.parsed
    # An empty thought has no delta.
    return Parsed(
        parsed.thought if thought is None and not parsed.thought else thought, answer, parsed.closed, tuple(calls)
    )


def in_pieces(text: str, cuts: list[int], thinking: bool | None = None) -> Parsed:
    parser = ReplyParser(thinking)
    ends = [*sorted(c % (len(text) + 1) for c in cuts), len(text)]
    begins = [0, *ends]

    def batches() -> Iterable[list[Delta]]:
        for begin, end in zip(begins, ends, strict=False):
            yield parser.feed(text[begin:end])
        yield parser.finish()

    result = together(parser, batches())
    assert result == parser.parsed
    return result


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_replies_are_taken_apart(text: str, expected: Parsed) -> None:
    assert parse_response(text) == expected


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_the_same_comes_of_pieces_cut_anywhere(text: str, expected: Parsed) -> None:
    assert in_pieces(text, list(range(len(text)))) == expected
    rng = random.Random(0)
    for _ in range(30):
        assert in_pieces(text, [rng.randrange(len(text) + 1) for _ in range(4)]) == expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*TAGS, "a", " ", "\n", "```", "\n```\n", "~~~", "<", "</", "function", "x\n```json\n{}"])
    ),
    st.lists(st.integers(0, 400), max_size=12),
    st.sampled_from([True, False, None]),
)
def test_any_text_gives_the_same_in_any_pieces(parts: list[str], cuts: list[int], thinking: bool | None) -> None:
    text = "".join(parts)
    assert in_pieces(text, cuts, thinking) == parse_response(text, thinking)


PIECES = st.lists(st.sampled_from(["</think>", "a", " b", "\n", "<thi", "c.", "`x", "\n```\n", "~~~"]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", " b", "\n", "<thi", "c.", "`x"])), PIECES, st.booleans(), st.integers(0, 400))
@example([], [], True, 0)
def test_what_follows_the_first_end_of_a_thought_is_answer_as_it_stands(
    thought: list[str], answer: list[str], spelled: bool, cut: int
) -> None:
    text = "<think>" * spelled + "".join(thought) + "</think>" + "".join(answer)
    expected = Parsed("".join(thought).strip(), "".join(answer).strip(), True)
    assert in_pieces(text, [cut], None if spelled else True) == expected
    assert in_pieces(text, [cut]) == expected  # a reader who cannot know finds the same


@settings(max_examples=300, deadline=None)
@given(PIECES, st.integers(0, 400))
def test_a_reply_whose_thought_was_not_opened_is_answer_as_it_stands(parts: list[str], cut: int) -> None:
    text = "".join(parts)
    assert in_pieces(text, [cut], thinking=False) == Parsed(None, text.strip(), True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*TAGS, "a", "\n", "```", "\n```\n"])), st.integers(0, 400), st.booleans())
def test_no_piece_is_taken_back_from_who_knows_how_the_reply_begins(parts: list[str], cut: int, thinking: bool) -> None:
    text, parser = "".join(parts), ReplyParser(thinking)
    deltas = [*parser.feed(text[:cut]), *parser.feed(text[cut:]), *parser.finish()]
    assert all(delta.kind != "moved" for delta in deltas)


def test_a_thought_that_the_prompt_opened() -> None:
    assert parse_response("why</think>so", thinking=True) == Parsed("why", "so", True)
    assert parse_response("why", thinking=True) == Parsed("why", "", False)
    assert parse_response("<think>why</think>so", thinking=True) == Parsed("why", "so", True)  # and the model again
    # What is shown while it comes is thought from the start, and never has to move.
    parser = ReplyParser(thinking=True)
    assert [d.kind for piece in ("wh", "y</th", "ink>", "so") for d in parser.feed(piece)] == ["thought"] * 2 + [
        "answer"
    ]


def test_a_reply_that_was_cut_off_in_a_fence_is_still_thought() -> None:
    text = "<think>\n```\n</think>\n```\nand then"
    assert parse_response(text, finished=False) == Parsed("```\n</think>\n```\nand then", "", False)
    assert parse_response(text) == Parsed("```", "```\nand then", True)  # it ended by itself, so it has an answer


# ------------------------------------------------------------------------------------- from token ids

TOKENIZER = Tokenizer.from_words([])


def control(*parts: str | int) -> list[int]:
    return [i for part in parts for i in (TOKENIZER.encode(part) if isinstance(part, str) else [part])]


def read(ids: list[int], thinking: bool | None = None) -> Parsed:
    one, many = TokenParser(TOKENIZER, thinking), TokenParser(TOKENIZER, thinking)
    many.feed_ids(ids)
    many.finish()

    def batches() -> Iterable[list[Delta]]:
        for index in ids:
            yield one.feed_ids([index])
        yield one.finish()

    assert together(one, batches()) == one.parsed == many.parsed
    return one.parsed


def test_in_ids_only_control_tokens_are_borders() -> None:
    t = TOKENIZER
    spelled = "not </think> yet <｜tool▁calls▁begin｜>\n```\nx"
    ids = control(t.think_id, spelled, t.end_think_id, "so <think>", t.token_id("<｜tool▁calls▁begin｜>"))
    assert read(ids) == Parsed(spelled, "so <think>", True)
    sep = t.token_id("<｜tool▁sep｜>")
    begin, end = t.token_id("<｜tool▁call▁begin｜>"), t.token_id("<｜tool▁call▁end｜>")
    arguments = '{"a": "<｜tool▁call▁end｜>"}'
    called = [*ids, *control(begin, "f", sep, arguments, end)]
    assert read(called) == Parsed(spelled, "so <think>", True, (ToolCall("f", arguments),))


def test_an_answer_may_hold_the_tokens_of_a_thought() -> None:
    t = TOKENIZER
    reply = control(t.think_id, "why", t.end_think_id, "so ", t.end_think_id, t.think_id, "c")
    assert read(reply, thinking=False) == Parsed("why", "so </think><think>c", True)
    assert read(control("so ", t.end_think_id, "c"), thinking=False) == Parsed(None, "so </think>c", True)


def test_a_border_in_a_fence_is_one_all_the_same_when_it_is_a_token() -> None:
    t = TOKENIZER
    assert read(control("\n```\ncode", t.end_think_id, "so"), thinking=True) == Parsed("```\ncode", "so", True)


@pytest.mark.parametrize("text", ["π 中 🦑 é", "a\ufffdb", "🦑", "\ufffd\ufffd"])
def test_characters_of_several_tokens_come_whole(text: str) -> None:
    parser = TokenParser(TOKENIZER)
    pieces = [delta.text for index in TOKENIZER.encode(text) for delta in parser.feed_ids([index])]
    pieces += [delta.text for delta in parser.finish()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)


def test_many_tokens_at_once_hold_only_the_last_character_back() -> None:
    parser = TokenParser(TOKENIZER)
    ids = TOKENIZER.encode("π" * 100 + "🦑")
    first = "".join(delta.text for delta in parser.feed_ids(ids[:-1]))
    assert first == "π" * 100
    assert "".join(delta.text for delta in parser.feed_ids(ids[-1:])) == "🦑"


def test_a_character_cut_in_its_middle_is_shown_as_broken() -> None:
    half = TOKENIZER.encode("🦑")[:2]
    assert read(half).answer.strip("\ufffd") == ""
    parsed = read([*half, TOKENIZER.think_id, *half, *TOKENIZER.encode(" a")])
    assert parsed.answer.endswith(" a") and "\ufffd" in parsed.answer


def test_a_degenerate_reply_is_read_in_time() -> None:
    """A model that repeats one token to the end of its context: linear, not quadratic."""
    for index in (TOKENIZER.end_think_id, TOKENIZER.think_id, TOKENIZER.encode("🦑")[0], TOKENIZER.encode("<")[0]):
        parser = TokenParser(TOKENIZER)
        for _ in range(30_000):
            parser.feed_ids([index])
        parser.finish()
        assert parser.parsed.closed or index == TOKENIZER.think_id
