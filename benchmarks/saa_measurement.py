"""The measuring process of saa_overhead.py: one ComfyUI, one kind of attention. Its argument is a JSON order.

The product code runs unchanged; functions around it take the time (``hooks``).
"""

# ruff: noqa: E402  (the host is to be prepared before it is imported)
from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
ORDER: dict[str, Any] = json.loads(sys.argv[1])


def prepare_host() -> None:
    """Make `import comfy` work, with the order's command-line arguments."""
    sys.path[:0] = [ORDER["host"], str(ROOT / "scripts")]
    sys.path.append(str(ROOT))  # last: the host has a module `nodes` of its own
    importlib.import_module("torchvision_shim").make_torchvision_importable()
    sys.argv = ["main.py", *ORDER["host_arguments"]]
    importlib.import_module("comfy.options").enable_args_parsing()


prepare_host()

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from random_models import TEXT_WIDTH, TOKENS, random_adapter, sd15
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dynamicid_core import adapter, saa
from dynamicid_core.comfy_host import identity_patch, patching
from dynamicid_core.comfy_host.loading import DynamicID
from dynamicid_core.face import Face, Placement
from dynamicid_core.regions import Box

CUDA = ORDER["device"] == "cuda"
DTYPE = torch.float16 if CUDA else torch.float32
UNPATCHED = -1
"""Stands for a number of people: the model as it was, without even the low-rank updates."""
TEXT_TOKENS, CFG = 77, 5.0
BOOSTED, PLAIN = 900, 500
"""Timesteps: the layout boost acts at the first (before 24 % of the schedule), no more at the second."""
ADDED = {"around_model": 1, "forward": -1, "attend": 1, "text": -1, "once": -1}
"""What the pack adds to a step, by the names of ``hooks``."""
COUNTED_SIZE = 64
"""In pixels. Kernels are counted, not timed, and their number does not depend on the size."""
NO_KERNEL = ("aten._unsafe_view", "aten.empty", "aten.detach", "aten.lift_fresh")
READS_BY_HOST = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.equal")


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass
class Variant:
    """A model to measure with its conditioning."""

    people: int
    model: comfy.model_patcher.ModelPatcher
    positive: patching.Conditioning
    negative: patching.Conditioning


def placements(count: int) -> list[Placement]:
    """People side by side, each in a box of their own."""
    generator = torch.Generator().manual_seed(2)
    shape = (1, TOKENS, TEXT_WIDTH)
    tokens = [torch.randn(shape, generator=generator) for _ in range(count + 1)]
    faces = [Face(tokens[i], tokens[count], base_model="sd15") for i in range(count)]
    return [Placement(face, Box(i / count, 0.2, (i + 0.9) / count, 0.9)) for i, face in enumerate(faces)]


def variants(base: comfy.model_patcher.ModelPatcher, dynamicid: DynamicID) -> list[Variant]:
    """The unpatched model, the one with merged updates only (0 people), and those with people."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(2, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    positive, negative = ([[part, {}]] for part in text.split(1))
    merged = base.clone()
    tensors = dynamicid.checkpoint.modules["saa"]
    layers = adapter.layer_map({key: tensor.shape for key, tensor in base.model.diffusion_model.state_dict().items()})
    patching.add_low_rank_updates(merged, adapter.low_rank_updates(tensors, layers), 1.0)
    found = [Variant(UNPATCHED, base, positive, negative), Variant(0, merged, positive, negative)]
    for count in filter(None, ORDER["people"]):
        settings = saa.SaaSettings()
        applied = patching.apply_dynamicid(base, positive, negative, dynamicid, placements(count), settings)
        found.append(Variant(count, *applied))
    return found


# --- instruments -----------------------------------------------------------------------------------------------------


class Meter:
    """Adds up the time spent in functions, by name. On CUDA with events, which do not make the host wait."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time taken."""

        def run(*args: Any, **kwargs: Any) -> Any:
            begun = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._spans[name].append((begun, self._now()))

        return run

    def take(self) -> tuple[Counter[str], Counter[str]]:
        """Seconds and number of calls by name, and start anew."""
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

    def _seconds(self, begun: Any, ended: Any) -> float:
        return begun.elapsed_time(ended) / 1000 if CUDA else ended - begun


