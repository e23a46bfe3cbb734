"""What an evaluation measures, asks for, writes and goes on with; painting stands still here (see tests/host)."""

import csv
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.evaluation import metrics
from dynamicid_core.evaluation.__main__ import main, parse
from dynamicid_core.evaluation.cases import MOTIONS, SCENES, Motion, find_references, plan
from dynamicid_core.evaluation.metrics import SeenFace
from dynamicid_core.evaluation.plots import draw_bars, draw_sheets
from dynamicid_core.evaluation.results import Results, Row
from dynamicid_core.evaluation.run import BASE, FULL, NO_GATE, NO_IMR, evaluate, settings_for
from dynamicid_core.evaluation.tables import NO_CLIP_T, PAPER, estimate, make_tables, render
from dynamicid_core.expression import EXPRESSIONS
from dynamicid_core.face import Face
from dynamicid_core.face_analysis import DetectedFace
from dynamicid_core.head import solve_pose, template
from dynamicid_core.keypoints import Keypoints

SIDE = 32


def unit(*values):
    vector = np.zeros(512, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def seen(embedding, x=10.0, expression="happy", pose=(0.0, 0.0, 0.0)):
    box = np.array([x - 2, 8, x + 2, 12], np.float32)
    return SeenFace(DetectedFace(box, 0.9, np.zeros((5, 2), np.float32)), embedding, expression, torch.tensor(pose))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_clip_t_is_the_cosine_whatever_the_lengths():
    image, text = torch.randn(16), torch.randn(16)
    expected = float(image @ text / image.norm() / text.norm())
    assert metrics.clip_t(3 * image, 0.1 * text[None]) == pytest.approx(expected, abs=1e-6)
    assert metrics.clip_t(image, -image) == pytest.approx(-1)


def test_one_person_is_the_most_similar_face_not_the_largest():
    person = unit(1)
    (match,) = metrics.assign([seen(unit(0, 1)), seen(unit(1, 0.5), x=30)], [person])
    assert match.seen.face.centre[0] == 30
    assert metrics.face_similarity([match]) == pytest.approx(1 / math.sqrt(1.25))


def test_people_are_assigned_by_the_largest_sum():
    """Each alone would take the first face."""
    first, second = unit(1), unit(0, 1)
    both, mostly_first = seen(unit(1, 0.9), x=5), seen(unit(1, 0.1), x=25)
    matches = metrics.assign([mostly_first, both], [first, second])
    assert [match.seen for match in matches] == [mostly_first, both]


def test_a_missing_face_counts_nothing_and_is_reported():
    matches = metrics.assign([seen(unit(1))], [unit(0, 1), unit(1)])
    assert matches[0] is None
    assert metrics.face_similarity(matches) == pytest.approx(0.5)
    assert metrics.faces_found(matches) == 0.5
    assert metrics.expression_share(matches, ["happy", "happy"]) == 0.5
    assert metrics.pose_share(matches, ["front", "front"]) == 0.5


def test_a_picture_without_faces_scores_zero_everywhere():
    matches = metrics.assign([], [unit(1), unit(0, 1)])
    assert matches == [None, None]
    for measure in (metrics.face_similarity, metrics.faces_found):
        assert measure(matches) == 0
    assert metrics.expression_share(matches, ["neutral", "neutral"]) == 0
    assert metrics.pose_share(matches, ["front", "front"]) == 0


def test_shares_go_by_person_and_not_by_set():
    matches = metrics.assign([seen(unit(1), expression="sad"), seen(unit(0, 1), x=30)], [unit(1), unit(0, 1)])
    assert metrics.expression_share(matches, ["sad", "happy"]) == 1
    assert metrics.expression_share(matches, ["happy", "sad"]) == 0


@pytest.mark.parametrize(
    ("pitch", "yaw", "expected"),
    [
        (0, 0, "front"), (10, 9.9, "front"), (-10, -9.9, "front"),
        (0, 10, "side"), (0, -10, "side"), (10, 10, "side"), (-10, -40, "side"),
        (10.1, 0, "up"), (40, 9, "up"), (-10.1, 0, "down"), (-40, -9, "down"),
        (20, 15, "up"), (-20, -15, "down"), (15, 20, "side"), (-15, -20, "side"),
        (20, 20, "side"), (-20, 20, "side"),
    ],
)  # fmt: skip
def test_the_rule_of_poses(pitch, yaw, expected):
    for roll in (0.0, 45.0):
        assert metrics.pose_class(torch.tensor([pitch, yaw, roll])) == expected


def test_disruption_is_the_mean_difference_outside_the_grown_faces():
    base = np.full((20, 20, 3), 100, np.uint8)
    picture = base.copy()
    picture[5:15, 5:15] = 255  # inside the face box, grown by half of its 6 pixels and rounded outwards
    face = np.array([8, 7, 13, 13], np.float32)
    assert metrics.disruption(picture, base, [face]) == 0
    picture[0, 0] = 151
    outside = 400 - (16 - 4) * (16 - 5)
    assert metrics.disruption(picture, base, [face]) == pytest.approx(51 / 255 / outside)


def test_disruption_counts_darker_as_much_as_brighter():
    base, picture = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 90, np.uint8)
    assert metrics.disruption(picture, base, []) == metrics.disruption(base, picture, []) == pytest.approx(10 / 255)


