"""Prompts that did or did not pass through Apply DynamicID, on either side of the sampler."""

import pytest
import torch
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg

from tests.host.helpers import CFG, TENSORS, apply, faces, one_call, prompts, run, sample, tiny_unet

LATENT = TENSORS["in.latent.1id_nobox"]


def test_a_sampler_without_the_conditioning_is_told_to_connect_it(dynamicid):
    model, _, _ = apply(dynamicid, faces(1)[0])
    with pytest.raises(ValueError, match="Connect the positive and negative outputs"):
        sample(model, *prompts())


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


def test_prompts_of_another_application_are_reported(dynamicid):
    model, *_ = apply(dynamicid, faces(1)[0])
    chained, positive, negative = apply(dynamicid, faces(2)[1], model=model)
    with pytest.raises(ValueError, match="come from different Apply DynamicID nodes"):
        sample(chained, positive, negative)


def test_faces_on_the_negative_side_are_warned_of(dynamicid, caplog):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    zeroed = run("ConditioningZeroOut", conditioning=positive)[0]
    combined = run("ConditioningCombine", conditioning_1=negative, conditioning_2=positive)[0]
    for wrong in (zeroed, positive, combined):
        caplog.clear()
        sample(model, positive, wrong)
        assert "negative prompt also carries the faces" in caplog.text
    caplog.clear()
    model, positive, negative = apply(
        dynamicid, faces(1)[0], negative=run("ConditioningZeroOut", conditioning=prompts()[1])[0]
    )
    sample(model, positive, negative)
    assert "negative prompt" not in caplog.text


def test_faces_without_their_model_are_warned_of_once(dynamicid, caplog):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    sample(model, positive, negative)
    assert "does not come from that node" not in caplog.text
    merged = run("ModelMergeSimple", model1=tiny_unet(), model2=model, ratio=0.5)[0]
    for unpatched in (tiny_unet(), merged):
        sample(unpatched, positive, negative)
    assert caplog.text.count("the faces have no effect") == 1


def test_swapped_prompts_are_reported(dynamicid):
    model, positive, negative = apply(dynamicid, faces(1)[0])
    with pytest.raises(ValueError, match="negative input has the positive output of Apply DynamicID"):
        sample(model, negative, positive)
