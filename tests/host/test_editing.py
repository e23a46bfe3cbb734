"""Expression and pose: the IMR through the nodes, and everything that it may lack."""

import comfy.model_management
import numpy as np
import pytest
import torch

from dynamicid_core.imr import Imr, ImrSizes
from dynamicid_core.keypoints import encoder_input
from tests.host.graphs import tiny_clip
from tests.host.helpers import (
    GOLDEN,
    apply,
    core,
    driving,
    make_face,
    motion_points,
    run,
    sample,
    tiny_keypoint_encoder,
)

HAPPY, NEUTRAL = "in a happy expression, in front view", "in a neutral expression, in front view"
POINTS = motion_points()
IMR = torch.load(GOLDEN / "IMR_tiny.bin", weights_only=True)


def pooled(clip, text):
    """The text encoder's own output for a prompt without weights."""
    return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1].float()


def load(**parts):
    return run("DynamicIDLoader", **{"adapter": "SAA_tiny.bin", **parts})[0]


def save(models, name, weights):
    torch.save(weights, models / "dynamicid" / name)
    return name


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture
def edit(editor, clip):
    def run_node(face=None, **inputs):
        given = {"face": face or make_face(), "dynamicid": editor, "clip": clip, "target_prompt": HAPPY, **inputs}
        return run("DynamicIDEditFace", **given)[0]

    return run_node


def expected(clip, face, target_points, target_prompt=HAPPY, source_prompt=NEUTRAL):
    """The edit by the networks alone, without the host."""
    imr = Imr(ImrSizes.from_state_dict(IMR))
    imr.load_state_dict(IMR)
    encoder = tiny_keypoint_encoder()
    with torch.no_grad():
        source, target = (encoder(encoder_input(points)) for points in (face.keypoints, target_points))
        return imr(face.tokens, source, target, pooled(clip, source_prompt), pooled(clip, target_prompt))


def test_the_edit_is_the_imr_of_both_motions(edit, clip):
    face = make_face()
    edited = edit(face, keypoints=driving())
    torch.testing.assert_close(edited.tokens, expected(clip, face, POINTS[1]), atol=2e-5, rtol=0)
    assert (edited.tokens - face.tokens).abs().max() > 0.1


def by_preset(face, expression):
    own = core("keypoints").Keypoints(face.keypoints, face.pose)
    return core("motion").edit_motion(own, expression).points


def test_without_keypoints_the_faces_own_get_the_expression_of_the_words(edit, clip):
    face = make_face()
    happy = by_preset(face, "happy")
    edited = edit(face)
    torch.testing.assert_close(edited.tokens, expected(clip, face, happy), atol=2e-5, rtol=0)
    assert torch.equal(edited.keypoints, happy)
    assert not torch.allclose(happy, face.keypoints, atol=1e-2)


def test_words_that_name_no_expression_leave_the_keypoints_as_they_are_and_say_so(edit, clip, caplog):
    face = make_face()
    edited = edit(face, target_prompt="in side view")
    assert '"in side view" names no expression' in caplog.text
    wanted = expected(clip, face, face.keypoints, "in side view")
    torch.testing.assert_close(edited.tokens, wanted, atol=2e-5, rtol=0)
    assert torch.equal(edited.keypoints, face.keypoints)


def test_words_without_a_view_get_that_of_the_keypoints(edit, clip):
    turned = make_face(pose=torch.tensor([-15.0, 20.0, 0.0]))
    edited = edit(turned, target_prompt="in a happy expression")
    whole = "in a happy expression, facing down, in side view"
    wanted = expected(clip, turned, by_preset(turned, "happy"), whole)
    torch.testing.assert_close(edited.tokens, wanted, atol=2e-5, rtol=0)
    assert edited.face_prompt == whole
    driven = edit(turned, target_prompt="smiling", keypoints=driving())
    assert driven.face_prompt == "smiling, in side view"


def test_a_given_source_prompt_takes_the_place_of_the_description(edit, clip):
    face = make_face()
    edited = edit(face, source_prompt="a very sad expression")
    wanted = expected(clip, face, by_preset(face, "happy"), source_prompt="a very sad expression")
    torch.testing.assert_close(edited.tokens, wanted, atol=2e-5, rtol=0)
    assert not torch.allclose(edited.tokens, edit(face).tokens, atol=1e-3)


def test_brackets_in_a_prompt_are_text(edit, clip):
    face = make_face()
    plain = pooled(clip, r"happy \(very\)")
    assert torch.equal(core("comfy_host.editing").pooled_text(clip, "happy (very)"), plain)
    assert torch.equal(core("comfy_host.editing").pooled_text(clip, r"happy \(very\)"), plain)
    assert not torch.equal(edit(face, target_prompt="happy (very)").tokens, edit(face, target_prompt="happy").tokens)


