"""Joint training of UNet and adapter: the UNet, so far trained on captions only, learns to paint the people of the
adapter's tokens, with and without the layout boost of regions.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...comfy_host.differentiable import DenoisingModel
from ...regions import Box, boosted_gate
from ...saa import Layout, SaaSettings
from ..anchoring import AnchorBatch, Anchoring
from ..losses import loss_dict
from ..networks import Layouts, TrainableAdapter
from ..stages import AnchorStage
from .anchoring import RecognisedAnchoring, RecognisedAnchorStage
from .denoising import Denoising, DenoisingBatch, DenoisingStage
from .framing import in_close_up

UNET_ONLY_EVERY = 5
"""One of so many batches is for the UNet without the adapter, the same one in all processes."""
_PLACED = 0.5  # share of the people with a region during the layout boost
_WHOLE = 0.5  # share of the regions that are the whole picture
_WIDER, _HIGHER, _LOWER = 0.3, 0.6, 0.15  # margins from a face to its head, in sizes of the face
_PICTURE = Box(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class PlacedBatch(AnchorBatch):
    """regions: those of the people for the layout boost, None without one."""

    regions: tuple[Box | None, ...]


class PlacedAnchoring(RecognisedAnchoring[PlacedBatch]):
    """Anchoring with regions, and with less weight on identity: by now the noise loss should dominate."""

    identity_weight, shape_weight = 0.25, 0.05

    def _layout(self, batch: PlacedBatch) -> Layouts:
        return boosted_layouts(batch.regions, self._settings.layout_boost, batch.latents.device)


class Together(nn.Module):
    """The losses of both kinds of batch: for the UNet alone, and for UNet and adapter."""

    def __init__(self, denoiser: DenoisingModel, denoising: Denoising, anchoring: Anchoring[Any]) -> None:
        super().__init__()
        self.denoising, self.anchoring = denoising, anchoring
        self._denoiser = denoiser

    def forward(self, batch: DenoisingBatch | PlacedBatch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise."""
        if isinstance(batch, PlacedBatch):
            losses: dict[str, Tensor] = self.anchoring(batch)
            return losses
        with self._denoiser.without_updates():
            loss: Tensor = self.denoising(batch)["loss"]
        return loss_dict(loss, alone=loss)


class PlacedAnchorStage(RecognisedAnchorStage):
    """Face encoder and SAA, with regions."""

    def make_batch(self, raw: Any, generator: torch.Generator, device: torch.device) -> PlacedBatch:
        """The input of ``PlacedAnchoring``."""
        return placed(super().make_batch(raw, generator, device), self._denoiser.timesteps, generator)

    def _anchoring(self, adapter: TrainableAdapter) -> PlacedAnchoring:
        return PlacedAnchoring(self._denoiser, adapter, self._config, self._recogniser)


class TogetherStage:
    """As the loop runs it."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        unet_only: DenoisingStage,
        anchoring: AnchorStage,
        unet_only_every: int = UNET_ONLY_EVERY,
    ) -> None:
        """unet_only, anchoring: stages of that UNet; ``anchoring`` makes PlacedBatches. unet_only_every: see
        UNET_ONLY_EVERY.
        """
        self.network = Together(denoiser, unet_only.network, anchoring.network)
        self._unet_only, self._anchoring, self._unet_only_every = unet_only, anchoring, unet_only_every

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[tuple[bool, Any]]:
        """Whether a batch is for the UNet alone, and what ``anchoring`` takes, without the first ``skip``."""
        for turn, people in enumerate(self._anchoring.raw_batches(process, processes, skip), start=skip):
            yield turn % self._unet_only_every == 0, people

    def make_batch(
        self, raw: tuple[bool, Any], generator: torch.Generator, device: torch.device
    ) -> DenoisingBatch | AnchorBatch:
        """The network's input."""
        unet_only, people = raw
        if unet_only:
            return self._unet_only.make_batch(self._anchoring.target_samples(people), generator, device)
        return self._anchoring.make_batch(people, generator, device)

    def save_weights(self, folder: Path) -> None:
        """unet.safetensors and adapter.safetensors."""
        self._unet_only.save_weights(folder)
        self._anchoring.save_weights(folder)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Draws photos of the data beside what is painted from their captions and tokens."""
        self._anchoring.draw_sheet(path, steps)


def placed(batch: AnchorBatch, timesteps: int, generator: torch.Generator) -> PlacedBatch:
    """The batch with regions for some of the people. timesteps: of the whole schedule."""
    early = boost_is_active(batch.timesteps, timesteps)
    heads = _heads(batch.keypoints.cpu())
    draws = torch.rand(len(heads), 2, generator=generator).tolist()
    regions = tuple(
        (_PICTURE if whole < _WHOLE else head) if boosted and has_place < _PLACED else None
        for boosted, head, (has_place, whole) in zip(early, heads, draws, strict=True)
    )
    return PlacedBatch(**vars(batch), regions=regions)


def boost_is_active(timesteps: Tensor, of: int) -> list[bool]:
    """Whether the layout boost is active at timesteps [B]. of: timesteps of the whole schedule."""
    boosted: list[bool] = (timesteps >= (1 - SaaSettings().layout_end) * of).tolist()
    return boosted


def _heads(keypoints: Tensor) -> list[Box]:
    """The regions of heads in close-ups. keypoints: [B, 106, 2] in fractions of the data's pictures."""
    points = in_close_up(keypoints)
    low, high = points.amin(1), points.amax(1)
    size = high - low
    top_left = (low - size * torch.tensor((_WIDER, _HIGHER))).clamp(0, 0.9)
    bottom_right = (high + size * torch.tensor((_WIDER, _LOWER))).clamp(0.1, 1)
    return [Box(*edges) for edges in torch.cat((top_left, bottom_right), dim=1).tolist()]


def boosted_layouts(people: Sequence[Box | None], boost: float, device: torch.device) -> Layouts:
    """The layout boost for each row of a batch that has a region, on the grid of each layer."""

    @functools.cache
    def layout(height: int, width: int) -> Layout:
        inside = torch.stack(
            [torch.zeros(height, width) if box is None else box.coverage(height, width) for box in people]
        ).view(len(people), -1, 1)
        has_region = torch.tensor([box is not None for box in people]).view(-1, 1, 1)
        scale, offset = boosted_gate(inside, boost)
        return Layout(None, torch.where(has_region, scale, 1.0).to(device), offset.to(device))

    return layout
