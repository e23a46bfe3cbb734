import help_pictures
import pytest
from help_pictures import CAPTION, GAP, IMAGES, PICTURES, TWO_PEOPLE, boxes_of, parse, sheet
from PIL import Image


def picture(width, height, colour="red"):
    return Image.new("RGB", (width, height), colour)


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


def test_pictures_of_a_sheet_have_one_height_and_stand_below_their_captions():
    whole = sheet([[("first", picture(50, 100)), ("second", picture(100, 100, "blue"))]], 200)
    assert whole.size == (100 + GAP + 200, CAPTION + 200)
    assert whole.getpixel((50, CAPTION + 100)) == (255, 0, 0)
    assert whole.getpixel((100 + GAP + 100, CAPTION + 100)) == (0, 0, 255)
    assert min(whole.crop((0, 0, 100, CAPTION)).convert("L").getdata()) < 100  # black letters on white


def test_rows_without_captions_leave_no_room_for_them():
    whole = sheet([[("", picture(100, 100))], [("", picture(100, 100, "blue"))]], 100)
    assert whole.size == (100, 200 + GAP)
    assert whole.getpixel((50, 50)) == (255, 0, 0)
    assert whole.getpixel((50, 100 + GAP + 50)) == (0, 0, 255)


def test_boxes_are_those_of_the_workflow():
    assert boxes_of(TWO_PEOPLE) == [
        {"x": 0.08, "y": 0.1, "width": 0.38, "height": 0.85},
        {"x": 0.54, "y": 0.1, "width": 0.38, "height": 0.85},
    ]
