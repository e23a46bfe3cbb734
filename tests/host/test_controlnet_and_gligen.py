"""Faces beside ControlNet and GLIGEN's text boxes: the host's own classes, with seeded weights for the golden UNet."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.gligen
import comfy.model_patcher
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from nodes import ControlNetApplyAdvanced, GLIGENTextBoxApply

from tests.host.graphs import tiny_clip
from tests.host.helpers import TENSORS, apply, eps, faces, fill, prompts, tiny_unet

LATENT = TENSORS["in.latent.1id_nobox"]
CONTROL_NET_SIZES = (
    "in_channels",
    "model_channels",
    "num_res_blocks",
    "channel_mult",
    "transformer_depth",
    "context_dim",
)
SIZE = 64  # of the golden UNet's tokens


@pytest.fixture(scope="module")
def control_net():
    sizes = {
        key: value for key, value in tiny_unet().model.model_config.unet_config.items() if key in CONTROL_NET_SIZES
    }
    network = comfy.cldm.cldm.ControlNet(
        image_size=32, hint_channels=3, num_heads=8, use_spatial_transformer=True, transformer_depth_middle=1, **sizes
    )
    return comfy.controlnet.ControlNet(fill(network))


@pytest.fixture(scope="module")
def gligen():
    """One gated layer for each attention block, in the order in which the UNet runs them."""
    blocks = [part for part in tiny_unet().model.diffusion_model.modules() if isinstance(part, BasicTransformerBlock)]
    sizes = [block.norm1.normalized_shape[0] for block in blocks]
    layers = [comfy.gligen.GatedSelfAttentionDense(size, SIZE, 8, size // 8) for size in sizes]
    network = fill(comfy.gligen.Gligen(layers, comfy.gligen.PositionNet(SIZE, SIZE), SIZE))
    for layer in layers:
        layer.alpha_attn.data.fill_(1.0)
        layer.alpha_dense.data.fill_(1.0)
    return comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def with_text_box(positive, clip, gligen):
    """A box of half the picture's width and height."""
    box = {"width": 64, "height": 64, "x": 64, "y": 32}
    return GLIGENTextBoxApply().append(positive, clip, gligen, "a dog", **box)[0]


def with_control(positive, negative, control_net, strength=1.0):
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(5))
    options = {"strength": strength, "start_percent": 0.0, "end_percent": 1.0}
    return ControlNetApplyAdvanced().apply_controlnet(positive, negative, control_net, hint, **options)


def test_faces_and_a_control_net_act_in_one_picture(dynamicid, control_net):
    face = faces(1)[0]
    controlled = with_control(*prompts(), control_net)
    model, positive, negative = apply(dynamicid, face, positive=controlled[0], negative=controlled[1])
    both = eps(model, positive, negative, LATENT)
    face_alone = eps(*apply(dynamicid, face), LATENT)
    control_alone = eps(tiny_unet(), *controlled, LATENT)
    for one in (face_alone, control_alone):
        assert ((both - one).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_the_order_of_control_net_and_apply_does_not_matter(dynamicid, control_net):
    face = faces(1)[0]
    positive, negative = with_control(*prompts(), control_net)
    before = eps(*apply(dynamicid, face, positive=positive, negative=negative), LATENT)
    model, positive, negative = apply(dynamicid, face)
    after = eps(model, *with_control(positive, negative, control_net), LATENT)
    assert torch.equal(before, after)


def test_a_control_net_of_strength_0_leaves_the_face_as_it_is(dynamicid, control_net):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    without = eps(model, *with_control(positive, negative, control_net, strength=0.0), LATENT)
    assert torch.equal(without, eps(model, positive, negative, LATENT))


def test_faces_and_text_boxes_act_in_one_picture(dynamicid, clip, gligen):
    boxed = with_text_box(prompts()[0], clip, gligen)
    model, positive, negative = apply(dynamicid, faces(1)[0], positive=boxed)
    both = eps(model, positive, negative, LATENT)
    face_alone = eps(*apply(dynamicid, faces(1)[0]), LATENT)
    box_alone = eps(tiny_unet(), boxed, prompts()[1], LATENT)
    for one in (face_alone, box_alone):
        assert (both - one)[1].abs().max() > 1e-3


def test_the_order_of_text_box_and_apply_does_not_matter(dynamicid, clip, gligen):
    face = faces(1)[0]
    before = eps(*apply(dynamicid, face, positive=with_text_box(prompts()[0], clip, gligen)), LATENT)
    model, positive, negative = apply(dynamicid, face)
    after = eps(model, with_text_box(positive, clip, gligen), negative, LATENT)
    assert torch.equal(before, after)


def test_a_face_of_weight_0_leaves_the_text_box_as_it_is(dynamicid, clip, gligen):
    boxed = with_text_box(prompts()[0], clip, gligen)
    without = eps(*apply(dynamicid, faces(1)[0], positive=boxed, weight=0.0, lora_strength=0.0), LATENT)
    assert torch.equal(without, eps(tiny_unet(), boxed, prompts()[1], LATENT))
