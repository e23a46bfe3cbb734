"""Measures time and memory on the device that ComfyUI has chosen."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

CUDA = comfy.model_management.get_torch_device().type == "cuda"
DTYPE = torch.float16 if CUDA else torch.float32
"""The dtype of the models whose steps are timed."""


class Meter:
    """Adds up the time spent in functions, by name. On CUDA it uses events, which do not synchronise."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._spans[name].append((start, self._now()))

        return run

    def take(self) -> tuple[Counter[str], Counter[str]]:
        """Return seconds and number of calls by name, and reset."""
        synchronize()
        seconds = Counter({name: sum(self._seconds(*span) for span in spans) for name, spans in self._spans.items()})
        calls = Counter({name: len(spans) for name, spans in self._spans.items()})
        self._spans.clear()
        return seconds, calls

    def _now(self) -> Any:
        if not CUDA:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if CUDA else end - start


class PeakMemory:
    """The most memory held at once between ``start`` and ``stop``, in bytes, and how much was held at the start.

    CUDA: torch's allocator. Linux: the high-water mark of the resident set, which the kernel lets a process reset.
    Elsewhere, and if a container forbids that, 0.
    """

    def start(self) -> None:
        """Forget earlier peaks."""
        self.before = 0
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._of_process("VmRSS")

    def stop(self) -> int:
        """The peak since the start."""
        if CUDA:
            return torch.cuda.max_memory_allocated()
        return self._of_process("VmHWM") if self.before else 0

    def _of_process(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def synchronize() -> None:
    """Wait until the device has finished its work."""
    if CUDA:
        torch.cuda.synchronize()
