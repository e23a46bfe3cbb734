"""Initialises ComfyUI's layers, whose memory is uninitialised, and saves their weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# The last layers of residual branches start at zero, so that a new network is the identity there.
_BRANCH_ENDS = ("out_layers.3", "proj_out", "to_out.0", "ff.net.2", "out.2", "conv2", "out_proj", "mlp.fc2")
_EMBEDDING_STD = 0.02


def initialise(network: nn.Module, seed: int) -> nn.Module:
    """Initialises all parameters of a network of the host and returns it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in network.named_modules():
            for kind, parameter in module.named_parameters(recurse=False):
                parameter.copy_(_initial(module, name, kind, parameter, generator))
    return network


def write_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Writes a state dict from any device."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, file)


def _initial(module: nn.Module, name: str, kind: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if parameter.ndim < 2:
        is_scale = kind == "weight" and not isinstance(module, nn.Linear | nn.Conv2d)
        return torch.ones_like(parameter) if is_scale else torch.zeros_like(parameter)
    if name.endswith(_BRANCH_ENDS):
        return torch.zeros_like(parameter)
    std = _EMBEDDING_STD if isinstance(module, nn.Embedding) else parameter[0].numel() ** -0.5
    return torch.randn(parameter.shape, generator=generator) * std
