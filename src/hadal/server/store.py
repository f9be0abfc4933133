"""The history: chats and their trees of messages in SQLite, found again after any kind of end.

Every function is one transaction. A message that is being written is saved now and then as `running`; where the
server died, `open` makes it `interrupted`. One server owns a database at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, ForeignKey, Integer, MetaData, String, Table, Text
from sqlalchemy.types import JSON

from hadal.errors import UserError
from hadal.server.faults import Refusal
from hadal.server.search import Index, snippet

VERSION = 1
TITLE = 60  # characters of an automatic title

metadata = MetaData()
about = Table("hadal", metadata, Column("name", String, primary_key=True), Column("value", JSON))
"""The schema's version, and the preferences of the page."""
chats = Table(
    "chats", metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("title", Text, nullable=False),
    Column("titled", Boolean, nullable=False),
    Column("created", Integer, nullable=False),
    Column("updated", Integer, nullable=False, index=True),
    Column("model", String),
    Column("settings", JSON, nullable=False),
    Column("leaf", String),
    Column("duel", JSON),
)  # fmt: skip
messages = Table(
    "messages", metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("chat", String, ForeignKey("chats.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("parent", String),
    Column("role", String, nullable=False),
    Column("created", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("thought", Text),
    Column("status", String, nullable=False, index=True),
    Column("model", String),
    Column("tokens", Integer, nullable=False, default=0),
    Column("usd", Float),
    Column("verdict", JSON),
    Column("facts", JSON, nullable=False),
    Column("token_ids", JSON),
)  # fmt: skip
FACTS = (
    "finish_reason", "error", "settings", "thought_ms", "wait_ms", "total_ms", "usage", "tokens_per_second", "cost",
    "answered_now",
)  # fmt: skip
"""What a message says of itself besides its columns."""


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    return secrets.token_urlsafe(9)


def auto_title(question: str) -> str:
    """A title from a question: its first line, cut at a word."""
    line = next((line.strip() for line in question.splitlines() if line.strip()), "")
    if len(line) <= TITLE:
        return line
    return (line[:TITLE].rpartition(" ")[0] or line[: TITLE - 1]) + "…"


class Taken(UserError):
    """Another server owns the database."""


class Store:
    """One database. UserError, naming the remedy, where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._write = threading.Lock()
        self._lock = self._own()
        self.engine = sa.create_engine(f"sqlite:///{self.path}", connect_args={"timeout": 30})
        sa.event.listen(self.engine, "connect", _prepare)
        try:
            with self.engine.begin() as db:
                self._check(db)
                metadata.create_all(db)
                self.index = Index(db)
                db.execute(about.insert().prefix_with("OR IGNORE").values(name="version", value=VERSION))
                db.execute(messages.update().where(messages.c.status == "running").values(status="interrupted"))
        except sa.exc.DatabaseError as error:
            raise UserError(f"{self.path} cannot be used: {error.orig}.", "Give another with --db.") from None

    def _own(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"The history cannot be written in {self.path.parent}: {reason}.",
                            "Choose another place with --db.") from None  # fmt: skip
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise Taken(
                f"Another hadal serves with the history {self.path}.", "Give this one another with --db."
            ) from None
        return lock

    def _check(self, db: sa.Connection) -> None:
        if not sa.inspect(db).has_table("hadal"):
            if sa.inspect(db).get_table_names():
                raise UserError(f"{self.path} is another program's database.", "Give another with --db.")
            return
        version = db.execute(sa.select(about.c.value).where(about.c.name == "version")).scalar()
        if version != VERSION:
            raise UserError(f"{self.path} has version {version} of the history, this hadal reads version {VERSION}.",
                            "Use the hadal that wrote it, or give another with --db.")  # fmt: skip

    def close(self) -> None:
        self.engine.dispose()
        os.close(self._lock)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes. Refusal where the disk is full or has become read-only."""
        try:
            with self._write, self.engine.begin() as db:
                yield db
        except sa.exc.OperationalError as error:
            raise Refusal(503, f"The history cannot be written: {error.orig}.") from None

    # ------------------------------------------------------------------------------ chats

    def list_chats(self, kind: str = "chat", q: str = "", limit: int = 50, before: int | None = None) -> dict[str, Any]:
        """Chats by their last change, newest first; with `q`, those that hold all its words."""
        wanted = sa.select(chats.c.id).order_by(chats.c.updated.desc(), chats.c.id).limit(limit + 1)
        if kind != "all":
            wanted = wanted.where(chats.c.kind == kind)
        if before is not None:
            wanted = wanted.where(chats.c.updated < before)
        words = q.split()
        with self.engine.connect() as db:
            if words:
                wanted = wanted.where(self.index.holds(words))
            ids = list(db.execute(wanted).scalars())
            found = self._chats(db, ids[:limit])
            for chat in found:
                chat["snippet"] = self._snippet(db, chat["id"], words) if words else None
        return {"chats": found, "more": len(ids) > limit}

    def _snippet(self, db: sa.Connection, chat: str, words: Sequence[str]) -> dict[str, Any]:
        rows = db.execute(sa.select(messages.c.id, messages.c.content, messages.c.thought)
                          .where(messages.c.chat == chat).order_by(messages.c.number))  # fmt: skip
        for row in rows:
            for text in (row.content, row.thought or ""):
                if any(word.lower() in text.lower() for word in words):
                    return {"message": row.id, "parts": snippet(text, words)}
        title = db.execute(sa.select(chats.c.title).where(chats.c.id == chat)).scalar() or ""
        return {"message": None, "parts": snippet(title, words)}

    def _chats(self, db: sa.Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
        m = messages.c
        sums = (
            sa.select(m.chat, sa.func.count().label("count"), sa.func.sum(m.tokens).label("tokens"),
                      sa.func.sum(m.usd).label("cost_usd"),
                      sa.func.group_concat(sa.case((m.status == "running", m.id))).label("running"))
            .where(m.chat.in_(ids)).group_by(m.chat).subquery()
        )  # fmt: skip
        rows = db.execute(sa.select(chats, sums).outerjoin(sums, sums.c.chat == chats.c.id).where(chats.c.id.in_(ids)))
        by_id = {row.id: _chat(row._asdict()) for row in rows}
        return [by_id[i] for i in ids if i in by_id]

    def chat(self, chat: str) -> dict[str, Any]:
        with self.engine.connect() as db:
            found = self._chats(db, [chat])
        if not found:
            raise Refusal(404, f"There is no chat {chat!r}.", "chat")
        return found[0]

    def duel(self, chat: str) -> dict[str, Any] | None:
        """What a duel was about, the right answer included."""
        with self.engine.connect() as db:
            return db.execute(sa.select(chats.c.duel).where(chats.c.id == chat)).scalar()

    def tree(self, chat: str) -> list[dict[str, Any]]:
        """All messages of a chat, oldest first."""
        with self.engine.connect() as db:
            rows = db.execute(sa.select(messages).where(messages.c.chat == chat).order_by(messages.c.number))
            return [_message(row._asdict()) for row in rows]

    def create_chat(
        self, kind: str = "chat", title: str = "", model: str | None = None,
        settings: Mapping[str, Any] | None = None, duel: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        at, chat = now(), new_id()
        with self.writing() as db:
            db.execute(chats.insert().values(
                id=chat, kind=kind, title=title, titled=bool(title) and kind == "chat", created=at, updated=at,
                model=model, settings=dict(settings or {}), leaf=None, duel=None if duel is None else dict(duel),
            ))  # fmt: skip
        return chat

    def change_chat(self, chat: str, **values: Any) -> None:
        """Write the given columns. An empty title becomes the automatic one."""
        if values.get("title") == "":
            first = next((m["content"] for m in self.tree(chat) if m["role"] == "user"), "")
            values |= {"title": auto_title(first), "titled": False}
        if values:
            with self.writing() as db:
                db.execute(chats.update().where(chats.c.id == chat).values(**values))

    def delete_chats(self, chat: str | None = None, kind: str | None = None) -> None:
        """One chat, all of a kind, or all."""
        chosen = sa.true() if chat is None else chats.c.id == chat
        chosen = chosen if kind is None else chosen & (chats.c.kind == kind)
        with self.writing() as db:
            inside = messages.c.chat.in_(sa.select(chats.c.id).where(chosen))
            self.index.forget(db, sa.select(messages.c.number).where(inside))
            db.execute(messages.delete().where(inside))
            db.execute(chats.delete().where(chosen))

    # ------------------------------------------------------------------------------ messages

    def message(self, message: str) -> dict[str, Any]:
        with self.engine.connect() as db:
            row = db.execute(sa.select(messages).where(messages.c.id == message)).one_or_none()
        if row is None:
            raise Refusal(404, f"There is no message {message!r}.", "message")
        return _message(row._asdict())

    def token_ids(self, message: str) -> list[int]:
        with self.engine.connect() as db:
            return db.execute(sa.select(messages.c.token_ids).where(messages.c.id == message)).scalar() or []

    def add(self, chat: str, new: Sequence[Mapping[str, Any]]) -> None:
        """Put messages into a chat, with their ids; the last one is its leaf."""
        with self.writing() as db:
            for message in new:
                values = {"chat": chat, **_columns(message)}
                number = db.execute(messages.insert().returning(messages.c.number), values).scalar_one()
                self.index.add(db, number, message)
            changes: dict[str, Any] = {"updated": now(), "leaf": new[-1]["id"]}
            first = next((m["content"] for m in new if m["role"] == "user"), "")
            titled = db.execute(sa.select(chats.c.title).where(chats.c.id == chat)).scalar()
            if first and not titled:
                changes["title"] = auto_title(first)
            db.execute(chats.update().where(chats.c.id == chat).values(**changes))

    def save(self, changed: Sequence[Mapping[str, Any]], partial: bool = False) -> None:
        """Write messages over; those that have ended are found by a search from now on. partial: only what runs."""
        with self.writing() as db:
            for message in changed:
                mine = messages.c.id == message["id"]
                mine = mine & (messages.c.status == "running") if partial else mine
                db.execute(messages.update().where(mine).values(**_columns(message)))
                if not partial:
                    number = db.execute(sa.select(messages.c.number).where(messages.c.id == message["id"])).scalar()
                    if number is not None:
                        self.index.forget(db, [number])
                        self.index.add(db, number, message)

    def save_verdict(self, message: str, verdict: Mapping[str, Any]) -> None:
        with self.writing() as db:
            db.execute(messages.update().where(messages.c.id == message).values(verdict=dict(verdict)))

    def duels(self, models: Sequence[str]) -> list[dict[str, bool]]:
        """For each duel of exactly these models in which every answer was judged: which were right."""
        with self.engine.connect() as db:
            rows = db.execute(sa.select(messages.c.chat, messages.c.model, messages.c.verdict, chats.c.duel)
                              .join(chats, chats.c.id == messages.c.chat)
                              .where(chats.c.kind == "duel", messages.c.role == "assistant")
                              .order_by(messages.c.number))  # fmt: skip
            rounds: dict[str, dict[str, bool | None]] = {}
            for row in rows:
                if sorted((row.duel or {}).get("models", [])) == sorted(models):
                    rounds.setdefault(row.chat, {})[row.model] = (row.verdict or {}).get("right")
        return [{m: bool(v) for m, v in one.items()} for one in rounds.values()
                if set(one) == set(models) and None not in one.values()]  # fmt: skip

    # ------------------------------------------------------------------------------ preferences

    def preferences(self) -> dict[str, Any]:
        with self.engine.connect() as db:
            return db.execute(sa.select(about.c.value).where(about.c.name == "preferences")).scalar() or {}

    def set_preferences(self, value: Mapping[str, Any]) -> None:
        with self.writing() as db:
            db.execute(about.delete().where(about.c.name == "preferences"))
            db.execute(about.insert().values(name="preferences", value=dict(value)))


def _prepare(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _chat(row: Mapping[str, Any]) -> dict[str, Any]:
    chat = {
        name: row[name] for name in ("id", "kind", "title", "titled", "created", "updated", "model", "settings", "leaf")
    }
    running = row["running"].split(",") if row["running"] else []
    duel = dict(row["duel"]) if row["duel"] else None
    if duel is not None:
        duel = {name: duel.get(name) for name in ("models", "task", "difficulty", "gold", "held_out")}
        duel["gold"] = None if running else duel["gold"]
    return chat | {"running": running, "count": row["count"] or 0, "tokens": row["tokens"] or 0,
                   "cost_usd": row["cost_usd"], "duel": duel}  # fmt: skip


def _message(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "chat", "parent", "role", "created", "content", "thought", "status", "model", "verdict")
    return {name: row[name] for name in names} | {name: row["facts"].get(name) for name in FACTS}


def _columns(message: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "parent", "role", "created", "content", "thought", "status", "model", "verdict", "token_ids")
    usage, cost = message.get("usage") or {}, message.get("cost") or {}
    facts = {name: message[name] for name in FACTS if message.get(name) is not None}
    return {name: message[name] for name in names if name in message} | {
        "facts": facts, "tokens": usage.get("completion_tokens", 0), "usd": cost.get("usd")
    }  # fmt: skip


def dumps(value: Any) -> str:
    """JSON that any client reads: UTF-8, with no halves of characters."""
    return (
        json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        .encode("utf-8", "replace")
        .decode()
    )
