"""Ctrl-C at a moment that suits: not while the terminal is half drawn.

Python raises KeyboardInterrupt between any two instructions, and a drawing library that is left in the middle of
one of its own steps fails later, with a traceback.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held(passed_on: bool = True) -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C back inside the block; yields what says whether it was pressed.

    `passed_on`: the handler that was there before gets it at the end of the block. Else it is the block's own
    business, and a second press raises KeyboardInterrupt at once. Outside the main thread, which alone may set
    handlers, nothing is held.
    """
    presses: list[tuple[int, FrameType | None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def hold(number: int, frame: FrameType | None) -> None:
        presses.append((number, frame))
        if not passed_on and len(presses) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)
    if presses and passed_on and callable(before):
        before(*presses[0])
