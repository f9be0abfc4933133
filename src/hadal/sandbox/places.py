"""A fixed number of places, each of which does one thing at a time."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class _Stoppable(Protocol):
    def interrupt(self) -> None:
        """Make what it does now fail; from any thread."""

    def stop(self) -> object:
        """Release what it holds; while it does nothing."""


P = TypeVar("P", bound=_Stoppable)
A = TypeVar("A")
B = TypeVar("B")


class Places(Generic[P]):
    """Hands out places to threads that wait for one."""

    def __init__(self, places: Iterable[P]) -> None:
        self._all = list(places)
        self._free: queue.SimpleQueue[P] = queue.SimpleQueue()
        self._closed = False
        for place in self._all:
            self._free.put(place)

    @contextmanager
    def one(self) -> Iterator[P]:
        """A place for the duration of a `with`. Raises ValueError once closed."""
        place = self._free.get()
        try:
            if self._closed:
                raise ValueError("it is closed")
            yield place
        finally:
            self._free.put(place)

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Apply a function that takes a place, on all of them at once; results in the order of the items."""
        return in_threads(len(self._all), function, items)

    def close(self) -> None:
        """Interrupt and release all places; what waits for one, or comes later, gets the ValueError."""
        self._closed = True
        for place in self._all:
            place.interrupt()
        for place in [self._free.get() for _ in self._all]:
            place.stop()
            self._free.put(place)


def in_threads(count: int, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    with ThreadPoolExecutor(count) as threads:
        yield from threads.map(function, items)
