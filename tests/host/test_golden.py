"""The whole UNet, patched through the nodes and sampled by the host, against the released code."""

import pytest
import torch

from tests.host.rig import CASES, TENSORS, apply, eps, faces, placements, prompts, tiny_unet

TOLERANCE = 5e-5


@pytest.mark.parametrize("shape", ["sq", "rect"])
def test_bare_unet_matches_the_reference(shape):
    out = eps(tiny_unet(), *prompts(), TENSORS[f"in.base_latent.{shape}"])
    torch.testing.assert_close(out, TENSORS[f"base.{shape}"], atol=TOLERANCE, rtol=0)


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


def test_boxes_stop_pulling_after_the_layout_window(dynamicid):
    case = CASES["1id_box_s2"]
    late = apply(dynamicid, placements(case), layout_boost=2.0, layout_end=0.4)
    plain = apply(dynamicid, placements(case), layout_boost=0.0)
    latent = TENSORS["in.latent.1id_box_s2"]
    assert torch.equal(eps(*late, latent), eps(*plain, latent))
