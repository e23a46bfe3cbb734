"""CLIP-T by the host's own CLIP models."""

from typing import Any

import numpy as np
import torch

from ..comfy_host.clip_pair import projected_text
from ..errors import InputError
from ..images import Photo, clip_pixels
from .metrics import clip_t


class ClipScore:
    """Measures how well pictures agree with texts."""

    def __init__(self, clip: Any, clip_vision: Any) -> None:
        """clip, clip_vision: a pair with projections, see ``clip_pair.load_text_and_vision``. Raises InputError for two
        models that do not belong together.
        """
        self._clip, self._clip_vision = clip, clip_vision
        text, picture = self._text(""), self._picture(np.zeros((8, 8, 3), np.uint8))
        if text.shape != picture.shape:
            raise InputError(
                f"The two CLIP models for CLIP-T do not belong together: texts become {text.numel()} numbers, pictures "
                f"{picture.numel()}. Give both halves of one CLIP, such as ViT-L/14, as --clip-score."
            )

    @torch.inference_mode()
    def __call__(self, photo: Photo, prompt: str) -> float:
        """CLIP-T, -1 to 1."""
        return clip_t(self._picture(photo), self._text(prompt))

    @torch.inference_mode()
    def _text(self, prompt: str) -> torch.Tensor:
        return projected_text(self._clip, prompt)

    @torch.inference_mode()
    def _picture(self, photo: Photo) -> torch.Tensor:
        # At the model's own size the host resizes nothing, so this is exactly CLIP's reference preprocessing.
        pixels = clip_pixels(photo, self._clip_vision.image_size)[None]
        return self._clip_vision.encode_image(pixels)["image_embeds"][0].float().cpu()
