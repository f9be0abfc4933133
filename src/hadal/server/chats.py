"""The page's own endpoints, under /api: models, chats, answers, export and import, preferences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query, Request
from pydantic import Field, JsonValue
from starlette.responses import JSONResponse, Response

from hadal import __version__
from hadal.server import exchange, guard
from hadal.server.answers import new_message, public
from hadal.server.bodies import Route
from hadal.server.context import Context, context_of
from hadal.server.faults import Refusal, documented
from hadal.server.models import Ask, Model
from hadal.server.schemas import Stops, Strict
from hadal.server.store import dumps
from hadal.server.streams import STREAM, Live, event

LONGEST = 200_000  # characters of a message
router = APIRouter(prefix="/api", tags=["page"], route_class=Route)
ERRORS = documented(400, 401, 403, 404, 409, 413, 415, 422, 500, 502, 503)


class Settings(Strict):
    """Of a chat, or of one answer; absent is the model's default."""

    system: str | None = Field(None, max_length=LONGEST)
    thinking: bool | None = None
    effort: Literal["low", "high", "max"] | None = None
    budget: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(1 << 63), le=(1 << 63) - 1)
    stop: Stops | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None}


class NewChat(Strict):
    title: str = Field("", max_length=500)
    model: str | None = None
    settings: Settings | None = None


class ChatChange(Strict):
    title: str | None = Field(None, max_length=500)
    model: str | None = None
    settings: Settings | None = None
    leaf: str | None = None


class NewAnswer(Strict):
    """content: a new question under `parent`; without it, one more answer to the question `parent`."""

    content: str | None = Field(None, min_length=1, max_length=LONGEST)
    parent: str | None = None
    model: str | None = None
    settings: Settings | None = None


class Verdict(Strict):
    right: bool | None


class Key(Strict):
    key: str = Field(max_length=1000)


# ------------------------------------------------------------------------------------- session, models


@router.get("/session", responses=documented(403))
async def session(request: Request) -> dict[str, Any]:
    context = context_of(request)
    signed = context.key is None or request.cookies.get(guard.COOKIE) == guard.session(context.key)
    return {
        "login": context.key is not None,
        "signed_in": signed,
        "version": __version__,
        "quickstart": context.quickstart,
    }


@router.post("/session", status_code=204, responses=ERRORS)
async def sign_in(wanted: Key, request: Request) -> Response:
    key = context_of(request).key
    response = Response(status_code=204)
    if key is not None:
        if guard.session(wanted.key) != guard.session(key):
            await asyncio.sleep(0.5)
            raise Refusal(401, "The key is wrong.", "key")
        response.set_cookie(guard.COOKIE, guard.session(key), max_age=30 * 86400, httponly=True, samesite="strict",
                            secure=request.url.scheme == "https")  # fmt: skip
    return response


@router.delete("/session", status_code=204, responses=documented(403))
async def sign_out() -> Response:
    response = Response(status_code=204)
    response.delete_cookie(guard.COOKIE)
    return response


@router.get("/models", responses=documented(401, 403))
async def models(request: Request) -> dict[str, Any]:
    served = context_of(request).models
    await served.refresh()
    cards = [model.card for model in served.all()]
    return {
        "default": cards[0].id if cards else None,
        "pairs": served.pairs(),
        "models": [card.as_dict() for card in cards],
        "upstreams": [{"name": u.name, "url": u.url, "ok": not u.error, "error": u.error} for u in served.upstreams],
    }  # fmt: skip


@router.get("/preferences", responses=documented(401, 403))
def preferences(request: Request) -> dict[str, Any]:
    return context_of(request).store.preferences()


@router.put("/preferences", responses=ERRORS)
def set_preferences(wanted: Annotated[dict[str, JsonValue], Body()], request: Request) -> dict[str, Any]:
    try:
        size = len(dumps(wanted))
    except ValueError:  # NaN and infinities, which a JSON reader may take and a writer may not
        raise Refusal(422, "The body holds a number that is not finite.") from None
    if size > 16_000:
        raise Refusal(413, "Preferences are larger than 16 kB.")
    context_of(request).store.set_preferences(wanted)
    return wanted


# ------------------------------------------------------------------------------------- chats


@router.get("/chats", responses=ERRORS)
def list_chats(
    request: Request,
    q: Annotated[str, Query(max_length=200)] = "",
    kind: Literal["chat", "duel", "all"] = "chat",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[int | None, Query(ge=0, le=1 << 60)] = None,
) -> dict[str, Any]:
    return context_of(request).store.list_chats(kind, q, limit, before)


@router.post("/chats", status_code=201, responses=ERRORS)
def create_chat(wanted: NewChat, request: Request) -> dict[str, Any]:
    store = context_of(request).store
    settings = wanted.settings.given() if wanted.settings else {}
    return store.chat(store.create_chat("chat", wanted.title.strip(), wanted.model, settings))


@router.get("/chats/{chat}", responses=ERRORS)
def chat(chat: str, request: Request) -> dict[str, Any]:
    context = context_of(request)
    found = context.store.chat(chat)
    under_way = {i: public(r.so_far()) for i, r in list(context.answers.running.items())}
    return found | {"messages": [under_way.get(m["id"], m) for m in context.store.tree(chat)]}


