"""The table of where the 106 keypoints are on a head, and a real detector on heads that the table was not made from."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from dynamicid_core.face_packs import open_pack

FILE = Path(__file__).resolve().parents[2] / "dynamicid_core" / "data" / "face_template.safetensors"
HEADS = Path(__file__).resolve().parents[1] / "heads"
POSES = json.loads((HEADS / "poses.json").read_text(encoding="utf-8"))
LEFT_CORNER, RIGHT_CORNER, LOWER_LIP, CHIN = 52, 61, 53, 0
NOSE_BRIDGE = [72, 73, 74]
LIDS = [(40, 33), (94, 87)]  # upper and lower, in the middle of each eye


@pytest.fixture(scope="module")
def template():
    with safe_open(FILE, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors | {name: json.loads(metadata[name]) for name in ("groups", "action_names")}


@pytest.fixture(scope="module")
def front(template):
    return template["points"][list(template["pitch"]).index(0), list(template["yaw"]).index(0)]


@pytest.fixture(scope="module")
def move(template):
    return dict(zip(template["action_names"], template["actions"], strict=True))


def test_the_table_has_a_place_for_each_point_in_each_view(template):
    pitches, yaws = len(template["pitch"]), len(template["yaw"])
    assert template["points"].shape == (pitches, yaws, 106, 3)
    assert template["points"].dtype == np.float32
    assert template["rigidity"].shape == (106,)
    assert template["actions"].shape == (len(template["action_names"]), 106, 3)
    assert all(np.isfinite(template[name]).all() for name in ("points", "rigidity", "actions"))
    assert (np.diff(template["yaw"]) > 0).all()
    assert (template["yaw"] == -template["yaw"][::-1]).all()


def test_each_point_is_in_one_group(template):
    assert sorted(index for group in template["groups"].values() for index in group) == list(range(106))
    assert len(template["groups"]["jaw contour"]) == 33


def test_mirroring_twice_gives_the_same_point(template):
    mirror = template["mirror"]
    assert (mirror[mirror] == np.arange(106)).all()
    for name, group in template["groups"].items():
        partners = template["groups"][
            name.replace("left", "right") if "left" in name else name.replace("right", "left")
        ]
        assert sorted(mirror[group]) == sorted(partners)


def test_a_head_turned_the_other_way_is_the_mirror_image_to_the_last_bit(template):
    points = template["points"]
    mirrored = points[:, ::-1, template["mirror"]] * np.array([-1, 1, 1], np.float32)
    assert (mirrored == points).all()
    assert (template["rigidity"][template["mirror"]] == template["rigidity"]).all()


def test_the_unit_is_the_distance_of_the_outer_eye_corners(front):
    assert np.isclose(np.linalg.norm(front[35] - front[93]), 1, atol=1e-5)


def test_left_is_left_in_the_picture_and_the_nose_points_at_the_viewer(template, front):
    assert front[template["groups"]["left eye"], 0].max() < 0 < front[template["groups"]["right eye"], 0].min()
    assert front[CHIN, 1] > front[LOWER_LIP, 1] > front[NOSE_BRIDGE, 1].max()
    assert front[86, 2] == front[:, 2].max()


def test_eye_corners_and_nose_decide_the_pose(template):
    rigidity, groups = template["rigidity"], template["groups"]
    assert rigidity[[35, 39, 89, 93]].min() > 0.6
    assert rigidity[NOSE_BRIDGE].min() > 0.6
    assert rigidity[groups["jaw contour"]].max() < 0.1
    assert rigidity[groups["mouth outer"] + groups["mouth inner"]].mean() < 0.25


def test_the_jaw_contour_slides_along_the_cheek_and_the_nose_stays(template):
    slide = np.ptp(template["points"][list(template["pitch"]).index(0)], axis=0).max(axis=-1)
    assert slide[template["groups"]["jaw contour"]].mean() > 5 * slide[NOSE_BRIDGE].mean()


def test_a_smile_raises_and_widens_the_corners_of_the_mouth(move):
    left, right = move["smile"][[LEFT_CORNER, RIGHT_CORNER]]
    assert left[0] < -0.03
    assert right[0] > 0.03
    assert max(left[1], right[1]) < -0.03


def test_an_open_mouth_lowers_the_lower_lip_and_the_chin(move):
    assert move["mouth_open"][[LOWER_LIP, CHIN], 1].min() > 0.2
    assert abs(move["mouth_open"][71, 1]) < 0.05  # the upper lip


def test_raised_brows_go_up_and_lowered_ones_down(template, move):
    for side in ("left brow", "right brow"):
        assert (move["brow_raise"][template["groups"][side], 1] < 0).all()
        assert move["brow_lower"][template["groups"][side], 1].mean() > 0.02


def test_closed_eyes_bring_the_lids_together_and_wide_ones_apart(front, move):
    for upper, lower in LIDS:
        gap = front[lower, 1] - front[upper, 1]
        assert -1e-6 < gap + (move["eyes_closed"][lower] - move["eyes_closed"][upper])[1] < 0.5 * gap
        assert gap + (move["eyes_wide"][lower] - move["eyes_wide"][upper])[1] > 1.1 * gap


def test_no_action_moves_the_bridge_of_the_nose(move):
    assert all((action[NOSE_BRIDGE] == 0).all() for action in move.values())


def test_every_test_head_is_found_with_its_points_where_they_are(pack):
    analysis = open_pack(pack, "CPU")
    for name, truth in POSES.items():
        photo = np.asarray(Image.open(HEADS / name).convert("RGB"))
        face = analysis.choose(photo, "largest", 0).chosen
        places = np.array(truth["landmarks3d"])
        width = np.ptp(places[:, 0])
        assert np.median(np.linalg.norm(face.keypoints - places[:, :2], axis=1)) < 0.08 * width, name


@pytest.mark.parametrize("name", POSES)
def test_the_front_view_of_the_table_finds_the_pose_of_a_head(front, name):
    truth = POSES[name]
    known = np.column_stack([front, np.ones(106)])
    rows = np.linalg.lstsq(known, np.array(truth["landmarks3d"]), rcond=None)[0].T[:2, :3]
    x, y = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    z = np.cross(x, y)
    found = np.degrees([np.arctan2(z[1], z[2]), np.arctan2(-z[0], np.hypot(x[0], y[0])), np.arctan2(y[0], x[0])])
    assert np.abs(found - [truth["pitch"], truth["yaw"], truth["roll"]]).max() < 8
