"""Activation Map: where each person acts, however the picture was sampled."""

import comfy.model_management
import comfy.sample
import pytest
import torch

from tests.host.helpers import CFG, LEFT, RIGHT, apply, core, faces, place, run, sample


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


@pytest.mark.parametrize(("dim", "regions"), [(3, (LEFT, RIGHT)), (2, ((0, 0, 1, 0.5), (0, 0.5, 1, 0.5)))])
def test_people_stay_in_their_regions_when_the_host_cuts_the_picture_into_context_windows(dynamicid, dim, regions):
    model, positive, negative = apply(dynamicid, place(*regions))
    windows = {"context_length": 18, "context_overlap": 4, "context_stride": 1, "closed_loop": False, "dim": dim}
    how = {"context_schedule": "standard_static", "fuse_method": "pyramid"}
    (windowed,) = run("ContextWindowsManual", model=model, **windows, **how)
    sample(windowed, positive, negative, latent=torch.zeros(1, 4, 32, 32))
    with torch.inference_mode():
        maps = core("comfy_host.inspection").activation_maps(windowed, 1)["all"][0]
    first, second = maps if dim == 3 else maps.mT
    assert first[:, :14].mean() > 0
    assert second[:, 18:].mean() > 0
    assert first[:, 24:].max() == 0  # the coarsest layers have cells of 8, counted from the edge of a window
    assert second[:, :8].max() == 0


def test_without_the_gate_the_maps_show_what_it_would_have_done_with_a_mix_by_attention(dynamicid):
    first, second, other = faces(3)
    everywhere = {"x": 0.0, "y": 0.0, "width": 1.0, "height": 1.0}
    latents, maps = [], []
    for weight in (0.1, 1.0):
        mix = {"face_1": first, "face_2": second, "weight_1": 0.1, "weight_2": weight, "method": "attention"}
        (one,) = run("DynamicIDPlaceFace", face=run("DynamicIDAverageFaces", **mix)[0], **everywhere)
        (both,) = run("DynamicIDPlaceFace", face=other, placements=one, **everywhere)
        patched = apply(dynamicid, both, gate=False)
        latents.append(sample(*patched, latent=torch.zeros(1, 4, 32, 32)))
        with torch.inference_mode():
            maps.append(core("comfy_host.inspection").activation_maps(patched[0], 1)["all"])
    assert torch.equal(*latents), "the weights of a mix do not count"
    assert (maps[0] - maps[1]).abs().max() > 1e-3, "with the gate they would"


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
    with pytest.raises(ValueError, match="DynamicID does not act"):
        run("DynamicIDActivationMap", model=plain, **inputs)


def test_a_latent_of_another_size_than_the_last_sampling_is_refused_if_it_is_of_none_before(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    first = sample(*patched, latent=torch.zeros(1, 4, 16, 16))
    sample(*patched, latent=torch.zeros(1, 4, 24, 24))
    given = {"model": patched[0], "image": torch.rand(1, 128, 128, 3)}
    with pytest.raises(ValueError, match="last sampled at 192 x 192 pixels, after the connected latent of 128 x 128"):
        run("DynamicIDActivationMap", latent={"samples": first + 0.5}, **given)
    run("DynamicIDActivationMap", latent={"samples": first}, **given)


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


def steps(patched, noise, count=4, cfg=CFG):
    model, positive, negative = patched
    with torch.inference_mode():
        empty = torch.zeros_like(noise)
        comfy.sample.sample(
            model, noise, count, cfg, "euler", "normal", positive, negative, empty, seed=1, disable_pbar=True
        )


def maps_of(patched, noise, **options):
    """All layers together, [pictures, people, H, W]."""
    steps(patched, noise, **options)
    with torch.inference_mode():
        return core("comfy_host.inspection").activation_maps(patched[0], len(noise))["all"]


def noise(pictures=1, height=16, width=16):
    return torch.randn(pictures, 4, height, width, generator=torch.Generator().manual_seed(1))


def area(conditioning, x, y, width, height):
    """For a part of the picture, in pixels."""
    given = {"x": x, "y": y, "width": width, "height": height, "strength": 1.0}
    return run("ConditioningSetArea", conditioning=conditioning, **given)[0]


def other_words(conditioning):
    return [[-text, options] for text, options in conditioning]


def apart(model, monkeypatch):
    """Every prompt in its own call, as when memory is short."""
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e20)


