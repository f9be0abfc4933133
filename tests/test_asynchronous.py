"""Whatever happens to an engine, every caller hears of it: none waits for ever, and who leaves frees what it held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from test_engine_exact import TOKENIZER, make, prompts_of

from hadal.engine import AsyncEngine, Busy, Closed, Engine, EngineConfig, SamplingParams
from hadal.engine.asynchronous import Piece

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = make("dense")
PARAMS = SamplingParams(max_tokens=60, ignore_eos=True, seed=1, n=2)
PROMPTS = prompts_of([5, 200, 30, 90, 7, 8])
PLACES = ["submit", "scheduler._admit", "runner._prefill", "runner.start", "runner._decode", "outputs._note",
          "outputs.finish", "progress", "has_work"]  # fmt: skip


def engine(**config: Any) -> Engine:
    return Engine(MODEL, TOKENIZER, EngineConfig(**({"chunk": 16, "rows": 3} | config)))


async def read(asynchronous: AsyncEngine, prompt: list[int], seen: Callable[[Piece], None] = lambda piece: None) -> int:
    count = 0
    async for piece in asynchronous.generate(prompt, PARAMS):
        count += len(piece.token_ids)
        seen(piece)
    return count


async def everyone(asynchronous: AsyncEngine, *, seen: Callable[[Piece], None] = lambda piece: None) -> list[Any]:
    """All prompts at once, at most 20 seconds; what each got, or the error that ended it."""
    work = asyncio.gather(*(read(asynchronous, prompt, seen) for prompt in PROMPTS), return_exceptions=True)
    return await asyncio.wait_for(work, 20)


class Gate:
    """Holds the engine's thread at the beginning of a step."""

    def __init__(self, engine: Engine) -> None:
        self.here, self.go = threading.Event(), threading.Event()
        step = engine.step

        def held() -> None:
            self.here.set()
            assert self.go.wait(20)
            step()

        engine.step = held  # type: ignore[method-assign]


def owner(engine: Engine, place: str) -> tuple[object, str]:
    """The part of an engine that a place is a method of, and the method's name."""
    *parts, name = place.split(".")
    return (getattr(engine, parts[0]) if parts else engine), name


def is_empty(engine: Engine) -> bool:
    engine.release()
    return not engine.has_work() and engine.kv.used() == 0 and len(engine.table.free) == len(engine.table.sequences)


def test_closing_ends_those_that_run_are_read_wait_and_were_not_let_in_yet() -> None:
    own = engine()
    gate = Gate(own)
    asynchronous = AsyncEngine(own)

    async def run() -> list[Any]:
        first = asyncio.create_task(read(asynchronous, PROMPTS[1]))
        await asyncio.to_thread(gate.here.wait)
        others = asyncio.create_task(everyone(asynchronous))  # orders that the thread will not come to
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(asyncio.to_thread(asynchronous.close))
        await asyncio.sleep(0.05)
        gate.go.set()
        await closing
        return [*await asyncio.wait_for(asyncio.gather(first, return_exceptions=True), 20), *await others]

    assert [type(result) for result in asyncio.run(run())] == [Closed] * 7
    assert is_empty(own)
    with pytest.raises(Closed, match="closed"):
        asyncio.run(read(asynchronous, PROMPTS[0]))
    asynchronous.close()


