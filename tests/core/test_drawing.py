"""Previews show things where they are, in the colour of the person they belong to."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageFont
from scipy.optimize import linear_sum_assignment

from dynamicid_core import drawing
from dynamicid_core.comparison import compare
from dynamicid_core.face_analysis import DetectedFace
from dynamicid_core.keypoints import KEYPOINT_COUNT, Keypoints
from dynamicid_core.regions import Box
from tests.core.test_comparison import ANNA, BEN, like

WIDE = np.zeros((100, 400, 3), np.uint8)


def face(x0, y0, x1, y1):
    box = np.array([x0, y0, x1, y1], np.float32)
    middle = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]], np.float32)
    return DetectedFace(box, 0.9, np.repeat(middle, 5, axis=0))


def has(picture, x, y, colour):
    """Whether a colour is within two pixels of a position."""
    near = picture[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3].astype(int)
    return bool((np.abs(near - np.array(colour)).max(axis=-1) < 40).any())


def test_boxes_are_around_the_faces_of_a_wide_photo_and_the_chosen_one_stands_out():
    other, chosen = face(40, 40, 80, 80), face(200, 20, 260, 80)
    shown = drawing.draw_faces(WIDE, [other, chosen], chosen)
    size = drawing.PREVIEW_SIZE
    scale, top = size / 400, (size - size // 4) // 2
    assert shown.shape == (size, size, 3)
    for one, colour in ((other, drawing._OTHER_COLOUR), (chosen, drawing._CHOSEN_COLOUR)):
        assert has(shown, one.box[2] * scale, top + one.centre[1] * scale, colour)
    assert has(shown, chosen.centre[0] * scale, top + chosen.centre[1] * scale, drawing._POINT_COLOUR)


def test_places_of_a_layout_are_where_they_will_be_in_a_wide_picture():
    shown = drawing.draw_layout([Box(0, 0, 0.25, 1), Box(0.5, 0.5, 1, 1)], WIDE)
    assert has(shown, 99, 60, drawing.person_colour(0))
    assert has(shown, 380, 51, drawing.person_colour(1))
    assert not shown[20, 350].any()


def test_a_face_is_boxed_in_the_colour_of_the_person_it_is():
    photo = np.zeros((200, 400, 3), np.uint8)
    faces = [face(20, 80, 80, 180), face(220, 80, 280, 180)]
    shown = drawing.draw_comparison(photo, compare(faces, [like(BEN), like(ANNA)], [ANNA, BEN]))
    assert has(shown, 20, 150, drawing.person_colour(1))
    assert has(shown, 220, 150, drawing.person_colour(0))


def test_a_face_that_matches_nobody_is_boxed_in_grey():
    nobody = np.zeros(512, np.float32)
    nobody[500] = 1
    photo = np.zeros((200, 400, 3), np.uint8)
    faces = [face(20, 80, 80, 180), face(220, 80, 280, 180)]
    shown = drawing.draw_comparison(photo, compare(faces, [nobody, like(ANNA)], [ANNA]))
    assert has(shown, 20, 150, drawing._STRANGER_COLOUR)
    assert has(shown, 220, 150, drawing.person_colour(0))


@pytest.mark.parametrize("earlier", [False, True])
def test_keypoints_are_drawn_where_they_are_with_lines_from_where_they_were(earlier):
    now, before = torch.full((KEYPOINT_COUNT, 2), 0.5), torch.full((KEYPOINT_COUNT, 2), 0.5)
    now[0], before[0] = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.25])
    shown = drawing.draw_keypoints(Keypoints(now), Keypoints(before) if earlier else None)
    size = drawing.PREVIEW_SIZE
    assert has(shown, 3 * size / 4, size / 4, drawing._CHOSEN_COLOUR)
    assert has(shown, size / 4 + 20, size / 4, drawing._OTHER_COLOUR) == earlier
    assert not has(shown, size / 4, size / 4, drawing._CHOSEN_COLOUR)


@pytest.mark.parametrize("corner", [(-20, -20), (190, 20), (190, 90), (20, 110)])
def test_a_label_at_the_edge_of_a_picture_is_whole(corner):
    inside, at_the_edge = (Image.new("RGB", (200, 100), "black") for _ in range(2))
    drawing._draw_label(inside, (20, 20), "2: face 2  0.51", (255, 0, 0), 14)
    drawing._draw_label(at_the_edge, corner, "2: face 2  0.51", (255, 0, 0), 14)
    assert np.array_equal(*(cut_to_content(np.asarray(picture)) for picture in (inside, at_the_edge)))


def cut_to_content(picture):
    rows, columns = (picture.any(axis=(axis, 2)).nonzero()[0] for axis in (1, 0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_a_person_has_one_colour_in_the_box_editor_and_in_pictures():
    script = Path(drawing.__file__).parents[1] / "web" / "js" / "box_editor" / "picture.js"
    shades = re.findall(r'"(#[0-9a-f]{6})"', script.read_text(encoding="utf-8").partition("const COLOURS")[2])
    edited = np.array([ImageColor.getrgb(shade) for shade in shades])
    drawn = np.array([drawing.person_colour(number) for number in range(len(shades))])
    distances = np.linalg.norm(edited[:, None] - drawn, axis=-1)
    assert linear_sum_assignment(distances)[1].tolist() == list(range(8))


def drawn(letter, font):
    return bytes(font.getmask(letter))


@pytest.fixture
def fonts():
    drawing.sheet_font.cache_clear()
    yield drawing.sheet_font
    drawing.sheet_font.cache_clear()


@pytest.mark.parametrize("letter", ["ü", "ł", "Ж", "Ω", "ế"])
def test_letters_of_many_languages_are_no_boxes_on_sheets(fonts, letter):
    missing = "\U000f0000"  # in no font
    assert drawn(letter, fonts(20)) != drawn(missing, fonts(20))


def test_sheets_have_letters_without_matplotlib_too(fonts, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert drawn("a", fonts(20)) == drawn("a", ImageFont.load_default(20))


def test_lines_break_between_words_and_are_as_wide_as_allowed():
    text = "one two three four five six seven"
    lines = drawing.wrap_text(text, 13, 90)
    assert " ".join(lines) == text
    assert all(drawing.sheet_font(13).getlength(line) <= 90 for line in lines)
    for before, after in pairwise(lines):
        assert drawing.sheet_font(13).getlength(f"{before} {after.split()[0]}") > 90
    assert drawing.wrap_text("a " + "m" * 50 + " b", 13, 90) == ["a", "m" * 50, "b"]


@pytest.mark.parametrize("count", [1, 12])
def test_the_number_of_a_face_can_be_read_on_a_node(count):
    """Where the preview is a quarter as large: 7 pixels. It sits on the face's box, and hides nothing of the face."""
    size = drawing.PREVIEW_SIZE
    faces = [face(200, 200, 300, 320)] * count
    shown = drawing.draw_faces(np.full((size, size, 3), 90, np.uint8), faces, face(0, 0, 1, 1))
    label = (np.abs(shown[:, 201:300].astype(int) - drawing._OTHER_COLOUR).max(axis=-1) < 40).any(axis=1).nonzero()[0]
    ink = (shown.max(axis=-1) < 40).nonzero()
    assert np.ptp(ink[0]) + 1 >= 28
    assert label[0] < ink[0].min()
    assert ink[0].max() < 200
    assert not has(shown, 250, 205, drawing._OTHER_COLOUR)
