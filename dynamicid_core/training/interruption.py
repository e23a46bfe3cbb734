"""Ctrl-C between two steps: a run that stopped within one could not go on from what it had."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.made = False

    def _note(self, number: int, _: FrameType | None) -> None:
        # A launcher that ends its processes sends them both signals: only a second Ctrl-C is impatience.
        if self.made and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.made = True


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