def test_faces_that_fill_the_picture_leave_no_disruption_to_measure():
    picture = np.zeros((8, 8, 3), np.uint8)
    assert math.isnan(metrics.disruption(picture, picture, [np.array([-50, -50, 90, 90], np.float32)]))


# --- cases -----------------------------------------------------------------------------------------------------------


def save_photo(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), colour).save(path)


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


def test_references_are_photos_or_folders_of_photos(tmp_path):
    save_photo(tmp_path / "ben.PNG")
    save_photo(tmp_path / "anna" / "2.jpg")
    save_photo(tmp_path / "anna" / "1.jpg")
    save_photo(tmp_path / ".thumbnails.png")
    (tmp_path / "notes.txt").write_text("not a person")
    (tmp_path / "empty").mkdir()
    found = find_references(tmp_path)
    assert [(one.name, one.path.name) for one in found] == [("anna", "1.jpg"), ("ben", "ben.PNG")]


def test_a_rotated_photo_is_read_upright(tmp_path):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert find_references(tmp_path)[0].read().shape == (8, 4, 3)


def test_references_that_cannot_be_used_are_told(tmp_path):
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


def test_too_few_people_for_a_group_are_told():
    with pytest.raises(InputError, match="3 people need 3 references; found 2"):
        plan(["a", "b"], people=3, seeds=1)
    with pytest.raises(InputError, match="1 to 8"):
        plan(["a", "b"], people=0, seeds=1)
    with pytest.raises(InputError, match="at least 1"):
        plan(["a", "b"], people=1, seeds=1, limit=0)


# --- a run -----------------------------------------------------------------------------------------------------------


class FakeStudio:
    """Paints plain pictures in which the people asked for are found, and counts them."""

    def __init__(self, stop_after=None):
        self.painted, self.stop_after, self.edited = [], stop_after, 0

    def encode(self, photo):
        tokens = torch.full((1, 4, 8), float(photo[0, 0, 0]))
        embedding = torch.from_numpy(unit(*photo[0, 0].astype(float)))
        return Face(tokens, tokens, "token size 8", embedding, keypoints=torch.zeros(106, 2), pose=torch.zeros(3))

    def edit(self, face, motion):
        self.edited += 1
        return face

    def paint(self, faces, gate, prompt, seed):
        if self.stop_after == len(self.painted):
            raise KeyboardInterrupt
        self.painted.append((len(faces), gate, prompt, seed))
        self.people = [face.embedding.numpy() for face in faces]
        return np.full((SIDE, SIDE, 3), 10 * len(faces), np.uint8)

    def look(self, photo):
        return [seen(embedding, x=8.0 * i + 4) for i, embedding in enumerate(self.people)] if photo.any() else []

    def agreement(self, photo, prompt):
        return 0.25


