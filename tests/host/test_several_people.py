"""Several people: places, layouts, mixes, and seeing what happened, through the nodes."""

import pytest
import torch

from tests import photos
from tests.host.rig import (
    CASES,
    TENSORS,
    apply,
    core,
    eps,
    faces,
    run,
    sample,
    tiny_clip_vision,
)

LATENT = TENSORS["in.latent.2id_boxes_s2"]
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)


def place(*boxes, people=None, **options):
    """A chain of Place Face nodes; boxes are (x, y, width, height)."""
    placed = ()
    for face, (x, y, width, height) in zip(people or faces(len(boxes)), boxes, strict=True):
        (placed,) = run(
            "DynamicIDPlaceFace", face=face, x=x, y=y, width=width, height=height, placements=placed, **options
        )
    return placed


def mask(x, y, width, height, size=64):
    drawn = torch.zeros(1, size, size)
    drawn[:, round(y * size) : round((y + height) * size), round(x * size) : round((x + width) * size)] = 1
    return drawn


def test_a_chain_of_place_face_matches_the_released_boxes(dynamicid):
    boxes = [(x0, y0, x1 - x0, y1 - y0) for y0, x0, y1, x1 in CASES["2id_boxes_s2"]["bbox"]]
    out = eps(*apply(dynamicid, place(*boxes), layout_boost=2.0, layout_end=0.6), LATENT)
    torch.testing.assert_close(out, TENSORS["out.2id_boxes_s2"], atol=5e-5, rtol=0)


def test_masks_and_pixel_boxes_give_what_their_boxes_give(dynamicid):
    people = faces(2)
    expected = eps(*apply(dynamicid, place(LEFT, RIGHT), layout_end=0.6), LATENT)
    by_mask = by_pixels = ()
    for face, (x, y, width, height) in zip(people, (LEFT, RIGHT), strict=True):
        (by_mask,) = run("DynamicIDPlaceFace", face=face, mask=mask(x, y, width, height), placements=by_mask)
        pixels = {"x": x * 256, "y": y * 256, "width": width * 256, "height": height * 256}
        (by_pixels,) = run("DynamicIDPlaceFace", face=face, bounding_box=[pixels], placements=by_pixels)
    assert torch.equal(eps(*apply(dynamicid, by_mask, layout_end=0.6), LATENT), expected)
    assert torch.equal(eps(*apply(dynamicid, by_pixels, layout_end=0.6), LATENT), expected)


def test_a_bounding_box_comes_by_a_link_only(dynamicid):
    """Later interfaces would make number fields of it, whose defaults would take the place of the drawn box."""
    from tests.host.rig import node

    assert node("DynamicIDPlaceFace").INPUT_TYPES()["optional"]["bounding_box"][1]["forceInput"] is True


def test_each_person_acts_in_their_own_region_only(dynamicid, monkeypatch):
    """Another person on the right changes what the right half of a layer attends to, and nothing on the left."""
    first, second, third = faces(3)
    before = first_identity_attention(dynamicid, [first, second], monkeypatch)
    after = first_identity_attention(dynamicid, [first, third], monkeypatch)
    change = (before - after).abs()
    assert change[:, :, 16:].max() > 1e-3
    assert change[:, :, :16].max() < 1e-4


def first_identity_attention(dynamicid, people, monkeypatch):
    """Identity attention of the first cross-attention layer for the positive row, [1, 32, 32, channels]."""
    saa, seen = core("saa"), []
    with monkeypatch.context() as patch:
        attention = saa.identity_attention
        patch.setattr(saa, "identity_attention", lambda *args: seen.append(attention(*args)) or seen[-1])
        eps(*apply(dynamicid, place(LEFT, RIGHT, people=people)), LATENT)
    return seen[0][-1:].unflatten(1, (32, 32))


def test_a_person_of_weight_0_is_absent(dynamicid):
    first, second = faces(2)
    placed = place(LEFT, people=[first])
    (both,) = run("DynamicIDPlaceFace", face=second, weight=0.0, placements=placed)
    assert torch.equal(eps(*apply(dynamicid, both), LATENT), eps(*apply(dynamicid, placed), LATENT))


def test_a_persons_weight_scales_their_contribution(dynamicid):
    half = place((0, 0, 1, 1), weight=0.5)
    expected = eps(*apply(dynamicid, place((0, 0, 1, 1)), weight=0.5), LATENT)
    torch.testing.assert_close(eps(*apply(dynamicid, half), LATENT), expected, atol=5e-5, rtol=0)


