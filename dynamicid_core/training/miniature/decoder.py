"""Further training of the VAE's decoder with losses through ArcFace, while the latents stay as they are.

With pixel losses alone, dark and evenly lit faces lose their eyes first: so little contrast costs hardly anything.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...comfy_host.differentiable import FrozenEncoders
from ...comfy_host.miniature import VAE_FILE, vae_network
from ...images import to_photos
from ..config import LoopConfig
from ..data.sample import Sample
from ..inputs import embeddings_of, keypoints_of, pictures
from ..losses import loss_dict
from ..stages import SampleSource, SampleStage, save_sheet
from .autoencoder import LATENT_STD
from .framing import FACE_WEIGHT, close_up, face_flatness, face_weights, in_close_up
from .perception import Perception, embedding_errors, feature_errors, similarity_errors
from .weights import write_weights

_FEATURES, _EMBEDDING, _UNLIKE = 0.5, 0.25, 2.5
_MAX_LATENT_NOISE = 0.1  # in standard deviations of latents: the UNet's are not exact either


@dataclass(frozen=True, eq=False)
class DecoderBatch:
    """latents: [B, C, h, w], of photos: [B, H, W, 3], 0 to 1. keypoints: [B, 106, 2] in fractions of the photos.
    identities: [B, 512], of length 1.
    """

    latents: Tensor
    photos: Tensor
    keypoints: Tensor
    identities: Tensor


Batch = TypeVar("Batch", bound=DecoderBatch)


class Decoding(nn.Module, Generic[Batch]):
    """The losses of a batch. Trains the decoder."""

    def __init__(self, vae: Any, perception: Perception) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self._perception = perception

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise."""
        back = self.decode(batch.latents)
        painted = self._perception(back, batch.keypoints)
        with torch.no_grad():
            true = self._perception(batch.photos, batch.keypoints)
        picture = picture_errors(back, batch.photos, batch.keypoints).mean()
        features = feature_errors(painted, true).mean()
        embedding = embedding_errors(painted, true).mean()
        unlike = similarity_errors(painted, true, batch.identities).mean()
        return loss_dict(
            picture + _FEATURES * features + _EMBEDDING * embedding + _UNLIKE * unlike,
            picture=picture,
            features=features,
            embedding=embedding,
            unlike=unlike,
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> pictures [B, 8 * h, 8 * w, 3], nominally 0 to 1."""
        painted: Tensor = self.decoder(self.post_quant_conv(latents))
        return (painted.movedim(1, -1) + 1) / 2


def picture_errors(back: Tensor, photos: Tensor, keypoints: Tensor) -> Tensor:
    """The error [B] of pictures [B, H, W, 3] and their edges against photos, weighted more the flatter a face is."""
    one, other = back.movedim(-1, 1), photos.movedim(-1, 1)
    height, width = other.shape[2:]
    weights = face_weights(keypoints, height, width, FACE_WEIGHT).to(other)
    errors = ((one - other).abs() * weights).mean((1, 2, 3))
    for axis in (2, 3):
        slopes = (one.diff(dim=axis) - other.diff(dim=axis)).abs()
        errors = errors + (slopes * weights.narrow(axis, 1, slopes.shape[axis])).mean((1, 2, 3))
    return errors * face_flatness(keypoints, other)


class DecoderStage(SampleStage):
    """As the loop runs it."""

    def __init__(
        self, encoders: FrozenEncoders, source: SampleSource, config: LoopConfig, perception: Perception, first: Path
    ) -> None:
        """encoders: whose latents are decoded. perception: on their device. first: file of the VAE to start from."""
        super().__init__(source, config)
        self._vae: Any = vae_network()
        self._vae.load_state_dict({name: weight.float() for name, weight in load_file(first).items()})
        self.network = self._decoding(perception)
        self._encoders = encoders

    def _decoding(self, perception: Perception) -> Decoding[Any]:
        return Decoding(self._vae, perception)

    def make_batch(self, raw: list[Sample], generator: torch.Generator, device: torch.device) -> DecoderBatch:
        """Close-ups, and their latents with a little noise."""
        photos = pictures(raw)
        latents = self._encoders.latents(photos)
        strength = torch.rand(len(raw), 1, 1, 1, generator=generator) * _MAX_LATENT_NOISE * LATENT_STD
        noise = strength * torch.randn(latents.shape, generator=generator)
        return DecoderBatch(
            latents.to(device) + noise.to(device),
            close_up(photos).to(device),
            in_close_up(keypoints_of(raw)).to(device),
            embeddings_of(raw).to(device),
        )

    def save_weights(self, folder: Path) -> None:
        """vae.safetensors, with the encoder unchanged."""
        write_weights(self._vae.state_dict(), folder / VAE_FILE)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Draws pictures of the data beside their reconstructions."""
        photos = pictures(self._first())
        device = next(self.network.parameters()).device
        with torch.no_grad():
            back = self.network.decode(self._encoders.latents(photos).to(device))
        save_sheet(path, list(zip(to_photos(close_up(photos)), to_photos(back), strict=True)))