def test_maps_are_those_of_the_positive_prompt_alone(dynamicid, monkeypatch):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    expected = maps_of((model, positive, negative), noise(), count=1, cfg=1.0)  # which leaves the negative out
    longer = [[negative[0][0].repeat(1, 5, 1), negative[0][1]]]  # does not fit into one call with the positive
    for avoided in (negative, longer):
        found = maps_of((model, positive, avoided), noise(), count=1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    apart(model, monkeypatch)
    torch.testing.assert_close(maps_of((model, positive, negative), noise(), count=1), expected, atol=1e-4, rtol=0)


def test_maps_of_a_batch_are_those_of_its_pictures(dynamicid):
    model, positive, negative = apply(dynamicid, place(LEFT, RIGHT))
    combined = model, positive + other_words(positive), negative
    batch = maps_of(combined, noise(2))
    singles = torch.cat([maps_of(combined, one[None]) for one in noise(2)])
    torch.testing.assert_close(batch, singles, atol=1e-3, rtol=0)
    assert (singles[0] - singles[1]).abs().max() > 0.01


def test_maps_of_combined_prompts_are_the_mean_in_one_call_and_in_several(dynamicid, monkeypatch):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    both = model, positive + other_words(positive), negative
    found = maps_of(both, noise(), count=1)
    each = [maps_of((model, one, negative), noise(), count=1) for one in (positive, other_words(positive))]
    assert (each[0] - each[1]).abs().max() > 0.01
    torch.testing.assert_close(found, (each[0] + each[1]) / 2, atol=1e-3, rtol=0)
    apart(model, monkeypatch)
    torch.testing.assert_close(maps_of(both, noise(), count=1), found, atol=1e-3, rtol=0)


def test_a_map_lies_in_the_area_of_its_prompt(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    lower_right = maps_of((model, area(positive, 192, 128, 192, 128), negative), noise(1, 32, 48))[0, 0]
    assert lower_right.shape == (32, 48)
    assert lower_right[16:, 24:].max() > 0
    assert lower_right[:16].max() == lower_right[:, :24].max() == 0


def test_areas_of_several_sizes_are_all_in_the_map(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    left, right = area(positive, 0, 0, 128, 256), area(positive, 192, 128, 64, 128)
    both = maps_of((model, left + right, negative), noise(1, 32, 32), count=1)[0, 0]
    for alone, part in ((left, (slice(0, 32), slice(0, 16))), (right, (slice(16, 32), slice(24, 32)))):
        expected = maps_of((model, alone, negative), noise(1, 32, 32), count=1)[0, 0]
        assert expected[part].max() > 0
        torch.testing.assert_close(both[part], expected[part], atol=1e-3, rtol=0)


def test_where_areas_overlap_their_maps_are_averaged(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    top, left = area(positive, 0, 0, 256, 128), area(other_words(positive), 0, 0, 128, 256)
    maps = [maps_of((model, one, negative), noise(1, 32, 32), count=1) for one in (top + left, top, left)]
    both, *each = (one[0, 0] for one in maps)
    torch.testing.assert_close(both[:16, :16], (each[0] + each[1])[:16, :16] / 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(both[:16, 16:], each[0][:16, 16:], atol=1e-3, rtol=0)


def look(patched, latent):
    return run(
        "DynamicIDActivationMap", model=patched[0], latent={"samples": latent}, image=torch.zeros(1, 128, 128, 3)
    )


def test_the_map_is_that_of_the_sampling_whose_latent_is_connected(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    first = sample(*patched, seed=1)
    (of_first,) = look(patched, first)
    second = sample(*patched, latent=first, seed=2)
    (of_second,) = look(patched, second)
    assert (of_first - of_second).abs().max() > 0.02
    assert torch.equal(look(patched, first)[0], of_first)
    assert torch.equal(look(patched, first + 0.5)[0], of_second), "changed since: the last one"


def test_a_sampling_that_too_many_followed_is_distinguished_from_a_changed_latent(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    latents = [sample(*patched, seed=seed, steps=1) for seed in range(6)]
    (of_last,) = look(patched, latents[5])
    for latent in latents[:2]:
        with pytest.raises(ValueError, match=r"sampling is no longer kept: the model has been sampled 4 times or more"):
            look(patched, latent)
        assert torch.equal(look(patched, latent + 0.5)[0], of_last), "changed since: the last one"
    maps = [look(patched, latent)[0] for latent in latents[2:]]
    assert all((a - b).abs().max() > 0.02 for i, a in enumerate(maps) for b in maps[i + 1 :])


def test_a_sampling_without_faces_has_none_to_keep(dynamicid):
    patched = apply(dynamicid, faces(1)[0], end_percent=0.5)
    late = sample(*patched, latent=sample(*patched), steps=4, denoise=0.2)
    for seed in range(4):
        sample(*patched, steps=1, seed=seed)
    with pytest.raises(ValueError, match="has not been sampled yet, or its faces never acted"):
        look(patched, late)


def test_the_maps_of_two_applications_are_of_one_sampling(dynamicid):
    """Also when the model of the first is sampled alone later: a second pass over the picture, for one person."""
    first, second = faces(2)
    one = apply(dynamicid, first)
    both = apply(dynamicid, second, model=one[0], positive=one[1], negative=one[2])
    latent = sample(*both)
    (expected,) = look(both, latent)
    alone = sample(*one, seed=9)
    (of_alone,) = look(one, alone)
    assert (of_alone - expected[:, :128]).abs().max() > 0.02
    assert torch.equal(look(both, latent)[0], expected)
    assert torch.equal(look(both, latent + 0.5)[0], expected), "the last one of both"
    assert torch.equal(look(one, alone + 0.5)[0], of_alone)
    assert look(both, alone)[0].shape[1] == 128, "the second person took no part"


def test_large_latents_are_known_by_a_part_of_their_values():
    """So that dozens of samplings of videos take hardly any memory."""
    model_calls = core("comfy_host.model_calls")
    run, film = model_calls.SamplingRun(), noise(40, 48, 64)
    run.set_result(film)
    assert run._values.untyped_storage().nbytes() < film.nbytes / 5
    assert run.produced(film.clone())
    changed = film.clone()
    changed[30, :, 8:24, 8:24] += 0.5
    assert not run.produced(changed)
    assert not run.produced(film.mT)
    film += 1
    assert not run.produced(film), "what came out may be written over"


def test_a_sampling_in_which_the_faces_never_acted_has_no_map_of_an_earlier_one(dynamicid):
    patched = apply(dynamicid, faces(1)[0], end_percent=0.5)
    first = sample(*patched, steps=4)
    look(patched, first)
    late = sample(*patched, latent=first, steps=4, denoise=0.2)
    with pytest.raises(ValueError, match="has not been sampled yet, or its faces never acted"):
        look(patched, late)
    look(patched, first)


def test_an_interrupted_sampling_is_not_shown_and_takes_no_place(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    latents = [sample(*patched, seed=seed) for seed in range(4)]
    (first,), (last,) = look(patched, latents[0]), look(patched, latents[3])

    def interrupt(*_):
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(*patched, seed=9, callback=interrupt)
    assert torch.equal(look(patched, latents[3] + 0.5)[0], last)
    assert torch.equal(look(patched, latents[0])[0], first)


def test_each_picture_and_each_person_has_a_map_of_its_own(monkeypatch):
    maps = torch.zeros(2, 2, 4, 8)
    maps[1, 1] = 1
    monkeypatch.setattr(core("comfy_host.inspection"), "activation_maps", lambda *_: {"all": maps})
    image = torch.zeros(2, 64, 128, 3)
    sheets = run("DynamicIDActivationMap", model=None, latent={"samples": None}, image=image)[0]
    red = sheets[..., 0].unflatten(1, (2, 64))[:, :, 40:].mean(dim=(2, 3))  # below the titles
    assert (red > 0.3).tolist() == [[False, False], [False, True]]


def test_maps_are_called_by_the_half_of_the_unet_they_are_of():
    assert core("comfy_host.inspection").GROUPS == {"input": "down", "middle": "middle", "output": "up"}
