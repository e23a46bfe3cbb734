"""The whole UNet, patched through the nodes and sampled by the host, against the released code."""

import pytest
import torch

from tests.host.helpers import CASES, TENSORS, TIMESTEP, apply, core, eps, faces, placements, prompts, run, tiny_unet

TOLERANCE = 5e-5


@pytest.mark.parametrize(("shape", "timestep", "expected"), [
    ("sq", TIMESTEP, "sq"), ("rect", TIMESTEP, "rect"), ("sq", 981, "sq_t981"),
])  # fmt: skip
def test_bare_unet_matches_the_reference(shape, timestep, expected):
    out = eps(tiny_unet(), *prompts(), TENSORS[f"in.base_latent.{shape}"], timestep)
    torch.testing.assert_close(out, TENSORS[f"base.{expected}"], atol=TOLERANCE, rtol=0)


def test_tokens_of_a_file_in_the_released_layout_match_the_released_encoder(dynamicid):
    seen = (TENSORS[f"in.{name}"] for name in ("id_embeds", "clip_embeds", "clip_uncond"))
    tokens, uncond_tokens = core("comfy_host.encoding").encode_tokens(dynamicid, *seen)
    torch.testing.assert_close(tokens, TENSORS["tokens_cond"], atol=2e-5, rtol=0)
    torch.testing.assert_close(uncond_tokens, TENSORS["tokens_uncond"], atol=2e-5, rtol=0)


def test_values_that_are_not_numbers_are_blamed_on_the_model_that_made_them(dynamicid):
    encode_tokens, input_error = core("comfy_host.encoding").encode_tokens, core("errors").InputError
    seen = [TENSORS[f"in.{name}"] for name in ("id_embeds", "clip_embeds", "clip_uncond")]
    for number in range(3):
        wrong = [torch.full_like(given, torch.nan) if i == number else given for i, given in enumerate(seen)]
        with pytest.raises(input_error, match="face recognition or CLIP vision model gives values"):
            encode_tokens(dynamicid, *wrong)
    norm = dynamicid.face_encoder.model.norm.weight
    before = norm.detach().clone()
    try:
        with torch.inference_mode():
            norm.fill_(torch.nan)
        with pytest.raises(input_error, match="The adapter makes tokens that are not numbers"):
            encode_tokens(dynamicid, *seen)
    finally:
        with torch.inference_mode():
            norm.copy_(before)


@pytest.mark.parametrize("name", CASES)
def test_unet_with_faces_in_boxes_matches_the_released_pipeline(dynamicid, name):
    case = CASES[name]
    boost_until = 0.6 if case["infer_end"] else 0.0  # timestep 501 is at 0.498 of the schedule
    patched = apply(
        dynamicid,
        placements(case),
        weight=case["id_scale"],
        gate=case["activate_query"],
        layout_boost=float(case["infer_scale"]),
        layout_end=boost_until,
    )
    out = eps(*patched, TENSORS[f"in.latent.{name}"])
    torch.testing.assert_close(out, TENSORS[f"out.{name}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["1id_nobox", "1id_rect_nobox"])
def test_one_face_without_a_place_matches_the_released_pipeline(dynamicid, name):
    out = eps(*apply(dynamicid, faces(1)[0]), TENSORS[f"in.latent.{name}"])
    torch.testing.assert_close(out, TENSORS[f"out.{name}"], atol=TOLERANCE, rtol=0)


def test_the_weights_of_a_mix_by_attention_do_not_count_without_the_gate(dynamicid):
    first, second = faces(2)

    def painted(weight_1, weight_2, gate):
        weights = {"weight_1": weight_1, "weight_2": weight_2}
        mixed = run("DynamicIDAverageFaces", face_1=first, face_2=second, method="attention", **weights)[0]
        return eps(*apply(dynamicid, mixed, gate=gate), TENSORS["in.latent.1id_gate_off"])

    assert torch.equal(painted(0.25, 0.75, gate=False), painted(1.0, 1.0, gate=False))
    assert (painted(0.25, 0.75, gate=True) - painted(1.0, 1.0, gate=True)).abs().max() > 1e-3


def test_boxes_stop_pulling_after_the_layout_window(dynamicid):
    case = CASES["1id_box_s2"]
    late = apply(dynamicid, placements(case), layout_boost=2.0, layout_end=0.4)
    plain = apply(dynamicid, placements(case), layout_boost=0.0)
    latent = TENSORS["in.latent.1id_box_s2"]
    assert torch.equal(eps(*late, latent), eps(*plain, latent))
