"""The cases of an evaluation: people, scenes, motions."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.evaluation import metrics
from dynamicid_core.evaluation.cases import MOTIONS, SCENES, Motion, find_references, plan
from dynamicid_core.expression import EXPRESSIONS
from dynamicid_core.head import solve_pose, template
from dynamicid_core.keypoints import Keypoints
from dynamicid_core.training.data.photos import find_people
from tests.core.evaluated_faces import SIDE, save_photo


def test_the_motions_are_every_expression_in_every_pose():
    assert len(set(MOTIONS)) == len(MOTIONS) == len(EXPRESSIONS) * len(metrics.POSES)


def test_a_plan_holds_every_case_once():
    cases = plan(["a", "b", "c"], people=1, seeds=2)
    assert len(cases) == len({case.key for case in cases}) == 3 * len(SCENES) * 2 * len(MOTIONS)


@pytest.mark.parametrize("people", [1, 2, 3])
def test_a_limited_plan_is_even_and_grows_without_changing(people):
    cases = plan(["a", "b", "c"], people, seeds=1, limit=56)
    assert plan(["a", "b", "c"], people, seeds=1, limit=20) == cases[:20]
    for place in range(people):
        asked = [(case.motions[place].expression, case.motions[place].pose) for case in cases]
        assert sorted(asked) == sorted(MOTIONS * 2)
    assert len({case.scene for case in cases}) == len(SCENES)


@pytest.mark.parametrize("limit", [10, 28, 154, 280, 500])
@pytest.mark.parametrize("number", [1, 5, 7, 28, 100])
def test_a_limited_plan_has_everybody_equally_often_in_as_many_scenes_as_can_be(number, limit):
    cases = plan([f"{i:03}" for i in range(number)], 1, seeds=1, limit=limit)
    pictures = Counter(case.people for case in cases)
    assert len(pictures) == min(number, limit)
    assert max(pictures.values()) - min(pictures.values()) <= 1
    assert len({(case.people, case.scene, case.seed) for case in cases}) == min(limit, number * len(SCENES))
    assert len({case.scene for case in cases}) == len(SCENES) or limit < 28


@pytest.mark.parametrize(
    ("number", "people", "limit"), [(10, 1, 280), (2, 1, 28), (1, 1, 280), (4, 2, 50), (5, 3, 280)]
)
def test_side_views_look_to_the_right_as_often_as_to_the_left(number, people, limit):
    cases = plan([f"{i}" for i in range(number)], people, seeds=1, limit=limit)
    for asked in (
        *zip(*(case.motions for case in cases), strict=True),
        [one for case in cases for one in case.motions],
    ):
        right = [motion.right for motion in asked if motion.pose == metrics.SIDE]
        assert abs(right.count(True) - right.count(False)) <= 1


def test_a_side_view_to_the_other_side_is_another_case():
    case = plan(["a"], 1, seeds=1, limit=2)[1]
    (motion,) = case.motions
    mirrored = replace(case, motions=(replace(motion, right=not motion.right),))
    assert motion.pose == metrics.SIDE
    assert mirrored.key != case.key
    assert mirrored.unedited_key == case.unedited_key


def test_a_plan_of_several_seeds_holds_every_case_once_and_each_group_scene_and_seed_before_any_again():
    cases = plan(["a", "b", "c", "d", "e"], people=2, seeds=3)
    assert len({case.key for case in cases}) == len(cases) == 5 * len(SCENES) * 3 * len(MOTIONS)
    assert len({(case.people, case.scene, case.seed) for case in cases[: 15 * len(SCENES)]}) == 15 * len(SCENES)


@pytest.mark.parametrize("limit", [28, 280])
@pytest.mark.parametrize("number", [1, 5, 28, 50])
@pytest.mark.parametrize("seeds", [2, 4, 10])
def test_a_limited_plan_is_spread_over_all_seeds(number, seeds, limit):
    seen = Counter(case.seed for case in plan([f"{i}" for i in range(number)], 1, seeds, limit))
    assert len(seen) == seeds
    assert max(seen.values()) - min(seen.values()) <= 5


def test_the_people_of_a_group_differ_in_expression_and_pose():
    for case in plan(["a", "b", "c", "d"], people=3, seeds=1, limit=100):
        assert len(set(case.people)) == len({m.expression for m in case.motions}) == 3
        assert len({motion.pose for motion in case.motions}) == 3


def test_prompts_say_how_many_and_nothing_of_the_motion():
    for people, words in ((1, "a person"), (2, "two people"), (3, "three people")):
        prompts = {case.prompt for case in plan(["a", "b", "c"], people, seeds=1)}
        assert len(prompts) == len(SCENES)
        assert all(words in prompt for prompt in prompts)
        assert not any(word in prompt for prompt in prompts for word in (*EXPRESSIONS, "facing", "view"))


@pytest.mark.parametrize("pose", metrics.POSES)
@pytest.mark.parametrize("own", [(0.0, 0.0, 0.0), (12.0, -35.0, 8.0), (-15.0, 25.0, 0.0)])
def test_the_keypoints_asked_for_show_the_pose_asked_for(pose, own):
    points = template().view(torch.tensor([own[0]]), torch.tensor([own[1]]))[0, :, :2] * 0.3 + 0.5
    for right in (True, False):
        target = Motion("neutral", pose, right).keypoints(Keypoints(points, torch.tensor(own)))
        assert metrics.pose_class(target.pose) == pose
        if pose == metrics.SIDE:
            assert (target.pose[1] > 0) == right


def test_the_keypoints_asked_for_are_of_that_pose_when_measured_again():
    front = template().view(torch.zeros(1), torch.zeros(1))[0, :, :2] * 0.3 + 0.5
    for pose in metrics.POSES:
        target = Motion("neutral", pose).keypoints(Keypoints(front, torch.zeros(3)))
        assert metrics.pose_class(solve_pose(target.points)) == pose


def test_the_face_prompt_names_expression_and_pose():
    assert Motion("happy", "side").prompt == "in a happy expression, in side view"
    assert Motion("sad", "down").prompt == "in a sad expression, facing down, in front view"
    assert Motion("angry", "front").prompt == "in a angry expression, in front view"


def test_references_are_photos_or_folders_of_photos_that_are_not_hidden(tmp_path, caplog):
    caplog.set_level("INFO")
    save_photo(tmp_path / "ben.PNG")
    save_photo(tmp_path / "anna" / "2.jpg")
    save_photo(tmp_path / "anna" / "1.jpg")
    save_photo(tmp_path / ".thumbnail.png")
    save_photo(tmp_path / ".ipynb_checkpoints" / "ben-checkpoint.png")
    (tmp_path / "notes.txt").write_text("not a person")
    (tmp_path / "empty").mkdir()
    found = find_references(tmp_path)
    assert [(one.name, one.path.name) for one in found] == [("anna", "1.jpg"), ("ben", "ben.PNG")]
    assert caplog.messages == [f"{tmp_path / 'empty'} has no photo in it and is left out."]


def test_references_are_taken_from_a_folder_as_the_photos_of_a_data_set(tmp_path):
    for photo in ("ben/2019/1.jpg", "carl.tif", "eva/1.gif", "top/1.jpg", "top/0/.cache/1.jpg"):
        save_photo(tmp_path / photo)
    save_photo(tmp_path / "fay.png")
    (tmp_path / "fay.png").rename(tmp_path / "fay.jfif")
    (tmp_path / "top" / "0.txt").write_text("a caption")
    for leftover in ("Thumbs.db", "top/Thumbs.db", "desktop.ini"):
        (tmp_path / leftover).write_bytes(b"of a file manager")
    found = {one.name: one for one in find_references(tmp_path)}
    assert list(found) == ["ben", "carl", "eva", "fay", "top"]
    assert all(one.read().shape == (SIDE, SIDE, 3) for one in found.values())
    (build_from, *_) = find_people(tmp_path)
    assert [(one.name, one.folder / one.photos[0]) for one in build_from] == [
        (name, found[name].path) for name in ("ben", "eva", "top")
    ]


def test_a_rotated_photo_is_read_upright(tmp_path):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert find_references(tmp_path)[0].read().shape == (8, 4, 3)


def test_references_that_cannot_be_used_are_reported(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        find_references(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no photos"):
        find_references(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.jpg could not be read as a picture"):
        find_references(tmp_path)[0].read()
    save_photo(tmp_path / "a.png")
    with pytest.raises(InputError, match="two people named a"):
        find_references(tmp_path)


def test_a_first_photo_that_is_no_picture_is_reported_with_its_person(tmp_path):
    save_photo(tmp_path / "dora" / "2.jpg")
    (tmp_path / "dora" / "1.heic").write_bytes(b"of a telephone")
    with pytest.raises(InputError, match=r"1\.heic could not be read as a picture .* the photo of dora: remove it"):
        find_references(tmp_path)


def test_photos_are_read_as_those_of_a_data_set(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (find_references(tmp_path)[0].read() == 255).all()


@pytest.mark.parametrize("name", ["a+b", "Smith; Anna", "b" * 51, "名" * 17])
def test_names_that_cannot_be_file_names_are_reported(tmp_path, name):
    save_photo(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match="Rename the photo"):
        find_references(tmp_path)


def test_eight_people_with_long_names_still_make_names_of_files():
    cases = plan([f"{i}" + "名" * 16 for i in range(8)], people=8, seeds=2)
    assert max(len(f"{case.key}.png".encode()) for case in cases) < 255
    assert len({case.key for case in cases}) == len(cases)


def test_too_few_people_for_a_group_are_reported():
    with pytest.raises(InputError, match="3 people need 3 references; found 2"):
        plan(["a", "b"], people=3, seeds=1)
    with pytest.raises(InputError, match="1 to 8"):
        plan(["a", "b"], people=0, seeds=1)
    with pytest.raises(InputError, match="at least 1"):
        plan(["a", "b"], people=1, seeds=1, limit=0)
