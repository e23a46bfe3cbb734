"""Access to the inside of ComfyUI's CLIP models, text encoders and vision models alike."""

from typing import Any

import comfy.model_management
from torch import Tensor


def penultimate(clip_vision: Any, pixels: Tensor) -> Tensor:
    """A vision model's penultimate layer for normalised pixels [B, 3, S, S]: [B, patches, size], float32, on its
    device.
    """
    comfy.model_management.load_models_gpu([clip_vision.patcher])
    layer: Tensor = clip_vision.model(pixel_values=pixels.to(clip_vision.load_device), intermediate_output=-2)[1]
    return layer.float()


def text_transformer(clip: Any) -> Any:
    """The transformer inside a CLIP."""
    model = clip.cond_stage_model
    return getattr(model, model.clip).transformer