@contextmanager
def hooks(meter: Meter) -> Iterator[None]:
    """While open, whatever the pack adds to a forward is timed.

    Per forward: "around_model" without "forward" within it. Per layer: "attend" without "text" within it, the
    attention it wraps. "once": inside "attend", what the pack then keeps for the rest of the sampling run; most of it
    is "projection", the identity tokens' keys and values.
    """
    cls = identity_patch.IdentityPatch
    attention, around_model, keep = cls._attention, cls.around_model, cls._keep

    def timed_attention(*args: Any) -> Callable[..., Tensor]:
        return meter.timed("attend", attention(*args))

    def timed_around_model(self: Any, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        return around_model(self, TimedExecutor(executor, meter), *args, **kwargs)

    def timed_keep(self: Any, key: Any, build: Callable[[], Any]) -> Any:
        return keep(self, key, meter.timed("once", build))

    projections = adapter.IdentityProjections
    replaced = [
        (cls, "_attention", timed_attention),
        (cls, "_keep", timed_keep),
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
    """The rest of a forward, as the host hands it to a wrapper."""

    def __init__(self, executor: Any, meter: Meter) -> None:
        self.class_obj = executor.class_obj
        self._call = meter.timed("forward", executor)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward."""
        return self._call(*args, **kwargs)


class PeakMemory:
    """The most memory held at once between ``start`` and ``stop``, in bytes, and how much was held at the start.

    CUDA: torch's allocator. Linux: the high-water mark of the resident set, which the kernel lets a process reset.
    Elsewhere, and where a container forbids that, 0.
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


class KernelCounter(TorchDispatchMode):
    """Lists the aten operations that launch a kernel. Composite ones come as their parts, if not in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        name = str(func).rsplit(".", 1)[0]
        if not func.is_view and not name.startswith(NO_KERNEL):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()


# --- timing ----------------------------------------------------------------------------------------------------------


@dataclass
class Steps:
    """A sampler that asks the model at given timesteps and hands each question to ``around``."""

    timesteps: list[int]
    around: Callable[[Callable[[], Tensor]], Any]
    answers: list[Any] = field(default_factory=list)

    def sample(self, guider: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, *_: Any) -> Tensor:
        """Called by the host in place of a sampler of its own."""
        for timestep in self.timesteps:
            sigma = guider.inner_model.model_sampling.sigma(torch.tensor([timestep])).to(noise)
            x = noise * (sigma**2 + 1) ** 0.5

            def step(x: Tensor = x, sigma: Tensor = sigma) -> Tensor:
                return guider(x, sigma.expand(len(x)), **extra_args)

            self.answers.append(self.around(step))
        return noise

    def max_denoise(self, *_: Any) -> bool:
        """Asked by the host."""
        return True


def sample(variant: Variant, size: int, steps: Steps) -> list[Any]:
    """One sampling run through the host's own guider."""
    latent = torch.zeros(1, 4, size // 8, size // 8)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    guider = comfy.samplers.CFGGuider(variant.model)
    guider.set_conds(variant.positive, variant.negative)
    guider.set_cfg(CFG)
    guider.sample(noise, latent, steps, torch.tensor([1.0, 0.0]), disable_pbar=True)
    return steps.answers


def timed_step(meter: Meter) -> Callable[[Callable[[], Tensor]], dict[str, Any]]:
    """Time and memory of one step. ``added``: what the pack did in it, less what it does once per run."""

    def around(step: Callable[[], Tensor]) -> dict[str, Any]:
        memory = PeakMemory()
        meter.take()
        memory.start()
        answer = meter.timed("step", step)()
        seconds, calls = meter.take()
        peak = memory.stop()
        if not answer.isfinite().all():
            raise RuntimeError("the model's answer has values that are not numbers")
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
    """Every kind in turn, in sampling runs of two steps (with and without layout boost), until each has its steps."""
    rows = []
    sample(kinds[0], size, Steps([BOOSTED], timed_step(meter)))  # the first forward of a size is slower
    for begin in range(0, steps, 2):
        timesteps = [BOOSTED, PLAIN][: steps - begin]
        for kind in kinds:
            answers = sample(kind, size, Steps(timesteps, timed_step(meter)))
            for number, answer in enumerate(answers):
                rows.append({"size": size, "people": kind.people, "step": begin + number, **answer})
            print(f"  {size} pixels, {describe(kind.people)}: {answers[-1]['seconds']:.2f} s a step", flush=True)
    return rows


def describe(people: int) -> str:
    """A kind in words."""
    return "unpatched" if people == UNPATCHED else f"{people} people"


# --- counting --------------------------------------------------------------------------------------------------------


def count_kernels(kind: Variant) -> list[dict[str, Any]]:
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


def count_all(kinds: list[Variant], dtype: str) -> list[dict[str, Any]]:
    """The counts for every number of people, on a model of that dtype."""
    if getattr(torch, dtype) != DTYPE:
        kinds = variants(sd15(getattr(torch, dtype)), random_adapter())
    return [{"dtype": dtype, **row} for kind in kinds if kind.people > 0 for row in count_kernels(kind)]


def summary(people: int, boost: bool, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the layers of a step: the longest list of operations, and all waits of the host for the device."""
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
    """Collects a warning for each wait of the host for the device; on CUDA only. Not active: a pause in collecting."""
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


# --- the machine -----------------------------------------------------------------------------------------------------


def describe_machine() -> dict[str, str]:
    """What figures of time depend on."""
    attention = inspect.unwrap(comfy.ldm.modules.attention.optimized_attention).__name__
    return {
        "device": ORDER["device"],
        "machine": torch.cuda.get_device_name() if CUDA else processor(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors"
        + (f", OMP_WAIT_POLICY {os.environ['OMP_WAIT_POLICY']}" if "OMP_WAIT_POLICY" in os.environ else ""),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "comfyui": ORDER["host_version"],
        "dtype": str(DTYPE).removeprefix("torch."),
        "attention": attention.removeprefix("attention_"),
        "flags": " ".join(ORDER["host_arguments"]),
    }


def load() -> float:
    """How many processes want a processor, averaged over the last minute; -1 where the system does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else -1.0


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Everything the order asks for, written to its result file."""
    machine = describe_machine()
    meter = Meter()
    with hooks(meter), torch.inference_mode():
        kinds = variants(sd15(DTYPE), random_adapter())
        steps = [row for size, count in ORDER["steps"].items() for row in measure_size(kinds, meter, int(size), count)]
    kernels = [row for dtype in ORDER["count_in"] for row in count_all(kinds, dtype)]
    with torch.inference_mode():
        device_kernels = {kind.people: count_device_kernels(kind) for kind in kinds} if CUDA else {}
    found = {"machine": machine, "steps": steps, "kernels": kernels, "device_kernels": device_kernels}
    Path(ORDER["result"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
