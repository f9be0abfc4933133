"""Queries answered by an engine, which is kept full: what makes it a `Rollout` (`hadal.engine.LLM.sample`)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hadal.engine.core import Engine
from hadal.engine.request import Request, Sequence
from hadal.errors import UserError
from hadal.rollout import Query, Sample, SamplingParams
from hadal.text.length import TooLong
from hadal.text.tokenizer import Tokenizer


def answer(engine: Engine, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
    """As `Rollout.sample`. UserError where memory lacks for one of them: that must decide no result."""
    coming = enumerate(queries)
    running: dict[int, tuple[Request, list[Sequence]]] = {}
    faulty: list[tuple[int, Query, Sample, UserError]] = []  # given out when another query was found to be sound
    more, sound, asked = True, False, 0
    try:
        while True:
            while more and asked < 2 * engine.config.rows:
                number, query = next(coming, (0, None))
                if query is None:
                    more = False
                    continue
                prompt: list[int] = []
                try:
                    prompt, params = encode(engine.tokenizer, query)
                    prepared = engine.prepare(prompt, params)
                    request = engine.submit(prepared, new_seed(params), wanted=query.indices)
                    running[number] = request, list(request.sequences)
                    sound, asked = True, asked + len(request.sequences)
                except UserError as error:
                    if isinstance(error, TooLong) and error.of_memory:
                        raise
                    refused = Sample([], [], "", "error", error=str(error), prompt_ids=prompt)
                    faulty.append((number, query, refused, error))
            if faulty and not sound:
                raise faulty[0][3]
            for number, query, refused, _ in faulty:
                yield from ((number, index, refused) for index in query.indices)
            faulty.clear()
            if not running:
                return
            engine.step()
            for number, (_, rows) in list(running.items()):
                for row in [row for row in rows if row.sample is not None]:
                    assert row.sample is not None
                    rows.remove(row)
                    asked -= 1
                    yield number, row.index, row.sample
                if not rows:
                    del running[number]
    finally:
        for request, _ in running.values():
            engine.abort(request)
        engine.release()


def encode(tokenizer: Tokenizer, query: Query) -> tuple[list[int], SamplingParams]:
    """The prompt's ids, and how it is to be answered: a text to continue opens no thought."""
    if (messages := query.messages) is not None:
        return tokenizer.chat(messages, query.params.thinking), query.params
    if not isinstance(query.prompt, str):
        ids: list[Any] = list(query.prompt)  # the engine checks them
        return ids, query.params
    prompt = tokenizer.encode(query.prompt)
    with suppress(UserError):  # Qwen has no token for the beginning
        prompt.insert(0, tokenizer.bos_id)
    return prompt, replace(query.params, thinking=None)


def new_seed(params: SamplingParams) -> int:
    """The seed that was asked for, or one that nobody knows."""
    return secrets.randbits(63) if params.seed is None else params.seed