@router.patch("/chats/{chat}", responses=ERRORS)
def change_chat(chat: str, wanted: ChatChange, request: Request) -> dict[str, Any]:
    store = context_of(request).store
    store.chat(chat)
    given = wanted.model_fields_set
    values: dict[str, Any] = {name: getattr(wanted, name) for name in ("model", "leaf") if name in given}
    if values.get("leaf") is not None and store.message(values["leaf"])["chat"] != chat:
        raise Refusal(422, "The leaf is not a message of this chat.", "leaf")
    if wanted.title is not None:
        values |= {"title": wanted.title.strip(), "titled": True}
    if wanted.settings is not None:
        values["settings"] = wanted.settings.given()
    store.change_chat(chat, **values)
    return store.chat(chat)


@router.delete("/chats/{chat}", status_code=204, responses=ERRORS)
async def delete_chat(chat: str, request: Request) -> Response:
    context = context_of(request)
    await asyncio.to_thread(context.store.chat, chat)
    await context.answers.stop([r for r in context.answers.running.values() if r.message["chat"] == chat])
    await asyncio.to_thread(context.store.delete_chats, chat)
    return Response(status_code=204)


@router.delete("/chats", status_code=204, responses=documented(401, 403))
async def delete_chats(request: Request) -> Response:
    context = context_of(request)
    await context.answers.stop(list(context.answers.running.values()))
    await asyncio.to_thread(context.store.delete_chats)
    return Response(status_code=204)


# ------------------------------------------------------------------------------------- answers


@router.post("/chats/{chat}/answers", status_code=202, responses=ERRORS)
async def start(chat: str, wanted: NewAnswer, request: Request) -> dict[str, Any]:
    """Ask a question and begin the answer, or answer a question once more."""
    context = context_of(request)
    found = await asyncio.to_thread(context.store.chat, chat)
    tree = {message["id"]: message for message in await asyncio.to_thread(context.store.tree, chat)}
    parent = tree.get(wanted.parent) if wanted.parent is not None else None
    if wanted.parent is not None and parent is None:
        raise Refusal(404, f"There is no message {wanted.parent!r} in this chat.", "parent")
    if parent is not None and parent["id"] in context.answers.running:
        raise Refusal(409, "The answer before is still being written.", "parent")
    if wanted.content is None and (parent is None or parent["role"] != "user"):
        raise Refusal(422, "Give a content, or a question of the user's as parent.", "content")
    if wanted.content is not None and parent is not None and parent["role"] == "user":
        raise Refusal(422, "A question follows an answer, or begins a chat.", "parent")
    model = await context.find(wanted.model or found["model"])
    settings = wanted.settings.given() if wanted.settings is not None else found["settings"]
    question = None
    if wanted.content is not None:
        question = new_message(chat, wanted.parent, "user", wanted.content)
        tree[question["id"]] = question
    asked = question or parent
    assert asked is not None
    answer = new_message(chat, asked["id"], "assistant", "", model.card.id, settings)
    ask = await model.ready(ask_of(model, path_to(tree, asked["id"]), settings))
    await asyncio.to_thread(context.store.add, chat, [question, answer] if question else [answer])
    await asyncio.to_thread(lambda: context.store.change_chat(chat, model=model.card.id, settings=settings))
    context.answers.begin(answer, model, ask, asked["content"])
    return {"question": question, "answer": answer, "chat": await asyncio.to_thread(context.store.chat, chat)}


def path_to(tree: Mapping[str, Mapping[str, Any]], leaf: str | None) -> list[Mapping[str, Any]]:
    """The messages from the root to one."""
    path: list[Mapping[str, Any]] = []
    while leaf is not None and leaf in tree and len(path) <= len(tree):
        path.append(tree[leaf])
        leaf = tree[leaf]["parent"]
    return path[::-1]


def ask_of(
    model: Model, path: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], resume: Sequence[int] = ()
) -> Ask:
    """What a model is asked at the end of a path. Thoughts of earlier answers stay out."""
    said = path[-1:] if model.card.single_turn else path
    messages = [{"role": message["role"], "content": message["content"]} for message in said]
    if settings.get("system"):
        messages.insert(0, {"role": "system", "content": settings["system"]})
    sampling = {
        name: value for name, value in settings.items() if name not in ("system", "thinking", "effort", "budget")
    }
    if settings.get("budget") is not None and settings.get("thinking") is not False:
        sampling["thinking_budget"] = settings["budget"]
    thinking, effort = settings.get("thinking"), settings.get("effort")
    return Ask(messages, None, thinking, effort, sampling, resume, "page", may_move=True)


@router.get("/answers/{message}", responses=ERRORS)
def answer(message: str, request: Request) -> dict[str, Any]:
    context = context_of(request)
    running = context.answers.running.get(message)
    return public(running.so_far()) if running else context.store.message(message)


