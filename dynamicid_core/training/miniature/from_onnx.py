"""InsightFace's models as modules that let gradients through."""

from pathlib import Path

import torch
from torch import nn

from ...errors import InputError


def differentiable(file: Path, device: torch.device) -> nn.Module:
    """A model, frozen. Raises InputError if the package onnx2torch is missing."""
    try:
        import onnx
        from onnx2torch import convert
    except ImportError as error:
        raise InputError(
            "To let gradients through InsightFace's models, the package onnx2torch is needed. "
            "Run: pip install -r requirements-training.txt"
        ) from error
    network: nn.Module = convert(onnx.load(file))
    return network.eval().requires_grad_(False).to(device)
