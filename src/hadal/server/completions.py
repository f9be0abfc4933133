"""The public API: chat and plain completions, streaming and not, and the list of models."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hadal import __version__
from hadal.server.bodies import Route
from hadal.server.context import Context, context_of
from hadal.server.faults import Refusal, body, documented
from hadal.server.models import Ask, Delta, End, Event, Model, Usage
from hadal.server.schemas import ChatCompletion, ChatRequest, CompletionRequest, ModelBody, ModelList, TextCompletion
from hadal.server.streams import STREAM, Live, begin, event, one_reply

router = APIRouter(tags=["API"], route_class=Route)
ERRORS = documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503)
SHUT_DOWN = "insufficient_system_resource"  # DeepSeek's finish_reason where the server could not go on


@router.post("/chat/completions", response_model=ChatCompletion, responses=ERRORS | STREAM)
@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS | STREAM, name="v1_chat")
async def chat_completions(wanted: ChatRequest, request: Request) -> Response:
    """An answer to a conversation, its thought in `reasoning_content` (and in `reasoning`)."""
    ask = wanted.ask()
    if all(message["role"] != "user" for message in ask.messages) or ask.messages[-1]["role"] != "user":
        raise Refusal(422, "The last message must be the user's.", "messages")
    return await _reply(request, wanted.model, ask, _Chat(), bool(wanted.stream), wanted.usage_wanted)


@router.post("/completions", response_model=TextCompletion, responses=ERRORS | STREAM)
@router.post("/v1/completions", response_model=TextCompletion, responses=ERRORS | STREAM, name="v1_text")
async def completions(wanted: CompletionRequest, request: Request) -> Response:
    """How a text goes on, with no chat around it; control tokens are spelled."""
    return await _reply(request, wanted.model, wanted.ask(), _Text(), bool(wanted.stream), wanted.usage_wanted)


@router.get("/models", response_model=ModelList, responses=documented(401, 403))
@router.get("/v1/models", response_model=ModelList, responses=documented(401, 403), name="v1_models")
async def models(request: Request) -> dict[str, Any]:
    """The models that are served."""
    context = context_of(request)
    await context.models.refresh()
    return {"object": "list", "data": [_model(model) for model in context.models.all()]}


@router.get("/v1/models/{model:path}", response_model=ModelBody, responses=documented(401, 403, 404, 422))
async def model(model: str, request: Request) -> dict[str, Any]:
    """One model."""
    return _model(context_of(request).models.get(model))


def _model(model: Model) -> dict[str, Any]:
    owner = "hadal" if model.card.source == "local" else model.card.group
    return {"id": model.card.id, "object": "model", "created": model.card.created, "owned_by": owner}


# ------------------------------------------------------------------------------------- one request


@dataclass
class _Sample:
    """What has come of one sample."""

    thought: str | None = None
    text: str = ""
    finish_reason: str = ""
    logprobs: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"content": [], "reasoning_content": []})

    def take(self, event: Delta | End) -> None:
        if isinstance(event, End):
            self.thought, self.text, self.finish_reason = event.thought or None, event.answer, event.finish_reason
            return
        self.logprobs["reasoning_content" if event.kind == "thought" else "content"] += event.logprobs


class _Chat:
    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, sample: _Sample, logprobs: bool) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": sample.text,
            "reasoning_content": sample.thought,
            "reasoning": sample.thought,
        }
        return {"index": index, "message": message, "logprobs": sample.logprobs if logprobs else None,
                "finish_reason": sample.finish_reason}  # fmt: skip

    def opening(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def piece(self, delta: Delta, logprobs: bool, before: _Sample) -> dict[str, Any] | None:
        if not (delta.text or delta.logprobs):
            return None  # what was sent as answer cannot be called back
        thought = delta.kind == "thought"
        said = {"reasoning_content": delta.text, "reasoning": delta.text} if thought else {"content": delta.text}
        here, there = ("reasoning_content", "content") if thought else ("content", "reasoning_content")
        spelled: dict[str, list[Any]] = {here: list(delta.logprobs), there: []}
        return {"index": delta.index, "delta": said, "logprobs": spelled if logprobs else None, "finish_reason": None}

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}


class _Text:
    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def choice(self, index: int, sample: _Sample, logprobs: bool) -> dict[str, Any]:
        said = _text_logprobs(sample.logprobs["content"], 0) if logprobs else None
        return {"index": index, "text": sample.text, "logprobs": said, "finish_reason": sample.finish_reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(self, delta: Delta, logprobs: bool, before: _Sample) -> dict[str, Any] | None:
        if not (delta.text or delta.logprobs):
            return None
        offset = sum(len(entry["token"]) for entry in before.logprobs["content"][: -len(delta.logprobs) or None])
        said = _text_logprobs(delta.logprobs, offset) if logprobs else None
        return {"index": delta.index, "text": delta.text, "logprobs": said, "finish_reason": None}

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


def _text_logprobs(entries: Any, offset: int) -> dict[str, Any]:
    out: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        out["tokens"].append(entry["token"])
        out["token_logprobs"].append(entry["logprob"])
        out["top_logprobs"].append({top["token"]: top["logprob"] for top in entry["top_logprobs"]})
        out["text_offset"].append(offset)
        offset += len(entry["token"])
    return out


async def _reply(
    request: Request, name: str | None, ask: Ask, form: _Chat | _Text, stream: bool, usage_wanted: bool
) -> Response:
    context = context_of(request)
    model = await context.find(name)
    ask = await model.ready(ask)  # here, where a refusal has its status: a reply that was kept alive has said 200
    head = {
        "id": form.prefix + secrets.token_hex(12), "created": int(time.time()), "model": model.card.id,
        "system_fingerprint": f"hadal-{__version__}",
    }  # fmt: skip
    logprobs = "logprobs" in ask.sampling
    if not stream:
        return await one_reply(request, _whole(context, model, ask, form, head, logprobs))
    events = _metered(context, model, ask)
    first = await begin(request, events)  # what cannot begin is refused with its status, not in a stream
    return Live(
        _chunks(context, first, events, ask, form, head, logprobs, usage_wanted),
        "text/event-stream",
        b": keep-alive\n\n",
    )


async def _metered(context: Context, model: Model, ask: Ask) -> AsyncGenerator[Event]:
    """The events of an answer, counted; the first comes once the request is let in."""
    spent = context.meter.begin(model.card.id)
    fault = "left"
    events = model.answer(ask)
    try:
        async for item in events:
            if isinstance(item, Delta):
                context.meter.heard(spent, item.tokens)
            if isinstance(item, Usage):
                cost = model.card.cost(item, context.meter.share(spent))
                context.meter.count(model.card.id, item, cost["usd"])
            yield item
        fault = ""
    except Refusal:
        fault = "refused"
        raise
    finally:
        await events.aclose()
        context.meter.end(spent, fault)


async def _whole(
    context: Context, model: Model, ask: Ask, form: _Chat | _Text, head: dict[str, Any], logprobs: bool
) -> dict[str, Any]:
    samples = [_Sample() for _ in range(ask.n)]
    usage: dict[str, Any] = {}
    events = _metered(context, model, ask)
    try:
        async for item in events:
            if isinstance(item, Usage):
                usage = item.as_dict()
            elif isinstance(item, Delta | End):
                samples[item.index].take(item)
    finally:
        await events.aclose()
    choices = [form.choice(index, sample, logprobs) for index, sample in enumerate(samples)]
    return {**head, "object": form.whole, "choices": choices, "usage": usage}


async def _chunks(
    context: Context, first: asyncio.Task[Event], events: AsyncGenerator[Event], ask: Ask, form: _Chat | _Text,
    head: dict[str, Any], logprobs: bool, usage_wanted: bool,
) -> AsyncGenerator[bytes]:  # fmt: skip
    def chunk(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        return event({**head, "object": form.chunk, "choices": choices} | ({"usage": usage} if usage_wanted else {}))

    samples = [_Sample() for _ in range(ask.n)]
    try:
        for index in range(ask.n):
            if opening := form.opening(index):
                yield chunk([opening])
        item: Event | None = await first
        while item is not None:
            if isinstance(item, Delta | End):
                samples[item.index].take(item)
            if isinstance(item, Delta) and (piece := form.piece(item, logprobs, samples[item.index])):
                yield chunk([piece])
            elif isinstance(item, End):
                yield chunk([form.closing(item.index, item.finish_reason)])
            elif isinstance(item, Usage) and usage_wanted:
                yield chunk([], item.as_dict())
            item = await anext(events, None)
    except Refusal as refusal:
        if context.closing.is_set():
            for index, sample in enumerate(samples):
                if not sample.finish_reason:
                    yield chunk([form.closing(index, SHUT_DOWN)])
        else:
            yield event(body(refusal.status, refusal.message, refusal.param))
            return
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()
    yield event("[DONE]")
