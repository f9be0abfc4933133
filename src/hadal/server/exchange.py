"""Chats as files: JSON with the whole tree, Markdown with the branch that is shown; and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel as Lenient
from pydantic import ConfigDict, Field, ValidationError

from hadal.server.bodies import load_json
from hadal.server.faults import Refusal
from hadal.server.store import Store, dumps, new_id, now

FORMAT = 1
MOST_CHATS, MOST_MESSAGES = 10_000, 100_000
MARK = re.compile(r"^<!-- hadal:(chat|user|thought|answer)(?: ([^\n]*?))? -->\n", re.MULTILINE)


class MessageFile(Lenient):
    """A message in an exported file; whatever else it holds is left out."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    id: str = Field(max_length=200)
    parent: str | None = None
    role: Literal["user", "assistant"]
    created: int = Field(0, ge=0, le=1 << 60)
    content: str = ""
    thought: str | None = None
    status: Literal["running", "done", "stopped", "interrupted", "failed"] = "done"
    model: str | None = Field(None, max_length=500)
    finish_reason: str | None = Field(None, max_length=100)
    error: str | None = Field(None, max_length=2000)
    thought_ms: int | None = Field(None, ge=0)
    wait_ms: int | None = Field(None, ge=0)
    total_ms: int | None = Field(None, ge=0)
    tokens_per_second: float | None = None
    answered_now: bool = False


class ChatFile(Lenient):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    title: str = Field(default="", max_length=500)
    created: int = Field(default=0, ge=0, le=1 << 60)
    updated: int = Field(default=0, ge=0, le=1 << 60)
    model: str | None = Field(default=None, max_length=500)
    leaf: str | None = None
    messages: list[MessageFile] = Field(max_length=MOST_MESSAGES)


class File(Lenient):
    model_config = ConfigDict(extra="ignore", strict=True)

    hadal_chats: Literal[1]
    chats: list[ChatFile] = Field(max_length=MOST_CHATS)


def export(store: Store, ids: Sequence[str] | None, format: str, thoughts: bool) -> str:
    """The chats of the given ids, or all of them."""
    if ids is None:
        found, before = [], None
        while True:
            page = store.list_chats("all", "", 200, before)
            found += page["chats"]
            if not page["more"]:
                break
            before = page["chats"][-1]["updated"]
    else:
        found = [store.chat(chat) for chat in ids]
    whole = [chat | {"messages": [_without(m, thoughts) for m in store.tree(chat["id"])]} for chat in found]
    if format == "json":
        return dumps({"hadal_chats": FORMAT, "exported": now(), "chats": whole})
    return "\n".join(_markdown(chat) for chat in whole)


def _without(message: dict[str, Any], thoughts: bool) -> dict[str, Any]:
    return message if thoughts else message | {"thought": None}


def shown(chat: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The branch of a chat that ends in its leaf."""
    by_id = {message["id"]: message for message in chat["messages"]}
    leaf = chat["leaf"] if chat["leaf"] in by_id else next(reversed(by_id), None)
    path: list[Mapping[str, Any]] = []
    while leaf in by_id and len(path) < len(by_id):
        path.append(by_id[leaf])
        leaf = by_id[leaf]["parent"]
    return path[::-1]


def _markdown(chat: Mapping[str, Any]) -> str:
    """Readable as it is; the comments say where each part begins. A text that holds such a comment has it defused."""
    title = " ".join(chat["title"].split()) or "Untitled"
    out = [f"<!-- hadal:chat -->\n# {title}\n"]
    for message in shown(chat):
        content = _defused(message["content"])
        if message["role"] == "user":
            out.append(f"<!-- hadal:user -->\n## Question\n\n{content}\n")
            continue
        if message["thought"]:
            out.append(f"<!-- hadal:thought -->\n### Thought\n\n{_defused(message['thought'])}\n")
        out.append(f"<!-- hadal:answer {_comment(message['model'] or '')} -->\n### Answer\n\n{content}\n")
    return "\n".join(out)


def _defused(text: str) -> str:
    return text.replace("<!-- hadal:", "<!--hadal:")


def _comment(text: str) -> str:
    return " ".join(text.replace("--", "-").replace(">", "").split())


def import_(store: Store, data: bytes, is_json: bool) -> list[str]:
    """Put the chats of a file into the store, under new ids; the ids. Refusal for what is no such file."""
    try:
        chats = File.model_validate(load_json(data, "The file")).chats if is_json else _read_markdown(data.decode())
    except UnicodeDecodeError:
        raise Refusal(400, "The file is not UTF-8 text.") from None
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise Refusal(
            422, f"The file is not an export of hadal's chats: {place} {error.errors()[0]['msg'].lower()}."
        ) from None
    if not chats:
        raise Refusal(422, "The file holds no chats.")
    for chat in chats:
        _check(chat)  # all of them first, so that none is taken where one cannot be
    return [_add(store, chat) for chat in chats]


def _check(chat: ChatFile) -> None:
    known: set[str | None] = {None}
    for message in chat.messages:
        if message.id in known or message.parent not in known:
            raise Refusal(422, "The file is not an export of hadal's chats: its messages do not form a tree.")
        known.add(message.id)


def _add(store: Store, chat: ChatFile) -> str:
    ids: dict[str, str] = {}
    new: list[dict[str, Any]] = []
    for message in chat.messages:
        ids[message.id] = new_id()
        values = message.model_dump() | {"id": ids[message.id], "parent": ids.get(message.parent or "")}
        values["created"] = message.created or now()
        values["status"] = "interrupted" if message.status == "running" else message.status
        new.append(values)
    made = store.create_chat("chat", chat.title.strip(), chat.model)
    if new:
        store.add(made, new)
    times = {"created": chat.created or now(), "updated": chat.updated or now()}
    store.change_chat(made, leaf=ids.get(chat.leaf or "", new[-1]["id"] if new else None), **times)
    return made


def _read_markdown(text: str) -> list[ChatFile]:
    parts = MARK.split(text.replace("\r\n", "\n"))
    chats: list[ChatFile] = []
    thought: str | None = None
    for kind, said, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        heading, _, rest = body.lstrip("\n").partition("\n")
        content = rest.strip("\n")
        if kind == "chat":
            chats.append(ChatFile(title=heading.removeprefix("# ").strip()[:500], messages=[]))
        elif not chats:
            continue
        elif kind == "thought":
            thought = content
        else:
            messages = chats[-1].messages
            parent = messages[-1].id if messages else None
            answer = (
                {"role": "assistant", "model": said or None, "thought": thought}
                if kind == "answer"
                else {"role": "user"}
            )
            messages.append(
                MessageFile.model_validate({"id": str(len(messages)), "parent": parent, "content": content} | answer)
            )
            thought = None
    return chats
