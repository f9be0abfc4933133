"""The engine for many callers at once: a thread of its own steps it, each caller reads a stream.

Callers may come and go at any time: who leaves frees what his request held at the next step. When too many wait the
engine says so at once (`Busy`), instead of letting the queue grow.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as List
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from hadal.engine.core import Engine
from hadal.engine.queries import new_seed
from hadal.engine.request import Prepared, Request, RequestOutput, Sequence
from hadal.errors import UserError
from hadal.rollout import SamplingParams


class Busy(UserError):
    """Too many requests wait: come back later."""


class Closed(UserError):
    """The engine was closed, or had failed, before the request had ended."""

    def __init__(self, fault: BaseException | None = None) -> None:
        self.failed = fault is not None
        if fault is None:
            super().__init__("The engine has been closed.")
        else:
            super().__init__(f"The engine has failed ({type(fault).__name__}: {fault}).", "Start it again.")


@dataclass(frozen=True)
class Piece:
    """New tokens of one sample of a request; output: the whole, with the last piece only.

    logprobs, top_logprobs: of these tokens, where the request asked for them. phase: two pieces without tokens come
    first, one when the request has been let in and one when its prefill begins.
    """

    index: int
    token_ids: list[int]
    output: RequestOutput | None = None
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    phase: Literal["", "queued", "prefill"] = ""


@dataclass
class _Caller:
    """A request and where its pieces go; given: tokens of each sample that are sent; due: when it may have more."""

    request: Request
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Piece | BaseException]
    given: list[int] = field(default_factory=list)
    prefilling: bool = False
    due: float = 0.0


def _put(news: List[tuple[asyncio.Queue[Piece | BaseException], Piece | BaseException]]) -> None:
    for queue, piece in news:
        queue.put_nowait(piece)


def _send(loop: asyncio.AbstractEventLoop, news: List[tuple[_Caller, Piece | BaseException]]) -> bool:
    """Hand pieces to the callers of a loop; False where the loop has been closed, and nobody is there any more."""
    try:
        loop.call_soon_threadsafe(_put, [(caller.queue, piece) for caller, piece in news])
    except RuntimeError:
        if not loop.is_closed():
            raise
        return False
    return True


class AsyncEngine:
    """Streams over one engine. `close` it, or use it in a `with`.

    waiting: how many requests may wait before new ones are turned away; every: seconds between two requests' pieces, on
    average and at least, so that many readers do not hold the engine up: the more there are, the more tokens has each
    piece.
    """

    def __init__(self, engine: Engine, waiting: int = 256, every: float = 0.0) -> None:
        self.engine, self.most_waiting, self.every = engine, waiting, every
        self._callers: dict[int, _Caller] = {}
        self._orders: list[Callable[[], None]] = []
        self._coming: set[Future[_Caller]] = set()
        """Requests whose orders were not carried out yet."""
        self._fault: BaseException | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="hadal-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> AsyncEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all requests and the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def generate(self, prompt: List[int], params: SamplingParams, salt: str = "") -> AsyncGenerator[Piece]:
        """`stream` what `Engine.prepare` makes of a prompt. UserError for a request that cannot be answered."""
        return self.stream(self.engine.prepare(prompt, params), salt)

    async def stream(
        self, prepared: Prepared, salt: str = "", started: Callable[[Request], None] | None = None
    ) -> AsyncGenerator[Piece]:
        """The tokens of a prompt's samples as they are drawn. Leaving the iterator, or cancelling, ends the request.

        `Busy` where too many wait. started: is given the request, for `answer_now`.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        added: Future[_Caller] = Future()
        self._order(lambda: self._add(prepared, salt, loop, queue, added), added)
        try:
            caller = await asyncio.wrap_future(added)
        except asyncio.CancelledError:  # who leaves now may have been let in already
            added.add_done_callback(self._forget)
            raise
        try:
            if started is not None:
                started(caller.request)
            yield Piece(0, [], phase="queued")
            while True:
                piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.output is not None:
                    return
        finally:
            if not caller.request.done:
                self._wish(lambda: self._abort(caller))

    def answer_now(self, request: Request) -> None:
        """Close the open thoughts of a running request."""
        self._wish(lambda: self.engine.answer_now(request))

    # ---------------------------------------------------------------------------------- in the engine's thread

    def _order(self, order: Callable[[], None], coming: Future[_Caller] | None = None) -> None:
        with self._wake:
            if self._closed:
                raise Closed(self._fault) from self._fault
            self._orders.append(order)
            if coming is not None:
                self._coming.add(coming)
            self._wake.notify()

    def _wish(self, order: Callable[[], None]) -> None:
        """An order that nothing is left to do for once the engine is closed."""
        with suppress(Closed):
            self._order(order)

    def _add(
        self, prepared: Prepared, salt: str, loop: asyncio.AbstractEventLoop,
        queue: asyncio.Queue[Piece | BaseException], added: Future[_Caller],
    ) -> None:  # fmt: skip
        self._coming.discard(added)
        if not added.set_running_or_notify_cancel():
            return
        try:
            if len(self.engine.waiting) >= self.most_waiting:
                raise Busy(f"{self.most_waiting} requests are waiting.", "Try again later.")
            request = self.engine.submit(prepared, new_seed(prepared.params), salt)
        except Exception as error:  # the engine holds nothing of it: the fault is this caller's alone
            added.set_exception(error)
            return
        caller = _Caller(request, loop, queue, [0] * prepared.params.n)
        self._callers[request.number] = caller
        added.set_result(caller)

    def _forget(self, added: Future[_Caller]) -> None:
        if not added.cancelled() and added.exception() is None:
            self._wish(lambda: self._abort(added.result()))

    def _abort(self, caller: _Caller) -> None:
        self.engine.abort(caller.request)
        self._callers.pop(caller.request.number, None)

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._orders or self._closed or self.engine.has_work()):
                        self.engine.release()
                        self._wake.wait()
                    orders, self._orders = self._orders, []
                    if self._closed:
                        break
                for order in orders:
                    order()
                if self.engine.has_work():
                    self.engine.step()
                    self._deliver()
        except BaseException as error:  # a bug: every caller hears of it, none waits for ever
            self._fault = error
        with self._wake:
            self._closed = True
        self._end(self._fault or Closed())

    def _end(self, end: BaseException) -> None:
        """Tell all who wait why nothing more will come, and let go of what they held."""
        for coming in self._coming:
            if coming.set_running_or_notify_cancel():
                coming.set_exception(end)
        for caller in self._callers.values():
            _send(caller.loop, [(caller, end)])
        for caller in self._callers.values():
            try:
                self.engine.abort(caller.request)
            except Exception as error:
                if self._fault is None:  # else it is known already that the engine is broken
                    self._fault = error

    def _deliver(self) -> None:
        """Send each caller what is new; one call for all, as each wakes the loop's thread."""
        now = time.monotonic()
        news: list[tuple[_Caller, Piece | BaseException]] = []
        waiting = {job.request.number for job in self.engine.waiting}
        for number, caller in list(self._callers.items()):
            request = caller.request
            if not caller.prefilling and number not in waiting:
                caller.prefilling = True
                news.append((caller, Piece(0, [], phase="prefill")))
            if now < caller.due and not request.done:
                continue
            pieces = [piece for sequence in request.sequences if (piece := self._new(caller, sequence)).token_ids]
            if pieces:
                caller.due = now + self.every * len(self._callers)
            if request.done:
                last = pieces.pop() if pieces else Piece(0, [])
                pieces.append(replace(last, output=request.output()))
                del self._callers[number]
            news += [(caller, piece) for piece in pieces]
        for loop in {caller.loop for caller, _ in news}:
            if not _send(loop, [(caller, piece) for caller, piece in news if caller.loop is loop]):
                for caller in [caller for caller in self._callers.values() if caller.loop is loop]:
                    self._abort(caller)

    def _new(self, caller: _Caller, sequence: Sequence) -> Piece:
        """What a sample has that was not sent."""
        begin, sample = caller.given[sequence.index], sequence.sample
        if sample is None:
            tokens, logprobs, top = self.engine.progress(sequence, begin)
        else:
            tokens, logprobs, top = sample.token_ids[begin:], sample.logprobs[begin:], sample.top_logprobs[begin:]
        caller.given[sequence.index] += len(tokens)
        return Piece(sequence.index, tokens, None, logprobs, top)
