"""Handles Ctrl-C between two steps: a run stopped within a step could not be resumed exactly."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPATIENCE = 1.0
"""Seconds within which a second Ctrl-C does not count: launchers forward to their processes the signal that those have
already received from the terminal.
"""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._first: float | None = None

    @property
    def received(self) -> bool:
        """Whether a request has come."""
        return self._first is not None

    def _record(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif number == signal.SIGINT and now - self._first >= IMPATIENCE:
            raise KeyboardInterrupt


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the context, the first Ctrl-C or SIGTERM is only recorded; a second Ctrl-C interrupts as usual.

    Changes nothing in threads other than the main one, which cannot receive signals.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request._record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
