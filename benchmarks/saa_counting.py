"""Counts the operations that the pack dispatches, and how often it makes the host wait for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from guided_steps import BOOSTED, PLAIN, Steps, sample
from instruments import CUDA, synchronize
from saa_variants import Variant
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dynamicid_core.comfy_host import identity_patch

COUNTED_SIZE = 64
"""In pixels. Kernels are counted, not timed, and their number does not depend on the size."""
NO_KERNEL = ("aten._unsafe_view", "aten.empty", "aten.detach", "aten.lift_fresh")
READS_BY_HOST = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.equal")


class KernelCounter(TorchDispatchMode):
    """Lists the aten operations that launch a kernel; composite ones by their parts, except in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        name = str(func).rsplit(".", 1)[0]
        if not func.is_view and not name.startswith(NO_KERNEL):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def count_kernels(kinds: Iterable[Variant], dtype: torch.dtype) -> list[dict[str, Any]]:
    """The counts of all variants with people, on models of that dtype."""
    name = str(dtype).removeprefix("torch.")
    return [{"dtype": name, **row} for kind in kinds if kind.people > 0 for row in _kernels_of(kind)]


def _kernels_of(kind: Variant) -> list[dict[str, Any]]:
    """Operations of the pack in each layer of a step, not counting the text attention, with and without layout boost.

    The first step of the run, which projects the tokens, is left out.
    """
    found: list[dict[str, Any]] = []
    attention, text_attention = identity_patch.IdentityPatch._attention, identity_patch.text_attention

    def counted_attention(*args: Any) -> Callable[..., Tensor]:
        attend = attention(*args)

        def counted(*inputs: Any) -> Tensor:
            with watch_syncs() as syncs, KernelCounter() as counter:
                attended = attend(*inputs)
            found.append({"operations": counter.seen, "syncs": len(syncs), "rows": len(inputs[0])})
            return attended

        return counted

    def uncounted_text(*inputs: Any) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes(), watch_syncs(active=False):
            return text_attention(*inputs)

    def per_step(step: Callable[[], Tensor]) -> list[dict[str, Any]]:
        found.clear()
        step()
        return list(found)

    with (
        torch.no_grad(),
        patch.object(identity_patch.IdentityPatch, "_attention", counted_attention),
        patch.object(identity_patch, "text_attention", uncounted_text),
    ):
        *_, boosted, plain = sample(kind, COUNTED_SIZE, Steps([BOOSTED, PLAIN] * 2, per_step))
    return [summary(kind.people, True, boosted), summary(kind.people, False, plain)]


def summary(people: int, boost: bool, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarises the layers of a step: the longest list of operations, and all waits of the host for the device."""
    longest = max((layer["operations"] for layer in layers), key=len)
    reads = sum(name.startswith(READS_BY_HOST) for layer in layers for name in layer["operations"])
    return {
        "people": people,
        "boost": boost,
        "operations": [name.removeprefix("aten.") for name in longest],
        "layers": len(layers),
        "rows": layers[0]["rows"],
        "syncs": reads + sum(layer["syncs"] for layer in layers),
    }


@contextmanager
def watch_syncs(active: bool = True) -> Iterator[list[Any]]:
    """Collects a warning for each wait of the host for the device, on CUDA only. active: False suspends collecting."""
    if not CUDA:
        yield []
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn" if active else "default")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode(before)


def count_device_kernels(kind: Variant) -> int:
    """Kernels that a whole step launches on CUDA, from torch's profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    def profiled(step: Callable[[], Tensor]) -> int:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            synchronize()
        names = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
        return sum(not name.startswith(("Memcpy", "Memset")) for name in names)

    return sample(kind, COUNTED_SIZE, Steps([PLAIN, PLAIN], profiled))[-1]
