"""A user's conversations (JSON lines of OpenAI messages) as token ids, and packed into rows for training.

The loss is on what the assistant says, in every turn, its end token included. A thought (`<think>...</think>` at the
start of an answer) is trained on in the last turn only: earlier ones stand in the history without it, as a model reads
them when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from hadal.errors import UserError
from hadal.files import read_json_lines
from hadal.rng import Rng
from hadal.text.encodings import content
from hadal.text.tokenizer import END_THINK, THINK, Tokenizer
from hadal.train.corpus import Batch, Part

ROLES = ("system", "user", "assistant", "tool")

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Conversation:
    """Ids, and the spans [begin, end) of them that are learnt."""

    ids: list[int]
    spans: list[tuple[int, int]]

    @property
    def learnt(self) -> int:
        """How many tokens the loss is over."""
        return sum(end - begin for begin, end in self.spans)


def read_lines(path: Path) -> Iterator[tuple[str, Messages, list[Any] | None]]:
    """(where it stands, messages, tools) of each line; UserError, naming the line, for one that is no conversation."""
    for number, data in read_json_lines(path):
        where = f"{path}, line {number}"
        messages, tools = _checked(data, where)
        yield where, messages, tools


def _checked(data: Any, where: str) -> tuple[Messages, list[Any] | None]:
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where} has no messages.", 'Each line is {"messages": [...]}, as in the OpenAI form.')
    tools = data.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{where} has tools that are not a list.", "Give them in the OpenAI form.")
    checked = [_message(message, f"{where}, message {i}") for i, message in enumerate(messages, 1)]
    while checked and checked[-1]["role"] != "assistant":
        checked.pop()  # nothing is learnt from what comes behind the last answer
    if not checked:
        raise UserError(f"{where} has no answer of the assistant.", "There is nothing to learn in it: leave it out.")
    return checked, tools


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise UserError(f"{where} has the role {ascii(role)[:60]}.", f"Known: {', '.join(ROLES)}.")
    text = message.get("content")
    parts = text if isinstance(text, list) else []
    whole = all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts)
    if not (text is None or isinstance(text, str | list)) or not whole:
        raise UserError(f"{where} has content that is not text.", "hadal trains on text alone.")
    out = {**message, "content": content(message)}
    if message.get("function_call"):
        raise UserError(f"{where} has function_call, the older form of a call.", "Give it as one of tool_calls.")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise UserError(f"{where} has tool_calls without a function's name.", "Give them in the OpenAI form.")
    if message["role"] == "assistant" and not calls and not _after_thought(out["content"]).strip():
        raise UserError(f"{where} is an empty answer.", "Fill it in or leave the conversation out.")
    return out


def _after_thought(text: str) -> str:
    """The answer behind a thought, which ends at its first `</think>` as where a reply is read."""
    return text.partition(END_THINK)[2] if END_THINK in text else text


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


class Encoder:
    """Conversations to ids, in a tokenizer's own chat form."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ask = {"role": "user", "content": "a"}
        probe = tokenizer.chat([ask, {"role": "assistant", "content": "b"}, ask])
        begin = _common(tokenizer.chat([ask]), probe)
        ends = [i for i in probe[begin:] if i in tokenizer.eos_ids]
        self.end_id = ends[0] if ends else tokenizer.eos_id
        """What the chat form closes an answer with."""
        self.closes = bool(ends)

    def encode(self, messages: Messages, tools: list[Any] | None = None) -> list[Conversation]:
        """The conversation as one sequence; where the form rewrites earlier turns, as one for each answer."""
        history = [
            {**m, "content": _after_thought(m["content"])} if m["role"] == "assistant" else m for m in messages[:-1]
        ]
        last = self._turn(history, messages[-1], tools)
        begin = last.spans[0][0]
        spans = []
        for i in (i for i, m in enumerate(history) if m["role"] == "assistant"):
            prompt = self._prompt(history[:i], tools)
            start = _common(prompt, last.ids)
            stop = next((p + 1 for p in range(start, begin) if last.ids[p] in self.tokenizer.eos_ids), 0)
            # A prompt ends in what opens an answer. If it parts from the whole before, earlier turns were rewritten.
            if not self.closes or not stop or not self.tokenizer.eos_ids.isdisjoint(prompt[start:]):
                turns = [i for i, m in enumerate(history) if m["role"] == "assistant"]
                return [*(self._turn(history[:i], history[i], tools) for i in turns), last]
            spans.append((start, stop))
        return [Conversation(last.ids, [*spans, *last.spans])]

    def _prompt(self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None) -> list[int]:
        return self.tokenizer.chat(messages, tools=tools)

    def _turn(self, history: Messages, answer: dict[str, Any], tools: list[Any] | None) -> Conversation:
        """A prompt, and the answer as the model is to give it."""
        tokenizer = self.tokenizer
        if answer.get("tool_calls"):
            reply = {"role": "tool", "content": "-", "tool_call_id": "0"}
            answer = {**answer, "content": _after_thought(answer["content"])}
            whole = tokenizer.chat([*history, answer, reply], tools=tools)
            begin = _common(self._prompt(history, tools), whole)
            stop = next((p + 1 for p in range(begin, len(whole)) if whole[p] in tokenizer.eos_ids), len(whole))
            return Conversation(whole[:stop], [(begin, stop)])
        thought, closed, rest = answer["content"].partition(END_THINK)
        thinks = bool(closed) and THINK in tokenizer.controls and END_THINK in tokenizer.controls
        prompt = self._prompt(history, tools)
        if not thinks and closed and tokenizer.in_thought(prompt):  # which the form has spelled, and so do we
            response = tokenizer.encode(thought.rpartition(THINK)[2].removeprefix("\n") + END_THINK + rest)
        elif not thinks:
            if tokenizer.in_thought(prompt):
                prompt = tokenizer.chat(history, thinking=False, tools=tools)
            response = tokenizer.encode(answer["content"])
        else:
            thought = thought.rpartition(THINK)[2]
            opened = prompt if tokenizer.in_thought(prompt) else tokenizer.chat(history, thinking=True, tools=tools)
            leaves_it = opened == [*prompt, tokenizer.think_id]  # to the model, which learns to open a thought
            prompt = prompt if leaves_it else opened
            if thought.startswith("\n") and not leaves_it and prompt[-1] != tokenizer.think_id:
                thought = thought[1:]  # the form's own prompt has broken the line already
            response = [tokenizer.think_id] if leaves_it else []
            response += [*tokenizer.encode(thought), tokenizer.end_think_id, *tokenizer.encode(rest)]
        return Conversation([*prompt, *response, self.end_id], [(len(prompt), len(prompt) + len(response) + 1)])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def read_conversations(path: Path, tokenizer: Tokenizer, context: int) -> tuple[list[Conversation], int]:
    """What a file holds, and how many conversations were left out because they are longer than `context` tokens."""
    encoder = Encoder(tokenizer)
    kept: list[Conversation] = []
    skipped = 0
    for where, messages, tools in read_lines(path):
        try:
            encoded = encoder.encode(messages, tools)
        except UserError as error:
            raise UserError(f"{where}: {error.cause}", error.remedy) from None
        whole = all(len(conversation.ids) <= context for conversation in encoded)
        kept += encoded if whole else []
        skipped += not whole
    if not kept:
        why = f"all {skipped} are longer than the context of {context} tokens" if skipped else "it is empty"
        raise UserError(f"{path} holds no conversation to learn from: {why}.", "Give one of JSON lines of messages.")
    return kept, skipped


