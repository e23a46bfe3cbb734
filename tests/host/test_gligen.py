"""GLIGEN's text boxes beside faces: the host's own classes, with seeded weights for the golden UNet."""

import comfy.gligen
import comfy.model_patcher
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from nodes import GLIGENTextBoxApply

from tests.host.graphs import tiny_clip
from tests.host.helpers import TENSORS, apply, eps, faces, fill, prompts, tiny_unet

LATENT = TENSORS["in.latent.1id_nobox"]
SIZE = 64  # of the golden UNet's tokens


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
