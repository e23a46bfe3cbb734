"""The miniature's base model: a UNet that learns to predict the noise in latents, from captions alone."""

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
from ..losses import loss_dict, min_snr_weights
from ..stages import SampleSource, SampleStage, paint_samples, save_sheet
from .captions import random_caption
from .framing import close_up_weights
from .weights import write_weights

_DROP_TEXT = 0.1
SCENE_SHARE = 0.12
"""Share of the batches that are scenes of several people, when the UNet trains by itself."""
_SHORT = 0.5  # share of the scenes whose captions do not describe each person
_DESCRIBE_SHARE, _MOTION_SHARE = 0.5, 0.5  # see ``captions.random_caption``


@dataclass(frozen=True, eq=False)
class DenoisingBatch:
    """latents, noise: [B, C, h, w]. weights: [B, 1, h, w], of their errors. timesteps: [B]. context: [B, 77, D], that
    of "" for dropped captions.
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
    """The loss of a batch. Trains the UNet."""

    def __init__(self, denoiser: DenoisingModel) -> None:
        super().__init__()
        self.unet = denoiser.network.requires_grad_(True)
        self._denoiser = denoiser

    def forward(self, batch: DenoisingBatch) -> dict[str, Tensor]:
        """Losses by name: the noise loss with Min-SNR weights, and without."""
        noisy = self._denoiser.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = self._denoiser(noisy, batch.timesteps, batch.context, {})
        error = ((predicted - batch.noise).square() * batch.weights).mean((1, 2, 3))
        snr = self._denoiser.signal_to_noise(batch.timesteps)
        return loss_dict((error * min_snr_weights(snr)).mean(), noise=error.mean())


class DenoisingStage(SampleStage):
    """As the loop runs it."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        encoders: FrozenEncoders,
        source: SampleSource,
        scenes: dict[int, list[Scene]],
        config: LoopConfig,
        scene_share: float = SCENE_SHARE,
    ) -> None:
        """scenes: of several people, by their number. scene_share: of the batches that are scenes."""
        super().__init__(source, config)
        self._denoiser = denoiser
        self.network = Denoising(denoiser)
        self._encoders, self._scenes = encoders, scenes
        self._scene_share = scene_share

    def make_batch(self, raw: list[Sample], generator: torch.Generator, device: torch.device) -> DenoisingBatch:
        """A batch of the samples, or sometimes of scenes instead."""
        if self._scenes and float(torch.rand(1, generator=generator)) < self._scene_share:
            return self._batch(self._random_scenes(len(raw), generator), None, generator, device)
        shown = [(sample.picture, sample.caption) for sample in _recaptioned(raw, generator)]
        return self._batch(shown, raw, generator, device)

    def _batch(
        self,
        shown: list[tuple[Photo, str]],
        samples: list[Sample] | None,
        generator: torch.Generator,
        device: torch.device,
    ) -> DenoisingBatch:
        """A batch of pictures with captions. samples: theirs, if they show one person each."""
        dropped = (torch.rand(len(shown), generator=generator) < _DROP_TEXT).tolist()
        captions = ["" if drop else caption for (_, caption), drop in zip(shown, dropped, strict=True)]
        latents = self._encoders.latents(to_image([photo for photo, _ in shown])).to(device)
        return DenoisingBatch(
            latents,
            torch.randn(latents.shape, generator=generator).to(device),
            close_up_weights(keypoints_of(samples), latents) if samples else torch.ones_like(latents[:, :1]),
            torch.randint(self._denoiser.timesteps, (len(shown),), generator=generator).to(device),
            self._encoders.contexts(captions).to(device),
        )

    def _random_scenes(self, pictures: int, generator: torch.Generator) -> list[tuple[Photo, str]]:
        """Scenes of one size with captions, about as many as have the pixels of ``pictures`` single pictures."""
        numbers = sorted(self._scenes)
        people = numbers[int(torch.randint(len(numbers), (1,), generator=generator))]
        of_one_size = self._scenes[people]
        chosen = torch.randint(len(of_one_size), (max(1, pictures // people),), generator=generator).tolist()
        short = (torch.rand(len(chosen), generator=generator) < _SHORT).tolist()
        return [
            (of_one_size[i].picture, of_one_size[i].caption.split(":")[0] if cut else of_one_size[i].caption)
            for i, cut in zip(chosen, short, strict=True)
        ]

    def save_weights(self, folder: Path) -> None:
        """unet.safetensors."""
        write_weights(self._denoiser.network.state_dict(), folder / UNET_FILE)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Draws pictures of the data beside what is painted from their captions."""
        samples = _recaptioned(self._first(), torch.Generator().manual_seed(0))
        painted = paint_samples(self._denoiser, self._encoders, samples, steps)
        save_sheet(path, [[sample.picture, picture] for sample, picture in zip(samples, painted, strict=True)])


def _recaptioned(samples: list[Sample], generator: torch.Generator) -> list[Sample]:
    """The samples with new random captions."""
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    return [replace(sample, caption=random_caption(sample, rng, _DESCRIBE_SHARE, _MOTION_SHARE)) for sample in samples]


def read_scenes(folder: Path) -> dict[int, list[Scene]]:
    """The scenes that ``training.data synthesize --groups`` wrote, by number of people.

    Raises InputError where there are none.
    """
    layout = folder / "layout.json"
    if not layout.is_file():
        raise InputError(f"There are no scenes of several people: {layout} is missing. Make the data again.")
    found: dict[int, list[Scene]] = {}
    layouts: dict[str, Any] = json.loads(layout.read_text(encoding="utf-8"))
    for name, entry in layouts.items():
        with Image.open(folder / name) as picture:
            scene = Scene(np.asarray(picture.convert("RGB")), entry["caption"])
        found.setdefault(len(entry["people"]), []).append(scene)
    return found
