"""The frozen encoders of a small model, which cache their outputs for pictures and encode captions in batches."""

import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ...comfy_host.differentiable import FrozenEncoders
from ...images import to_image
from ..data.sample import Sample
from ..data.storage import write_atomically
from .framing import close_up

_LATENT_BATCH = 64  # pictures
_MAX_CACHED_FEATURES = 16_000  # pictures; those with another's shoulders occur only once


class CachingEncoders(FrozenEncoders):
    """Encoders for data sets that fit into memory: each picture is encoded once, not every epoch. Latents are those of
    close-ups.
    """

    def __init__(self, vae: Any, clip: Any, clip_vision: Any, device: torch.device) -> None:
        super().__init__(vae, clip, clip_vision, device)
        self._latents: dict[bytes, Tensor] = {}
        self._features: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """As in ``FrozenEncoders``."""
        return _cached(self._latents, pictures, self._encode_close_ups)

    @torch.no_grad()
    def clip_features(self, pixels: Tensor) -> Tensor:
        """As in ``FrozenEncoders``."""
        if len(self._features) > _MAX_CACHED_FEATURES:
            self._features.clear()
        return _cached(self._features, pixels, super().clip_features)

    @torch.no_grad()
    def contexts(self, prompts: list[str]) -> Tensor:
        """As in ``FrozenEncoders``. Not cached, since captions change each epoch."""
        tokens = [self.clip.tokenize(prompt) for prompt in prompts]
        # ComfyUI encodes the sections of a long prompt independently; here each section is a prompt.
        sections = {name: [one[name][0] for one in tokens] for name in tokens[0]}
        return self.clip.encode_from_tokens(sections).float().unflatten(1, (len(prompts), -1))[0].to(self.device)

    def cache_latents(self, samples: Iterable[Sample], file: Path) -> None:
        """Caches the latents of all samples, also in a file for the next stage, in half precision.

        file: if it exists, of the same VAE and samples.
        """
        if not file.is_file():
            self._write_latents(samples, file)
        saved = load_file(file)
        entries = zip(saved["keys"].numpy(), saved["latents"], strict=True)
        self._latents.update((key.tobytes(), latent.float().to(self.device)) for key, latent in entries)

    def _write_latents(self, samples: Iterable[Sample], file: Path) -> None:
        keys, latents = [], []
        remaining = tqdm(samples, unit="picture", desc="latents", miniters=1)
        while photos := [sample.picture for sample in islice(remaining, _LATENT_BATCH)]:
            rows = to_image(photos)
            keys += [torch.frombuffer(bytearray(_key(row)), dtype=torch.uint8) for row in rows]
            latents.append(self._encode_close_ups(rows).half().cpu())
        write_atomically(file, save({"keys": torch.stack(keys), "latents": torch.cat(latents)}))

    @torch.no_grad()
    def _encode_close_ups(self, pictures: Tensor) -> Tensor:
        return super().latents(close_up(pictures))


def _cached(known: dict[bytes, Tensor], inputs: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """The rows encoded by ``encode``, which is called only for new ones."""
    keys = [_key(row) for row in inputs.contiguous()]
    new = {key: row for row, key in enumerate(keys) if key not in known}
    if new:
        known.update(zip(new, encode(inputs[list(new.values())]), strict=True))
    return torch.stack([known[key] for key in keys])


def _key(row: Tensor) -> bytes:
    return hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest()