def test_overlapping_regions_and_regions_below_a_cell_give_numbers(dynamicid):
    placed = place((0.1, 0.1, 0.6, 0.6), (0.3, 0.3, 0.6, 0.6), (0.5, 0.5, 0.01, 0.01))
    assert eps(*apply(dynamicid, placed, layout_end=0.6), LATENT).isfinite().all()


def test_eight_people_work(dynamicid):
    people = (faces(3) * 3)[:8]
    inputs = {f"face_{i + 1}": face for i, face in enumerate(people)}
    placed, preview = run("DynamicIDAutoLayout", layout="rows", **inputs)
    assert len(placed) == 8
    assert preview.shape == (1, 512, 512, 3)
    assert eps(*apply(dynamicid, placed, layout_end=0.6), LATENT).isfinite().all()


def test_a_region_stays_where_it_is_under_area_conditioning(dynamicid):
    """A person on the right half is not pulled into a prompt that covers the left half, and fills one on the right."""
    box = (0.5, 0.0, 0.5, 1.0)
    (everywhere,) = run("DynamicIDPlaceFace", face=faces(1)[0], x=0.0, y=0.0, width=1.0, height=1.0)
    on_right = place(box)

    def denoised(placed, x):
        model, positive, negative = apply(dynamicid, placed, layout_end=1.0, layout_boost=2.0)
        area = run("ConditioningSetArea", conditioning=positive, width=128, height=256, x=x, y=0, strength=1.0)[0]
        return eps(model, area, negative, LATENT)[1]

    half = slice(18, 32)
    assert torch.equal(denoised(on_right, 128)[..., half], denoised(everywhere, 128)[..., half])
    assert not torch.equal(denoised(on_right, 0)[..., :14], denoised(everywhere, 0)[..., :14])


def test_regions_on_odd_sizes_work(dynamicid):
    out = sample(*apply(dynamicid, place(LEFT, RIGHT)), latent=torch.zeros(1, 4, 25, 17))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": 0.6, "width": 0.5}, "leaves the picture"),
        ({"width": 0.0}, "empty or reversed"),
        ({"height": -0.2}, "empty or reversed"),
        ({"mask": torch.zeros(1, 8, 8)}, "0 everywhere"),
        ({"mask": torch.ones(2, 8, 8)}, "a batch of 2"),
        ({"bounding_box": []}, "one bounding box"),
        ({"mask": torch.ones(1, 8, 8), "bounding_box": {}}, "Disconnect one"),
    ],
)
def test_places_that_are_none_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        run("DynamicIDPlaceFace", face=faces(1)[0], **inputs)


def test_a_pixel_box_outside_the_picture_is_refused_when_its_size_is_known(dynamicid):
    far = {"x": 4000, "y": 0, "width": 10, "height": 10}
    (placed,) = run("DynamicIDPlaceFace", face=faces(1)[0], bounding_box=far)
    with pytest.raises(ValueError, match=r"outside the picture \(128 x 128\)"):
        sample(*apply(dynamicid, placed))


def test_auto_layout_puts_people_where_a_group_photo_has_faces(face_analysis):
    picture = photos.image(photos.group_of_six())
    inputs = {f"face_{i + 1}": face for i, face in enumerate(faces(3))}
    placed, preview = run(
        "DynamicIDAutoLayout",
        layout="as in the reference image",
        reference_image=picture,
        face_analysis=face_analysis,
        **inputs,
    )
    assert preview.shape == picture.shape
    centres = [(placement.region.x0 + placement.region.x1) / 2 for placement in placed]
    assert centres == sorted(centres)


def test_auto_layout_without_its_reference_or_with_too_few_faces_is_refused(face_analysis):
    with pytest.raises(ValueError, match="needs a reference image and Load Face Analysis"):
        run("DynamicIDAutoLayout", face_1=faces(1)[0], layout="as in the reference image")
    inputs = {f"face_{i + 1}": face for i, face in enumerate(faces(2))}
    with pytest.raises(ValueError, match="shows 1 face for 2 people"):
        run(
            "DynamicIDAutoLayout",
            layout="as in the reference image",
            reference_image=photos.image(photos.astronaut()),
            face_analysis=face_analysis,
            **inputs,
        )


def test_mixed_faces_change_the_picture_either_way(dynamicid):
    first, second = faces(2)
    results = [eps(*apply(dynamicid, face), LATENT) for face in (first, second)]
    for method in ("tokens", "attention"):
        weights = {"weight_1": 0.5, "weight_2": 0.5}
        (mixed,) = run("DynamicIDAverageFaces", face_1=first, face_2=second, method=method, **weights)
        results.append(eps(*apply(dynamicid, mixed), LATENT))
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(results) for b in results[i + 1 :])