# Batches


def epoch_batches(lengths: Sequence[int], tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Which conversations each update of an epoch takes: all of them once, in an order of the seed's, filled up to
    `tokens`; a longer one makes an update of its own."""
    order = Rng("sft", seed, epoch).sample(list(range(len(lengths))), len(lengths))
    batches: list[list[int]] = []
    left = 0
    for index in order:
        if lengths[index] > left or not batches:
            batches.append([])
            left = tokens
        batches[-1].append(index)
        left -= lengths[index]
    return batches


Rows = list[list[Conversation]]


def rows_of_passes(conversations: Sequence[Conversation], tokens: int) -> list[tuple[Rows, int]]:
    """Passes of at most `tokens` tokens, or of one row: rows of conversations, and the width, the longest's."""
    waiting = sorted(conversations, key=lambda c: -len(c.ids))
    passes = []
    while waiting:
        width = len(waiting[0].ids)
        rows: Rows = []
        room: list[int] = []
        rest = []
        for conversation in waiting:
            size = len(conversation.ids)
            fits = next((i for i, left in enumerate(room) if left >= size), None)
            if fits is None and (len(rows) + 1) * width <= max(tokens, width):
                rows.append([])
                room.append(width)
                fits = len(rows) - 1
            if fits is None:
                rest.append(conversation)
                continue
            rows[fits].append(conversation)
            room[fits] -= size
        passes.append((rows, width))
        waiting = rest
    return passes


def packed(conversations: Sequence[Conversation], tokens: int, pad_id: int) -> list[Batch]:
    """The passes of `rows_of_passes`, padded.

    Positions restart in each conversation, and `documents` keeps attention inside it: the loss is that of each by
    itself. Each pass knows its part of the whole.
    """
    passes = [_batch(rows, width, pad_id) for rows, width in rows_of_passes(conversations, tokens)]
    learnt = [float(batch.weight.sum()) for batch in passes]
    ahead = [float(batch.weight[:, 2:][batch.ahead()].sum()) for batch in passes]
    return [
        replace(batch, part=Part(own / sum(learnt), own_ahead / max(1.0, sum(ahead)), len(conversations)))
        for batch, own, own_ahead in zip(passes, learnt, ahead, strict=True)
    ]


def _batch(rows: Rows, width: int, pad_id: int) -> Batch:
    ids = torch.full((len(rows), width), pad_id)
    weight = torch.zeros(len(rows), width)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    documents = torch.full((len(rows), width), -1)
    for r, row in enumerate(rows):
        at = 0
        for number, conversation in enumerate(row):
            size = len(conversation.ids)
            ids[r, at : at + size] = torch.tensor(conversation.ids)
            positions[r, at : at + size] = torch.arange(size)
            documents[r, at : at + size] = number
            for begin, end in conversation.spans:
                weight[r, at + max(begin, 1) : at + end] = 1.0
            at += size
    return Batch(ids, weight, positions, documents)
