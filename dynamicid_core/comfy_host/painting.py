"""Pictures by the path of the nodes: CLIP Text Encode, Apply DynamicID, KSampler, VAE Decode; and the CLIP that judges
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import InputError
from ..face import Placement
from ..images import Photo, photographs
from ..saa import SaaSettings
from .loading import DynamicID
from .patching import apply_dynamicid

_CELL = 8  # pixels of a latent's cell
_TEXT_PROJECTION = ("text_projection.weight", "text_projection")
_IMAGE_PROJECTION = ("visual_projection.weight", "visual.proj")


@dataclass(frozen=True, eq=False)
class BaseModel:
    """MODEL, CLIP and VAE of the host."""

    model: ModelPatcher
    clip: Any
    vae: Any


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled. The defaults are those of the published examples: 50 steps of DDIM at CFG 5.

    width, height: pixels, multiples of 8. sampler, scheduler: by the host's names. batch: pictures at once.
    """

    width: int = 512
    height: int = 512
    steps: int = 50
    cfg: float = 5.0
    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"
    batch: int = 1

    def __post_init__(self) -> None:
        if min(self.width, self.height) < _CELL or self.width % _CELL or self.height % _CELL:
            raise InputError(
                f"The size is {self.width} x {self.height}; width and height must be multiples of {_CELL} pixels."
            )
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"steps is {self.steps} and batch {self.batch}; both must be at least 1.")
        for what, given, known in (
            ("sampler", self.sampler, comfy.samplers.KSampler.SAMPLERS),
            ("scheduler", self.scheduler, comfy.samplers.KSampler.SCHEDULERS),
        ):
            if given not in known:
                raise InputError(f'"{given}" is no {what} of this ComfyUI. Choose one of: {", ".join(known)}.')


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
    lora_strength: float = 1.0,
) -> list[Photo]:
    """Pictures of the people in ``placements``, as a graph of the nodes makes them; without any, of the base model.

    Stops when the host is told to interrupt. Raises InputError when adapter, model and faces do not fit each other.
    """
    latents = paint_latents(base, dynamicid, placements, settings, prompt, negative, sampling, seed, lora_strength)
    return photographs(base.vae.decode(latents))


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
    lora_strength: float = 1.0,
) -> Tensor:
    """Latents [batch, C, height / 8, width / 8] of what ``paint`` makes, as the VAE decodes them."""
    asked, avoided = (base.clip.encode_from_tokens_scheduled(base.clip.tokenize(text)) for text in (prompt, negative))
    model, asked, avoided = apply_dynamicid(base.model, asked, avoided, dynamicid, placements, settings, lora_strength)
    empty = torch.zeros(sampling.batch, 4, sampling.height // _CELL, sampling.width // _CELL)
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
        disable_pbar=True,  # the caller shows how far its pictures are
        seed=seed,
    )
    return latents


def load_text_and_vision(paths: Sequence[Path]) -> tuple[Any, Any]:
    """CLIP and CLIP_VISION whose embeddings can be compared, from one file with both of them or from one of each.

    Raises InputError when one of the two projections is missing: text encoders of SD1.5 checkpoints have none.
    """
    text = _file_with(paths, _TEXT_PROJECTION, "text encoder with its text_projection")
    vision = _file_with(paths, _IMAGE_PROJECTION, "vision model with its visual_projection")
    try:
        return comfy.sd.load_clip([str(text)]), _vision_model(vision)
    except RuntimeError as error:  # what torch says when sizes differ
        raise InputError(f"{text} is no text encoder that ComfyUI knows. Give CLIP ViT-L/14. ({error})") from error


def projected_text(clip: Any, prompt: str) -> Tensor:
    """CLIP's text embedding of a prompt as it compares with pictures, float32 [size].

    The projection is applied here, since ComfyUI leaves it out of ViT-L's pooled text, as SD1.5 wants it.
    """
    _, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled="unprojected")
    encoder = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
    return encoder.transformer.text_projection(pooled.float().cpu())[0].float()


def _vision_model(path: Path) -> Any:
    loaded = comfy.clip_vision.load(str(path))
    if loaded is None:
        raise InputError(f"{path} is no CLIP vision model that ComfyUI knows. Give CLIP ViT-L/14.")
    return loaded


def _file_with(paths: Sequence[Path], tensors: Sequence[str], what: str) -> Path:
    for path in paths:
        if not path.is_file():
            raise InputError(f"There is no CLIP file {path}. Give CLIP ViT-L/14 as --clip-score.")
        try:
            found = comfy.utils.load_torch_file(str(path), safe_load=True)
        except Exception as error:  # safetensors and pickle have types of their own
            raise InputError(f"{path} could not be read as a CLIP model: {error}") from error
        if any(name in found for name in tensors):
            return path
    raise InputError(
        f"CLIP-T needs a {what}; {' and '.join(map(str, paths))} {'has' if len(paths) == 1 else 'have'} none. Give the "
        "whole CLIP ViT-L/14 (model.safetensors of openai/clip-vit-large-patch14) as --clip-score."
    )