def test_a_mix_of_one_face_with_itself_is_that_face(dynamicid):
    face = faces(1)[0]
    (mixed,) = run("DynamicIDAverageFaces", face_1=face, face_2=face, method="tokens")
    torch.testing.assert_close(
        eps(*apply(dynamicid, mixed), LATENT), eps(*apply(dynamicid, face), LATENT), atol=5e-5, rtol=0
    )


def activation_map(patched, batch=1):
    latent = sample(*patched, latent=torch.zeros(batch, 4, 32, 32))
    image = torch.rand(batch, 256, 256, 3)
    return run("DynamicIDActivationMap", model=patched[0], latent={"samples": latent}, image=image)[0]


def test_activation_maps_show_each_person_over_all_and_three_groups_of_layers(dynamicid):
    sheet = activation_map(apply(dynamicid, place(LEFT, RIGHT)))
    assert sheet.shape == (1, 2 * 256, 4 * 256, 3)


def test_activation_maps_of_people_in_regions_lie_in_their_regions(dynamicid):
    model, positive, negative = apply(dynamicid, place(LEFT, RIGHT))
    sample(model, positive, negative, latent=torch.zeros(1, 4, 32, 32))
    with torch.inference_mode():
        maps = core("comfy_host.inspection").activation_maps(model, 1)
    assert set(maps) == {"all", "down", "middle", "up"}
    first, second = maps["all"][0]
    assert first[:, :14].mean() > 0
    assert first[:, 20:].max() == 0
    assert second[:, :12].max() == 0


def test_activation_maps_of_a_batch_and_of_two_applications_are_complete(dynamicid):
    assert activation_map(apply(dynamicid, faces(1)[0]), batch=2).shape == (2, 256, 4 * 256, 3)
    first, second = faces(2)
    model, positive, negative = apply(dynamicid, first)
    both = apply(dynamicid, second, model=model, positive=positive, negative=negative)
    assert activation_map(both).shape == (1, 2 * 256, 4 * 256, 3)


def test_looking_at_the_maps_changes_nothing(dynamicid):
    patched = apply(dynamicid, place(LEFT, RIGHT))
    before = sample(*patched)
    activation_map(patched)
    assert torch.equal(sample(*patched), before)


