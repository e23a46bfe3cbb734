"""Apply DynamicID beside ComfyUI's own nodes that patch the model."""

import pytest
import torch
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel

from tests.host.helpers import apply, faces, prompts, sample, tiny_unet

LATENT = torch.zeros(1, 4, 32, 32)
PATCHES = [
    (FreeU_V2, {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    (HyperTile, {"tile_size": 128, "swap_size": 1, "max_depth": 0, "scale_depth": False}),
    (TomePatchModel, {"ratio": 0.3}),
    (
        PatchModelAddDownscale,
        {
            "block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0,
            "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic",
        },
    ),
    (PerturbedAttentionGuidance, {"scale": 3.0}),
    (SelfAttentionGuidance, {"scale": 0.5, "blur_sigma": 2.0}),
    (RescaleCFG, {"multiplier": 0.7}),
    (ModelSamplingDiscrete, {"sampling": "lcm", "zsnr": True}),
]  # fmt: skip


def patched(model, node, settings):
    result = node.execute(model, **settings) if hasattr(node, "execute") else node().patch(model, **settings)
    return getattr(result, "args", result)[0]


@pytest.mark.parametrize(("node", "settings"), PATCHES, ids=[node.__name__ for node, _ in PATCHES])
def test_a_face_and_another_patch_act_together_in_either_order(dynamicid, node, settings):
    face = faces(1)[0]

    def picture(model, positive, negative):
        torch.manual_seed(0)  # token merging draws its partners
        return sample(model, positive, negative, LATENT, steps=1)

    other_first = picture(*apply(dynamicid, face, model=patched(tiny_unet(), node, settings)))
    model, positive, negative = apply(dynamicid, face)
    ours_first = picture(patched(model, node, settings), positive, negative)
    assert torch.equal(other_first, ours_first)
    alone = picture(model, positive, negative), picture(patched(tiny_unet(), node, settings), *prompts())
    for one in alone:
        assert (ours_first - one).abs().max() > 1e-2
