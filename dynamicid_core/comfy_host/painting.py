"""Generates pictures as a graph of nodes does: CLIP Text Encode, Apply DynamicID, KSampler, VAE Decode."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import InputError
from ..face import Placement
from ..images import Photo, photos_from_image
from ..regions import LATENT_CELL
from ..saa import SaaSettings
from .loading import DynamicID
from .patching import apply_dynamicid


@dataclass(frozen=True, eq=False)
class BaseModel:
    """The host's MODEL, CLIP and VAE."""

    model: ModelPatcher
    clip: Any
    vae: Any


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled. The defaults are those of the published examples: 50 steps of DDIM at CFG 5.

    width, height: pixels, multiples of 8. sampler, scheduler: the host's names. batch: pictures at once.
    """

    width: int = 512
    height: int = 512
    steps: int = 50
    cfg: float = 5.0
    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"
    batch: int = 1

    def __post_init__(self) -> None:
        if min(self.width, self.height) < LATENT_CELL or self.width % LATENT_CELL or self.height % LATENT_CELL:
            raise InputError(
                f"The size is {self.width} x {self.height}; width and height must be multiples of {LATENT_CELL} pixels."
            )
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"steps is {self.steps} and batch {self.batch}; both must be at least 1.")
        for what, given, known in (
            ("sampler", self.sampler, comfy.samplers.KSampler.SAMPLERS),
            ("scheduler", self.scheduler, comfy.samplers.KSampler.SCHEDULERS),
        ):
            if given not in known:
                raise InputError(f'"{given}" is not a {what} of this ComfyUI. Choose one of: {", ".join(known)}.')


def unet_steps(model: ModelPatcher, scheduler: str, steps: int) -> int:
    """How many steps a sampler makes when asked for ``steps``: ddim_uniform makes more unless they divide 1000."""
    return len(comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)) - 1


@torch.inference_mode()
def paint(
    base: BaseModel,
    dynamicid: DynamicID,
    placements: Sequence[Placement],
    settings: SaaSettings,
    prompt: str,
    negative: str,
    sampling: Sampling,
    seed: int,
) -> list[Photo]:
    """Pictures of the people in ``placements``, as from a graph of the nodes; without any, from the base model alone.

    Stops if the host is interrupted. Raises InputError if adapter, model and faces do not fit each other.
    """
    latents = paint_latents(base, dynamicid, placements, settings, prompt, negative, sampling, seed)
    return photos_from_image(base.vae.decode(latents))


@torch.inference_mode()
def paint_latents(
    base: BaseModel,
    dynamicid: DynamicID,
    placements: Sequence[Placement],
    settings: SaaSettings,
    prompt: str,
    negative: str,
    sampling: Sampling,
    seed: int,
) -> Tensor:
    """Latents [batch, C, height / 8, width / 8] of the pictures of ``paint``, in the VAE's scale."""
    asked, avoided = (base.clip.encode_from_tokens_scheduled(base.clip.tokenize(text)) for text in (prompt, negative))
    model, asked, avoided = apply_dynamicid(base.model, asked, avoided, dynamicid, placements, settings)
    empty = torch.zeros(sampling.batch, 4, sampling.height // LATENT_CELL, sampling.width // LATENT_CELL)
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    latents: Tensor = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, seed),
        sampling.steps,
        sampling.cfg,
        sampling.sampler,
        sampling.scheduler,
        asked,
        avoided,
        empty,
        disable_pbar=True,  # the caller shows progress
        seed=seed,
    )
    return latents
