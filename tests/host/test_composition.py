"""With other patches, other guiders and other conditioning."""

from types import SimpleNamespace

import comfy.sample
import pytest
import torch
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg

from tests.host.rig import (
    CFG,
    LEFT,
    RIGHT,
    TENSORS,
    OneCall,
    apply,
    core,
    eps,
    faces,
    place,
    prompts,
    run,
    sample,
    tiny_unet,
)

LATENT = TENSORS["in.latent.1id_nobox"]
BLOCKS = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 12)]


class AdapterOfAnotherPack:
    """Patches attention the way IPAdapter does: 2-tuple keys, own text attention, adds to the result."""

    def __init__(self, amount):
        self.amount = amount

    def __call__(self, q, k, v, extra_options):
        heads = extra_options["n_heads"]
        split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return out + self.amount * q

    def on(self, model):
        patched = model.clone()
        for name, number in BLOCKS:
            patched.set_model_attn2_replace(self, name, number)
        return patched


def test_an_attention_patch_of_another_pack_works_before_and_after(dynamicid):
    other = AdapterOfAnotherPack(0.3)
    face = faces(1)[0]
    model, positive, negative = apply(dynamicid, face, model=other.on(tiny_unet()))
    other_first = eps(model, positive, negative, LATENT)
    model, positive, negative = apply(dynamicid, face)
    ours_first = eps(other.on(model), positive, negative, LATENT)
    assert torch.equal(other_first, ours_first)
    assert (other_first - eps(model, positive, negative, LATENT)).abs().max() > 1e-3
    assert (other_first - eps(other.on(tiny_unet()), *prompts(), LATENT)).abs().max() > 1e-3


def test_two_applications_of_half_weight_are_one_of_full_weight(dynamicid):
    face = faces(1)[0]
    once = eps(*apply(dynamicid, face, lora_strength=1.0), LATENT)
    model, positive, negative = apply(dynamicid, face, weight=0.5, lora_strength=0.5)
    twice = apply(dynamicid, face, model=model, positive=positive, negative=negative, weight=0.5, lora_strength=0.5)
    torch.testing.assert_close(eps(*twice, LATENT), once, atol=5e-5, rtol=0)


def test_two_applications_of_two_people_both_show(dynamicid):
    first, second = faces(2)
    model, positive, negative = apply(dynamicid, first)
    one = eps(model, positive, negative, LATENT)
    both = eps(*apply(dynamicid, second, model=model, positive=positive, negative=negative), LATENT)
    assert (both - one).abs().max() > 1e-2


