"""A recogniser of latents: it predicts identity and face shape, trained on the data's own pictures.

Latents are too coarse and too noisy for ArcFace. Through the recogniser, losses can act on the identity that the UNet
is about to paint; in the noise loss alone, a person's share drowns among poses, lights and clothes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ...comfy_host.differentiable import FrozenEncoders
from ...comfy_host.miniature import LATENT_CHANNELS, PICTURE_HEIGHT, PICTURE_WIDTH
from ...keypoints import KEYPOINT_COUNT
from ..config import LoopConfig
from ..data.sample import EMBEDDING_SIZE, Sample
from ..inputs import embeddings_of, keypoints_of, pictures
from ..losses import loss_dict
from ..stages import SampleSource, SampleStage
from .autoencoder import LATENT_STD
from .weights import write_weights

RECOGNISER_FILE = "recogniser.safetensors"
_WIDTH = 48
_SHAPE_STD = 0.2135  # of face shapes from photo to photo; the unit of errors
_SHAPE_WEIGHT = 0.5
_CONTRAST_WEIGHT, _SHARPNESS = 0.1, 20.0  # of the loss that separates the people of a batch
_SOFT = 2 / 3  # share of latents that are blurred, like those that the UNet expects
_NOISY, _NOISE = 0.6, 0.3


class Recogniser(nn.Module):
    """Latents -> ArcFace embedding and face shape."""

    def __init__(self) -> None:
        super().__init__()
        width = _WIDTH
        self.body = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1),
            _Residual(width, width, 1),
            _Residual(width, 2 * width, 2),
            _Residual(2 * width, 2 * width, 1),
            _Residual(2 * width, 3 * width, 2),
            nn.GroupNorm(8, 3 * width),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
        )
        features = 3 * width * -(-PICTURE_HEIGHT // 32) * -(-PICTURE_WIDTH // 32)
        self.embedding = nn.Linear(features, EMBEDDING_SIZE)
        self.shape = nn.Linear(features, 2 * KEYPOINT_COUNT)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents: [B, C, h, w] of close-ups, as the VAE returns them -> embeddings [B, 512] of length 1, and shapes
        [B, 106, 2], see ``face_shape``.
        """
        features = self.body(latents / LATENT_STD)
        return F.normalize(self.embedding(features), dim=-1), self.shape(features).unflatten(1, (KEYPOINT_COUNT, 2))


def face_shape(keypoints: Tensor) -> Tensor:
    """Keypoints [B, 106, 2] without position and size: of mean 0 and root mean square 1."""
    centred = keypoints - keypoints.mean(1, keepdim=True)
    return centred / centred.square().mean((1, 2), keepdim=True).sqrt()


def identity_errors(embeddings: Tensor, wanted: Tensor) -> Tensor:
    """1 - cosine of each row, [B]."""
    return 1 - F.cosine_similarity(embeddings, wanted, dim=-1)


def shape_errors(shapes: Tensor, keypoints: Tensor) -> Tensor:
    """Mean squared error [B] of each row to the shape of keypoints [B, 106, 2], in variances of the data."""
    return ((shapes - face_shape(keypoints)) / _SHAPE_STD).square().mean((1, 2))


@dataclass(frozen=True, eq=False)
class RecogniserBatch:
    """latents: [B, C, h, w]. embeddings: [B, 512], in ArcFace's own channel order (BGR). keypoints: [B, 106, 2] in
    fractions of the picture.
    """

    latents: Tensor
    embeddings: Tensor
    keypoints: Tensor


class Recognising(nn.Module):
    """The losses of a batch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.recogniser = Recogniser()

    def forward(self, batch: RecogniserBatch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise."""
        embeddings, shapes = self.recogniser(batch.latents)
        identity = identity_errors(embeddings, batch.embeddings).mean()
        shape = shape_errors(shapes, batch.keypoints).mean()
        alike = _SHARPNESS * embeddings @ batch.embeddings.T
        contrast = F.cross_entropy(alike, torch.arange(len(alike), device=alike.device))
        loss = identity + _SHAPE_WEIGHT * shape + _CONTRAST_WEIGHT * contrast
        return loss_dict(loss, identity=identity, shape=shape, contrast=contrast)


class RecogniserStage(SampleStage):
    """As the loop runs it."""

    def __init__(self, encoders: FrozenEncoders, source: SampleSource, config: LoopConfig) -> None:
        super().__init__(source, config)
        self.network = Recognising(config.seed)
        self._encoders = encoders

    def make_batch(self, raw: list[Sample], generator: torch.Generator, device: torch.device) -> RecogniserBatch:
        """Latents, many of them blurred or noisy."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # for dropout
        return RecogniserBatch(
            _degraded(self._encoders.latents(pictures(raw)).cpu(), generator).to(device),
            embeddings_of(raw).to(device),
            keypoints_of(raw).to(device),
        )

    def save_weights(self, folder: Path) -> None:
        """recogniser.safetensors."""
        write_weights(self.network.recogniser.state_dict(), folder / RECOGNISER_FILE)


def open_recogniser(file: Path) -> Recogniser:
    """A trained recogniser, frozen."""
    recogniser = Recogniser()
    recogniser.load_state_dict(load_file(file))
    return recogniser.eval().requires_grad_(False)


def _degraded(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Latents, some blurred once or twice, some noisy: what a UNet expects is an average of possible pictures."""

    def draw() -> Tensor:
        return torch.rand(len(latents), 1, 1, 1, generator=generator)

    once = _blurred(latents)
    blurred = torch.where(draw() < 0.5, once, _blurred(once))
    soft = torch.lerp(latents, blurred, draw() * (draw() < _SOFT))
    noise = torch.randn(latents.shape, generator=generator) * LATENT_STD
    return soft + noise * _NOISE * draw() * (draw() < _NOISY)


def _blurred(latents: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, before),
            nn.SiLU(),
            nn.Conv2d(before, after, 3, stride, padding=1),
            nn.GroupNorm(8, after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        return shortcut + self.layers(x)
