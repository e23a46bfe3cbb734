import help_pictures
import pytest
from help_pictures import IMAGES, PICTURES, TWO_PEOPLE, boxes_of, parse


def test_every_picture_of_the_documentation_can_be_made_anew():
    assert sorted(PICTURES) == sorted(path.name for path in IMAGES.iterdir())


def test_only_missing_pictures_are_made_by_default(monkeypatch, tmp_path):
    assert parse([]) == []
    assert parse(["--all"]) == list(PICTURES)
    assert parse(["demo", "DynamicIDEditFace"]) == ["demo.jpg", "DynamicIDEditFace.jpg"]
    monkeypatch.setattr(help_pictures, "IMAGES", tmp_path)
    (tmp_path / "demo.jpg").touch()
    assert parse([]) == [name for name in PICTURES if name != "demo.jpg"]


def test_an_unknown_picture_is_told_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        parse(["demos"])
    message = capsys.readouterr().err
    assert "there is no picture demos" in message
    assert "DynamicIDPlaceFace" in message


def test_boxes_are_those_of_the_workflow():
    assert boxes_of(TWO_PEOPLE.path) == [
        {"x": 0.08, "y": 0.1, "width": 0.38, "height": 0.85},
        {"x": 0.54, "y": 0.1, "width": 0.38, "height": 0.85},
    ]