def test_strength_zero_is_the_untouched_face_and_one_the_full_edit(edit):
    face = make_face()
    untouched, full = edit(face, strength=0.0), edit(face, strength=1.0)
    assert torch.equal(untouched.tokens, face.tokens)
    assert untouched.face_prompt == NEUTRAL
    assert full.face_prompt == HAPPY


def test_strength_zero_needs_nothing_else(edit):
    face = make_face(keypoints=None)
    assert edit(face, strength=0.0, target_prompt="", dynamicid=load()) is face


def test_a_checkpoint_without_a_text_encoder_is_reported(edit):
    with pytest.raises(ValueError, match="clip input is empty"):
        edit(clip=None)


def test_strength_goes_smoothly_from_one_to_the_other(edit):
    face = make_face()
    steps = torch.stack([edit(face, strength=i / 10).tokens for i in range(11)])
    lengths = (steps[1:] - steps[:-1]).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, lengths.mean().expand(10), rtol=1e-3, atol=0)


def test_an_edited_face_shows_the_target_motion(edit):
    edited = edit(keypoints=driving())
    assert torch.equal(edited.keypoints, POINTS[1])
    assert edited.pose.tolist() == [0, 30, 0]
    assert run("DynamicIDDescribeFace", face=edited) == (HAPPY,)


def test_the_tokens_of_nobody_are_not_edited(edit):
    face = make_face()
    assert torch.equal(edit(face).uncond_tokens, face.uncond_tokens)


def test_people_mixed_by_attention_are_edited_one_by_one(edit, clip):
    faces = [make_face(tokens=torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(i))) for i in (1, 2)]
    mixed = run("DynamicIDAverageFaces", face_1=faces[0], face_2=faces[1], method="attention")[0]
    alone = torch.cat([edit(face).tokens for face in faces], dim=1)
    torch.testing.assert_close(edit(mixed).tokens, alone, atol=1e-5, rtol=0)


def test_each_person_of_a_group_has_their_own_expression(edit, editor):
    def group(*prompts):
        placed = ()
        for i, prompt in enumerate(prompts):
            face = edit(make_face(), target_prompt=prompt)
            placed = run("DynamicIDPlaceFace", face=face, x=i / 2, y=0.0, width=0.5, height=1.0, placements=placed)[0]
        return sample(*apply(editor, placed))

    same, different = group("happy", "happy"), group("happy", "angry")
    assert not torch.equal(same, different)
    left, right = (same - different).abs().chunk(2, dim=-1)
    assert right.mean() > left.mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision_run_and_come_close(models, edit, dtype):
    half = {
        "imr": save(models, "imr_half.bin", {key: tensor.to(dtype) for key, tensor in IMR.items()}),
        "keypoint_encoder": save(models, "kpe_half.bin", tiny_keypoint_encoder().to(dtype).state_dict()),
    }
    dynamicid = load(**half)
    assert {p.dtype for p in dynamicid.imr.model.parameters()} == {dtype}, "kept as in the file"
    edited = edit(dynamicid=dynamicid, keypoints=driving())
    assert edited.tokens.dtype == torch.float32
    full = edit(keypoints=driving())
    difference = (edited.tokens - full.tokens).abs().max()
    assert 0 < difference < 0.02 * full.tokens.abs().max()


def test_batch_normalisation_does_not_learn_from_editing(edit, editor):
    before = {key: tensor.clone() for key, tensor in editor.keypoint_encoder.model.state_dict().items()}
    edit(keypoints=driving())
    after = editor.keypoint_encoder.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_networks_run_under_the_hosts_memory_management(edit, editor):
    edit(keypoints=driving())
    loaded = [one.model for one in comfy.model_management.current_loaded_models]
    for network in (editor.imr, editor.keypoint_encoder):
        assert any(network.model is one.model for one in loaded)


def test_an_edit_changes_the_picture(edit, editor):
    face = make_face()
    assert not torch.equal(sample(*apply(editor, edit(face))), sample(*apply(editor, face)))


def test_a_mixed_or_saved_face_can_still_be_edited(edit):
    face = make_face()
    loaded = run("DynamicIDLoadFace", name=run("DynamicIDSaveFace", face=face, name="to_edit")[0])[0]
    assert loaded.face_prompt == NEUTRAL
    assert torch.equal(edit(loaded).tokens, edit(face).tokens)


def test_a_missing_imr_or_keypoint_encoder_is_named(edit, editor):
    with pytest.raises(ValueError, match="; imr and keypoint_encoder are set to none in Load DynamicID"):
        edit(dynamicid=load())
    with pytest.raises(ValueError, match="; keypoint_encoder is set to none in Load DynamicID"):
        edit(dynamicid=load(imr="IMR_tiny.bin"))


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_target_prompt_is_refused_with_an_example(edit, prompt):
    with pytest.raises(ValueError, match=r"target prompt is empty.*for example: in a happy expression"):
        edit(target_prompt=prompt)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(edit, strength):
    with pytest.raises(ValueError, match=r"it can be from 0 \(untouched\) to 1"):
        edit(strength=strength)


