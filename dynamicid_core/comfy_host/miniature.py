"""The miniature: a complete small model in ComfyUI's own classes, and its files.

Its UNet has the topology of SD1.5, with the same 16 attention blocks under the same names, so that every node works
with it as with SD1.5.
"""

import inspect
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..checkpoint import (
    ADAPTER,
    ADAPTER_FILE,
    IMR,
    IMR_FILE,
    KEYPOINT_ENCODER,
    KEYPOINT_ENCODER_FILE,
    read_checkpoint,
)
from ..errors import InputError
from .clip_models import text_transformer
from .loading import DynamicID, load_dynamicid

FOLDER = Path(__file__).resolve().parent.parent / "data" / "miniature"
"""The folder of the shipped weights."""
UNET_FILE, VAE_FILE, TEXT_FILE, IMAGE_FILE = (
    f"{name}.safetensors" for name in ("unet", "vae", "text_encoder", "image_encoder")
)
WORDS = "words"
"""Key in the text encoder's file: ids of the tokens [n] whose embeddings it has. All others, which were not in its
training captions, are zero."""

DATA_SIZE = 128
"""Side of the pictures in its data set."""
PICTURE_WIDTH, PICTURE_HEIGHT = 128, 144
"""Size of its training pictures of one person: close-ups from those of the data set."""
LATENT_CHANNELS = 8
"""SD1.5 has 4. A small autoencoder needs more to keep faces."""
LATENT_SCALE = 0.18215
"""Scale of the UNet's latents relative to the VAE's, as in SD1.5; ComfyUI assumes it."""
_TEXT_SIZE = 128
_UNET_CONFIG: dict[str, Any] = {
    "image_size": 32, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "use_checkpoint": False,
    "legacy": False,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None,
    "use_temporal_attention": False, "use_temporal_resblock": False, "model_channels": 64, "context_dim": _TEXT_SIZE,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 1, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
_HEADS = 2
_GROUP_SIZE = 4
_VAE_CONFIG: dict[str, Any] = {
    "double_z": True, "z_channels": LATENT_CHANNELS, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
TEXT: dict[str, Any] = {"hidden_size": _TEXT_SIZE, "intermediate_size": 256, "num_attention_heads": 4,
                        "num_hidden_layers": 3}  # fmt: skip
"""The text encoder's configuration, with the names of transformers; all else is as in SD1.5."""
IMAGE: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 192, "intermediate_size": 384, "hidden_act": "gelu",
    "image_size": 112, "patch_size": 16, "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 5,
    "projection_dim": _TEXT_SIZE,
}  # fmt: skip
"""The image encoder's configuration."""
_PROJECTION = "text_projection.weight"
_EMBEDDING = "text_model.embeddings.token_embedding.weight"


class _Latents(comfy.latent_formats.LatentFormat):
    """Latents of the miniature's VAE, which have the spread of SD1.5's."""

    scale_factor = LATENT_SCALE
    latent_channels = LATENT_CHANNELS


class _Sd15(comfy.supported_models.SD15):
    latent_format = _Latents
    unet_extra_config = {"num_heads": _HEADS, "num_head_channels": -1}  # noqa: RUF012 - as the host has it

    def inpaint_model(self) -> bool:
        """False: ComfyUI takes models with more than four channels for inpainting models."""
        return False


@dataclass(frozen=True, eq=False)
class Miniature:
    """The host's MODEL, CLIP, VAE and CLIP_VISION, and the adapter with its IMR."""

    model: ModelPatcher
    clip: Any
    vae: Any
    clip_vision: Any
    dynamicid: DynamicID


def load_miniature(folder: Path = FOLDER) -> Miniature:
    """Loads the miniature from its files. Raises InputError if one is missing or damaged."""
    parts = {
        part: read_checkpoint(_require_file(folder / file), part)
        for part, file in ((ADAPTER, ADAPTER_FILE), (IMR, IMR_FILE), (KEYPOINT_ENCODER, KEYPOINT_ENCODER_FILE))
    }
    return Miniature(
        load_unet(folder / UNET_FILE),
        load_text_encoder(folder / TEXT_FILE),
        load_vae(folder / VAE_FILE),
        load_image_encoder(folder / IMAGE_FILE),
        load_dynamicid(parts[ADAPTER], imr=parts[IMR], keypoint_encoder=parts[KEYPOINT_ENCODER]),
    )


def load_unet(file: Path) -> ModelPatcher:
    """Loads MODEL from a file."""
    model = build_unet()
    _load_weights(model.model.diffusion_model, _read(file), file)
    model.model.diffusion_model.to(model.model.get_dtype())  # later hosts may have left the weights in the file's dtype
    return model


def load_vae(file: Path) -> Any:
    """Loads VAE from a file."""
    return build_vae(_read(file))


def load_text_encoder(file: Path) -> Any:
    """Loads CLIP from a file."""
    weights = _read(file)
    if WORDS not in weights or _EMBEDDING not in weights:
        raise _mismatch_error(file)
    clip = build_text_encoder()
    network = text_transformer(clip)
    table = torch.zeros(network.get_input_embeddings().weight.shape)
    weights[_EMBEDDING] = table.index_copy(0, weights.pop(WORDS), weights[_EMBEDDING].float())
    # SD1.5 does not project its pooled text.
    _load_weights(network, weights | {_PROJECTION: torch.eye(_TEXT_SIZE)}, file)
    return clip


def load_image_encoder(file: Path) -> Any:
    """Loads CLIP_VISION from a file."""
    clip_vision = build_image_encoder()
    _load_weights(clip_vision.model, _read(file), file)
    return clip_vision


def build_unet() -> ModelPatcher:
    """MODEL without weights."""
    config = _Sd15(dict(_UNET_CONFIG))
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    dtype = comfy.model_management.unet_dtype(device=device, supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = config.get_model({}, "", device=offload)
    _group_channels(model.diffusion_model)
    return ModelPatcher(model, load_device=device, offload_device=offload)


def build_vae(weights: Mapping[str, Tensor]) -> Any:
    """VAE with weights."""
    vae = comfy.sd.VAE(
        sd=dict(weights), config={"params": {"ddconfig": dict(_VAE_CONFIG), "embed_dim": LATENT_CHANNELS}}
    )
    vae.latent_channels = LATENT_CHANNELS  # the host reads it from the file only for known kinds
    _group_channels(vae.first_stage_model)
    return vae


def vae_network() -> nn.Module:
    """The VAE's network alone, without weights, for training."""
    return _group_channels(comfy.sd.AutoencoderKL(ddconfig=dict(_VAE_CONFIG), embed_dim=LATENT_CHANNELS))


def build_text_encoder() -> Any:
    """CLIP without weights."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options: dict[str, Any] = {"model_options": {"clip_l_model_config": dict(TEXT)}}
    if "disable_dynamic" in inspect.signature(comfy.sd.CLIP.__init__).parameters:
        options["disable_dynamic"] = True  # later hosts load a dynamic one from its file anew for hooks; this has none
    return comfy.sd.CLIP(target, **options)


def build_image_encoder() -> Any:
    """CLIP_VISION without weights."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(IMAGE), encoding="utf-8")
        return comfy.clip_vision.ClipVisionModel(str(config))


def packed_text_weights(weights: Mapping[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """The tensors of a text encoder's file: its weights, with only the rows ``words`` [n] of the embedding table."""
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith("position_ids")}
    return kept | {_EMBEDDING: weights[_EMBEDDING][words], WORDS: words}


def _group_channels(network: nn.Module) -> nn.Module:
    """Makes the groups of group normalisation at least four channels wide, as in SD1.5's first layers.

    ComfyUI always has 32 groups. In a layer of 32 channels these have one channel each, and colours are lost.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = min(module.num_groups, module.num_channels // _GROUP_SIZE)
    return network


def _load_weights(network: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise _mismatch_error(file) from error


def _mismatch_error(file: Path) -> InputError:
    return InputError(f"{file.name} does not fit this version of the pack: install the pack again. ({file})")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return dict(comfy.utils.load_torch_file(str(_require_file(file)), safe_load=True))
    except InputError:
        raise
    except Exception as error:  # safetensors raises its own types
        raise InputError(f"{file.name} is damaged ({error}): install the pack again. ({file})") from error


def _require_file(file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"The miniature's {file.name} is missing from {file.parent}: install the pack again.")
    return file