def test_maps_of_an_unsampled_or_plain_model_are_refused(dynamicid):
    inputs = {"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "image": torch.zeros(1, 64, 64, 3)}
    model, positive, negative = apply(dynamicid, faces(1)[0])
    with pytest.raises(ValueError, match="has not been sampled yet"):
        run("DynamicIDActivationMap", model=model, **inputs)
    sample(model, positive, negative, latent=torch.zeros(2, 4, 16, 16))
    with pytest.raises(ValueError, match=r"last sampled with 2 pictures, not with 3"):
        run("DynamicIDActivationMap", model=model, **{**inputs, "image": torch.zeros(3, 64, 64, 3)})
    plain = model.clone()
    plain.wrappers = {}
    with pytest.raises(ValueError, match="Nothing of DynamicID acts"):
        run("DynamicIDActivationMap", model=plain, **inputs)


def test_maps_of_a_model_that_was_sampled_again_since_are_refused(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    first = sample(*patched, latent=torch.zeros(1, 4, 16, 16))
    sample(*patched, latent=torch.zeros(1, 4, 24, 24))
    with pytest.raises(ValueError, match="last sampled at 192 x 192 pixels, after the latent of 128 x 128"):
        run("DynamicIDActivationMap", model=patched[0], latent={"samples": first}, image=torch.rand(1, 128, 128, 3))


def test_maps_of_one_picture_of_a_batch_are_refused(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    latent = sample(*patched, latent=torch.zeros(4, 4, 16, 16))
    whole = {"model": patched[0], "latent": {"samples": latent}, "image": torch.rand(4, 128, 128, 3)}
    assert len(run("DynamicIDActivationMap", **whole)[0]) == 4
    with pytest.raises(ValueError, match=r"last sampled with 4 pictures, not with 1"):
        run("DynamicIDActivationMap", model=patched[0], latent={"samples": latent}, image=torch.rand(1, 128, 128, 3))


@pytest.mark.parametrize(
    "windows", [((0.0, 1.0), (0.0, 0.5)), ((0.0, 0.5), (0.5, 1.0))], ids=["one ends sooner", "one after the other"]
)
def test_maps_of_applications_that_act_at_different_times_are_complete(dynamicid, windows):
    model, positive, negative = None, None, None
    for face, (start, end) in zip(faces(2), windows, strict=True):
        model, positive, negative = apply(
            dynamicid, face, model=model, positive=positive, negative=negative, start_percent=start, end_percent=end
        )
    assert activation_map((model, positive, negative)).shape == (1, 2 * 256, 4 * 256, 3)


def test_maps_of_applications_with_prompts_of_their_own_are_complete(dynamicid):
    first, second = faces(2)
    model, positive, negative = apply(dynamicid, first)
    model, other_positive, other_negative = apply(dynamicid, second, model=model)
    both = model, positive + other_positive, negative + other_negative
    assert activation_map(both).shape == (1, 2 * 256, 4 * 256, 3)


def test_maps_can_be_made_beside_packs_that_ask_which_row_is_which(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    asked = []

    def other_pack(q, k, v, extra_options):
        asked.append((extra_options["cond_or_uncond"], extra_options["uuids"]))
        return q, k, v

    model.set_model_attn2_patch(other_pack)
    activation_map((model, positive, negative))
    assert len(asked) == 3 * 16, "two steps and the maps"
    assert asked[-1] == asked[0]


def test_a_negative_prompt_that_was_left_out_is_warned_of(dynamicid, caplog):
    from tests.host.rig import prompts

    model, positive, negative = apply(dynamicid, faces(1)[0])
    sample(model, positive, negative)
    assert "negative prompt" not in caplog.text
    sample(model, positive, prompts()[1])
    assert "negative prompt did not pass Apply DynamicID" in caplog.text


@pytest.fixture(scope="module")
def family(photo_dynamicid, face_analysis):
    """Six real people of one photograph, from left to right."""
    inputs = {
        "image": photos.image(photos.group_of_six()),
        "dynamicid": photo_dynamicid,
        "face_analysis": face_analysis,
        "clip_vision": tiny_clip_vision(),
        "order": "left to right",
    }
    people = [run("DynamicIDEncodeFace", index=i, **inputs)[0] for i in range(6)]
    return {f"face_{i + 1}": face for i, face in enumerate(people)}


def compare(face_analysis, picture, people):
    return run("DynamicIDCompareFaces", image=photos.image(picture), face_analysis=face_analysis, **people)


def test_people_are_found_again_in_their_own_photo(face_analysis, family):
    drawn, similarity, table = compare(face_analysis, photos.group_of_six(), family)
    assert drawn.shape == photos.image(photos.group_of_six()).shape
    assert similarity > 0.99
    assert "swapped" not in table
    assert table.count("*") == 6


def test_people_in_a_mirrored_photo_have_swapped_places(face_analysis, family):
    mirrored = photos.group_of_six()[:, ::-1].copy()
    _, similarity, table = compare(face_analysis, mirrored, family)
    assert similarity > 0.6
    assert table.count("have swapped places") == 15


def test_people_placed_in_rows_are_compared_with_their_places(face_analysis, family):
    picture = photos.group_of_six()
    boxes = [face.box / ([picture.shape[1], picture.shape[0]] * 2) for face in face_analysis.detect(picture)]
    in_order = sorted(boxes, key=lambda box: box[0])
    mirrored_order = list(reversed(list(family.values())))
    make, box = core("face").Placement, core("regions").Box
    placed = tuple(
        make(face, box(*(float(edge) for edge in edges)))
        for face, edges in zip(mirrored_order, reversed(in_order), strict=True)
    )
    given = {"image": photos.image(picture), "face_analysis": face_analysis, "placements": placed}
    _, similarity, table = run("DynamicIDCompareFaces", **given)
    assert similarity > 0.99
    assert "swapped" not in table


def test_a_placed_person_of_weight_0_is_not_looked_for(face_analysis, family):
    make = core("face").Placement
    placed = (make(family["face_1"]), make(family["face_2"], weight=0.0))
    given = {"image": photos.image(photos.group_of_six()), "face_analysis": face_analysis, "placements": placed}
    _, similarity, table = run("DynamicIDCompareFaces", **given)
    assert similarity > 0.99
    assert table.count("*") == 1


def test_nobody_to_compare_with_is_refused(face_analysis):
    with pytest.raises(ValueError, match="nobody to compare with"):
        compare(face_analysis, photos.astronaut(), {})


def test_a_face_analysis_of_another_pack_is_refused(family):
    with pytest.raises(ValueError, match="comes from another pack"):
        compare(object(), photos.astronaut(), {"face_1": family["face_1"]})


def test_a_stranger_is_not_recognised(face_analysis, family):
    _, similarity, table = compare(face_analysis, photos.astronaut(), {"face_1": family["face_1"]})
    assert similarity < 0.3
    assert "Face 1 is not to be recognised" in table


def test_a_face_without_an_embedding_cannot_be_compared(face_analysis):
    with pytest.raises(ValueError, match="Face 1 has no ArcFace embedding"):
        compare(face_analysis, photos.astronaut(), {"face_1": faces(1)[0]})
