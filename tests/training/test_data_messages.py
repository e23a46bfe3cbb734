"""Messages of the data set builder for problems that the user can fix."""

import shutil

import pytest

from dynamicid_core.training.data import __main__ as command
from dynamicid_core.training.data.shards import read_samples
from tests.training.builder import contents, faces, run, save_crowd, save_person

pytestmark = pytest.mark.usefixtures("pack")


def refused(capsys, *arguments, **more):
    """The command's message when it exits with 2."""
    assert run(*arguments, **more) == 2
    return capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert f"There is no folder {tmp_path / 'photos'}" in refused(capsys, tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_photos_is_refused(tmp_path, capsys):
    (tmp_path / "photos" / "anna").mkdir(parents=True)
    assert "holds no photo in a folder of a person" in refused(capsys, tmp_path / "photos", tmp_path / "out")


def test_photos_without_folders_are_explained(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    faces()["actor"].save(tmp_path / "photos" / "1.png")
    assert "holds 1 photos, but none in a folder" in refused(capsys, tmp_path / "photos", tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--size=500", "--size is 500; the VAE needs a multiple of 8"),
        ("--min-face=0", "--min-face is 0"),
        ("--sharpness=nan", "--sharpness is nan"),
        ("--agreement=2", "--agreement is 2"),
        ("--least-photos=0", "--least-photos is 0"),
        ("--workers=0", "--workers is 0"),
        ("--shard-size=0", "--shard-size is 0"),
    ],
)
def test_an_impossible_option_is_named(source, tmp_path, capsys, option, said):
    assert said in refused(capsys, source, tmp_path / "out", option)


def test_no_pack_says_where_to_get_one(source, tmp_path, capsys):
    said = refused(capsys, source, tmp_path / "out", pack=tmp_path)
    assert f"There is no InsightFace pack in {tmp_path}" in said
    assert "buffalo_l" in said


def test_a_pack_without_keypoints_is_refused(source, pack, tmp_path, capsys):
    (tmp_path / "pack").mkdir()
    for pattern in ("scrfd*", "w600k*"):
        shutil.copy(next(pack.glob(pattern)), tmp_path / "pack")
    said = refused(capsys, source, tmp_path / "out", pack=tmp_path / "pack")
    assert "This InsightFace pack has no model for keypoints (landmark_2d_106)" in said


def test_other_settings_do_not_go_into_the_same_data_set(built, source, capsys):
    before = contents(built)
    said = refused(capsys, source, built, "--shard-size=4", "--size=256", "--min-face=64")
    assert "other settings: size 512 (now 256), min_face 128 (now 64)" in said
    assert contents(built) == before


def test_other_photos_do_not_go_into_the_same_data_set(built, tmp_path, capsys):
    before = contents(built)
    source = save_crowd(tmp_path / "photos", 1)
    said = refused(capsys, source, built, "--shard-size=4")
    assert "of 4 people in it 4 differ; actor is not there" in said
    assert contents(built) == before


def test_photos_that_changed_are_noticed(tmp_path, capsys):
    source, out = save_crowd(tmp_path / "photos", 2), tmp_path / "set"
    assert run(source, out, "--size=64") == 0
    (source / "person 1" / "plain.jpg").unlink()
    assert "person 1 has other photos or captions now" in refused(capsys, source, out, "--size=64")


def test_a_folder_of_several_people_is_reported(tmp_path, caplog):
    for name, others in (("mixed", ("hopper", "astronaut")), ("anna", ())):
        save_person(tmp_path / "photos", name, faces()["actor"])
        for other in others:
            faces()[other].save(tmp_path / "photos" / name / f"{other}.jpg")
    (tmp_path / "photos" / "mixed" / "mirrored.jpg").unlink()
    assert run(tmp_path / "photos", tmp_path / "set", "--size=64") == 0
    (message,) = [record.getMessage() for record in caplog.records if "several people" in record.getMessage()]
    assert message.startswith("The folder mixed looks like one of several people: 2 of 3 photos show another person")


def test_a_folder_with_other_files_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert "is not empty and holds no data set" in refused(capsys, source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_data_set_does_not_go_among_the_photos(source, capsys):
    assert "lies in the folder of photos" in refused(capsys, source, source / "set")


def test_photos_without_a_single_good_one_give_an_empty_data_set(tmp_path, capsys):
    (tmp_path / "photos" / "anna").mkdir(parents=True)
    (tmp_path / "photos" / "anna" / "1.jpg").write_text("no picture")
    assert run(tmp_path / "photos", tmp_path / "out") == 0
    assert "0 of 1 people, 0 of 1 photos" in capsys.readouterr().out
    assert list(read_samples(tmp_path / "out")) == []


def test_help_explains_the_folders(capsys):
    with pytest.raises(SystemExit):
        command.main(["build", "--help"])
    said = capsys.readouterr().out
    assert "photos/anna/1.jpg" in said
    assert "the same command again resumes" in said