@router.get("/answers/{message}/events", responses=ERRORS | STREAM, response_class=Response)
async def events(
    message: str, request: Request, after: Annotated[int | None, Query(ge=0, le=1 << 60)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:  # fmt: skip
    """Follow an answer to its end."""
    context = context_of(request)
    if message not in context.answers.running:
        await asyncio.to_thread(context.store.message, message)
    if last_event_id is not None and last_event_id.isdecimal() and last_event_id.isascii():
        after = int(last_event_id[:18])

    async def source() -> AsyncGenerator[bytes]:
        async for number, name, data in context.answers.follow(message, after):
            yield event(data, name, number)

    return Live(source(), "text/event-stream", b": keep-alive\n\n")


@router.post("/answers/{message}/stop", responses=ERRORS)
async def stop(message: str, request: Request) -> dict[str, Any]:
    context = context_of(request)
    running = context.answers.running.get(message)
    if running is not None:
        await context.answers.stop([running])
    return await asyncio.to_thread(context.store.message, message)


@router.post("/answers/{message}/answer-now", status_code=204, responses=ERRORS)
async def answer_now(message: str, request: Request) -> Response:
    """Close its thoughts; nothing is left to do for an answer that is whole, as the press may come a moment late."""
    context = context_of(request)
    running = context.answers.running.get(message)
    if running is None:
        await asyncio.to_thread(context.store.message, message)  # 404 where there is none
    elif running.can_hurry:
        running.control.answer_now()
    else:
        raise Refusal(409, "This model cannot be told to answer now.", "message")
    return Response(status_code=204)


@router.post("/answers/{message}/continue", responses=ERRORS)
async def go_on(message: str, request: Request) -> dict[str, Any]:
    """Carry on with an answer that broke off."""
    context = context_of(request)
    store = context.store
    found = await asyncio.to_thread(store.message, message)
    if found["role"] != "assistant" or message in context.answers.running:
        raise Refusal(
            409, "The answer is still being written." if found["role"] == "assistant" else "Not an answer.", "message"
        )
    ids = await asyncio.to_thread(store.token_ids, message)
    broke_off = found["status"] in ("stopped", "interrupted", "failed") or found["finish_reason"] == "length"
    model = await context.find(found["model"])
    if not broke_off or not model.card.can_continue or not ids:
        raise Refusal(409, "There is nothing to continue.", "message")
    tree = {m["id"]: m for m in await asyncio.to_thread(store.tree, found["chat"])}
    path = path_to(tree, found["parent"])
    ask = await model.ready(ask_of(model, path, found["settings"] or {}, ids))
    found |= {"status": "running", "error": None, "finish_reason": None, "verdict": None, "token_ids": ids}
    await asyncio.to_thread(store.save, [found])
    context.answers.begin(found, model, ask, path[-1]["content"])
    return public(found)


@router.patch("/answers/{message}", responses=ERRORS)
async def judge(message: str, wanted: Verdict, request: Request) -> dict[str, Any]:
    """The user's own verdict, where no task gave one."""
    context = context_of(request)
    found = await asyncio.to_thread(context.store.message, message)
    if found["role"] != "assistant" or found["status"] == "running":
        raise Refusal(409, "Only an answer that has ended can be judged.", "message")
    verdict = found["verdict"] or {"note": "", "gold": None, "task": None}
    if verdict.get("by") == "task" and verdict.get("right") is not None:
        raise Refusal(409, "The task has judged this answer.", "right")
    found["verdict"] = verdict | {"right": wanted.right, "by": "user"}
    await asyncio.to_thread(context.store.save_verdict, message, found["verdict"])
    return found


# ------------------------------------------------------------------------------------- export, import


@router.get("/chats/{chat}/export", responses=ERRORS, response_class=Response)
def export_one(
    chat: str, request: Request, format: Literal["json", "markdown"] = "json", thoughts: bool = True
) -> Response:
    context = context_of(request)
    return _file(exchange.export(context.store, [chat], format, thoughts), format, "chat")


@router.get("/export", responses=ERRORS, response_class=Response)
def export_all(request: Request, format: Literal["json", "markdown"] = "json", thoughts: bool = True) -> Response:
    context = context_of(request)
    return _file(exchange.export(context.store, None, format, thoughts), format, "chats")


def _file(text: str, format: str, name: str) -> Response:
    kind, ending = ("application/json", "json") if format == "json" else ("text/markdown; charset=utf-8", "md")
    return Response(
        text, media_type=kind, headers={"content-disposition": f'attachment; filename="hadal-{name}.{ending}"'}
    )


@router.post("/import", status_code=201, responses=ERRORS,
             openapi_extra={"requestBody": {"required": True, "content": {
                 "application/json": {"schema": {"type": "object"}},
                 "text/markdown": {"schema": {"type": "string"}}}}})  # fmt: skip
async def import_chats(request: Request) -> Response:
    context: Context = context_of(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "text/markdown"):
        raise Refusal(415, "Send application/json or text/markdown.")
    data = await request.body()
    made = await asyncio.to_thread(exchange.import_, context.store, data, kind == "application/json")
    return JSONResponse({"chats": [await asyncio.to_thread(context.store.chat, chat) for chat in made]}, 201)