@pytest.fixture
def references(tmp_path):
    for name, colour in (("anna", (200, 0, 0)), ("ben", (0, 200, 0)), ("cleo", (0, 0, 200))):
        save_photo(tmp_path / "photos" / f"{name}.png", colour)
    return find_references(tmp_path / "photos")


def cases_of(references, people, limit=4):
    return plan([one.name for one in references], people, seeds=1, limit=limit)


def go(studio, references, folder, people=(1, 2), settings=(FULL, NO_GATE, NO_IMR)):
    results = Results(folder, {"steps": 2})
    cases = [case for number in people for case in cases_of(references, number)]
    evaluate(studio, references, cases, settings, results)
    return results


def test_every_case_is_painted_with_every_setting_and_base_pictures_once(references, tmp_path):
    studio = FakeStudio()
    results = go(studio, references, tmp_path / "out")
    base = {(case.base_key) for people in (1, 2) for case in cases_of(references, people)}
    assert len(studio.painted) == 2 * 4 * 3 + len(base)
    assert sum(row.setting == BASE.name for row in results.rows) == len(base)
    assert studio.edited == 2 * 4 * 1 + 2 * 4 * 2, "full and no_gate, one and two people"
    assert all((tmp_path / "out" / row.picture).is_file() for row in results.rows)
    full = [row for row in results.rows if row.setting == FULL.name]
    assert all(row.face_sim == pytest.approx(1) for row in full)
    assert {row.faces for row in full} == {1.0}


def test_settings_without_an_imr_need_no_editing():
    assert not any(setting.edit for setting in settings_for(imr=False))
    assert settings_for(imr=True) == (FULL, NO_GATE, NO_IMR)


def test_an_interrupted_run_paints_only_the_rest(references, tmp_path):
    whole = go(FakeStudio(), references, tmp_path / "whole")
    interrupted = FakeStudio(stop_after=11)
    with pytest.raises(KeyboardInterrupt):
        go(interrupted, references, tmp_path / "parts")
    with (tmp_path / "parts" / "results.csv").open("a", encoding="utf-8") as file:
        file.write("full,half a ro")  # as a killed process leaves it
    rest = FakeStudio()
    parts = go(rest, references, tmp_path / "parts")
    assert len(interrupted.painted) + len(rest.painted) == len(whole.rows)
    assert parts.rows == whole.rows
    again = FakeStudio()
    go(again, references, tmp_path / "parts")
    assert again.painted == []


def test_rows_come_back_from_the_file_as_they_were(references, tmp_path):
    written = go(FakeStudio(), references, tmp_path / "out").rows
    read = Results(tmp_path / "out", {"steps": 2}).rows
    assert [row.case for row in read] == [row.case for row in written]
    assert read[0].face_sim is None, "of the base model"
    assert read[1].names == written[1].names
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(written)


def test_another_evaluation_in_the_folder_is_not_mixed_in(references, tmp_path):
    go(FakeStudio(), references, tmp_path / "out")
    with pytest.raises(InputError, match="holds another evaluation: steps differ"):
        Results(tmp_path / "out", {"steps": 3})
    Results(tmp_path / "out", {"steps": 2, "photo of dora": "new"})
    with pytest.raises(InputError, match="photo of dora differ"):
        Results(tmp_path / "out", {"steps": 2, "photo of dora": "newer"})


def test_settings_without_rows_bind_nobody(tmp_path):
    Results(tmp_path, {"steps": 2})
    assert Results(tmp_path, {"steps": 3}).rows == []


def test_a_reference_without_a_face_is_named(references, tmp_path):
    studio = FakeStudio()

    def encode(photo):
        raise InputError("No face found in the photo.")

    studio.encode = encode
    with pytest.raises(InputError, match=r"No face found in the photo\. \(reference \w+: .*\.png\)"):
        go(studio, references, tmp_path / "out")
    assert studio.painted == []


# --- tables and plots ------------------------------------------------------------------------------------------------


