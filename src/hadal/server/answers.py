"""Answers that are being written for the page: each runs by itself, and any number of tabs follow it.

An answer's events are numbered. Who comes late gets a snapshot and then what follows; nobody has to be there. It is
saved once a second while it runs, and finally when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hadal.server.faults import Refusal
from hadal.server.meter import Meter
from hadal.server.models import Ask, Control, Delta, End, Model, Phase, Usage
from hadal.server.store import Store, now

KEPT = 512  # events that a tab may have missed
SAVED = 1.0  # seconds between savings
SPEED = 0.25  # seconds between speed events
SOON = 0.05  # seconds in which no speed can be told

log = logging.getLogger("hadal.server")

Event = tuple[int, str, dict[str, Any]]
Judge = Callable[[str, str, str], Mapping[str, Any] | None]
"""From a chat, a question and a response to the verdict, if there is one."""


class Running:
    """One answer under way."""

    def __init__(self, message: dict[str, Any], answer_now: bool) -> None:
        self.message = message
        self.can_hurry = answer_now
        self.control = Control()
        self.task: asyncio.Task[None] | None = None
        self.last = 0
        self.events: deque[Event] = deque(maxlen=KEPT)
        self.changed = asyncio.Event()
        self.phase = "queued"
        self.tokens = self.thought_tokens = 0
        self.ids: list[int] = list(message.get("token_ids") or [])
        self.stop = ""  # how it is to end: stopped or interrupted
        self.thought = [message["thought"]] if message["thought"] else []
        self.answer = [message["content"]] if message["content"] else []
        self.began = time.monotonic()
        self.first = 0.0  # when the first token came
        self.thought_before = message["thought_ms"] or 0

    def emit(self, name: str, data: dict[str, Any]) -> None:
        self.last += 1
        self.events.append((self.last, name, data))
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def speed(self) -> float | None:
        took = time.monotonic() - self.first
        return round(self.tokens / took, 1) if self.first and took > SOON else None

    def so_far(self) -> dict[str, Any]:
        texts = {"thought": "".join(self.thought) or None, "content": "".join(self.answer)}
        return {**self.message, **texts, "token_ids": list(self.ids)}

    def snapshot(self) -> Event:
        return self.last, "snapshot", {
            "message": public(self.so_far()), "phase": self.phase, "tokens": self.tokens,
            "tokens_per_second": self.speed,
        }  # fmt: skip

    def enter(self, phase: str) -> None:
        if phase == self.phase:
            return
        if self.phase == "thinking":
            self.settle_thought()
        self.phase = phase
        self.emit("phase", {"phase": phase})

    def settle_thought(self) -> None:
        """The thought ends here, for all that is known."""
        self.message["thought_ms"] = self.thought_before + int(1000 * (time.monotonic() - self.first))

    def hear(self, delta: Delta) -> None:
        if delta.tokens and not self.first:
            self.first = time.monotonic()
            self.message["wait_ms"] = int(1000 * (self.first - self.began))
        self.tokens += delta.tokens
        self.thought_tokens += delta.tokens if delta.kind == "thought" else 0
        self.ids += delta.ids
        if delta.kind == "moved":
            self.thought, self.answer = [delta.text], []
            self.enter("answering")
            self.settle_thought()
            self.emit("moved", {"thought": delta.text})
            return
        if delta.text or delta.tokens:
            self.enter("thinking" if delta.kind == "thought" else "answering")
        if delta.text:
            (self.thought if delta.kind == "thought" else self.answer).append(delta.text)
            self.emit("delta", {delta.kind: delta.text})


class Answers:
    """All that run, and their way into the store. judge: gives the verdict on an answer."""

    def __init__(self, store: Store, meter: Meter, judge: Judge) -> None:
        self.store, self.meter, self.judge = store, meter, judge
        self.running: dict[str, Running] = {}
        self._saver: asyncio.Task[None] | None = None

    def begin(self, message: dict[str, Any], model: Model, ask: Ask, question: str) -> None:
        """Start writing `message`, which the store holds already."""
        running = Running(message, model.card.answer_now and ask.thinking is not False)
        self.running[message["id"]] = running
        running.task = asyncio.create_task(self._write(running, model, ask, question))
        if self._saver is None or self._saver.done():
            self._saver = asyncio.create_task(self._save_now_and_then())

    async def _write(self, running: Running, model: Model, ask: Ask, question: str) -> None:
        message = running.message
        end: End | None = None
        usage: Usage | None = None
        spent = self.meter.begin(model.card.id)
        spoke = 0.0
        status = "done"
        try:
            async for event in model.answer(ask, running.control):
                match event:
                    case Phase():
                        running.enter(event.name)
                    case Delta():
                        running.hear(event)
                        self.meter.heard(spent, event.tokens)
                    case End():
                        end = event
                    case Usage():
                        usage = event
                if running.first and time.monotonic() - spoke > SPEED:
                    spoke = time.monotonic()
                    elapsed = int(1000 * (spoke - running.began))
                    running.emit(
                        "speed", {"tokens": running.tokens, "tokens_per_second": running.speed, "elapsed_ms": elapsed}
                    )
        except Refusal as refusal:
            status, message["error"] = "failed", refusal.message
        except asyncio.CancelledError:
            status = running.stop or "interrupted"
        except Exception:  # a bug: the reader hears of it, and the traceback goes to the log
            status, message["error"] = "failed", "The server made a mistake; its log has the details."
            raise
        finally:
            seconds = self.meter.end(spent, status if status != "done" else "")
            await asyncio.shield(self._end(running, model, ask, question, status, end, usage, seconds))

    async def _end(
        self, running: Running, model: Model, ask: Ask, question: str, status: str, end: End | None,
        usage: Usage | None, seconds: float,
    ) -> None:  # fmt: skip
        if running.phase == "thinking":
            running.settle_thought()
        message = running.so_far()
        took = time.monotonic() - running.began
        message |= {"status": status, "total_ms": (message["total_ms"] or 0) + int(1000 * took),
                    "tokens_per_second": running.speed, "answered_now": running.control.wanted.is_set()}  # fmt: skip
        if end is not None:
            message |= {"finish_reason": end.finish_reason, "thought": end.thought or None, "content": end.answer}
            message["answered_now"] = message["answered_now"] or end.cut_thought
            if end.finish_reason == "stop":
                message["token_ids"] = None
        if usage is None and running.tokens:
            usage = Usage(0, 0, running.tokens, running.thought_tokens, estimated=True)
        if usage is not None:
            cost = model.card.cost(usage, seconds)
            self.meter.count(model.card.id, usage, cost["usd"])
            message["usage"], message["cost"] = _together(message, usage, cost)
        if end is not None and status == "done":
            message["verdict"] = await asyncio.to_thread(self._judged, message["chat"], question, end.response)
        try:
            await asyncio.to_thread(self.store.save, [message])
        except Refusal as refusal:  # the disk is full: whoever follows has the answer, and hears that it is not kept
            message |= {"status": "failed", "error": refusal.message}
        running.message = message
        chat = await asyncio.to_thread(self._chat, message["chat"])
        running.emit("done", {"message": public(message), "chat": chat})
        self.running.pop(message["id"], None)

    def _judged(self, chat: str, question: str, response: str) -> Mapping[str, Any] | None:
        try:
            return self.judge(chat, question, response)
        except Exception:  # a scorer is anyone's code, and the answer has to be saved all the same
            log.exception("The scorer failed.")
            return None

    def _chat(self, chat: str) -> dict[str, Any] | None:
        try:
            return self.store.chat(chat)
        except Refusal:  # deleted meanwhile
            return None

    async def follow(self, message: str, after: int | None) -> AsyncIterator[Event]:
        """The events of an answer from a number on, to its end."""
        running = self.running.get(message)
        if running is None:
            found = await asyncio.to_thread(self.store.message, message)
            chat = await asyncio.to_thread(self._chat, found["chat"])
            yield (after or 0) + 1, "done", {"message": found, "chat": chat}
            return
        held = running.events[0][0] if running.events else running.last + 1
        if after is None or not held - 1 <= after <= running.last:
            snapshot = running.snapshot()
            after = snapshot[0]  # taken now: more may come while the snapshot is sent
            yield snapshot
        while True:
            changed = running.changed
            for event in [event for event in running.events if event[0] > after]:
                yield event
                after = event[0]
                if event[1] == "done":
                    return
            if changed is running.changed:
                await changed.wait()

    async def stop(self, wanted: Sequence[Running], how: str = "stopped") -> None:
        """End answers where they are."""
        await asyncio.sleep(0)  # let those that were begun just now take their first step, which sees to their end
        tasks = []
        for running in wanted:
            if running.task is not None:
                running.stop = running.stop or how
                running.task.cancel()
                tasks.append(running.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.stop(list(self.running.values()), "interrupted")
        if self._saver is not None:
            self._saver.cancel()

    async def _save_now_and_then(self) -> None:
        saved: dict[str, int] = {}
        while self.running:
            await asyncio.sleep(SAVED)
            changed = [r.so_far() for i, r in self.running.items() if saved.get(i) != r.tokens]
            saved = {i: r.tokens for i, r in self.running.items()}
            if changed:
                with suppress(Refusal):  # each says so itself when it ends
                    await asyncio.to_thread(self.store.save, changed, True)


def _together(message: Mapping[str, Any], usage: Usage, cost: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Usage and cost of a message, with those of the part that it went on from."""
    whole = {name: value for name, value in usage.as_dict().items() if not name.endswith("_details")}
    whole |= {"reasoning_tokens": usage.reasoning, "estimated": usage.estimated}
    before, paid = message["usage"] or {}, message["cost"] or {}
    for name in ("completion_tokens", "reasoning_tokens", "total_tokens"):
        whole[name] += before.get(name, 0) if name != "total_tokens" else before.get("completion_tokens", 0)
    for name in ("usd", "r1_usd"):
        if paid.get(name) is not None and cost[name] is not None:
            cost[name] += paid[name]
    return whole, cost


def new_message(chat: str, parent: str | None, role: str, content: str = "", model: str | None = None,
                settings: Mapping[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """A message with nothing known of it yet."""
    from hadal.server.store import FACTS, new_id

    facts = {name: None for name in FACTS} | {"settings": settings, "answered_now": False}
    status = "running" if role == "assistant" else "done"
    return {"id": new_id(), "chat": chat, "parent": parent, "role": role, "created": now(), "content": content,
            "thought": None, "status": status, "model": model, "verdict": None, **facts}  # fmt: skip


def public(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "token_ids"}
