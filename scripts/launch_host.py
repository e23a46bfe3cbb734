"""python launch_host.py HOST_DIR [ComfyUI's own arguments]: start ComfyUI with the python that runs this.

Adds what a machine may lack: torchvision's operators (torchvision_shim.py), and --cpu where torch finds no accelerator.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading

from torchvision_shim import make_torchvision_importable

# Set by host_server.py: standard input is a pipe that closes when the process that started this one is gone.
WATCH_PARENT = "DYNAMICID_WATCH_PARENT"


def end_with_parent() -> None:
    """End this process when its standard input closes, so that no server outlives a killed command."""

    def wait() -> None:
        # Not through sys.stdin: its lock, held here, would disturb the interpreter's shutdown.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def has_accelerator() -> bool:
    """Whether torch can compute on anything but the processor (CUDA and ROCm, Apple, Intel)."""
    import torch

    xpu = getattr(torch, "xpu", None)
    return torch.cuda.is_available() or torch.backends.mps.is_available() or bool(xpu and xpu.is_available())


def main(host: str, arguments: list[str]) -> None:
    """Run the host; returns when it ends."""
    if os.environ.pop(WATCH_PARENT, None):
        end_with_parent()
    make_torchvision_importable()
    if "--cpu" not in arguments and not has_accelerator():
        arguments = ["--cpu", *arguments]
    host = os.path.abspath(host)
    os.chdir(host)
    # As if main.py had been started: its folder first in the search path, and not ours, which could shadow it.
    sys.path[0] = host
    sys.argv = [os.path.join(host, "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
