"""A patched model affects neither the base model nor later runs."""

import gc

import comfy.model_management
import comfy.samplers
import pytest
import torch

from tests.host.helpers import apply, core, faces, prompts, sample, tiny_unet


def test_base_model_gives_the_same_bits_after_the_patched_model_was_used(dynamicid):
    model = tiny_unet()
    before = sample(model, *prompts())
    patched = sample(*apply(dynamicid, faces(1)[0], model=model))
    assert not torch.equal(before, patched)
    assert torch.equal(sample(model, *prompts()), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_low_precision_base_model_gives_the_same_bits_after_the_patched_model_was_used(dynamicid, dtype):
    model = tiny_unet(dtype)
    before = sample(model, *prompts())
    patched = sample(*apply(dynamicid, faces(1)[0], model=model))
    assert not torch.equal(before, patched)
    assert torch.equal(sample(model, *prompts()), before)


def test_weight_0_gives_the_bits_of_the_bare_model(dynamicid):
    model = tiny_unet()
    assert torch.equal(sample(*apply(dynamicid, faces(1)[0], model=model, weight=0.0)), sample(model, *prompts()))


def test_the_given_conditioning_is_not_changed(dynamicid):
    positive, negative = prompts()
    apply(dynamicid, faces(1)[0], positive=positive, negative=negative)
    assert positive[0][1] == {}
    assert negative[0][1] == {}


def test_two_runs_of_one_patched_model_give_the_same_picture(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    assert torch.equal(sample(*patched), sample(*patched))


def test_a_clone_with_further_patches_does_not_change_the_patched_model(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    before = sample(model, positive, negative)
    clone = model.clone()
    clone.set_model_attn2_replace(lambda q, k, v, extra_options: q, "middle", 0)
    assert not torch.equal(sample(clone, positive, negative), before)
    assert torch.equal(sample(model, positive, negative), before)


@pytest.mark.parametrize("stop_at", [0, 1])
def test_an_interrupted_run_leaves_a_clean_state(dynamicid, stop_at):
    model = tiny_unet()
    bare = sample(model, *prompts())
    patched = apply(dynamicid, faces(1)[0], model=model)
    whole = sample(*patched, steps=3)

    def interrupt(step, *_):
        if step == stop_at:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(*patched, steps=3, callback=interrupt)
    assert torch.equal(sample(*patched, steps=3), whole)
    assert torch.equal(sample(model, *prompts()), bare)


def test_nothing_grows_over_20_runs(dynamicid):
    model, face = tiny_unet(), faces(1)[0]

    def count():
        gc.collect()
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        return tensors, len(comfy.model_management.current_loaded_models), len(model.wrappers), len(model.patches)

    counts = []
    for _ in range(20):
        sample(*apply(dynamicid, face, model=model), steps=1)
        counts.append(count())
    assert counts[-1] == counts[4]


def projected_tokens():
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, core("saa").IdentityTokens)]


def test_the_projected_tokens_are_kept_for_a_run_and_forgotten_when_it_ends(dynamicid):
    patched = apply(dynamicid, faces(1)[0])
    during = []
    sample(*patched, steps=3, callback=lambda *_: during.append(len(projected_tokens())))
    assert during == [16] * 3
    assert projected_tokens() == []


def test_the_projected_tokens_are_forgotten_when_a_run_is_interrupted(dynamicid):
    patched = apply(dynamicid, faces(1)[0])

    def interrupt(*_):
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(*patched, steps=3, callback=interrupt)
    assert projected_tokens() == []


def test_the_projected_tokens_are_forgotten_when_a_pack_asks_the_model_without_sampling(dynamicid):
    model, positive, _ = apply(dynamicid, faces(1)[0])
    (key,) = positive[0][1]["model_conds"]
    asked = {"c_crossattn": positive[0][0], "transformer_options": {"wrappers": model.wrappers}}
    latent, sigma = torch.ones(1, 4, 8, 8), torch.ones(1)
    with torch.inference_mode():
        plain = model.model.apply_model(latent, sigma, c_crossattn=positive[0][0])
        rows = positive[0][1]["model_conds"][key].cond
        assert not torch.equal(model.model.apply_model(latent, sigma, **asked, **{key: rows}), plain)
    assert projected_tokens() == []
