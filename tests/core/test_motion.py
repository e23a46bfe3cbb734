"""Turning heads and changing expressions, on points whose pose is known."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dynamicid_core import head
from dynamicid_core.errors import InputError
from dynamicid_core.keypoints import Keypoints, load_keypoints, save_keypoints
from dynamicid_core.motion import PRESETS, FeatureSliders, edit_motion

CELL = 1 / 96
"""Of the keypoint encoder's raster, in fractions of the crop."""


def seen(pitch=0.0, yaw=0.0, roll=0.0, individual=0.02):
    """A face that differs from the template, as a photo from this angle shows it."""
    noise = individual * torch.randn(106, 3, generator=torch.Generator().manual_seed(7))
    pose = torch.tensor([pitch, yaw, roll])
    return head.Head(pose, torch.tensor(0.3), torch.tensor([0.5, 0.5]), noise).project()


def keypoints(**pose):
    return Keypoints(seen(**pose))


def mirrored(points):
    """Mirrored points."""
    seen = points[load_file(Path(head.__file__).parent / "data" / "face_template.safetensors")["mirror"]]
    return torch.stack((1 - seen[:, 0], seen[:, 1]), dim=1)


def points_of(feature):
    return head.template().groups[feature]


def height(points, feature):
    y = points[points_of(feature), 1]
    return float(y.amax() - y.amin())


def width(points, feature):
    x = points[points_of(feature), 0]
    return float(x.amax() - x.amin())


@pytest.mark.parametrize("pitch", [-25.0, 0.0, 20.0])
@pytest.mark.parametrize("yaw", [-60.0, -20.0, 0.0, 35.0])
@pytest.mark.parametrize("roll", [-30.0, 0.0, 170.0])
def test_the_pose_of_an_average_face_is_found(pitch, yaw, roll):
    found = head.solve_pose(seen(pitch, yaw, roll, individual=0.0))
    torch.testing.assert_close(found, torch.tensor([pitch, yaw, roll]), atol=0.5, rtol=0)


def test_size_and_place_do_not_change_the_pose():
    points = seen(10.0, -30.0, 5.0)
    moved = head.solve_pose(points * 400 + torch.tensor([100.0, -30.0]))
    torch.testing.assert_close(moved, head.solve_pose(points), atol=0.1, rtol=0)


def test_positive_yaw_is_to_the_right_positive_pitch_up_positive_roll_clockwise():
    turned = {name: edit_motion(keypoints(), **{name: 25.0}).points - seen() for name in ("yaw", "pitch", "roll")}
    nose_tip, contour = points_of("nose"), points_of("jaw contour")
    nose_over_contour = {
        name: (move[nose_tip].mean(dim=0) - move[contour].mean(dim=0)) for name, move in turned.items()
    }
    assert nose_over_contour["yaw"][0] > 2 * CELL
    assert nose_over_contour["pitch"][1] < -CELL
    left, right = (turned["roll"][points_of(eye), 1].mean() for eye in ("left eye", "right eye"))
    assert right - left > 4 * CELL


def test_the_reported_pose_is_the_one_asked_for():
    start = Keypoints(seen(), pose=torch.tensor([1.0, 2.0, 3.0]))
    assert edit_motion(start, yaw=20.0, pitch=-10.0, roll=5.0).pose.tolist() == [-9, 22, 8]


def test_zero_sliders_give_the_same_points():
    start = keypoints(pitch=5.0, yaw=20.0, roll=-3.0)
    assert torch.equal(edit_motion(start).points, start.points)


@pytest.mark.parametrize(
    "turn", [{"yaw": 60.0}, {"pitch": -40.0}, {"roll": 50.0}, {"yaw": 30.0, "pitch": 20.0, "roll": 10.0}]
)
def test_turning_there_and_back_returns_to_the_start(turn):
    start = keypoints(yaw=-10.0)
    there = edit_motion(start, **turn)
    back = edit_motion(there, **{name: -degrees for name, degrees in turn.items()})
    assert (back.points - start.points).abs().max() < 0.01 * CELL


@pytest.mark.parametrize("turn", [{"yaw": 30.0}, {"yaw": -30.0}, {"pitch": 25.0}])
def test_even_from_bare_points_turning_back_nearly_returns(turn):
    """Points that another tool passed on, without the head of the first turn."""
    start = keypoints(individual=0.0)
    there = Keypoints(edit_motion(start, **turn).points)
    back = edit_motion(there, **{name: -degrees for name, degrees in turn.items()})
    assert (back.points - start.points).abs().max() < CELL


def test_a_mirrored_pose_gives_the_mirrored_points():
    start = keypoints(pitch=5.0, yaw=12.0, roll=4.0)
    turned = edit_motion(start, "sad", yaw=25.0, pitch=10.0, roll=-15.0, sliders=FeatureSliders(mouth_open=0.5))
    other_way = edit_motion(
        Keypoints(mirrored(start.points)),
        "sad",
        yaw=-25.0,
        pitch=10.0,
        roll=15.0,
        sliders=FeatureSliders(mouth_open=0.5),
    )
    assert (other_way.points - mirrored(turned.points)).abs().max() < 0.2 * CELL


