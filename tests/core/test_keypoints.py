"""Keypoints as input of the keypoint encoder, and in files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynamicid_core.errors import InputError
from dynamicid_core.keypoints import Keypoints, check_pose, encoder_input, load_keypoints, rasterise, save_keypoints

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "kpe_true.safetensors")


@pytest.fixture
def keypoints():
    points = GOLDEN["in.landmarks_512"][0] / 512
    return Keypoints(points, torch.tensor([1.0, -20.0, 3.0]), "happy")


@pytest.mark.parametrize("case", [0, 1])
def test_the_raster_is_the_released_models_to_the_cell(case):
    points = GOLDEN["in.landmarks_512"][case] / 512
    assert torch.equal(rasterise(points), GOLDEN["in.raster_u8"][case])
    assert torch.equal(encoder_input(points)[0], GOLDEN["in.x"][case])


def test_points_on_or_outside_the_border_are_not_drawn():
    points = torch.full((106, 2), 0.5)
    points[:5] = torch.tensor([[0.0, 0.5], [0.5, -0.001], [-0.2, 0.5], [0.5, 1.0], [7.0, -9.0]])
    drawn = rasterise(points).nonzero().tolist()
    assert drawn == [[48, 48]]


def test_the_first_and_the_last_cell_are_drawn():
    points = torch.full((106, 2), 0.9999)
    points[0] = 0.0001
    assert rasterise(points).nonzero().tolist() == [[0, 0], [95, 95]]


@pytest.mark.parametrize("shape", [(68, 2), (106, 3), (1, 106, 2), (468, 3)])
def test_keypoints_of_another_kind_are_refused_with_their_shape(shape):
    with pytest.raises(InputError, match=r"must be 106 points .* found the shape \[.*use Face Keypoints"):
        Keypoints(torch.zeros(shape))


def test_keypoints_that_are_not_numbers_are_refused():
    points = torch.zeros(106, 2)
    points[3, 1] = torch.nan
    with pytest.raises(InputError, match="not numbers"):
        Keypoints(points)


@pytest.mark.parametrize("pose", [torch.zeros(2), torch.tensor([0.0, torch.nan, 0.0])])
def test_a_pose_that_is_none_is_refused(keypoints, pose):
    with pytest.raises(InputError, match="must be pitch, yaw and roll"):
        Keypoints(keypoints.points, pose)


def test_saved_keypoints_come_back(tmp_path, keypoints):
    again = load_keypoints(save_keypoints(keypoints, tmp_path, "smile"))
    assert torch.equal(again.points, keypoints.points)
    assert torch.equal(again.pose, keypoints.pose)
    assert again.expression == "happy"


def test_keypoints_without_pose_and_expression_can_be_saved(tmp_path, keypoints):
    again = load_keypoints(save_keypoints(Keypoints(keypoints.points), tmp_path, "bare"))
    assert again.pose is None
    assert again.expression is None


def test_other_keypoints_of_the_same_name_are_kept(tmp_path, keypoints):
    first = save_keypoints(keypoints, tmp_path, "smile")
    assert save_keypoints(keypoints, tmp_path, "smile") == first, "the very same need no second file"
    assert save_keypoints(Keypoints(keypoints.points + 0.1), tmp_path, "smile").name == "smile_2.safetensors"
    assert torch.equal(load_keypoints(first).points, keypoints.points)


def test_a_file_of_something_else_is_refused(tmp_path, keypoints):
    save_file({"keypoints": keypoints.points}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"not one that Save Keypoints wrote"):
        load_keypoints(tmp_path / "other.safetensors")


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"no keypoints file .* Make one with Save Keypoints"):
        load_keypoints(tmp_path / "none.safetensors")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(InputError, match=r"cut\.safetensors is damaged"):
        load_keypoints(tmp_path / "cut.safetensors")


def test_a_pose_of_a_million_values_does_not_fill_the_message():
    with pytest.raises(InputError, match=r"found the shape \[1000000\]") as refused:
        check_pose(torch.zeros(10**6))
    assert len(str(refused.value)) < 500
