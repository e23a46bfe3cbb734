"""Head pose from 106 keypoints against rendered heads of known pose, and against InsightFace's own pose code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamicid_core import face_analysis
from dynamicid_core.head import solve_pose, template
from dynamicid_core.images import Square
from dynamicid_core.keypoints import Keypoints
from dynamicid_core.motion import FeatureSliders, edit_motion
from dynamicid_core.portrait import measure_keypoints

HEADS = Path(__file__).parents[1] / "heads"
TRUTH = json.loads((HEADS / "poses.json").read_text(encoding="utf-8"))
AVERAGE = [name for name in TRUTH if name.startswith("average")]
OTHERS = [name for name in TRUTH if name not in AVERAGE]


def true_pose(name):
    return np.array([TRUTH[name][axis] for axis in ("pitch", "yaw", "roll")], np.float32)


@pytest.fixture(scope="module")
def solved(analysis):
    """Picture -> the pose from the detector's keypoints."""
    poses = {}
    for name in TRUTH:
        with Image.open(HEADS / name) as picture:
            face = analysis.choose(np.asarray(picture.convert("RGB")), "largest", 0).chosen
        poses[name] = solve_pose(torch.from_numpy(face.keypoints)).numpy()
    return poses


def insightface_pose(name):
    """The pose by InsightFace's own code, from the true positions of its 68 three-dimensional landmarks on the head."""
    from insightface.data import get_object
    from insightface.utils import transform

    seen = np.array(TRUTH[name]["landmarks68"])
    matrix = transform.estimate_affine_matrix_3d23d(get_object("meanshape_68.pkl"), seen)
    return np.array(transform.matrix2angle(transform.P2sRt(matrix)[1]), np.float32)


@pytest.mark.parametrize("name", AVERAGE)
def test_both_ways_to_the_pose_of_a_rendered_head_agree_within_a_few_degrees(solved, name):
    """From the detector's 106 keypoints, and by InsightFace from three-dimensional landmarks."""
    assert abs(solved[name] - true_pose(name)).max() < 6.5
    assert abs(insightface_pose(name) - true_pose(name)).max() < 5
    assert abs(solved[name] - insightface_pose(name)).max() < 6.5


@pytest.mark.parametrize("name", OTHERS)
def test_heads_of_any_shape_are_posed_as_well_as_their_shape_lets_them(solved, name):
    """Ten people. One with a long nose looks like one that looks down: pitch is less certain than yaw and roll."""
    for pose, pitch, others in ((solved[name], 12, 5), (insightface_pose(name), 12, 8)):
        assert abs(pose[0] - true_pose(name)[0]) < pitch
        assert abs(pose[1:] - true_pose(name)[1:]).max() < others


def test_pitch_is_within_a_few_degrees_for_most_shapes(solved):
    errors = [abs(solved[name][0] - true_pose(name)[0]) for name in OTHERS]
    assert sum(error < 5 for error in errors) >= 7


def test_the_pose_of_the_packs_own_model_comes_first(analysis):
    with Image.open(HEADS / "front.jpg") as picture:
        photo = np.asarray(picture.convert("RGB"))
    found = analysis.choose(photo, "largest", 0).chosen
    own = np.array([1.0, 2.0, 3.0], np.float32)
    with_pose = face_analysis.DetectedFace(found.box, found.score, found.landmarks, found.keypoints, own)
    square = Square(0, 0, photo.shape[0])
    assert measure_keypoints(photo, with_pose, square).pose.tolist() == [1, 2, 3]
    assert measure_keypoints(photo, found, square).pose.abs().max() < 5


@pytest.mark.parametrize("degrees", [20, 40, 60])
def test_turned_keypoints_are_posed_as_asked(analysis, degrees):
    with Image.open(HEADS / "front.jpg") as picture:
        photo = np.asarray(picture.convert("RGB"))
    points = torch.from_numpy(analysis.choose(photo, "largest", 0).chosen.keypoints / photo.shape[0])
    turned = edit_motion(Keypoints(points), yaw=float(degrees))
    assert abs(float(solve_pose(turned.points)[1]) - degrees) < 5


@pytest.mark.parametrize("name", TRUTH)
def test_eyes_close_at_every_angle_without_crossing(analysis, name):
    """Between the middles of the lids, in the head frame, where eyes are 0.08 high."""
    with Image.open(HEADS / name) as picture:
        photo = np.asarray(picture.convert("RGB"))
    points = torch.from_numpy(analysis.choose(photo, "largest", 0).chosen.keypoints / photo.shape[0])
    closed = edit_motion(Keypoints(points), sliders=FeatureSliders(eyes_open=-1.0))
    for eye in ("left eye", "right eye"):
        upper, lower = middles_of_lids(eye)
        assert abs(float(closed.head.points[lower, 1] - closed.head.points[upper, 1])) < 0.015


def middles_of_lids(eye):
    """The upper and the lower point that are nearest to the middle of the eye."""
    front = template().view(torch.zeros(1), torch.zeros(1))[0]
    points = torch.tensor(template().groups[eye])
    x, y = front[points, 0], front[points, 1]
    off_middle = (x - (x.amin() + x.amax()) / 2).abs()
    above = y < y.mean()
    return [int(points[torch.where(side, off_middle, torch.inf).argmin()]) for side in (above, ~above)]


@pytest.mark.parametrize("points", [torch.zeros(106, 2), torch.full((106, 2), 0.5)])
def test_points_that_all_coincide_have_some_pose_in_the_end(points):
    assert solve_pose(points).isfinite().all()
