"""Head pose from 106 keypoints against rendered heads of known pose, and against InsightFace's own pose code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamicid_core import face_analysis
from dynamicid_core.head import solve_pose
from dynamicid_core.images import Square
from dynamicid_core.keypoints import Keypoints
from dynamicid_core.motion import edit_motion
from dynamicid_core.portrait import measure

HEADS = Path(__file__).parents[1] / "heads"
TRUTH = json.loads((HEADS / "poses.json").read_text(encoding="utf-8"))
PACK = os.environ.get("DYNAMICID_INSIGHTFACE")
# Points that both InsightFace's 68 and the 106 have: eye corners, nose, mouth, chin.
SAME_68 = (36, 45, 39, 42, 27, 28, 29, 30, 31, 33, 35, 48, 54, 57, 51, 8)
SAME_106 = (35, 93, 39, 89, 72, 73, 74, 86, 77, 80, 83, 52, 61, 53, 71, 0)


def true_pose(name):
    return np.array([TRUTH[name][axis] for axis in ("pitch", "yaw", "roll")], np.float32)


@pytest.fixture(scope="module")
def analysis():
    if not PACK:
        pytest.skip("DYNAMICID_INSIGHTFACE names no InsightFace pack (python scripts/test.py fetches one)")
    return face_analysis.open_pack(PACK, "CPU")


@pytest.fixture(scope="module")
def solved(analysis):
    """Picture -> the pose from what the detector sees in it."""
    poses = {}
    for name in TRUTH:
        with Image.open(HEADS / name) as picture:
            face = analysis.choose(np.asarray(picture.convert("RGB")), "largest", 0).chosen
        poses[name] = solve_pose(torch.from_numpy(face.keypoints)).numpy()
    return poses


def insightface_pose(name):
    """What InsightFace's landmark_3d_68 model would give if it found the true places, by InsightFace's own code."""
    from insightface.data import get_object
    from insightface.utils import transform

    average = get_object("meanshape_68.pkl")[list(SAME_68)]
    seen = np.array(TRUTH[name]["landmarks3d"])[list(SAME_106)]
    _, rotation, _ = transform.P2sRt(transform.estimate_affine_matrix_3d23d(average, seen))
    return np.array(transform.matrix2angle(rotation), np.float32)


def test_yaw_and_roll_of_rendered_heads_are_found_within_a_few_degrees(solved):
    for name, pose in solved.items():
        assert abs(pose[1:] - true_pose(name)[1:]).max() < 5, name


def test_pitch_of_rendered_heads_is_found_as_far_as_the_shape_of_a_face_lets_it(solved):
    """A face with a long nose looks like one that looks down: half of the heads within 5 degrees, all within 12."""
    errors = [abs(pose[0] - true_pose(name)[0]) for name, pose in solved.items()]
    assert np.median(errors) < 5
    assert max(errors) < 12


def test_insightfaces_own_pose_code_agrees_on_what_the_angles_mean(solved):
    """Same axes, signs and order. Its average head looks up some degrees further than ours, which is taken out."""
    difference = np.stack([solved[name] - insightface_pose(name) for name in solved])
    difference[:, 0] -= np.median(difference[:, 0])
    assert abs(difference[:, 1]).max() < 8
    assert abs(difference[:, 2]).max() < 5
    assert np.median(abs(difference[:, 0])) < 5


def test_the_pose_of_the_packs_own_model_comes_first(analysis):
    with Image.open(HEADS / "front.jpg") as picture:
        photo = np.asarray(picture.convert("RGB"))
    found = analysis.choose(photo, "largest", 0).chosen
    own = np.array([1.0, 2.0, 3.0], np.float32)
    with_pose = face_analysis.DetectedFace(found.box, found.score, found.landmarks, found.keypoints, own)
    square = Square(0, 0, photo.shape[0])
    assert measure(photo, with_pose, square).pose.tolist() == [1, 2, 3]
    assert measure(photo, found, square).pose.abs().max() < 5


@pytest.mark.parametrize("degrees", [20, 40, 60])
def test_turned_keypoints_are_posed_as_asked(analysis, degrees):
    with Image.open(HEADS / "front.jpg") as picture:
        photo = np.asarray(picture.convert("RGB"))
    points = torch.from_numpy(analysis.choose(photo, "largest", 0).chosen.keypoints / photo.shape[0])
    turned = edit_motion(Keypoints(points), yaw=float(degrees))
    assert abs(float(solve_pose(turned.points)[1]) - degrees) < 5
