"""Measure what the people cost: seconds and memory of a UNet step with 0, 1, 2, 4 and 8 of them.

A model of Stable Diffusion 1.5's shapes and random weights, made in memory, runs through ComfyUI's own sampling path.
The result goes to benchmarks/results/ as a table, as figures and as a plot; benchmarks/README.md says how to read it.
With COMFYUI_PATH set, uses that ComfyUI, else the newest one the tests use.
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
# Models on CUDA run in half precision, whose conversions are kernels too; that can be counted anywhere.
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
    """A whole number above 0, as argparse wants its types."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def picture_side(text: str) -> int:
    """A side of a square picture; the UNet halves its latent three times."""
    if positive(text) % 64:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 64")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """The benchmark, inside the environment."""
    import saa_report
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SetupError(f"PyTorch {torch.__version__} in {VENV} finds no CUDA device. Leave out --device cuda.")
    begun = time.monotonic()
    host = hosts.user_host() or hosts.ensure_host()
    kinds = list(dict.fromkeys(options.attention))
    measurements = [measure(host, kind, options, count=kind == kinds[0]) for kind in kinds]
    of_masks = "" if options.regions == "boxes" else f"-{options.regions}"
    stem = RESULTS / f"{options.device}-{time.strftime('%Y-%m-%d')}{of_masks}"
    text = saa_report.write(stem, measurements)
    print(f"\n{text}\nWritten to {stem.relative_to(ROOT)}.md, .csv and .png; "
          f"took {time.monotonic() - begun:.0f} s.")  # fmt: skip


def measure(host: Path, attention: str, options: argparse.Namespace, count: bool) -> dict[str, Any]:
    """What saa_measurement.py finds. A process for each kind of attention, which the host chooses when it starts.

    count: whether to count kernels too, which are the same for every kind of attention to the text.
    """
    steps = options.steps if len(options.steps) > 1 else options.steps * len(options.sizes)
    # Threads that wait without sleeping would take the processor from whatever else runs, and be measured with it.
    variables = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        order = {
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
        print(f"ComfyUI {order['host_version']}, attention: {attention}", flush=True)
        if subprocess.run([sys.executable, str(MEASUREMENT), json.dumps(order)], env=variables).returncode:
            raise SetupError("The measurement ended early; its own messages are above.")
        return json.loads(result.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Exit code. Outside the environment: makes it and runs this file again in it."""
    options = parse(arguments)
    return environment.command(Path(__file__), arguments, lambda: run(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
