"""ComfyUI's code for commands that run outside ComfyUI."""

import importlib
import os
import sys
from pathlib import Path

from .errors import InputError


def prepare_comfyui(folder: Path | None, cpu: bool = False) -> Path:
    """Makes ``import comfy`` work and returns ComfyUI's folder. Call it before importing anything from ``comfy_host``.

    folder: ComfyUI's folder, by default COMFYUI_PATH. cpu: do not use an accelerator. Attention is PyTorch's own, since
    other implementations have no gradients.
    """
    given = folder or os.environ.get("COMFYUI_PATH")
    if not given:
        raise InputError(
            "This command needs ComfyUI's code: give its folder with --comfyui, or set COMFYUI_PATH. It is only read."
        )
    comfyui = Path(given).resolve()
    if not (comfyui / "comfy" / "model_management.py").is_file():
        raise InputError(
            f"{comfyui} is not a ComfyUI folder: there is no comfy/model_management.py. Give the folder "
            "that contains main.py."
        )
    if not cpu and not _has_accelerator():
        raise InputError("PyTorch finds no GPU that it can use. Add --cpu to use the CPU, which is slow.")
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, [sys.argv[0], "--use-pytorch-cross-attention", *(["--cpu"] if cpu else [])]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = arguments
    return comfyui


def _has_accelerator() -> bool:
    import torch

    if hasattr(torch, "accelerator"):  # since 2.6
        return torch.accelerator.is_available()
    xpu = getattr(torch, "xpu", None)
    return torch.cuda.is_available() or torch.backends.mps.is_available() or bool(xpu and xpu.is_available())
