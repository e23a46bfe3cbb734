"""The CLIP of CLIP-T: a text encoder and a vision model with projections into one space."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.utils
from torch import Tensor

from ..errors import InputError
from .clip_models import text_transformer

_TEXT_PROJECTION = ("text_projection.weight", "text_projection")
_IMAGE_PROJECTION = ("visual_projection.weight", "visual.proj")


def load_text_and_vision(paths: Sequence[Path]) -> tuple[Any, Any]:
    """CLIP and CLIP_VISION whose embeddings can be compared, from one file with both or one of each.

    Raises InputError if one of the two projections is missing: text encoders of SD1.5 checkpoints have none.
    """
    text = _file_with(paths, _TEXT_PROJECTION, "text encoder with its text_projection")
    vision = _file_with(paths, _IMAGE_PROJECTION, "vision model with its visual_projection")
    try:
        return comfy.sd.load_clip([str(text)]), _vision_model(vision)
    except RuntimeError as error:  # what torch says when sizes differ
        raise InputError(f"{text} is not a text encoder that ComfyUI knows. Give CLIP ViT-L/14. ({error})") from error


def projected_text(clip: Any, prompt: str) -> Tensor:
    """CLIP's projected text embedding of a prompt, for comparison with pictures, float32 [size].

    The projection is applied here, since ComfyUI leaves it out of ViT-L's pooled text, as SD1.5 needs.
    """
    _, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled="unprojected")
    return text_transformer(clip).text_projection(pooled.float().cpu())[0].float()


def _vision_model(path: Path) -> Any:
    loaded = comfy.clip_vision.load(str(path))
    if loaded is None:
        raise InputError(f"{path} is not a CLIP vision model that ComfyUI knows. Give CLIP ViT-L/14.")
    return loaded


def _file_with(paths: Sequence[Path], tensors: Sequence[str], what: str) -> Path:
    for path in paths:
        if not path.is_file():
            raise InputError(f"There is no CLIP file {path}. Give CLIP ViT-L/14 as --clip-score.")
        try:
            found = comfy.utils.load_torch_file(str(path), safe_load=True)
        except Exception as error:  # safetensors and pickle raise their own types
            raise InputError(f"{path} could not be read as a CLIP model: {error}") from error
        if any(name in found for name in tensors):
            return path
    raise InputError(
        f"CLIP-T needs a {what}; {' and '.join(map(str, paths))} {'has' if len(paths) == 1 else 'have'} none. Give the "
        "whole CLIP ViT-L/14 (model.safetensors of openai/clip-vit-large-patch14) as --clip-score."
    )
