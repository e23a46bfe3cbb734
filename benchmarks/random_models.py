"""Stable Diffusion 1.5's UNet and the released adapter in full size, with random weights, inside a host.

Names and shapes are those of the real files, so that every loader and every layer runs.
"""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from torch import Tensor

from dynamicid_core.checkpoint import ADAPTER, Checkpoint
from dynamicid_core.comfy_host.loading import DynamicID, load_dynamicid

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

RANK = 128
TEXT_WIDTH, TOKENS = 768, 4
# Channels of the 16 transformer blocks in the order of the released file: down, up, middle.
BLOCK_WIDTHS = (320,) * 2 + (640,) * 2 + (1280,) * 2 + (1280,) * 3 + (640,) * 3 + (320,) * 3 + (1280,)
# Of the low-rank updates, relative to 1/sqrt(fan_in): they should show in the picture and not take it over.
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


def random_adapter() -> DynamicID:
    """An adapter of the released file's shapes, loaded as its file would be."""
    generator = torch.Generator().manual_seed(1)
    modules: dict[str, dict[str, Tensor]] = {"face_encoder": {}, "saa": {}}
    for name, shape in adapter_shapes().items():
        part, key = name.split(".", 1)
        module = modules["saa" if part == "SAA_module" else "face_encoder"]
        module[key] = random_tensor(key, shape, generator)
    return load_dynamicid(Checkpoint(ADAPTER, modules))


def unet_config() -> dict[str, object]:
    """Stable Diffusion 1.5's UNet in the host's terms."""
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


def adapter_shapes() -> Shapes:
    """The released SAA file: face encoder under `proj_module.`, 32 attention processors under `SAA_module.`."""
    shapes = {f"proj_module.{key}": shape for key, shape in face_encoder_shapes().items()}
    for block, width in enumerate(BLOCK_WIDTHS):
        shapes.update(processor_shapes(2 * block, width, width))
        shapes.update(processor_shapes(2 * block + 1, width, TEXT_WIDTH))
        for name in ("to_k_ip", "to_v_ip"):
            shapes[f"SAA_module.{2 * block + 1}.{name}.weight"] = (width, TEXT_WIDTH)
    return shapes


def processor_shapes(index: int, width: int, context: int) -> Shapes:
    """Low-rank updates of one attention layer."""
    sources = {"to_q": width, "to_k": context, "to_v": context, "to_out": width}
    shapes: Shapes = {}
    for name, source in sources.items():
        shapes[f"SAA_module.{index}.{name}_lora.down.weight"] = (RANK, source)
        shapes[f"SAA_module.{index}.{name}_lora.up.weight"] = (width, RANK)
    return shapes


def face_encoder_shapes(width: int = TEXT_WIDTH, embedding: int = 512, features: int = 1280, depth: int = 4) -> Shapes:
    """The network that makes 4 identity tokens from an ArcFace embedding and CLIP features."""
    shapes: Shapes = {
        **linear("proj.0", 2 * embedding, embedding),
        **linear("proj.2", TOKENS * width, 2 * embedding),
        **norm("norm", width),
        **linear("perceiver_resampler.proj_in", width, features),
        **linear("perceiver_resampler.proj_out", width, width),
        **norm("perceiver_resampler.norm_out", width),
    }
    for index in range(depth):
        layer = f"perceiver_resampler.layers.{index}"
        shapes.update({**norm(f"{layer}.0.norm1", width), **norm(f"{layer}.0.norm2", width)})
        shapes[f"{layer}.0.to_q.weight"] = (width, width)
        shapes[f"{layer}.0.to_kv.weight"] = (2 * width, width)
        shapes[f"{layer}.0.to_out.weight"] = (width, width)
        shapes.update(norm(f"{layer}.1.0", width))
        shapes[f"{layer}.1.1.weight"] = (4 * width, width)
        shapes[f"{layer}.1.3.weight"] = (width, 4 * width)
    return shapes


def linear(name: str, width: int, source: int) -> Shapes:
    """Weight and bias of a linear layer."""
    return {f"{name}.weight": (width, source), f"{name}.bias": (width,)}


def norm(name: str, width: int) -> Shapes:
    """Weight and bias of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def random_tensor(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Matrices and kernels keep the size of what passes through them; norms and biases do nothing."""
    if len(shape) < 2:
        # Of one dimension are norms, biases and CLIP's class embedding, for which ones are as good as anything.
        return (
            torch.zeros(shape, dtype=torch.float16) if name.endswith("bias") else torch.ones(shape, dtype=torch.float16)
        )
    fan_in = torch.Size(shape[1:]).numel()
    scale = UPDATE_STRENGTH if "_lora.up." in name else 1.0
    tensor = torch.empty(shape, dtype=torch.float16)
    return tensor.normal_(0.0, scale * fan_in**-0.5, generator=generator)