@pytest.mark.parametrize("yaw", [-50.0, 50.0])
def test_the_contour_of_a_turned_face_stays_its_outline(yaw):
    """On the far side the outline slides along the cheek: no other point of the face is outside it."""
    points = edit_motion(keypoints(individual=0.0), yaw=yaw).points
    contour = points[points_of("jaw contour"), 0]
    others = points[points_of("left eye") + points_of("right eye") + points_of("mouth outer"), 0]
    assert contour.amin() - 0.5 * CELL < others.amin()
    assert contour.amax() + 0.5 * CELL > others.amax()


def test_the_middle_of_a_turned_face_stays_where_it_was():
    start = keypoints()
    turned = edit_motion(start, yaw=45.0, pitch=15.0)
    middles = [(p.amin(dim=0) + p.amax(dim=0)) / 2 for p in (start.points, turned.points)]
    torch.testing.assert_close(*middles, atol=1e-5, rtol=0)


def test_a_smile_widens_and_raises_the_mouth_and_its_opposite_lowers_the_corners():
    start = keypoints()
    smile, frown = (edit_motion(start, sliders=FeatureSliders(smile=amount)).points for amount in (1.0, -1.0))
    assert width(smile, "mouth outer") > width(start.points, "mouth outer") + CELL
    corners = [
        points_of("mouth outer")[pick(start.points[points_of("mouth outer"), 0])]
        for pick in (torch.argmin, torch.argmax)
    ]
    assert (smile[corners, 1] < start.points[corners, 1] - 0.5 * CELL).all()
    assert (frown[corners, 1] > start.points[corners, 1] + 0.5 * CELL).all()


def test_the_mouth_opens_and_closes_again():
    start = keypoints(individual=0.0)
    opened = edit_motion(start, sliders=FeatureSliders(mouth_open=1.0))
    assert height(opened.points, "mouth inner") > height(start.points, "mouth inner") + 2 * CELL
    closed = edit_motion(opened, sliders=FeatureSliders(mouth_open=-1.0))
    assert height(closed.points, "mouth inner") < height(start.points, "mouth inner") + 0.5 * CELL


def test_closing_a_closed_mouth_changes_little():
    start = keypoints(individual=0.0)
    closed = edit_motion(start, sliders=FeatureSliders(mouth_open=-1.0))
    assert (closed.points - start.points).abs().max() < 0.2 * CELL


def test_eyes_close_and_open_wide():
    start = keypoints(individual=0.0)
    for eye in ("left eye", "right eye"):
        before = height(start.points, eye)
        assert height(edit_motion(start, sliders=FeatureSliders(eyes_open=-1.0)).points, eye) < 0.6 * before
        assert height(edit_motion(start, sliders=FeatureSliders(eyes_open=1.0)).points, eye) > 1.1 * before


def test_brows_go_up_and_down():
    start = keypoints()
    brows = points_of("left brow") + points_of("right brow")
    up, down = (
        edit_motion(start, sliders=FeatureSliders(brow_raise=amount)).points[brows, 1] for amount in (1.0, -1.0)
    )
    assert up.mean() < start.points[brows, 1].mean() - 0.5 * CELL
    assert down.mean() > start.points[brows, 1].mean() + 0.3 * CELL


def test_sliders_go_in_proportion():
    start = keypoints()
    half, full = (
        edit_motion(start, sliders=FeatureSliders(smile=amount)).points - start.points for amount in (0.5, 1.0)
    )
    torch.testing.assert_close(2 * half, full, atol=1e-5, rtol=0)


def test_every_preset_is_an_expression_of_its_own():
    start = keypoints(individual=0.0)
    results = {preset: edit_motion(start, preset).points for preset in PRESETS if preset != "as is"}
    assert set(results) == {"neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised"}
    names = list(results)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert (results[first] - results[second]).abs().max() > CELL, (first, second)


def test_a_preset_is_described_and_as_is_keeps_what_was_known():
    start = Keypoints(seen(), expression="sad")
    assert edit_motion(start, "angry").expression == "angry"
    assert edit_motion(start, yaw=10.0).expression == "sad"


@pytest.mark.parametrize("first", [preset for preset in PRESETS if preset not in ("as is", "neutral")])
def test_a_preset_takes_the_place_of_the_expression_before(first):
    start = keypoints(individual=0.0)
    again = edit_motion(edit_motion(start, first), "neutral").points
    assert (again - start.points).abs().mean() < 0.5 * (edit_motion(start, first).points - start.points).abs().mean()


