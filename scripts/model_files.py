"""Recognise model files by the names and shapes of their tensors, and find those a user has."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from base_directory import MODEL_FOLDERS

Shapes = dict[str, list[int]]
LARGEST_HEADER = 100_000_000

SD15_TEXT_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD15_INPUT_KEY = "model.diffusion_model.input_blocks.0.0.weight"
# As transformers and as OpenCLIP name the last of 32 layers; ComfyUI loads both.
VIT_H_KEYS = ("vision_model.encoder.layers.31.layer_norm1.weight", "visual.transformer.resblocks.31.ln_1.weight")
SD15_TOKENS = 768  # size of each
ADAPTER_KEY_END = "perceiver_resampler.proj_in.weight"


@dataclass(frozen=True)
class Weights:
    """File names as ComfyUI lists them."""

    checkpoint: str
    clip_vision: str
    adapter: str


def tensor_shapes(file: Path) -> Shapes:
    """The header of a safetensors file. Empty for anything else, and for a truncated one."""
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= LARGEST_HEADER else {}
    except (OSError, ValueError, struct.error):
        return {}
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def is_sd15_checkpoint(shapes: Shapes) -> bool:
    """A whole Stable Diffusion 1.x model for text to image."""
    # Inpainting models have the same text layers, and 9 input channels instead of 4.
    return shapes.get(SD15_TEXT_KEY) == [320, 768] and shapes.get(SD15_INPUT_KEY, [0, 0])[1] == 4


def is_vit_h(shapes: Shapes) -> bool:
    """A CLIP ViT-H/14 vision model."""
    return any(shapes.get(key) == [1280] for key in VIT_H_KEYS)


def is_adapter(shapes: Shapes) -> bool:
    """A DynamicID adapter, or another for SD1.5 with the same face encoder."""
    return any(key.endswith(ADAPTER_KEY_END) and shape[0] == SD15_TOKENS for key, shape in shapes.items())


def find_weights(host: Path) -> Weights | list[str]:
    """The first file of each kind in a ComfyUI's model folders, or the kinds that are missing, in words."""
    found = {
        "SD1.5 checkpoint (.safetensors)": find_model(host, "checkpoints", is_sd15_checkpoint),
        "CLIP ViT-H": find_model(host, "clip_vision", is_vit_h),
        "DynamicID or FaceID Plus file": find_adapter(host) or find_model(host, "ipadapter", is_adapter),
    }
    missing = [kind for kind, name in found.items() if name is None]
    return missing or Weights(*(name for name in found.values() if name is not None))


def find_model(host: Path, kind: str, fits: Callable[[Shapes], bool]) -> str | None:
    """Name of the first safetensors file of a kind whose tensors fit."""
    return next((name for name, file in files(host, kind, ".safetensors") if fits(tensor_shapes(file))), None)


def find_adapter(host: Path) -> str | None:
    """Name of the first adapter in models/dynamicid, safetensors before pickles."""
    pickles = (name for name, file in files(host, "dynamicid", ".bin") if mentions(file, ADAPTER_KEY_END))
    return find_model(host, "dynamicid", is_adapter) or next(pickles, None)


def mentions(file: Path, key: str) -> bool:
    """Whether a pickled weight file has a tensor whose name ends so. Nothing in the file is run."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return any(key.encode() in archive.read(name) for name in names)
    except (OSError, zipfile.BadZipFile):
        return False


def files(host: Path, kind: str, ending: str) -> Iterator[tuple[str, Path]]:
    """Name as ComfyUI lists it, and path."""
    for folder in model_folders(host, kind):
        for file in sorted(folder.rglob(f"*{ending}")):
            yield str(file.relative_to(folder)), file


def model_folders(host: Path, kind: str) -> list[Path]:
    """A ComfyUI's folders for a kind of model: under models/, and those its extra_model_paths.yaml adds."""
    folders = [host / "models" / folder for folder in MODEL_FOLDERS.get(kind) or (kind,)]
    return [*folders, *extra_folders(host / "extra_model_paths.yaml", kind)]


def extra_folders(config: Path, kind: str) -> list[Path]:
    """Folders that an extra_model_paths.yaml adds for a kind of model, read as ComfyUI reads it."""
    if not config.exists():
        return []
    import yaml

    folders: list[Path] = []
    for section in (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).values():
        base = os.path.expandvars(os.path.expanduser((section or {}).get("base_path", "")))
        lines = str((section or {}).get(kind, "")).splitlines()
        folders += [config.parent / base / line for line in lines if line]
    return folders
