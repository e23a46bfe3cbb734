"""The miniature's base model: a UNet that learns to see the noise in latents, from captions alone."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ...comfy_host.miniature import UNET_FILE
from ...errors import InputError
from ...images import Photo, to_image
from ..config import LoopConfig
from ..data.sample import Sample
from ..inputs import keypoints_of
from ..losses import min_snr_weights, told
from ..stages import SampleSource, SampleStage, paint_samples, save_sheet
from .captions import reduced
from .framing import close_up_weights
from .weights import write_weights

_DROP_TEXT = 0.1
SCENES = 0.12
"""Share of the batches that are of scenes of several people, where the UNet learns by itself only."""
_SHORT = 0.5  # share of the scenes whose people are not told one by one
_TOLD, _MOTION = 0.5, 0.5  # of captions, see ``captions.reduced``


@dataclass(frozen=True, eq=False)
class DenoisingBatch:
    """latents, noise: [B, C, h, w]. weights: [B, 1, h, w], of their errors. timesteps: [B]. context: [B, 77, D], of
    dropped captions that of "".
    """

    latents: Tensor
    noise: Tensor
    weights: Tensor
    timesteps: Tensor
    context: Tensor


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture of several people, [H, W, 3], and its caption."""

    picture: Photo
    caption: str


class Denoising(nn.Module):
    """The loss of a batch. What trains is the UNet."""

    def __init__(self, denoiser: DenoisingModel) -> None:
        super().__init__()
        self.unet = denoiser.network.requires_grad_(True)
        self._denoiser = denoiser

    def forward(self, batch: DenoisingBatch) -> dict[str, Tensor]:
        """Losses by name: of the noise, weighted by what is left of the picture in it, and as it is."""
        seen = self._denoiser.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = self._denoiser(seen, batch.timesteps, batch.context, {})
        error = ((predicted - batch.noise).square() * batch.weights).mean((1, 2, 3))
        snr = self._denoiser.signal_to_noise(batch.timesteps)
        return told((error * min_snr_weights(snr)).mean(), noise=error.mean())


class DenoisingStage(SampleStage):
    """As the loop runs it."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        encoders: FrozenEncoders,
        source: SampleSource,
        scenes: dict[int, list[Scene]],
        config: LoopConfig,
        scene_share: float = SCENES,
    ) -> None:
        """scenes: of several people, by their number. scene_share: of the batches, which are of scenes."""
        super().__init__(source, config)
        self._denoiser = denoiser
        self.network = Denoising(denoiser)
        self._encoders, self._scenes = encoders, scenes
        self._scene_share = scene_share

    def make_batch(self, raw: list[Sample], chance: torch.Generator, device: torch.device) -> DenoisingBatch:
        """Of the samples, or now and then of scenes in their place."""
        if self._scenes and float(torch.rand(1, generator=chance)) < self._scene_share:
            return self._batch(self._some_scenes(len(raw), chance), None, chance, device)
        shown = [(sample.picture, sample.caption) for sample in _retold(raw, chance)]
        return self._batch(shown, raw, chance, device)

    def _batch(
        self,
        shown: list[tuple[Photo, str]],
        samples: list[Sample] | None,
        chance: torch.Generator,
        device: torch.device,
    ) -> DenoisingBatch:
        """Of pictures with captions. samples: what they are of, if of one person each."""
        dropped = (torch.rand(len(shown), generator=chance) < _DROP_TEXT).tolist()
        captions = ["" if drop else caption for (_, caption), drop in zip(shown, dropped, strict=True)]
        latents = self._encoders.latents(to_image([photo for photo, _ in shown])).to(device)
        return DenoisingBatch(
            latents,
            torch.randn(latents.shape, generator=chance).to(device),
            close_up_weights(keypoints_of(samples), latents) if samples else torch.ones_like(latents[:, :1]),
            torch.randint(self._denoiser.timesteps, (len(shown),), generator=chance).to(device),
            self._encoders.contexts(captions).to(device),
        )

    def _some_scenes(self, pictures: int, chance: torch.Generator) -> list[tuple[Photo, str]]:
        """Scenes of one size with captions, about as many as have the pixels of so many ``pictures``."""
        numbers = sorted(self._scenes)
        people = numbers[int(torch.randint(len(numbers), (1,), generator=chance))]
        of_one_size = self._scenes[people]
        chosen = torch.randint(len(of_one_size), (max(1, pictures // people),), generator=chance).tolist()
        short = (torch.rand(len(chosen), generator=chance) < _SHORT).tolist()
        return [
            (of_one_size[i].picture, of_one_size[i].caption.split(":")[0] if cut else of_one_size[i].caption)
            for i, cut in zip(chosen, short, strict=True)
        ]

    def save_weights(self, folder: Path) -> None:
        """unet.safetensors."""
        write_weights(self._denoiser.network.state_dict(), folder / UNET_FILE)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Pictures of the data beside what is painted of their captions."""
        samples = _retold(self._first(), torch.Generator().manual_seed(0))
        painted = paint_samples(self._denoiser, self._encoders, samples, steps)
        save_sheet(path, [[sample.picture, picture] for sample, picture in zip(samples, painted, strict=True)])


def _retold(samples: list[Sample], chance: torch.Generator) -> list[Sample]:
    """The samples with captions that are told anew."""
    words = np.random.default_rng(int(torch.randint(2**31, (1,), generator=chance)))
    return [replace(sample, caption=reduced(sample, words, _TOLD, _MOTION)) for sample in samples]


def read_scenes(folder: Path) -> dict[int, list[Scene]]:
    """The scenes that ``training.data synthesize --groups`` wrote, by the number of people.

    Raises InputError where there are none.
    """
    layout = folder / "layout.json"
    if not layout.is_file():
        raise InputError(f"There are no scenes of several people: {layout} is missing. Make the data again.")
    found: dict[int, list[Scene]] = {}
    told: dict[str, Any] = json.loads(layout.read_text(encoding="utf-8"))
    for name, about in told.items():
        with Image.open(folder / name) as picture:
            scene = Scene(np.asarray(picture.convert("RGB")), about["caption"])
        found.setdefault(len(about["people"]), []).append(scene)
    return found
