"""Several people: places, layouts and mixes, through the nodes."""

from dataclasses import replace

import comfy.sample
import pytest
import torch

from tests import photos
from tests.host.helpers import (
    CASES,
    CFG,
    LATENT,
    LEFT,
    RIGHT,
    TENSORS,
    apply,
    core,
    eps,
    faces,
    place,
    run,
    sample,
)


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


def test_a_mask_of_half_strength_acts_as_half_a_weight(dynamicid):
    people, halves = faces(2), (LEFT, RIGHT)
    by_mask = by_weight = ()
    for face, place_of, strength in zip(people, halves, (1.0, 0.5), strict=True):
        drawn = mask(*place_of)
        (by_mask,) = run("DynamicIDPlaceFace", face=face, mask=drawn * strength, placements=by_mask)
        (by_weight,) = run("DynamicIDPlaceFace", face=face, mask=drawn, weight=strength, placements=by_weight)
    expected = eps(*apply(dynamicid, by_weight), LATENT)
    torch.testing.assert_close(eps(*apply(dynamicid, by_mask), LATENT), expected, atol=1e-5, rtol=0)
    (whole,) = run("DynamicIDPlaceFace", face=people[0], mask=mask(*LEFT))
    (whole,) = run("DynamicIDPlaceFace", face=people[1], mask=mask(*RIGHT), placements=whole)
    assert (eps(*apply(dynamicid, whole), LATENT) - expected).abs().max() > 1e-3


def test_a_bounding_box_comes_by_a_link_only(dynamicid):
    """Later interfaces would turn it into number fields, whose defaults would replace the drawn box."""
    from tests.host.helpers import node

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


@pytest.mark.parametrize("weight", [0.5, 2.5])
def test_a_persons_weight_scales_their_contribution(dynamicid, weight):
    weighted = place((0, 0, 1, 1), weight=weight)
    expected = eps(*apply(dynamicid, place((0, 0, 1, 1)), weight=weight), LATENT)
    torch.testing.assert_close(eps(*apply(dynamicid, weighted), LATENT), expected, atol=5e-5, rtol=0)


def test_the_negative_prompt_has_everybodys_own_tokens_without_a_face(dynamicid):
    first, second = faces(2)
    other = replace(second, uncond_tokens=second.uncond_tokens.flip(1) * 0.5)
    negative, positive = eps(*apply(dynamicid, place(LEFT, RIGHT)), LATENT)
    changed, unchanged = eps(*apply(dynamicid, place(LEFT, RIGHT, people=[first, other])), LATENT)
    assert torch.equal(positive, unchanged)
    assert (negative - changed).abs().max() > 1e-3


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


def test_regions_stop_pulling_in_the_middle_of_a_run(dynamicid):
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    model, positive, negative = apply(dynamicid, place(LEFT, RIGHT), layout_end=0.5)

    def steps(noise, latent, **options):
        given = (model, noise, 4, CFG, "euler", "normal", positive, negative, latent)
        with torch.inference_mode():
            return comfy.sample.sample(*given, seed=1, disable_pbar=True, **options)

    whole = steps(noise, torch.zeros_like(noise))
    early = steps(noise, torch.zeros_like(noise), last_step=2)
    late = steps(torch.zeros_like(noise), early, start_step=2, force_full_denoise=True)
    torch.testing.assert_close(whole, late, atol=1e-3, rtol=1e-4)


def test_the_layout_boost_ends_at_its_part_of_the_schedule(dynamicid):
    """The requested timestep is at 0.498 of the schedule."""

    def seen(layout_end):
        return eps(*apply(dynamicid, place(LEFT, RIGHT), layout_end=layout_end), LATENT)

    assert torch.equal(seen(0.0), seen(0.49))
    assert torch.equal(seen(0.51), seen(1.0))
    assert (seen(0.49) - seen(0.51)).abs().max() > 1e-3


def area(conditioning, x, width):
    return run("ConditioningSetArea", conditioning=conditioning, width=width, height=256, x=x, y=0, strength=1.0)[0]


