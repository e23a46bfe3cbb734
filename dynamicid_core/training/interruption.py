"""Ctrl-C between two steps: a run that stopped within one could not go on from what it had."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPATIENCE = 1.0
"""Seconds. A second Ctrl-C that comes sooner is no second one: launchers pass on to their processes what those have had
from the terminal already.
"""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._first: float | None = None

    @property
    def received(self) -> bool:
        """Since the beginning."""
        return self._first is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif number == signal.SIGINT and now - self._first >= IMPATIENCE:
            raise KeyboardInterrupt


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While this lasts, the first Ctrl-C or SIGTERM only makes a note; a second Ctrl-C interrupts as usual.

    In threads other than the main one, which cannot take signals, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
