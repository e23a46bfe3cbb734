"""The frozen encoders of a small model: what they said of a picture is remembered, and captions are read together."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...comfy_host.differentiable import FrozenEncoders


class RememberingEncoders(FrozenEncoders):
    """For data sets that fit into memory: a picture is encoded once, not each time around."""

    def __init__(self, vae: Any, clip: Any, clip_vision: Any, device: torch.device) -> None:
        super().__init__(vae, clip, clip_vision, device)
        self._latents: dict[bytes, Tensor] = {}
        self._features: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """As in ``FrozenEncoders``."""
        return _remembered(self._latents, pictures, super().latents)

    @torch.no_grad()
    def clip_features(self, pixels: Tensor) -> Tensor:
        """As in ``FrozenEncoders``."""
        return _remembered(self._features, pixels, super().clip_features)

    @torch.no_grad()
    def contexts(self, prompts: list[str]) -> Tensor:
        """As in ``FrozenEncoders``; captions that change each time around are not worth remembering."""
        tokens = [self.clip.tokenize(prompt) for prompt in prompts]
        # ComfyUI reads the sections of a long prompt each by itself; here each section is a prompt.
        sections = {name: [one[name][0] for one in tokens] for name in tokens[0]}
        return self.clip.encode_from_tokens(sections).float().unflatten(1, (len(prompts), -1))[0].to(self.device)


def _remembered(known: dict[bytes, Tensor], inputs: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``encode`` makes of the rows, of which only new ones are encoded."""
    keys = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in inputs.contiguous()]
    new = {key: row for row, key in enumerate(keys) if key not in known}
    if new:
        known.update(zip(new, encode(inputs[list(new.values())]), strict=True))
    return torch.stack([known[key] for key in keys])