def test_a_face_without_keypoints_is_refused(edit):
    with pytest.raises(ValueError, match=r"has no keypoints.*landmark_2d_106"):
        edit(make_face(keypoints=None))


def test_a_face_for_another_model_is_refused(edit):
    tokens = torch.zeros(1, 4, 2048)
    face = core("face").Face(tokens, tokens, "sdxl", keypoints=POINTS[0])
    with pytest.raises(ValueError, match=r"encoded for sdxl \(token size 2048\), but the IMR is for .* 64"):
        edit(face)


def test_something_else_than_keypoints_is_refused(edit):
    with pytest.raises(ValueError, match="Face keypoints are needed; found dict"):
        edit(keypoints={"people": []})


@pytest.mark.parametrize(
    "node",
    [
        "DynamicIDSaveFace",
        "DynamicIDPlaceFace",
        "DynamicIDDescribeFace",
        "DynamicIDEditFace",
        "DynamicIDPoseKeypoints",
    ],
)
def test_what_is_no_face_is_refused_wherever_one_is_needed(node):
    """Nodes whose sockets accept any type, such as switches, pass on anything."""
    others = {"dynamicid": None, "clip": None} if node == "DynamicIDEditFace" else {}
    with pytest.raises(ValueError, match="A face is needed; found dict"):
        run(node, face={"tokens": 1}, **others)


@pytest.mark.parametrize("node", ["DynamicIDEncodeFace", "DynamicIDEditFace", "DynamicIDApply"])
def test_what_is_no_adapter_is_refused_wherever_one_is_needed(node):
    others = {
        "DynamicIDEncodeFace": {"image": None, "face_analysis": None, "clip_vision": None},
        "DynamicIDEditFace": {"face": make_face(), "clip": None},
        "DynamicIDApply": {"model": None, "positive": [], "negative": [], "faces": make_face()},
    }
    with pytest.raises(ValueError, match="An adapter is needed at dynamicid; found dict"):
        run(node, dynamicid={}, **others[node])


@pytest.mark.parametrize("node", ["DynamicIDPlaceFace", "DynamicIDCompareFaces"])
@pytest.mark.parametrize("given", [make_face(), ({"face": 1},)])
def test_what_is_no_placed_face_is_refused_wherever_one_is_needed(node, given, face_analysis):
    others = {
        "DynamicIDPlaceFace": {"face": make_face()},
        "DynamicIDCompareFaces": {"image": None, "face_analysis": face_analysis},
    }
    with pytest.raises(ValueError, match=r"Placed faces are needed at placements; found (Face|tuple)"):
        run(node, placements=given, **others[node])


def test_a_text_encoder_of_another_size_is_refused(edit):
    with pytest.raises(ValueError, match="pooled output has size 32; the IMR needs 64"):
        edit(clip=tiny_clip(hidden=32))


def test_a_keypoint_encoder_of_another_imr_is_refused(edit, models):
    other = save(models, "kpe_128.bin", tiny_keypoint_encoder(128).state_dict())
    with pytest.raises(ValueError, match="gives 128 features, but the IMR takes 128"):
        edit(dynamicid=load(imr="IMR_tiny.bin", keypoint_encoder=other))


def test_an_imr_of_another_adapter_is_refused_when_it_is_loaded(models):
    sizes = ImrSizes(48, 96, 64, 4, 128, 1, 1)
    other = save(models, "imr_48.bin", Imr(sizes).state_dict())
    with pytest.raises(ValueError, match=r"IMR edits faces of token size 48, but the adapter makes .* 64"):
        load(imr=other)


def test_an_imr_of_unknown_depth_is_refused_when_it_is_loaded(models):
    shallow = {key: tensor for key, tensor in IMR.items() if not key.startswith("entangleNet")}
    with pytest.raises(ValueError, match=r"is an IMR, but not a complete one: the IMR lacks entangleNet\.0"):
        load(imr=save(models, "imr_shallow.bin", shallow))


def test_half_an_edit_has_keypoints_and_pose_half_way(edit):
    half = edit(keypoints=driving(), strength=0.5)
    torch.testing.assert_close(half.keypoints, (POINTS[0] + POINTS[1]) / 2)
    assert half.pose.tolist() == [0, 15, 0]


def test_an_edited_face_has_the_pose_of_the_keypoints_and_no_portrait_of_before(editor, clip):
    portrait = np.zeros((256, 256, 3), np.uint8)
    given = {"dynamicid": editor, "clip": clip, "target_prompt": HAPPY, "keypoints": driving()}
    edited = run("DynamicIDEditFace", face=make_face(portrait=portrait, pose=None), **given)[0]
    assert edited.pose.tolist() == [0, 30, 0]
    assert edited.portrait is None