def test_a_region_stays_where_it_is_in_an_area_of_a_wide_picture(dynamicid):
    wide = torch.cat((LATENT, LATENT[..., :16]), dim=-1)

    def positive_part(placed):
        model, positive, negative = apply(dynamicid, placed, layout_end=1.0)
        return eps(model, area(positive, 192, 192), negative, wide)[1]

    right, left = positive_part(place((0.5, 0, 0.5, 1))), positive_part(place((0, 0, 0.5, 1)))
    everywhere = positive_part(place((0, 0, 1, 1)))
    assert torch.equal(right[..., 26:], everywhere[..., 26:])
    assert not torch.equal(left[..., 26:], everywhere[..., 26:])


def test_areas_in_separate_calls_give_what_one_batch_gives(dynamicid, monkeypatch):
    model, positive, negative = apply(dynamicid, place((0.0, 0.0, 0.3, 1.0), (0.5, 0.5, 0.5, 0.5)), layout_end=1.0)
    both = area(positive, 0, 128) + area(positive, 128, 128)
    together = eps(model, both, negative, LATENT)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e20)
    torch.testing.assert_close(eps(model, both, negative, LATENT), together, atol=5e-5, rtol=0)


def test_the_weights_of_a_mix_by_attention_count(dynamicid):
    first, second = faces(2)

    def painted(weight_1, weight_2):
        weights = {"weight_1": weight_1, "weight_2": weight_2}
        mixed = run("DynamicIDAverageFaces", face_1=first, face_2=second, method="attention", **weights)[0]
        return eps(*apply(dynamicid, mixed), LATENT)

    assert (painted(3.0, 0.1) - painted(0.1, 3.0)).abs().max() > 1e-3


def test_each_face_keeps_its_weight_where_sockets_between_are_empty(dynamicid):
    first, second = faces(2)
    given = {"face_1": first, "face_3": second, "weight_1": 0.2, "weight_2": 0.5, "weight_3": 0.8}
    with_gap = run("DynamicIDAverageFaces", method="tokens", **given)[0]
    mixed = run("DynamicIDAverageFaces", face_1=first, face_2=second, weight_1=0.2, weight_2=0.8, method="tokens")[0]
    assert torch.equal(with_gap.tokens, mixed.tokens)


def test_a_batch_of_reference_images_is_refused(dynamicid, face_analysis):
    reference = photos.image(photos.astronaut(), photos.astronaut())
    given = {"layout": "as in the reference image", "reference_image": reference, "face_analysis": face_analysis}
    with pytest.raises(ValueError, match="takes one reference image; found a batch of 2"):
        run("DynamicIDAutoLayout", face_1=faces(1)[0], **given)


@pytest.mark.parametrize(
    ("layout", "arrange"), [("equal columns", "equal_columns"), ("rows", "head_and_shoulder_rows")]
)
def test_auto_layout_goes_by_the_sockets_whatever_order_they_come_in(layout, arrange):
    people = faces(3)
    placed, _ = run("DynamicIDAutoLayout", layout=layout, face_3=people[2], face_1=people[0], face_2=people[1])
    assert [one.face for one in placed] == people
    assert [one.region for one in placed] == getattr(core("layouts"), arrange)(3)


def test_places_as_in_a_wide_picture_are_where_its_faces_are(face_analysis):
    picture = photos.group_of_six()
    height, width = picture.shape[:2]
    assert width != height
    found = sorted(face.centre for face in face_analysis.detect(picture))
    people = {f"face_{number}": face for number, face in enumerate(faces(3) * 2, start=1)}
    given = {"reference_image": photos.image(picture), "face_analysis": face_analysis}
    placed, _ = run("DynamicIDAutoLayout", layout="as in the reference image", **given, **people)
    for (x, y), one in zip(found, placed, strict=True):
        assert one.region.x0 < x / width < one.region.x1
        assert one.region.y0 < y / height < one.region.y1


def test_a_bounding_box_in_pixels_is_that_part_of_a_wide_picture():
    regions = core("regions")
    placement = core("face").Placement(faces(1)[0], regions.PixelBox(0, 0, 128, 64))
    people = core("comfy_host.people").People.from_placements([placement], 1.0)
    assert people.regions_for((16, 32)) == [regions.Box(0, 0, 0.5, 0.5)]


def test_an_area_is_that_part_of_a_wide_latent():
    rows, box = core("comfy_host.rows"), core("regions").Box
    row = rows.Row(rows.POSITIVE, (4, 8, 2, 16))
    assert rows.Forward((row,), 0.0, (8, 32), 1).views() == (box(0.5, 0.25, 0.75, 0.75),)
