"""Stable Diffusion 1.5's UNet and the released adapter in full size, with random weights, inside a host.

Names and shapes are those of the real files, so that every loader and every layer runs.
"""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from torch import Tensor

from dynamicid_core.adapter import attention_layers
from dynamicid_core.checkpoint import DYNAMICID
from dynamicid_core.comfy_host.loading import DynamicID, load_dynamicid
from dynamicid_core.face_encoder import FaceEncoderSizes
from dynamicid_core.training.networks import TrainableAdapter

Shape = tuple[int, ...]

RANK = 128
TEXT_WIDTH, TOKENS = 768, 4
# Of the low-rank updates, relative to 1/sqrt(fan_in): they should affect the picture without dominating it.
UPDATE_STRENGTH = 0.1


def sd15(dtype: torch.dtype) -> comfy.model_patcher.ModelPatcher:
    """Stable Diffusion 1.5's UNet as the host builds it, with seeded random weights."""
    config = comfy.supported_models.SD15(unet_config())
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        parameter.data.copy_(random_tensor(name, tuple(parameter.shape), generator))
    model.diffusion_model.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def random_adapter(unet: comfy.model_patcher.ModelPatcher) -> DynamicID:
    """An adapter for the UNet with the released file's sizes, loaded as its file would be."""
    layers = attention_layers(unet.model.diffusion_model)
    checkpoint = TrainableAdapter(layers, FaceEncoderSizes(TEXT_WIDTH), RANK, DYNAMICID).checkpoint()
    generator = torch.Generator().manual_seed(1)
    for weights in checkpoint.modules.values():
        for name, tensor in weights.items():
            weights[name] = random_tensor(name, tuple(tensor.shape), generator)
    return load_dynamicid(checkpoint)


def unet_config() -> dict[str, object]:
    """The host's config of Stable Diffusion 1.5's UNet."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_checkpoint": False,
        "legacy": False,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "model_channels": 320,
        "context_dim": TEXT_WIDTH,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 9 + [0] * 3,
    }


def random_tensor(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Random weights: matrices and kernels preserve the scale of activations; norms and biases do nothing."""
    if len(shape) < 2:
        # One-dimensional ones are norms, biases and CLIP's class embedding, for which ones will do.
        return (
            torch.zeros(shape, dtype=torch.float16) if name.endswith("bias") else torch.ones(shape, dtype=torch.float16)
        )
    fan_in = torch.Size(shape[1:]).numel()
    scale = UPDATE_STRENGTH if "_lora.up." in name else 1.0
    tensor = torch.empty(shape, dtype=torch.float16)
    return tensor.normal_(0.0, scale * fan_in**-0.5, generator=generator)
