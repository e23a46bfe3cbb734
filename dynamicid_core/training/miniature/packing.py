"""Packs the outputs of the stages into the files that are shipped."""

from collections.abc import Mapping
from dataclasses import replace

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...checkpoint import (
    ADAPTER,
    ADAPTER_FILE,
    IMR,
    IMR_FILE,
    KEYPOINT_ENCODER,
    KEYPOINT_ENCODER_FILE,
    read_checkpoint,
    save_checkpoint,
)
from ...comfy_host import miniature
from ...face_packs import open_pack
from .judge import JUDGE_FILE
from .workspace import Workspace

_FILES = (
    (miniature.VAE_FILE, "decoder"),
    (miniature.TEXT_FILE, "contrast"),
    (miniature.IMAGE_FILE, "contrast"),
    (JUDGE_FILE, "judge"),
)
_AVERAGED = "likeness", "more_likeness"
"""Stages whose UNets and adapters are averaged."""


def pack(workspace: Workspace) -> None:
    """Writes the files to ship, in half precision, to the folder ``miniature``.

    UNet and adapter are the average of both likeness stages: the longer they train mostly on single people, the more
    often a surplus head appears between two. The average had none, at the same likeness (WiSE-FT, arXiv 2109.01903,
    averages weights before and after fine-tuning like this).
    """
    folder = workspace.out / "miniature"
    folder.mkdir(parents=True, exist_ok=True)
    for file, stage in _FILES:
        pack_file(workspace, file, stage)
    first, last = (load_file(workspace.weights(stage, miniature.UNET_FILE)) for stage in _AVERAGED)
    save_file(_to_half(_midpoint(first, last)), folder / miniature.UNET_FILE)
    one, other = (read_checkpoint(workspace.weights(stage, ADAPTER_FILE), ADAPTER) for stage in _AVERAGED)
    adapter = replace(
        one,
        modules={name: _midpoint(weights, other.modules[name]) for name, weights in one.modules.items()},
        recognition=open_pack(workspace.pack, "CPU").recognition,
    )
    imr = read_checkpoint(workspace.weights("more_likeness", IMR_FILE), IMR)
    keypoint_file = workspace.weights("reconfiguration", KEYPOINT_ENCODER_FILE)
    for checkpoint, file in (
        (adapter, ADAPTER_FILE),
        (imr, IMR_FILE),
        (read_checkpoint(keypoint_file, KEYPOINT_ENCODER), KEYPOINT_ENCODER_FILE),
    ):
        halves = {name: _to_half(weights) for name, weights in checkpoint.modules.items()}
        save_checkpoint(replace(checkpoint, modules=halves), folder / file)


def pack_file(workspace: Workspace, file: str, stage: str) -> None:
    """Writes one of these files, as a stage saved it."""
    save_file(_to_half(load_file(workspace.weights(stage, file))), workspace.out / "miniature" / file)


def _midpoint(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.lerp(other[name], 0.5) if value.is_floating_point() else value for name, value in one.items()}


def _to_half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In half precision."""
    return {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
