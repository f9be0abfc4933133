"""Taking a reply apart into thought, answer and tool calls, whole or as it comes.

Two kinds of reply are read. From token ids (`TokenParser`) the borders are the control tokens, and text that spells
one is text. From text alone (`ReplyParser`) a border is the spelling, unless it stands in a fenced code block.

A thought that was opened, by the prompt or by a `<think>` that begins the reply, ends at the first `</think>` that does
not stand in fenced code (a reply that ended without one: at the first of all). What follows is answer as it stands,
whatever it spells. Text behind a fenced `</think>` waits until that is decided, so that no piece is ever taken back.
A reply whose thought was not opened has none, and `</think>` is text in it. Where the reader cannot know whether the
prompt opened one, the first `</think>` makes a thought of what came before it, by a `moved` delta.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hadal.text.tokenizer import END_THINK, THINK, Tokenizer

CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, END_CALL, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
TAGS = (THINK, END_THINK, CALLS, END_CALLS, CALL, END_CALL, SEP)
THOUGHT_TAGS = {
    THINK: THINK, END_THINK: END_THINK, "<thinking>": THINK, "</thinking>": END_THINK,
    "<thought>": THINK, "</thought>": END_THINK, "<reasoning>": THINK, "</reasoning>": END_THINK,
    "[THINK]": THINK, "[/THINK]": END_THINK,
}  # fmt: skip
"""How models of other origin spell the borders of a thought."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n`<]*)(?=\n|<|\Z)", re.MULTILINE)
_FENCE_BEGUN = re.compile(r"^ {0,3}(`{0,2}|~{0,2})\Z", re.MULTILINE)
_R1_CALL = re.compile(r"\s*([^\n]+)\n```json\n(.*?)(\n```\s*)?\Z", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """arguments: the JSON text as the model wrote it, checked by nobody; complete: False where the reply broke off."""

    name: str
    arguments: str
    complete: bool = True


@dataclass(frozen=True)
class Parsed:
    """thought: None where there was none; closed: whether an opened thought was ended."""

    thought: str | None
    answer: str
    closed: bool
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def thinks(self) -> bool:
        """Whether there is a thought with anything in it."""
        return bool(self.thought)


@dataclass(frozen=True)
class Delta:
    """A piece of a reply. `moved`: all of it so far is thought (`parsed.thought`), with no answer yet."""

    kind: Literal["thought", "answer", "call", "moved"]
    text: str = ""
    call: ToolCall | None = None


def parse_response(text: str, thinking: bool | None = None, finished: bool = True) -> Parsed:
    """Split a reply's text. thinking: as in `ReplyParser`; finished: the reply ended by itself."""
    parser = ReplyParser(thinking)
    parser.feed(text)
    parser.finish(finished)
    return parser.parsed


class Section:
    """The text of a thought or an answer; white space around it is not given out."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._held = ""

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def add(self, text: str) -> str:
        """What can be given out of what has come."""
        new = self._held + text if self.parts else text.lstrip()
        out = new.rstrip()
        self._held = new[len(out) :]
        self.parts += [out] if out else []
        return out


class ReplyParser:
    """A reply that comes in pieces of text. All deltas together are `parsed`, however the text was cut.

    thinking: the prompt has opened the thought, or not; None: nobody knows, and a `</think>` may tell (`may_move`).
    tags: the spellings that count in text, or what they stand for; a thought ends with the tag that it began with.
    """

    def __init__(self, thinking: bool | None = None, tags: Iterable[str] | Mapping[str, str] = TAGS) -> None:
        self._tags = dict(tags) if isinstance(tags, Mapping) else {tag: tag for tag in tags}
        self._tag = re.compile("|".join(map(re.escape, self._tags)) or "(?!)")
        self._waiting = ""  # text whose end may be the beginning of a tag or of a fence
        self._line_start = True
        self._fence = ""
        self._doubtful: list[str] | None = None  # text of the thought from a fenced `</think>` on, which may be its end
        self._blank = True  # whether nothing but white space has come
        self._thought: Section | None = Section() if thinking else None
        self._in_thought = bool(thinking)
        self.may_move = thinking is None
        self._end = ""  # the spelling that ends the thought, once that is known
        self._answer = Section()
        self._calls: list[ToolCall] = []
        self._in_calls = False
        self._call: list[str] | None = None  # the call that is being read: what stands before and behind its SEP
        self._out: list[Delta] = []

    @property
    def in_thought(self) -> bool:
        """Whether what comes next belongs to the thought."""
        return self._in_thought

    @property
    def parsed(self) -> Parsed:
        thought = None if self._thought is None else self._thought.text
        return Parsed(thought, self._answer.text, not self._in_thought, tuple(self._calls))

    def feed(self, text: str) -> list[Delta]:
        """The deltas that a piece of text gives."""
        self._waiting += text
        self._read(final=False)
        return self._given_out()

    def control(self, spelling: str) -> list[Delta]:
        """The deltas of a control token: a border wherever it stands. One without a meaning here is left out."""
        self._read(final=True)
        if spelling in TAGS:
            self._border(spelling, spelling)
            self._fence = ""
        return self._given_out()

    def finish(self, finished: bool = True) -> list[Delta]:
        """The last deltas. finished: the reply ended by itself and was not cut off."""
        self._read(final=True)
        if self._doubtful is not None:
            doubtful, self._doubtful = self._doubtful, None
            if finished:  # the only `</think>` stood in a fence, which the thought may never have closed
                self._in_thought, self._fence, self._line_start = False, "", False
                self._waiting = "".join(doubtful[1:])
                self._read(final=True)
            else:
                self._text("".join(doubtful))
        if self._call is not None:
            self._end_call(complete=False)
        return self._given_out()

    def _given_out(self) -> list[Delta]:
        out, self._out = self._out, []
        return out

    def _read(self, final: bool) -> None:
        text, at = self._waiting, 0
        while at < len(text):
            tag = self._tag.search(text, at)
            fence = None if self._in_calls else self._next_fence(text, at, len(text) if tag is None else tag.start())
            if fence is not None and (fence.end() < len(text) or final):
                self._text(text[at : fence.end()])
                self._turn_fence(fence[1], fence[2])
                at = fence.end()
            elif fence is not None:
                self._text(text[at : fence.start()])
                at = fence.start()
                break
            elif tag is not None:
                self._text(text[at : tag.start()])
                at = tag.end()
                self._spelled(tag[0])
            else:
                kept = len(text) if final else self._certain(text, at)
                self._text(text[at:kept])
                at = kept
                break
        self._waiting = text[at:]

    def _next_fence(self, text: str, at: int, end: int) -> re.Match[str] | None:
        for match in _FENCE.finditer(text, at, end + 1):
            if match.start() > at or (self._line_start if at == 0 or text[at - 1] != "\n" else True):
                return match if match.end() <= end else None
        return None

    def _certain(self, text: str, at: int) -> int:
        """Where the part of the text ends that no later text can make a tag or a fence of."""
        kept = len(text)
        begun = None if self._in_calls else _FENCE_BEGUN.search(text, at)
        if begun and (begun.start() > at or self._line_start):
            kept = begun.start()
        for tag in self._tags:
            for n in range(min(len(tag) - 1, len(text) - at), 0, -1):
                if text.endswith(tag[:n]):
                    kept = min(kept, len(text) - n)
                    break
        return kept

    def _turn_fence(self, run: str, rest: str) -> None:
        if not self._fence:
            self._fence = run
        elif run.startswith(self._fence) and not rest.strip():
            self._fence = ""

    def _spelled(self, spelling: str) -> None:
        tag = self._tags[spelling]
        if tag == END_THINK and self._in_thought and self._end not in ("", spelling):
            self._text(spelling)
            return
        if not self._fence or tag not in (THINK, END_THINK, CALLS):
            self._border(tag, spelling)
            return
        if tag == END_THINK and self._in_thought and self._doubtful is None:
            self._doubtful = []
        self._text(spelling)

    def _text(self, text: str) -> None:
        if not text:
            return
        self._line_start = text.endswith("\n")
        self._blank = self._blank and not text.strip()
        if self._call is not None:
            self._call[-1] += text
        elif self._doubtful is not None:
            self._doubtful.append(text)
        else:
            section = self._thought if self._in_thought and self._thought is not None else self._answer
            if out := section.add(text):
                self._out.append(Delta("thought" if self._in_thought else "answer", out))

    def _border(self, tag: str, spelling: str) -> None:
        blank, self._blank, self._line_start = self._blank, False, False
        if self._in_thought and tag in (END_THINK, CALLS) and self._doubtful is not None:
            doubtful, self._doubtful = "".join(self._doubtful), None  # here is the end: that was code
            self._text(doubtful)
            self._line_start = False
        if tag == THINK and blank:  # also a second one, where the prompt has opened the thought
            self._thought, self._in_thought = self._thought or Section(), True
            self._end = f"{spelling[0]}/{spelling[1:]}"
        elif tag == END_THINK and self._in_thought:
            self._in_thought = False
        elif tag == END_THINK and self.may_move and self._thought is None and not self._calls and not self._in_calls:
            self._thought, self._answer = self._answer, Section()
            self._out = [Delta("moved")]
        elif tag == CALLS and not self._in_calls:
            self._in_thought, self._in_calls = False, True
        elif tag == CALL and self._in_calls and self._call is None:
            self._call = [""]
        elif tag == SEP and self._call is not None and len(self._call) == 1:
            self._call.append("")
        elif tag == END_CALL and self._call is not None:
            self._end_call(complete=True)
        elif tag == END_CALLS and self._in_calls and self._call is None:
            self._in_calls = False
        else:
            self._text(spelling)

    def _end_call(self, complete: bool) -> None:
        parts, self._call = self._call or [], None
        call = None
        if len(parts) == 2:
            r1 = _R1_CALL.match(parts[1]) if parts[0].strip() == "function" else None
            name, arguments = (r1[1], r1[2]) if r1 else parts
            if name.strip() and (r1 or parts[0].strip() != "function" or complete):
                call = ToolCall(name.strip(), arguments.strip(), complete)
        if call is not None:
            self._calls.append(call)
            self._out.append(Delta("call", call=call))
        elif complete:  # no call that anyone could make: the reader sees what the model wrote
            self._text(SEP.join(parts))


class StreamDecoder:
    """Text from token ids as they come; a character whose bytes are not all there waits for them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # ids before the pending ones: some decoders treat a text's start apart
        self._pending: list[int] = []
        self._sent = 0  # characters of the pending ids that have been given out
        self._held = 0  # how often the last character was held back

    def push(self, index: int) -> None:
        self._pending.append(index)

    def text(self, final: bool = False) -> str:
        """What the ids pushed so far add."""
        decode = self._tokenizer.decode
        text = decode(self._context + self._pending)[len(decode(self._context)) :]
        whole = text if final or self._held > 64 else text.rstrip("\ufffd")
        out = text[self._sent : len(whole)]
        self._sent, self._held = len(whole), self._held + 1
        if whole == text:
            self._context, self._pending = (self._pending or self._context)[-16:], []
            self._sent = self._held = 0
        return out


class TokenParser(ReplyParser):
    """A reply that comes in token ids: its borders are control tokens, and text is text."""

    def __init__(self, tokenizer: Tokenizer, thinking: bool | None = None) -> None:
        # A tokenizer without tokens of its own for the tags leaves their spelling to count.
        super().__init__(thinking, [tag for tag in TAGS if tag not in tokenizer.controls])
        self._spelling = {index: text for text, index in tokenizer.controls.items()}
        self._decoder = StreamDecoder(tokenizer)

    def feed_ids(self, ids: Iterable[int]) -> list[Delta]:
        """The deltas that these ids give."""
        out: list[Delta] = []
        for index in ids:
            if index in self._spelling:
                out += self.feed(self._decoder.text(final=True)) + self.control(self._spelling[index])
            else:
                self._decoder.push(index)
        return out + self.feed(self._decoder.text())

    def finish(self, finished: bool = True) -> list[Delta]:
        return self.feed(self._decoder.text(final=True)) + super().finish(finished)