@pytest.mark.parametrize("phase", ["queued", "prefill", ""])
def test_closing_at_any_phase_of_some_request_ends_all(phase: str) -> None:
    own = engine()
    asynchronous = AsyncEngine(own)
    closing: list[threading.Thread] = []

    def close(piece: Piece) -> None:
        if piece.phase == phase and not closing:
            closing.append(threading.Thread(target=asynchronous.close))
            closing[0].start()

    results = asyncio.run(everyone(asynchronous, seen=close))
    closing[0].join(20)
    assert set(map(type, results)) <= {Closed, int} and Closed in map(type, results)
    assert is_empty(own)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_anywhere_reaches_every_caller(place: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = engine()
    part, name = owner(own, place)
    calls, right = 0, getattr(part, name)

    def faulty(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise RuntimeError("a fault")
        return right(*arguments, **more)

    monkeypatch.setattr(part, name, faulty)
    with AsyncEngine(own) as asynchronous:
        results = asyncio.run(everyone(asynchronous))
        assert all(isinstance(result, (RuntimeError, Closed, int)) for result in results), results
        assert any("a fault" in str(result) for result in results)
        if place == "submit":  # a request's own fault is nobody else's
            assert results[:after] == [120] * after and all(isinstance(r, RuntimeError) for r in results[after:])
            monkeypatch.setattr(part, name, right)
            assert asyncio.run(read(asynchronous, PROMPTS[0])) == 120
        else:
            with pytest.raises(Closed, match="RuntimeError: a fault"):
                asyncio.run(read(asynchronous, PROMPTS[0]))


def test_a_fault_while_others_are_ended_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has failed may fail again when it is asked to let go."""
    own = engine()

    def faulty(*arguments: Any) -> None:
        raise RuntimeError("a fault")

    for place in ("runner._decode", "abort"):
        monkeypatch.setattr(*owner(own, place), faulty)
    with AsyncEngine(own) as asynchronous:
        results = asyncio.run(everyone(asynchronous))
    assert [type(result) for result in results] == [RuntimeError] * len(PROMPTS)


@pytest.mark.parametrize("phase", ["not let in", "queued", "prefill", ""])
def test_who_leaves_at_any_phase_frees_what_was_held(phase: str) -> None:
    own = engine()
    gate = Gate(own)
    if phase != "not let in":
        gate.go.set()

    async def run(asynchronous: AsyncEngine) -> None:
        there = asyncio.Event()
        leaving = asyncio.create_task(
            read(asynchronous, PROMPTS[1], lambda piece: there.set() if piece.phase == phase else None)
        )
        if phase == "not let in":
            other = asyncio.create_task(read(asynchronous, PROMPTS[0]))
            await asyncio.to_thread(gate.here.wait)
            late = asyncio.create_task(read(asynchronous, PROMPTS[2]))
            await asyncio.sleep(0.05)
            late.cancel()
            other.cancel()
        else:
            await asyncio.wait_for(there.wait(), 20)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.go.set()
        for _ in range(400):
            if not own.has_work() and not asynchronous._callers:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it goes on for nobody")

    with AsyncEngine(own) as asynchronous:
        asyncio.run(run(asynchronous))
    assert is_empty(own)


def test_a_prompt_that_nobody_waits_for_is_read_no_further() -> None:
    own = engine()
    request = own.add(PROMPTS[1], PARAMS, 0)
    own.step()
    assert own.scheduler.prefill is not None
    own.abort(request)
    assert request.done and own.scheduler.prefill is None and is_empty(own)


def test_a_caller_whose_loop_is_gone_takes_nobody_along() -> None:
    own = engine()
    with AsyncEngine(own) as asynchronous:
        loop = asyncio.new_event_loop()
        stream = asynchronous.generate(PROMPTS[1], PARAMS)
        loop.run_until_complete(anext(stream))
        loop.close()
        assert asyncio.run(read(asynchronous, PROMPTS[0])) == 120
        for _ in range(400):
            if not own.has_work():
                break
            threading.Event().wait(0.02)
        assert not own.has_work()
    assert is_empty(own)


def test_who_is_told_that_it_has_begun_may_fail() -> None:
    own = engine()

    async def run(asynchronous: AsyncEngine) -> None:
        def started(request: object) -> None:
            raise ValueError("not I")

        with pytest.raises(ValueError, match="not I"):
            async for _ in asynchronous.stream(own.prepare(PROMPTS[1], PARAMS), started=started):
                pass

    with AsyncEngine(own) as asynchronous:
        asyncio.run(run(asynchronous))
        for _ in range(400):
            if not own.has_work():
                break
            threading.Event().wait(0.02)
    assert is_empty(own)


def test_many_are_turned_away_and_all_hear_something() -> None:
    own = engine(rows=1)
    with AsyncEngine(own, waiting=2) as asynchronous:
        results = asyncio.run(everyone(asynchronous))
    assert set(map(type, results)) == {int, Busy} and is_empty(own)
