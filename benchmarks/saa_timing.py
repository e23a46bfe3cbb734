"""Times steps, and the pack's share of them. Its code runs unchanged, with timing functions around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from guided_steps import BOOSTED, PLAIN, Steps, sample
from instruments import Meter, PeakMemory
from saa_variants import Variant, describe
from torch import Tensor

from dynamicid_core import adapter
from dynamicid_core.comfy_host import identity_patch

ADDED = {"around_model": 1, "forward": -1, "attend": 1, "text": -1, "once": -1}
"""The time that the pack adds to a step, as a signed sum over the names of ``hooks``."""


def timed_step(meter: Meter) -> Callable[[Callable[[], Tensor]], dict[str, Any]]:
    """Time and memory of one step. ``added``: the pack's time in it, without what it does once per run."""

    def around(step: Callable[[], Tensor]) -> dict[str, Any]:
        memory = PeakMemory()
        meter.take()
        memory.start()
        output = meter.timed("step", step)()
        seconds, calls = meter.take()
        peak = memory.stop()
        if not output.isfinite().all():
            raise RuntimeError("the model's output has non-finite values")
        return {
            "seconds": seconds["step"] - seconds["once"],
            "added": sum(sign * seconds[name] for name, sign in ADDED.items()),
            "layers": calls["attend"],
            "once": seconds["once"],
            "projection": seconds["projection"],
            "projections": calls["projection"],
            "peak": peak,
            "working": peak - memory.before,
            "load": load(),
        }

    return around


def measure_size(kinds: list[Variant], meter: Meter, size: int, steps: int) -> list[dict[str, Any]]:
    """All variants in turn, in sampling runs of two steps (with and without layout boost), until each has its steps."""
    rows = []
    sample(kinds[0], size, Steps([BOOSTED], timed_step(meter)))  # the first forward of a size is slower
    for begin in range(0, steps, 2):
        timesteps = [BOOSTED, PLAIN][: steps - begin]
        for kind in kinds:
            results = sample(kind, size, Steps(timesteps, timed_step(meter)))
            for number, result in enumerate(results):
                rows.append({"size": size, "people": kind.people, "step": begin + number, **result})
            print(f"  {size} pixels, {describe(kind.people)}: {results[-1]['seconds']:.2f} s per step", flush=True)
    return rows


@contextmanager
def hooks(meter: Meter) -> Iterator[None]:
    """Within the context, everything that the pack adds to a forward is timed.

    Per forward: "around_model" without the "forward" within it. Per layer: "attend" without the "text" within it, the
    attention it wraps. "once": inside "attend", what the pack caches for the rest of the sampling run, mostly
    "projection", the identity tokens' keys and values.
    """
    cls = identity_patch.IdentityPatch
    attention, around_model, keep = cls._attention, cls.around_model, cls._cached

    def timed_attention(*args: Any) -> Callable[..., Tensor]:
        return meter.timed("attend", attention(*args))

    def timed_around_model(self: Any, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        return around_model(self, TimedExecutor(executor, meter), *args, **kwargs)

    def timed_cached(self: Any, key: Any, build: Callable[[], Any]) -> Any:
        return keep(self, key, meter.timed("once", build))

    projections = adapter.IdentityProjections
    replaced = [
        (cls, "_attention", timed_attention),
        (cls, "_cached", timed_cached),
        (cls, "around_model", _method(meter.timed("around_model", timed_around_model))),
        (projections, "forward", _method(meter.timed("projection", projections.forward))),
        (identity_patch, "text_attention", meter.timed("text", identity_patch.text_attention)),
    ]
    with ExitStack() as stack:
        for owner, name, function in replaced:
            stack.enter_context(patch.object(owner, name, function))
        yield


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


class TimedExecutor:
    """The rest of a forward, as the host passes it to a wrapper."""

    def __init__(self, executor: Any, meter: Meter) -> None:
        self.class_obj = executor.class_obj
        self._call = meter.timed("forward", executor)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward."""
        return self._call(*args, **kwargs)


def load() -> float:
    """The load average over the last minute; -1 if the system does not report it."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else -1.0