def row(setting=FULL, people=1, **changes):
    given = {
        "setting": setting.name, "case": "c", "people": people, "names": "a", "prompt": "p", "seed": 0, "asked": "x",
        "seen": "y", "similarities": "0.5", "clip_t": 0.2, "face_sim": 0.5, "expression": 1.0, "pose": 0.0,
        "faces": 1.0, "disruption": 0.1, "picture": "none.png",
    }  # fmt: skip
    return Row(**{**given, **changes})


def test_the_interval_is_the_bootstrap_of_the_mean():
    values = np.random.default_rng(3).normal(0.4, 0.1, 400)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert estimate(values) == found


def test_one_picture_has_an_interval_of_no_width():
    assert str(estimate([0.5])) == "0.500 (0.500 to 0.500)"


def test_the_papers_figures_stand_beside_the_measured():
    rows = [row(), row(NO_GATE), row(NO_IMR), row(BASE, face_sim=None), row(people=2), row(people=3)]
    tables = make_tables(rows)
    assert [table.title for table in tables] == ["One person", "Several people", "2 people", "3 people"]
    text = render(tables)
    for figure in ("0.239", "0.671", "0.456", "0.878", "0.224", "0.161", "0.253", "0.237", "0.664", "0.431", "0.867"):
        assert text.count(figure) == 1, figure
    assert tables[1].lines[0].pictures == 2
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) <= 4, "columns of a table line up"
    assert NO_CLIP_T not in text


def test_a_missing_clip_t_is_said_and_not_made_up():
    text = render(make_tables([row(clip_t=None)]))
    assert NO_CLIP_T in text
    assert [cell.strip() for cell in text.splitlines()[4].split("|")][2] == "-"


def test_paper_figures_are_for_settings_that_exist():
    assert {name for table in PAPER.values() for name in table} <= {one.name for one in (FULL, NO_GATE, NO_IMR)}


def test_plots_and_sheets_are_written(references, tmp_path):
    results = go(FakeStudio(), references, tmp_path / "out")
    draw_bars(make_tables(results.rows), tmp_path / "out" / "bars.png")
    draw_sheets(results, references)
    assert (tmp_path / "out" / "bars.png").stat().st_size > 10_000
    assert Image.open(tmp_path / "out" / "sheet_1.jpg").size == ((1 + 1 + 3) * 256, 4 * 278)
    assert Image.open(tmp_path / "out" / "sheet_2.jpg").size == ((2 + 1 + 3) * 256, 4 * 278)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, references):
    for name in ("base", "vision", "adapter", "imr", "kpe"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "one.onnx").touch()

    def arguments(**changes):
        given = {
            "references": "photos", "out": "out", "base-model": "base", "clip-vision": "vision", "adapter": "adapter",
            "pack": "pack", **changes,
        }  # fmt: skip
        return [part for name, value in given.items() for part in (f"--{name}", str(tmp_path / value))]

    return arguments


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": "nowhere"}, "There is no folder"),
        ({"references": "pack"}, "has no photos"),
        ({"base-model": "nowhere"}, "There is no file .*nowhere \\(--base-model\\)"),
        ({"clip-vision": "nowhere"}, "\\(--clip-vision\\)"),
        ({"adapter": "nowhere"}, "\\(--adapter\\)"),
        ({"clip-score": "nowhere"}, "\\(--clip-score\\)"),
        ({"pack": "photos"}, "no InsightFace pack in .*photos: no .onnx files"),
        ({"imr": "imr"}, "give both --imr and --keypoint-encoder"),
        ({}, "adapter"),
    ],
)
def test_what_is_missing_is_one_message_and_exit_code_2(command, capsys, changes, said):
    assert main(command(**changes)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert re.search(said, err), err


def test_pressing_ctrl_c_says_that_it_goes_on(command, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dynamicid_core.evaluation.__main__._studio", interrupted)
    assert main(command()) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_options_are_read(command):
    options = parse([*command(), "--people", "3,1", "--size", "640x512"])
    assert (options.people, options.size, options.steps, options.limit) == ([1, 3], (640, 512), 50, 280)


@pytest.mark.parametrize("wrong", [["--people", "1;2"], ["--size", "512"]])
def test_options_that_cannot_be_read_are_refused(command, wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse([*command(), *wrong])
    assert "such as" in capsys.readouterr().err
