"""The decoder's last training, on what the finished miniature paints.

Sampled latents are softer than those of photos, on which it was trained so far, and the faces of some people come out
with so little contrast that they are similar to nobody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...comfy_host.differentiable import FrozenEncoders
from ...images import to_photos
from ..config import LoopConfig
from ..data.sample import Sample
from ..stages import SHEET_ROWS, SampleSource, sample_batches, save_sheet
from .decoder import DecoderBatch, DecoderStage, Decoding
from .likeness import confusion
from .painted import Painted
from .perception import Perception

_PHOTOS = 3 / 8  # share of a batch that are photos, so that their reconstructions stay as good
_CONFUSED, _EMBEDDING, _UNLIKE, _STAY = 10.0, 0.25, 1.0, 3.0
_COARSE, _FINE = 4, 0.25  # pixels over which a picture should stay the same; weight of each single pixel
_BLUR, _GAIN, _OFFSET, _GRAIN = 0.7, 0.15, 0.05, 0.02
_TURN, _GROWTH, _SHIFT = 0.06, 0.06, 0.015  # radians, factor, fractions of the picture


@dataclass(frozen=True, eq=False)
class View:
    """An augmentation of the pictures that ArcFace sees: blur, gain, offset [B, 1, 1, 1], grain [B, 3, H, W]."""

    blur: Tensor
    gain: Tensor
    offset: Tensor
    grain: Tensor

    def apply(self, pictures: Tensor) -> Tensor:
        """The augmented pictures, [B, H, W, 3]."""
        seen = pictures.movedim(-1, 1)
        blurred = F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, 1)
        seen = seen.lerp(blurred, self.blur) * self.gain + self.offset + self.grain
        return seen.movedim(1, -1)


@dataclass(frozen=True, eq=False)
class FinishingBatch(DecoderBatch):
    """Photos, and besides: painted: painted samples with jittered keypoints. before: [P, H, W, 3], 0 to 1, what the
    decoder made of them at first. view: their augmentation.
    """

    painted: Painted
    before: Tensor
    view: View


class Finishing(Decoding[FinishingBatch]):
    """The losses of a batch. Trains the decoder.

    A decoder that pleases ArcFace in a single view would paint adversarial patterns. So each face is slightly blurred,
    brightened, turned and moved, and the picture must stay near what it was.
    """

    def __init__(self, vae: torch.nn.Module, perception: Perception, known: Tensor) -> None:
        """known: [N, 512], of length 1, identities of all people to be distinguished."""
        super().__init__(vae, perception)
        self._known = known

    def forward(self, batch: FinishingBatch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise."""
        losses = super().forward(batch)
        painted_losses = self._painted_losses(batch)
        losses["loss"] = losses["loss"] + sum(weight * loss for weight, loss in painted_losses.values())
        return losses | {name: loss.detach() for name, (_, loss) in painted_losses.items()}

    def _painted_losses(self, batch: FinishingBatch) -> dict[str, tuple[float, Tensor]]:
        painted, own = batch.painted, batch.painted.identities
        if not len(painted):
            return {}
        now = self.decode(painted.latents)
        faces = self._perception(batch.view.apply(now), painted.keypoints).embeddings
        return {
            "confused": (_CONFUSED, confusion(faces, own, self._known).mean()),
            "own": (_EMBEDDING, (1 - (faces * own).sum(1)).mean()),
            "far": (_UNLIKE, ((faces - own) @ self._known.T).square().mean()),
            "changed": (_STAY, _changes(now, batch.before)),
        }


def _changes(now: Tensor, before: Tensor) -> Tensor:
    """The distance of pictures [B, H, W, 3] from earlier ones, at a coarse and a fine scale."""
    change = (now - before).movedim(-1, 1)
    return F.avg_pool2d(change, _COARSE).abs().mean() + _FINE * change.abs().mean()


class FinishingStage(DecoderStage):
    """As the loop runs it."""

    def __init__(
        self,
        encoders: FrozenEncoders,
        source: SampleSource,
        config: LoopConfig,
        perception: Perception,
        first: Path,
        painted: Painted,
        known: Tensor,
    ) -> None:
        """encoders: with the VAE of ``first``, its file. perception, known: on their device."""
        self._painted, self._known = painted, known
        super().__init__(encoders, source, config, perception, first)

    def _decoding(self, perception: Perception) -> Finishing:
        return Finishing(self._vae, perception, self._known)

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[list[Sample]]:
        """Lists of the photos of a batch, without the first ``skip`` lists."""
        return sample_batches(self._source, self._photos, process, processes, skip)

    @property
    def _photos(self) -> int:
        return max(1, round(_PHOTOS * self._config.batch_size))

    def make_batch(self, raw: list[Sample], generator: torch.Generator, device: torch.device) -> FinishingBatch:
        """Photos, and painted pictures to fill the batch."""
        photos = super().make_batch(raw, generator, device)
        count = max(1, self._config.batch_size - len(raw)) if len(self._painted) else 0
        rows = torch.randint(max(1, len(self._painted)), (count,), generator=generator)
        latents = self._painted.latents[rows]
        painted = Painted(
            latents.to(device),
            jitter_keypoints(self._painted.keypoints[rows], generator).to(device),
            self._painted.identities[rows].to(device),
        )
        before = self._encoders.pictures(latents) if count else latents.new_zeros(0)
        view = _random_view(count, photos.photos.shape[1:3], generator, device)
        return FinishingBatch(**vars(photos), painted=painted, before=before.to(device), view=view)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Draws what the miniature painted, decoded as before and as now."""
        if not len(self._painted):
            return super().draw_sheet(path, steps)
        latents = self._painted.latents[:: max(1, len(self._painted) // SHEET_ROWS)][:SHEET_ROWS]
        with torch.no_grad():
            now = self.network.decode(latents.to(next(self.network.parameters()).device))
        return save_sheet(path, list(zip(to_photos(self._encoders.pictures(latents)), to_photos(now), strict=True)))


def jitter_keypoints(keypoints: Tensor, generator: torch.Generator) -> Tensor:
    """Keypoints [B, 106, 2], each face randomly turned, scaled and shifted, as alignment is never exact."""
    count = len(keypoints)
    middle = keypoints.mean(1, keepdim=True)
    scale = 1 + _uniform(_GROWTH, (count, 1, 1), generator)
    angle = _uniform(_TURN, (count, 1, 1), generator)
    x, y = ((keypoints - middle) * scale).split(1, dim=-1)
    return middle + torch.cat((x - angle * y, y + angle * x), dim=-1) + _uniform(_SHIFT, (count, 1, 2), generator)


def _random_view(count: int, size: torch.Size, generator: torch.Generator, device: torch.device) -> View:
    one = (count, 1, 1, 1)
    grain = torch.randn(count, 3, *size, generator=generator) * torch.rand(one, generator=generator) * _GRAIN
    return View(
        (torch.rand(one, generator=generator) * _BLUR).to(device),
        (1 + _uniform(_GAIN, one, generator)).to(device),
        _uniform(_OFFSET, one, generator).to(device),
        grain.to(device),
    )


def _uniform(limit: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random numbers from -limit to limit."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * limit