@pytest.mark.parametrize(("angle", "number"), [("pitch", 0), ("yaw", 1)])
def test_a_head_is_not_turned_further_than_faces_can_be_seen(caplog, angle, number):
    one = torch.eye(3)[number]
    start = Keypoints(seen(**{angle: 40.0}), pose=40 * one)
    assert torch.equal(edit_motion(start, **{angle: 60.0}).pose, 75 * one)
    assert "turned to only 75 degrees" in caplog.text


def test_a_head_that_was_turned_further_than_that_stays_where_it_was():
    start = Keypoints(seen(yaw=75.0), pose=torch.tensor([0.0, 82.0, 0.0]))
    assert torch.equal(edit_motion(start).points, start.points)
    assert edit_motion(start, yaw=-20.0).pose.tolist() == [0, 62, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"yaw": 61.0}, "yaw is 61 degrees; it can be from -60 to 60"),
        ({"pitch": float("nan")}, "pitch is nan"),
        ({"sliders": FeatureSliders(smile=-1.5)}, "smile is -1.5; it can be from -1 to 1"),
        ({"preset": "grumpy"}, '"grumpy" is not a preset. Choose one of: as is, neutral'),
    ],
)
def test_values_out_of_range_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        edit_motion(keypoints(), **wrong)


def test_a_head_may_be_tilted_any_way():
    start = Keypoints(seen(roll=50.0), pose=torch.tensor([0.0, 0.0, 50.0]))
    assert edit_motion(start, roll=60.0).pose.tolist() == [0, 0, 110]


def test_narrow_eyes_close_without_crossing():
    eye = head.template().groups["left eye"]
    wide = keypoints(individual=0.0)
    narrow = edit_motion(wide, sliders=FeatureSliders(eyes_open=-0.7))
    of_wide, of_narrow = (edit_motion(start, sliders=FeatureSliders(eyes_open=-1.0)) for start in (wide, narrow))
    rest = (of_narrow.points - narrow.points)[eye].abs().max()
    assert rest < 0.7 * (of_wide.points - wide.points)[eye].abs().max()


@pytest.mark.parametrize("preset", PRESETS)
def test_sliders_close_what_a_preset_opened(preset):
    """As a second node would, starting from the preset."""
    start, closed = keypoints(individual=0.0), FeatureSliders(mouth_open=-1.0, eyes_open=-1.0)
    at_once, afterwards = (
        edit_motion(start, preset, sliders=closed),
        edit_motion(edit_motion(start, preset), sliders=closed),
    )
    for feature in ("mouth inner", "left eye", "right eye"):
        assert height(at_once.points, feature) == pytest.approx(height(afterwards.points, feature), abs=0.1 * CELL)
    assert height(at_once.points, "mouth inner") < height(start.points, "mouth inner") + CELL


def test_beyond_its_views_the_template_shows_the_outermost():
    template = head.template()
    beyond, last = (template.view(torch.zeros(1), yaw.view(1)) for yaw in (template.yaw[-1] + 20, template.yaw[-1]))
    assert torch.equal(beyond, last)


def test_keypoints_whose_head_is_damaged_are_lifted_again(tmp_path):
    path = save_keypoints(edit_motion(keypoints(), yaw=10.0), tmp_path, "turned")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({**tensors, "head_individual": torch.zeros(68, 3)}, path, metadata=metadata)
    assert edit_motion(load_keypoints(path), yaw=5.0).points.isfinite().all()


def test_an_open_mouth_leaves_the_eyes_where_they_were():
    start = keypoints(individual=0.0)
    moved = edit_motion(start, sliders=FeatureSliders(mouth_open=1.0)).points - start.points
    assert moved[points_of("left eye") + points_of("right eye")].abs().max() < 0.2 * CELL


def test_nothing_is_said_of_a_turn_that_can_be_drawn(caplog):
    edit_motion(keypoints(), yaw=10.0)
    assert not caplog.text


def test_closing_a_mouth_that_is_nearly_closed_does_not_open_it():
    tight = keypoints(individual=0.0).points.clone()
    lips = points_of("mouth inner")
    tight[lips, 1] = tight[lips, 1].mean() + 0.3 * (tight[lips, 1] - tight[lips, 1].mean())
    closed = edit_motion(Keypoints(tight), sliders=FeatureSliders(mouth_open=-1.0)).points
    assert (closed - tight).abs().max() < 0.1 * CELL


@pytest.mark.parametrize(("preset", "way"), [("happy", -1), ("sad", 1)])
def test_the_corners_of_the_mouth_go_up_when_happy_and_down_when_sad(preset, way):
    start = keypoints(individual=0.0)
    mouth = points_of("mouth outer")
    corners = [mouth[int(pick(start.points[mouth, 0]))] for pick in (torch.argmin, torch.argmax)]
    down = (edit_motion(start, preset).points - start.points)[corners, 1]
    assert (way * down > 0.5 * CELL).all()
