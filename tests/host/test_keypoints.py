"""Keypoints from real photographs and from sliders, through the nodes."""

import numpy as np
import pytest
import torch

from tests import photos
from tests.host.helpers import core, driving, make_face, photo_adapter, run, tiny_clip_vision

FLAT = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}


@pytest.fixture(scope="module")
def measure(face_analysis):
    def run_node(*pictures, image=None, **options):
        given = photos.image(*pictures) if image is None else image
        return run("DynamicIDFaceKeypoints", image=given, face_analysis=face_analysis, **options)

    return run_node


@pytest.fixture(scope="module")
def astronaut(measure):
    return measure(photos.astronaut())[0]


def test_a_driving_picture_gives_keypoints_pose_and_words(measure):
    keypoints, preview, sentence = measure(photos.astronaut())
    assert keypoints.points.shape == (106, 2)
    assert ((keypoints.points > 0) & (keypoints.points < 1)).all()
    assert keypoints.expression == "happy"
    assert sentence.startswith("in a happy expression, ")
    assert preview.shape == (3, 512, 512, 3), "what was found, the keypoints on the portrait, the raster"
    assert set(preview[2].unique().tolist()) == {0.0, 1.0}


def test_a_driving_picture_of_any_size_gives_the_same_keypoints(measure, astronaut):
    small = torch.nn.functional.interpolate(
        photos.image(photos.astronaut()).movedim(-1, 1), size=(300, 300), mode="area"
    )
    resized = measure(image=small.movedim(1, -1))[0]
    assert (resized.points - astronaut.points).abs().max() < 2 / 96


def test_the_chosen_face_of_a_group_is_measured(measure):
    first, second = (measure(photos.group_of_six(), order="left to right", index=i)[0] for i in (0, 1))
    assert (first.points - second.points).abs().max() > 1 / 96


def test_encode_face_measures_the_same_as_face_keypoints(astronaut, face_analysis, models):
    photo_adapter(models / "dynamicid" / "photo.bin")
    face = run(
        "DynamicIDEncodeFace",
        image=photos.image(photos.astronaut()),
        dynamicid=run("DynamicIDLoader", adapter="photo.bin")[0],
        face_analysis=face_analysis,
        clip_vision=tiny_clip_vision(),
    )[0]
    assert torch.equal(face.keypoints, astronaut.points)
    assert torch.equal(face.pose, astronaut.pose)
    (sentence,) = run("DynamicIDDescribeFace", face=face)
    assert sentence.startswith("in a happy expression, ")
    moved = run("DynamicIDPoseKeypoints", face=face, **FLAT)[0]
    assert torch.equal(moved.points, astronaut.points)
    assert moved.expression == "happy"


def test_zero_sliders_give_the_same_points(astronaut):
    assert torch.equal(run("DynamicIDPoseKeypoints", keypoints=astronaut)[0].points, astronaut.points)


@pytest.mark.parametrize("angle", ["yaw", "pitch", "roll"])
@pytest.mark.parametrize("degrees", [10.0, 30.0, 45.0])
def test_turning_there_and_back_returns_within_a_pixel_of_the_raster(astronaut, angle, degrees):
    there = run("DynamicIDPoseKeypoints", keypoints=astronaut, **{**FLAT, angle: degrees})[0]
    back = run("DynamicIDPoseKeypoints", keypoints=there, **{**FLAT, angle: -degrees})[0]
    assert (there.points - astronaut.points).abs().max() > 1 / 96, "it did move"
    assert (back.points - astronaut.points).abs().max() < 1 / 96


def test_turned_keypoints_come_back_from_a_file(astronaut):
    turned = run("DynamicIDPoseKeypoints", keypoints=astronaut, preset="surprised", yaw=20.0)[0]
    file = run("DynamicIDSaveKeypoints", keypoints=turned, name="turned")[0]
    keypoints, preview, sentence = run("DynamicIDLoadKeypoints", name=file)
    assert torch.equal(keypoints.points, turned.points)
    assert sentence == "in a surprised expression, in side view"
    assert preview.shape == (2, 512, 512, 3)


def test_words_say_what_the_sliders_did(astronaut):
    sentence = run("DynamicIDPoseKeypoints", keypoints=astronaut, preset="angry", yaw=-40.0, pitch=35.0)[2]
    assert sentence == "in a angry expression, facing up, in side view"


def test_no_face_in_the_driving_picture_is_said(measure):
    with pytest.raises(ValueError, match="No face found in the photo"):
        measure(photos.coffee())


def test_a_batch_of_driving_pictures_is_refused(measure):
    with pytest.raises(ValueError, match="takes one driving picture; found a batch of 2"):
        measure(photos.astronaut(), photos.astronaut())


def test_an_index_past_the_last_face_is_refused(measure):
    with pytest.raises(ValueError, match=r"There is no face 9 in the photo .*: 6 found"):
        measure(photos.group_of_six(), index=9)


def test_a_pack_without_keypoints_is_refused(face_analysis):
    bare = core("face_analysis").FaceAnalysis(
        {task: model for task, model in face_analysis._models.items() if task != "landmark_2d_106"}
    )
    with pytest.raises(ValueError, match=r"has no model for keypoints \(landmark_2d_106\)"):
        run("DynamicIDFaceKeypoints", image=photos.image(photos.astronaut()), face_analysis=bare)


def test_sliders_without_a_start_are_refused():
    with pytest.raises(ValueError, match="has nothing to start from: connect a face or keypoints"):
        run("DynamicIDPoseKeypoints")


def test_sliders_on_a_face_without_keypoints_are_refused():
    tokens = torch.zeros(1, 4, 64)
    with pytest.raises(ValueError, match="has no keypoints to start from"):
        run("DynamicIDPoseKeypoints", face=core("face").Face(tokens, tokens, "token size 64"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"yaw": 90.0}, "yaw is 90 degrees; it can be from -60 to 60"),
        ({"smile": 2.0}, "smile is 2; it can be from -1 to 1"),
        ({"preset": "grumpy"}, '"grumpy" is not a preset'),
    ],
)
def test_values_out_of_range_are_refused(astronaut, inputs, message):
    with pytest.raises(ValueError, match=message):
        run("DynamicIDPoseKeypoints", keypoints=astronaut, **inputs)


def test_a_missing_keypoints_file_says_where_it_was_looked_for():
    with pytest.raises(ValueError, match=r'no file "none\.safetensors"\. Looked in .*keypoints'):
        run("DynamicIDLoadKeypoints", name="none")


def test_connected_keypoints_go_before_those_of_the_face():
    both = run("DynamicIDPoseKeypoints", keypoints=driving(), face=make_face())[0]
    assert torch.equal(both.points, driving().points)


def test_the_preview_of_a_face_shows_its_portrait():
    portrait = np.full((256, 256, 3), 200, np.uint8)
    _, preview, _ = run("DynamicIDPoseKeypoints", face=make_face(portrait=portrait), yaw=40.0)
    assert preview[0, :4].mean() > 0.7


def test_a_face_without_a_face_prompt_is_posed():
    posed = run("DynamicIDPoseKeypoints", face=make_face(face_prompt=None), yaw=10.0)[0]
    assert posed.points.shape == (106, 2)
