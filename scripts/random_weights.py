"""python random_weights.py HOST_DIR MODELS_DIR [SEED]: write model files of random numbers, for runs without real ones.

Names and shapes are those of the real files, so that every loader and every layer runs; pictures made with them are
noise. Files that exist already are left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

CHECKPOINT = "checkpoints/random_sd15.safetensors"
CLIP_VISION = "clip_vision/random_vit_h.safetensors"
ADAPTER = "dynamicid/random_SAA.safetensors"

RANK = 128
TEXT_WIDTH, TOKENS = 768, 4
# Channels of the 16 transformer blocks in the order of the released file: down, up, middle.
BLOCK_WIDTHS = (320,) * 2 + (640,) * 2 + (1280,) * 2 + (1280,) * 3 + (640,) * 3 + (320,) * 3 + (1280,)
# Of the low-rank updates, relative to 1/sqrt(fan_in): they should show in the picture and not take it over.
UPDATE_STRENGTH = 0.1


def sd15_shapes() -> Shapes:
    """UNet, autoencoder and text model of a Stable Diffusion 1.5 checkpoint, asked from the host's own classes."""
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = comfy.supported_models.SD15(unet_config())
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model({}, "", device=torch.device("meta")).diffusion_model
    with torch.device("meta"):
        autoencoder = AutoencoderKL(ddconfig=autoencoder_config(), embed_dim=4)
    text = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float16)
    shapes = {f"model.diffusion_model.{key}": shape for key, shape in shapes_of(unet)}
    shapes.update({f"first_stage_model.{key}": shape for key, shape in shapes_of(autoencoder)})
    for key, shape in shapes_of(text):
        if not key.endswith(("logit_scale", "text_projection.weight", "text_projection")):
            shapes["cond_stage_model." + key.removeprefix("clip_l.")] = shape
    return shapes


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


def autoencoder_config() -> dict[str, object]:
    """Stable Diffusion's autoencoder in the host's terms."""
    return {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def vit_h_shapes() -> Shapes:
    """The vision tower of CLIP ViT-H/14, from the description the host has of it."""
    import json

    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops
    import torch

    folder = Path(comfy.clip_vision.__file__).parent
    config = json.loads((folder / "clip_vision_config_h.json").read_text(encoding="utf-8"))
    model = comfy.clip_model.CLIPVisionModelProjection(config, torch.float16, "meta", comfy.ops.manual_cast)
    return dict(shapes_of(model))


def shapes_of(model: torch.nn.Module) -> Iterator[tuple[str, Shape]]:
    """Name and shape of each tensor of a model's state."""
    return ((key, tuple(tensor.shape)) for key, tensor in model.state_dict().items())


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


def random_tensor(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Matrices and kernels keep the size of what passes through them; norms and biases do nothing."""
    import torch

    if len(shape) < 2:
        # Of one dimension are norms, biases and CLIP's class embedding, for which ones are as good as anything.
        return (
            torch.zeros(shape, dtype=torch.float16) if name.endswith("bias") else torch.ones(shape, dtype=torch.float16)
        )
    fan_in = torch.Size(shape[1:]).numel()
    scale = UPDATE_STRENGTH if "_lora.up." in name else 1.0
    tensor = torch.empty(shape, dtype=torch.float16)
    return tensor.normal_(0.0, scale * fan_in**-0.5, generator=generator)


def write(file: Path, shapes: Shapes, seed: int) -> None:
    """Appears under its name when it is whole."""
    import torch
    from safetensors.torch import save_file
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    bar: Iterable[tuple[str, Shape]] = tqdm(shapes.items(), desc=file.name, unit=" tensors", mininterval=0.5)
    tensors = {name: random_tensor(name, shape, generator) for name, shape in bar}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    save_file(tensors, partial, metadata={"weights": "random", "seed": str(seed)})
    os.replace(partial, file)


def write_all(models: Path, seed: int = 0) -> None:
    """Write the files that are not there yet. The smallest first: a full disk shows early."""
    wanted: dict[str, Callable[[], Shapes]] = {
        ADAPTER: adapter_shapes,
        CLIP_VISION: vit_h_shapes,
        CHECKPOINT: sd15_shapes,
    }
    for name, shapes in wanted.items():
        if not (models / name).exists():
            write(models / name, shapes(), seed)


def prepare_host(host: Path) -> None:
    """Make `import comfy` work here, on the processor, whatever the machine has."""
    from torchvision_shim import make_torchvision_importable

    make_torchvision_importable()
    sys.path.insert(0, str(host))
    sys.argv = ["main.py", "--cpu"]
    # The host reads sys.argv on import only if it is asked to first.
    import comfy.options

    comfy.options.enable_args_parsing()


def main(arguments: list[str]) -> None:
    """The command."""
    if len(arguments) not in (2, 3):
        raise SystemExit(__doc__)
    host, models = Path(arguments[0]), Path(arguments[1])
    prepare_host(host.resolve())
    write_all(models, int(arguments[2]) if len(arguments) == 3 else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
