"""Full-text search in SQLite: by its trigram index where it has one, else by looking through the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

AROUND = 60  # characters on each side of what was found


class Index:
    """A search for parts of words in any script. Opened within the transaction that makes the tables."""

    def __init__(self, db: sa.Connection) -> None:
        try:
            with db.begin_nested():
                db.execute(
                    sa.text("CREATE VIRTUAL TABLE IF NOT EXISTS message_words USING fts5(words, tokenize='trigram')")
                )
            self.fast = True
        except sa.exc.OperationalError:  # a SQLite without FTS5, or older than 3.34
            self.fast = False

    def add(self, db: sa.Connection, number: int, message: Mapping[str, Any]) -> None:
        if self.fast and message["status"] != "running":
            words = f"{message['content']}\n{message.get('thought') or ''}"
            db.execute(sa.text("INSERT INTO message_words(rowid, words) VALUES (:n, :w)"), {"n": number, "w": words})

    def forget(self, db: sa.Connection, numbers: Sequence[int] | sa.Select[Any]) -> None:
        if not self.fast:
            return
        table = sa.table("message_words", sa.column("rowid"))
        db.execute(table.delete().where(table.c.rowid.in_(numbers)))

    def holds(self, words: Sequence[str]) -> sa.ColumnElement[bool]:
        """The condition on a chat that it holds all the words, in its title or any message."""
        from hadal.server.store import chats, messages

        conditions = []
        for word in words:
            inside = sa.select(messages.c.chat)
            if self.fast and len(word) >= 3:
                found = sa.text("SELECT rowid FROM message_words WHERE message_words MATCH :word").bindparams(
                    sa.bindparam("word", '"' + word.replace('"', '""') + '"', unique=True)
                ).columns(sa.column("rowid"))  # fmt: skip
                inside = inside.where(messages.c.number.in_(sa.select(found.subquery())))
            else:
                inside = inside.where(_like(messages.c.content, word) | _like(messages.c.thought, word))
            conditions.append(chats.c.id.in_(inside) | _like(chats.c.title, word))
        return sa.and_(*conditions)


def _like(column: sa.ColumnElement[Any], word: str) -> sa.ColumnElement[bool]:
    return column.icontains(word, autoescape=True)


def snippet(text: str, words: Sequence[str]) -> list[tuple[str, bool]]:
    """The text around the first word found, in parts that are a match or not."""
    low = text.lower()
    if len(low) != len(text):  # a letter whose small form is longer: look without folding
        low = text
    places = sorted((at, -len(word)) for word in words if (at := low.find(word.lower())) >= 0)
    begin = max(0, places[0][0] - AROUND) if places else 0
    end = min(len(text), (places[0][0] if places else 0) + 2 * AROUND)
    parts: list[tuple[str, bool]] = [("…", False)] if begin else []
    at = begin
    while at < end:
        hits = [(p, -len(w)) for w in words if (p := low.find(w.lower(), at, end)) >= 0]
        if not hits:
            break
        place, length = min(hits)
        if place > at:
            parts.append((text[at:place], False))
        parts.append((text[place : place - length], True))
        at = place - length
    if at < end:
        parts.append((text[at:end], False))
    return [*parts, ("…", False)] if end < len(text) else parts