def test_cfg_1_runs_the_positive_face_alone(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    expected = eps(*patched, LATENT)[1:]
    model, positive, _ = patched
    guider = run("BasicGuider", model=model, conditioning=positive)[0]
    seen = one_call(guider, LATENT)
    torch.testing.assert_close(seen, expected, atol=5e-5, rtol=0)


def one_call(guider, latent):
    sampler = OneCall(latent)
    with torch.inference_mode():
        zeros = torch.zeros_like(latent)
        denoised = guider.sample(zeros, zeros, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True)
    scale = guider.model_patcher.model.latent_format.scale_factor
    return (sampler.x - denoised * scale) / sampler.sigma


def test_positive_and_negative_in_separate_calls_give_what_one_batch_gives(dynamicid, monkeypatch):
    patched = apply(dynamicid, faces(1)[0])
    together = eps(*patched, LATENT)
    # The host splits the batch when memory is short: it asks the model how much a batch would need.
    monkeypatch.setattr(type(patched[0].model), "memory_required", lambda *_, **__: 1e20)
    torch.testing.assert_close(eps(*patched, LATENT), together, atol=5e-5, rtol=0)


@pytest.fixture
def unchecked(monkeypatch):
    """Prompts without a face, which the node refuses alone, can be asked for comparison."""
    patch = core("comfy_host.identity_patch").IdentityPatch
    monkeypatch.setattr(patch, "_check_conditioning", lambda *_: None)


@pytest.mark.usefixtures("unchecked")
def test_combined_conditioning_shows_the_face_where_it_is_carried(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    plain = [[prompts()[0][0][0].flip(1), {}]]
    both = run("ConditioningCombine", conditioning_1=positive, conditioning_2=plain)[0]
    combined = eps(model, both, negative, LATENT)[1]
    with_face = eps(model, positive, negative, LATENT)[1]
    without = eps(model, plain, negative, LATENT)[1]
    torch.testing.assert_close(combined, (with_face + without) / 2, atol=5e-5, rtol=0)


@pytest.mark.usefixtures("unchecked")
def test_a_face_in_an_area_changes_that_area_and_its_surroundings_only_through_the_blend(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    left = run("ConditioningSetArea", conditioning=positive, width=128, height=256, x=0, y=0, strength=1.0)[0]
    out = eps(model, left, negative, LATENT)[1]
    plain = eps(
        model,
        run("ConditioningSetArea", conditioning=[[positive[0][0], {}]], width=128, height=256, x=0, y=0, strength=1.0)[
            0
        ],
        negative,
        LATENT,
    )[1]
    assert out.isfinite().all()
    difference = (out - plain).abs()
    assert difference[..., :16].max() > 1e-3
    assert torch.equal(out[..., 17:], plain[..., 17:])


@pytest.mark.usefixtures("unchecked")
def test_three_part_guiders_give_each_part_its_own_tokens(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    middle = [[-positive[0][0], {}]]
    guider = Guider_DualCFG(model)
    guider.set_conds(positive, middle, negative)
    guider.set_cfg(2.0, 3.0)
    avoided, asked = eps(model, positive, negative, LATENT).split(1)
    between = eps(model, middle, negative, LATENT)[1:]
    expected = avoided + 3.0 * (between - avoided) + 2.0 * (asked - between)
    torch.testing.assert_close(one_call(guider, LATENT), expected, atol=3e-4, rtol=0)


def test_batch_of_two_gives_what_single_pictures_give(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    latents = torch.cat((LATENT, LATENT.flip(-1)))
    batch = eps(*patched, latents)
    singles = [eps(*patched, latent[None]) for latent in latents]
    expected = torch.cat([single[:1] for single in singles] + [single[1:] for single in singles])
    torch.testing.assert_close(batch, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(25, 17), (8, 8), (33, 64), (16, 9)])
def test_odd_latent_sizes_work(dynamicid, height, width):
    out = sample(*apply(dynamicid, faces(1)[0]), latent=torch.zeros(1, 4, height, width))
    assert out.shape == (1, 4, height, width)
    assert out.isfinite().all()


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "heun", "lcm", "ddim"])
def test_samplers_of_all_kinds_run(dynamicid, sampler):
    assert sample(*apply(dynamicid, faces(1)[0]), sampler=sampler).isfinite().all()


def test_a_window_that_ends_before_the_timestep_gives_the_bits_of_the_updated_model_without_identity(dynamicid):
    face = faces(1)[0]
    outside = eps(*apply(dynamicid, face, end_percent=0.4), LATENT)
    inside = eps(*apply(dynamicid, face, end_percent=0.6), LATENT)
    always = eps(*apply(dynamicid, face), LATENT)
    assert torch.equal(inside, always)
    assert not torch.equal(outside, always)


def test_a_later_model_sampling_patch_moves_the_window(dynamicid, monkeypatch):
    saa, layers = core("saa"), []
    attend = saa.semantic_activated_attention
    monkeypatch.setattr(
        saa, "semantic_activated_attention", lambda *given, **named: layers.append(1) or attend(*given, **named)
    )
    model, positive, negative = apply(dynamicid, faces(1)[0], end_percent=0.5)
    # Half of the schedule ends at sigma 1.6 as the model is, at 0.5 after this patch.
    moved = run("ModelSamplingContinuousEDM", model=model, sampling="eps", sigma_max=120.0, sigma_min=0.002)[0]
    acted = []
    for patched in (model, moved):
        noise, sigmas = torch.zeros(1, 4, 8, 8), torch.tensor([1.0, 0.0])
        given = (patched, noise, CFG, sampler_object("euler"), sigmas, positive, negative, noise)
        with torch.inference_mode():
            comfy.sample.sample_custom(*given, disable_pbar=True)
        acted.append(len(layers))
    assert acted == [0, 16]


def test_a_sampler_without_the_conditioning_is_told_to_connect_it(dynamicid):
    model, _, _ = apply(dynamicid, faces(1)[0])
    with pytest.raises(ValueError, match="Connect the positive and negative outputs"):
        sample(model, *prompts())


def test_what_another_pack_returned_is_not_written_over(dynamicid):
    kept = []

    def other_pack(q, k, v, extra_options):
        kept.append(torch.ones_like(q))
        return kept[-1]

    model, positive, negative = apply(dynamicid, faces(1)[0])
    for block, number in (("input", 1), ("middle", 0), ("output", 3)):
        model.set_model_attn2_replace(other_pack, block, number)
    eps(model, positive, negative, LATENT)
    assert len(kept) == 3
    assert all(bool((one == 1).all()) for one in kept)


def test_combined_prompts_on_both_sides_keep_their_tokens(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    others = [[[-text, options] for text, options in one] for one in (positive, negative)]
    expected = (eps(model, positive, negative, LATENT) + eps(model, *others, LATENT)) / 2
    both = eps(model, positive + others[0], negative + others[1], LATENT)
    torch.testing.assert_close(both, expected, atol=5e-5, rtol=0)


def test_tiles_of_a_batch_repeat_its_rows(dynamicid):
    rows = core("comfy_host.rows")
    batch = (rows.Row(rows.POSITIVE), rows.Row(rows.NEGATIVE))
    forward = rows.Forward(batch, 0.0, (8, 8), 6)
    assert forward.reordered(forward.order(6, (0, 1))).rows == batch * 3


@pytest.mark.parametrize(
    ("called", "parts", "batch", "order"),
    [
        (2, (1, 0), 4, (0, 1, 1, 1)),
        (2, (0, 1), 3, (0, 0, 1)),
        (4, (1, 0), 8, (0, 1, 2, 3, 2, 3, 2, 3)),  # two pictures
        (3, (1, 0, 0), 5, (0, 1, 1, 2, 2)),
        (1, (0,), 3, (0, 0, 0)),
    ],
)
def test_coupled_prompts_repeat_the_rows_of_all_but_the_negative_one(called, parts, batch, order):
    rows = core("comfy_host.rows")
    forward = rows.Forward((rows.Row(rows.POSITIVE),) * called, 0.0, (8, 8), called)
    assert forward.order(called, parts) == tuple(range(called))
    assert forward.order(batch, parts) == order


@pytest.mark.parametrize(
    ("called", "parts", "batch"), [(3, (1, 0), 3), (2, (1, 0), 1), (3, (1, 0, 0), 4), (2, (1, 1), 4), (2, (), 4)]
)
def test_a_batch_that_is_neither_tiled_nor_coupled_is_an_error(called, parts, batch):
    rows = core("comfy_host.rows")
    forward = rows.Forward((rows.Row(rows.POSITIVE),) * 2, 0.0, (8, 8), called)
    with pytest.raises(RuntimeError, match=f"{batch} rows reached a layer, but the conditioning speaks of 2"):
        forward.order(batch, parts)


@pytest.mark.parametrize(
    ("dim", "shown", "area"),
    [
        (3, range(2, 6), (8, 4, 0, 2)),
        (2, range(2, 6), (4, 12, 2, 0)),
        (2, [7], (1, 12, 7, 0)),
        (0, range(2, 6), None),  # of a batch: each picture is whole
        (3, [10, 11, 0, 1], None),
    ],
)
def test_a_context_window_is_the_part_of_the_picture_that_it_shows(dim, shown, area):
    rows, window = core("comfy_host.rows"), SimpleNamespace(dim=dim, index_list=list(shown))
    row, placed = rows.Row(rows.POSITIVE), rows.Row(rows.POSITIVE, (1, 1, 0, 0))
    assert rows.in_window((row, placed), window, (8, 12)) == (row._replace(area=area), placed)
    assert rows.in_window((row,), None, (8, 12)) == (row,)


def test_the_projections_are_under_comfyuis_memory_management(dynamicid):
    assert dynamicid.projections in apply(dynamicid, faces(1)[0])[0].get_nested_additional_models()


def test_a_positive_prompt_that_did_not_pass_the_node_is_refused(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    plain = prompts()[0]
    averaged = run(
        "ConditioningAverage", conditioning_to=plain, conditioning_from=positive, conditioning_to_strength=0.5
    )[0]
    for asked in (plain, averaged):
        with pytest.raises(ValueError, match="but not its positive conditioning"):
            sample(model, asked, negative)
    combined = run("ConditioningCombine", conditioning_1=plain, conditioning_2=positive)[0]
    assert sample(model, combined, negative).isfinite().all()


def test_a_guider_with_two_prompts_takes_the_faces_with_either(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    plain = prompts()[0]
    for conds in ((plain, positive), (positive, plain)):
        guider = Guider_DualCFG(model)
        guider.set_conds(*conds, negative)
        guider.set_cfg(CFG, CFG)
        with torch.inference_mode():
            noise, sampler = torch.zeros(1, 4, 8, 8), sampler_object("euler")
            out = guider.sample(noise, noise, sampler, torch.tensor([1.0, 0.0]))
        assert out.isfinite().all()


@pytest.mark.parametrize("cfg", [CFG, 1.0])
def test_a_negative_prompt_counts_whether_it_passed_the_node_or_not(dynamicid, caplog, cfg):
    first, second = faces(2)
    one = apply(dynamicid, first)
    two = apply(dynamicid, second, model=one[0], positive=one[1], negative=one[2])
    for (model, positive, negative), others in ((one, (prompts()[1],)), (two, (prompts()[1], one[2]))):
        expected = sample(model, positive, negative, cfg=cfg)
        for avoided in others:
            assert torch.equal(sample(model, positive, avoided, cfg=cfg), expected)
    assert caplog.text == ""


def test_negative_prompts_of_applications_with_prompts_of_their_own_stay_their_own(dynamicid):
    first, second = faces(2)
    model, positive, negative = apply(dynamicid, first)
    model, other_positive, other_negative = apply(dynamicid, second, model=model)
    carried = []

    def read(executor, *given, **named):
        carried.extend(cond["model_conds"].keys() for cond in executor.class_obj.conds["negative"])
        return executor(*given, **named)

    model.add_wrapper("outer_sample", read)
    sample(model, positive + other_positive, negative + other_negative)
    assert carried == [one[0][1]["model_conds"].keys() for one in (negative, other_negative)]


def test_the_empty_prompt_of_a_guider_carries_no_face_either(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    seen = []
    for empty in (negative, prompts()[1]):
        guider = Guider_PerpNeg(model)
        guider.set_conds(positive, [[-negative[0][0], negative[0][1]]], empty)
        guider.set_cfg(CFG, 1.0)
        seen.append(one_call(guider, LATENT))
    assert torch.equal(*seen)


def test_prompts_of_another_application_are_told(dynamicid):
    model, *_ = apply(dynamicid, faces(1)[0])
    chained, positive, negative = apply(dynamicid, faces(2)[1], model=model)
    with pytest.raises(ValueError, match="come from another Apply DynamicID than the model"):
        sample(chained, positive, negative)


def test_faces_on_the_negative_side_are_warned_of(dynamicid, caplog):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    zeroed = run("ConditioningZeroOut", conditioning=positive)[0]
    combined = run("ConditioningCombine", conditioning_1=negative, conditioning_2=positive)[0]
    for wrong in (zeroed, positive, combined):
        caplog.clear()
        sample(model, positive, wrong)
        assert "negative prompt brings the faces, too" in caplog.text
    caplog.clear()
    model, positive, negative = apply(
        dynamicid, faces(1)[0], negative=run("ConditioningZeroOut", conditioning=prompts()[1])[0]
    )
    sample(model, positive, negative)
    assert "negative prompt" not in caplog.text


def test_faces_without_their_model_are_warned_of_once(dynamicid, caplog):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    sample(model, positive, negative)
    assert "did not pass that node" not in caplog.text
    merged = run("ModelMergeSimple", model1=tiny_unet(), model2=model, ratio=0.5)[0]
    for unpatched in (tiny_unet(), merged):
        sample(unpatched, positive, negative)
    assert caplog.text.count("they are not painted") == 1


def test_swapped_prompts_are_told(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    with pytest.raises(ValueError, match="negative input has the positive output of Apply DynamicID"):
        sample(model, negative, positive)


def test_the_faces_wait_for_start_percent(dynamicid):
    """The moment asked for is at 0.498 of the schedule."""
    face = faces(1)[0]
    before, after, always = (eps(*apply(dynamicid, face, start_percent=start), LATENT) for start in (0.6, 0.4, 0.0))
    assert torch.equal(after, always)
    assert not torch.equal(before, always)


def test_attention_that_another_pack_puts_into_the_options_acts_in_the_same_layers(dynamicid):
    counts = []
    for model, *prompted in ((tiny_unet(), *prompts()), apply(dynamicid, faces(1)[0])):
        seen = []

        def other_pack(attention, *given, seen=seen, **named):
            seen.append(1)
            return attention(*given, **named)

        listening = model.clone()
        listening.model_options["transformer_options"]["optimized_attention_override"] = other_pack
        eps(listening, *prompted, LATENT)
        counts.append(len(seen))
    takes_options = core("comfy_host.identity_patch")._TAKES_OPTIONS  # hosts before 0.3.60 have no such overrides
    assert counts[0] == counts[1] == (32 if takes_options else 0)


def test_every_placed_face_must_fit_the_adapter(dynamicid):
    other = core("face").Face(torch.rand(1, 4, 2048), torch.rand(1, 4, 2048), base_model="sdxl")
    with pytest.raises(ValueError, match="encoded for sdxl"):
        apply(dynamicid, place(LEFT, RIGHT, people=[faces(1)[0], other]))
