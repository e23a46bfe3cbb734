"""Apply DynamicID with other patches, guiders and conditioning."""

import comfy.sample
import pytest
import torch
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

from tests.host.helpers import (
    CFG,
    LEFT,
    RIGHT,
    TENSORS,
    apply,
    core,
    eps,
    faces,
    one_call,
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


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_two_applications_of_half_weight_are_one_of_full_weight(dynamicid, weight):
    face, half = faces(1)[0], {"weight": weight / 2, "lora_strength": 0.5}
    once = eps(*apply(dynamicid, face, weight=weight), LATENT)
    model, positive, negative = apply(dynamicid, face, **half)
    twice = apply(dynamicid, face, model=model, positive=positive, negative=negative, **half)
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


def test_a_face_and_what_is_left_of_a_picture_act_together_in_an_inpainting_model(dynamicid):
    inpainting, face = tiny_unet(in_channels=9), faces(1)[0]
    size = LATENT.shape[-2:]
    left = {
        "concat_latent_image": torch.ones(1, 4, *size),
        "concat_mask": torch.ones(1, 1, *(8 * side for side in size)),
    }
    masked = [[(cond, {**options, **left}) for cond, options in part] for part in prompts()]
    both = eps(*apply(dynamicid, face, inpainting, *masked), LATENT)
    without_face = eps(inpainting, *masked, LATENT)
    without_picture = eps(*apply(dynamicid, face, inpainting), LATENT)
    for one in (without_face, without_picture):
        assert ((both - one).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


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


def test_the_projections_are_under_comfyuis_memory_management(dynamicid):
    assert dynamicid.projections in apply(dynamicid, faces(1)[0])[0].get_nested_additional_models()


def test_the_faces_wait_for_start_percent(dynamicid):
    """The requested timestep is at 0.498 of the schedule."""
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
