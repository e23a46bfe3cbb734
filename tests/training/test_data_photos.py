"""Which files of a folder are whose photos, and their captions."""

import shutil

import pytest

from dynamicid_core.training.data.photos import find_people
from tests.training.builder import faces, save_person


@pytest.fixture
def folder(tmp_path):
    save_person(tmp_path, "she", faces()["astronaut"])
    return tmp_path


def test_hidden_folders_of_a_person_are_passed_over(folder):
    (folder / "she" / ".thumbnails").mkdir()
    shutil.copy(folder / "she" / "plain.jpg", folder / "she" / ".thumbnails")
    assert find_people(folder)[0][0].photos == ("mirrored.jpg", "plain.jpg")


def test_a_caption_saved_by_notepad_begins_with_its_first_word(folder):
    (folder / "she" / "mirrored.txt").write_text("a woman in a spacesuit\n", encoding="utf-8-sig")
    (folder / "she" / "plain.txt").write_text("", encoding="utf-8-sig")
    person = find_people(folder)[0][0]
    assert [person.caption(photo) for photo in person.photos] == ["a woman in a spacesuit", "a photo of a person"]
