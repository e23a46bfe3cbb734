"""The measuring process of saa_overhead.py: one ComfyUI, one kind of attention. Its argument is a JSON job."""

# ruff: noqa: E402  (the host must be prepared before it is imported)
from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
JOB: dict[str, Any] = json.loads(sys.argv[1])


def prepare_host() -> None:
    """Make `import comfy` work, with the job's command-line arguments."""
    sys.path[:0] = [JOB["host"], str(ROOT / "scripts")]
    sys.path.append(str(ROOT))  # last: the host has a module `nodes` of its own
    importlib.import_module("torchvision_shim").make_torchvision_importable()
    sys.argv = ["main.py", *JOB["host_arguments"]]
    importlib.import_module("comfy.options").enable_args_parsing()


prepare_host()

import comfy.ldm.modules.attention
import torch
from instruments import CUDA, DTYPE, Meter
from random_models import random_adapter, sd15
from saa_counting import count_device_kernels, count_kernels
from saa_timing import hooks, measure_size
from saa_variants import Variant, variants


def describe_machine() -> dict[str, str]:
    """What timings depend on."""
    attention = inspect.unwrap(comfy.ldm.modules.attention.optimized_attention).__name__
    return {
        "device": JOB["device"],
        "machine": torch.cuda.get_device_name() if CUDA else processor(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors"
        + (f", OMP_WAIT_POLICY {os.environ['OMP_WAIT_POLICY']}" if "OMP_WAIT_POLICY" in os.environ else ""),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "comfyui": JOB["host_version"],
        "dtype": str(DTYPE).removeprefix("torch."),
        "attention": attention.removeprefix("attention_"),
        "flags": " ".join(JOB["host_arguments"]),
    }


def processor() -> str:
    """The processor's name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def make_variants(dtype: torch.dtype) -> list[Variant]:
    """Variants with random weights of that dtype, for all numbers of people of the job."""
    unet = sd15(dtype)
    return variants(unet, random_adapter(unet), JOB["people"], JOB["soft_masks"])


def main() -> None:
    """Measure everything in the job, and write its result file."""
    machine = describe_machine()
    meter = Meter()
    with hooks(meter), torch.inference_mode():
        kinds = make_variants(DTYPE)
        steps = [row for size, count in JOB["steps"].items() for row in measure_size(kinds, meter, int(size), count)]
    kernels = []
    for dtype in (getattr(torch, name) for name in JOB["count_in"]):
        kernels += count_kernels(kinds if dtype == DTYPE else make_variants(dtype), dtype)
    with torch.inference_mode():
        device_kernels = {kind.people: count_device_kernels(kind) for kind in kinds} if CUDA else {}
    found = {"machine": machine, "steps": steps, "kernels": kernels, "device_kernels": device_kernels}
    Path(JOB["result"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
