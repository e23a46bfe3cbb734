"""Measure the cost of people: seconds and memory of a UNet step with 0, 1, 2, 4 and 8 of them.

A model with Stable Diffusion 1.5's shapes and random weights, made in memory, runs through ComfyUI's own sampling path.
The result goes to benchmarks/results/ as a table, as figures and as a plot; benchmarks/README.md says how to read it.
Uses the ComfyUI in COMFYUI_PATH if that is set, else the newest one that the tests use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import environment
import hosts
from repository import ROOT, VENV, SetupError

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MEASUREMENT = HERE / "saa_measurement.py"
ATTENTION = {"default": [], "pytorch": ["--use-pytorch-cross-attention"]}
# Models on CUDA run in half precision, whose conversions are kernels too; these can be counted on any device.
COUNT_IN = {"cpu": ["float32", "float16"], "cuda": ["float16"]}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=picture_side, nargs="+", default=[256, 512, 768], help="in pixels")
    parser.add_argument("--people", type=int, nargs="+", choices=range(9), default=[0, 1, 2, 4, 8], metavar="N")
    parser.add_argument(
        "--steps", type=positive, nargs="+", default=[4], metavar="N", help="of each kind; one number, or one per size"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--attention", choices=tuple(ATTENTION), nargs="+", default=list(ATTENTION))
    parser.add_argument(
        "--regions", choices=("boxes", "soft-masks"), default="boxes", help="what people are placed by (default: boxes)"
    )
    options = parser.parse_args(arguments)
    if len(options.steps) not in (1, len(options.sizes)):
        parser.error("--steps takes one number, or as many as --sizes")
    return options


def positive(text: str) -> int:
    """A whole number above 0, as a type of argparse."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def picture_side(text: str) -> int:
    """A side of a square picture; the UNet halves its latent three times."""
    if positive(text) % 64:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 64")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """The benchmark, inside the environment."""
    import saa_report
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SetupError(f"PyTorch {torch.__version__} in {VENV} finds no CUDA device. Leave out --device cuda.")
    start = time.monotonic()
    host = hosts.user_host() or hosts.ensure_host()
    kinds = list(dict.fromkeys(options.attention))
    measurements = [measure(host, kind, options, count=kind == kinds[0]) for kind in kinds]
    of_masks = "" if options.regions == "boxes" else f"-{options.regions}"
    stem = RESULTS / f"{options.device}-{time.strftime('%Y-%m-%d')}{of_masks}"
    text = saa_report.write(stem, measurements)
    print(f"\n{text}\nWritten to {stem.relative_to(ROOT)}.md, .csv and .png; "
          f"took {time.monotonic() - start:.0f} s.")  # fmt: skip


def measure(host: Path, attention: str, options: argparse.Namespace, count: bool) -> dict[str, Any]:
    """The result of saa_measurement.py, in a process for each kind of attention, which the host selects at startup.

    count: whether to count kernels, too, which do not depend on the kind of attention.
    """
    steps = options.steps if len(options.steps) > 1 else options.steps * len(options.sizes)
    # Threads that spin while waiting would take the processor from other work and distort the measurement.
    variables = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        job = {
            "host": str(host),
            "host_version": hosts.host_version(host),
            "host_arguments": ATTENTION[attention] + (["--cpu"] if options.device == "cpu" else []),
            "device": options.device,
            "people": sorted({0, *options.people}),  # everything is compared with 0
            "soft_masks": options.regions == "soft-masks",
            "steps": dict(zip(options.sizes, steps, strict=True)),
            "count_in": COUNT_IN[options.device] if count else [],
            "result": str(result),
        }
        print(f"ComfyUI {job['host_version']}, attention: {attention}", flush=True)
        if subprocess.run([sys.executable, str(MEASUREMENT), json.dumps(job)], env=variables).returncode:
            raise SetupError("The measurement ended early; its own messages are above.")
        return json.loads(result.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Exit code. Outside of the environment, makes it and runs this file again in it."""
    options = parse(arguments)
    return environment.command(Path(__file__), arguments, lambda: run(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
