"""Replies to questions, from whatever gives them: what evaluation asks of the local engine and of any server.

`Sampler` is the protocol; `LocalSampler` meets it here, `hadal.engine.remote.RemoteSampler` over HTTP. A reply is text
with its thought in tags, as scorers read it. (The `Sampler` of `hadal.engine.sampler` is another thing: it draws one
token from logits.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from hadal.engine.llm import LLM
from hadal.engine.params import SamplingParams
from hadal.engine.request import Request, Sample
from hadal.engine.request import Sequence as Row
from hadal.errors import UserError
from hadal.text.length import TooLong


@dataclass(frozen=True)
class Query:
    """A conversation to answer, or a text to continue, params.n times; `wanted`: which of those samples are wanted.

    params.seed is set: sample i of a seed is the same whichever others are wanted, where the sampler is exact.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    params: SamplingParams
    wanted: Sequence[int]


@dataclass(frozen=True)
class Reply:
    """text: the thought, its tags and the answer; tokens: None where nobody counted; error: why there is none."""

    text: str
    tokens: int | None
    finish: Literal["stop", "length", "error"]
    error: str = ""


class Sampler(Protocol):
    """Answers queries, many at once."""

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Reply]]:
        """(number of the query, number of the sample, reply) for each that is wanted, as they come. UserError where
        nothing can be answered; a query that alone cannot be has the error in its replies."""


class LocalSampler:
    """An engine of this process, which is kept full."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Reply]]:
        engine = self.llm.engine
        coming = enumerate(queries)
        running: dict[int, tuple[Request, str, list[Row]]] = {}
        faulty: list[tuple[int, Query, UserError]] = []  # given out when another query was found to be sound
        more, sound = True, False
        try:
            while True:
                while more and sum(len(rows) for _, _, rows in running.values()) < 2 * engine.config.rows:
                    number, query = next(coming, (0, None))
                    if query is None:
                        more = False
                        continue
                    try:
                        running[number] = self._add(query)
                        sound = True
                    except UserError as error:
                        if isinstance(error, TooLong) and error.of_memory:
                            raise  # what memory lacks must decide no result
                        faulty.append((number, query, error))
                if faulty and not sound:
                    raise faulty[0][2]
                for number, query, fault in faulty:
                    yield from ((number, index, Reply("", 0, "error", str(fault))) for index in query.wanted)
                faulty.clear()
                if not running:
                    return
                engine.step()
                for number, (_, opening, rows) in list(running.items()):
                    for row in [row for row in rows if row.sample is not None]:
                        assert row.sample is not None
                        rows.remove(row)
                        yield number, row.index, _reply(row.sample, opening)
                    if not rows:
                        del running[number]
        finally:
            for request, _, _ in running.values():
                engine.abort(request)
            engine.release()

    def _add(self, query: Query) -> tuple[Request, str, list[Row]]:
        """The request, what of a response stands in its prompt, and the rows that are wanted of it."""
        tokenizer, engine = self.llm.tokenizer, self.llm.engine
        params = query.params
        if isinstance(query.prompt, str):
            prompt = tokenizer.encode(query.prompt)
            with suppress(UserError):  # Qwen has no token for the beginning
                prompt.insert(0, tokenizer.bos_id)
            params = replace(params, thinking=None)
        else:
            prompt = tokenizer.chat(query.prompt, params.thinking)
        assert params.seed is not None
        request = engine.add(prompt, params, params.seed)
        rows = [request.sequences[index] for index in query.wanted]
        engine.waiting[-1].sequences = list(rows)
        return request, tokenizer.opening(request.prompt), rows


def _reply(sample: Sample, opening: str) -> Reply:
    finish: Literal["stop", "length", "error"] = "stop"
    if sample.finish_reason != "stop":
        finish = "length" if sample.finish_reason == "length" else "error"
    return Reply(opening + sample.text, len(sample.token_ids), finish, sample.error)
