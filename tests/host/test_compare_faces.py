"""Compare Faces, on photographs of real people."""

import sys

import comfy.model_management
import comfy.utils
import numpy as np
import pytest
from PIL import Image

from dynamicid_core.comfy_host import miniature
from dynamicid_core.comparison import SAME_PERSON
from tests import photos
from tests.documents import help_page, section
from tests.host.helpers import core, faces, node, run, tiny_clip_vision


@pytest.fixture(scope="module")
def family(photo_dynamicid, face_analysis):
    """Six real people of one photograph, from left to right."""
    inputs = {
        "image": photos.image(photos.group_of_six()),
        "dynamicid": photo_dynamicid,
        "face_analysis": face_analysis,
        "clip_vision": tiny_clip_vision(),
        "order": "left to right",
    }
    people = [run("DynamicIDEncodeFace", index=i, **inputs)[0] for i in range(6)]
    return {f"face_{i + 1}": face for i, face in enumerate(people)}


def compare(face_analysis, picture, people):
    return run("DynamicIDCompareFaces", image=photos.image(picture), face_analysis=face_analysis, **people)


def test_people_are_found_again_in_their_own_photo(face_analysis, family):
    drawn, similarity, table = compare(face_analysis, photos.group_of_six(), family)
    assert drawn.shape == photos.image(photos.group_of_six()).shape
    assert similarity > 0.99
    assert "swapped" not in table
    assert table.count("*") == 6


def test_people_in_a_mirrored_photo_have_swapped_places(face_analysis, family):
    mirrored = photos.group_of_six()[:, ::-1].copy()
    _, similarity, table = compare(face_analysis, mirrored, family)
    assert similarity > 0.6
    assert table.count("have swapped places") == 15


def test_people_placed_in_rows_are_compared_with_their_places(face_analysis, family):
    picture = photos.group_of_six()
    boxes = [face.box / ([picture.shape[1], picture.shape[0]] * 2) for face in face_analysis.detect(picture)]
    in_order = sorted(boxes, key=lambda box: box[0])
    mirrored_order = list(reversed(list(family.values())))
    make, box = core("face").Placement, core("regions").Box
    placed = tuple(
        make(face, box(*(float(edge) for edge in edges)))
        for face, edges in zip(mirrored_order, reversed(in_order), strict=True)
    )
    given = {"image": photos.image(picture), "face_analysis": face_analysis, "placements": placed}
    _, similarity, table = run("DynamicIDCompareFaces", **given)
    assert similarity > 0.99
    assert "swapped" not in table


def test_a_placed_person_of_weight_0_is_not_looked_for(face_analysis, family):
    make = core("face").Placement
    placed = (make(family["face_1"]), make(family["face_2"], weight=0.0))
    given = {"image": photos.image(photos.group_of_six()), "face_analysis": face_analysis, "placements": placed}
    _, similarity, table = run("DynamicIDCompareFaces", **given)
    assert similarity > 0.99
    assert table.count("*") == 1


def test_a_batch_shows_its_progress_and_can_be_stopped(face_analysis, family, monkeypatch):
    done = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update", lambda self, value: done.append((value, self.total)))
    picture = photos.image(photos.astronaut())
    given = {"image": picture.expand(3, -1, -1, -1), "face_analysis": face_analysis, **family}
    run("DynamicIDCompareFaces", **given)
    assert done == [(1, 3)] * 3
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run("DynamicIDCompareFaces", **given)
    finally:
        comfy.model_management.interrupt_current_processing(False)


def test_nobody_to_compare_with_is_refused(face_analysis):
    with pytest.raises(ValueError, match="no faces to compare with"):
        compare(face_analysis, photos.astronaut(), {})


def test_a_face_analysis_of_another_pack_is_refused(family):
    with pytest.raises(ValueError, match="comes from another node pack"):
        compare(object(), photos.astronaut(), {"face_1": family["face_1"]})


def test_a_stranger_is_not_recognised(face_analysis, family):
    _, similarity, table = compare(face_analysis, photos.astronaut(), {"face_1": family["face_1"]})
    assert similarity < 0.3
    assert "Face 1 cannot be recognised" in table


def test_the_two_people_of_the_miniature_count_as_one_which_the_help_pages_say(face_analysis):
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(miniature.FOLDER.glob("photos/*.jpg"))]
    one, other = (face_analysis.embed(picture, face_analysis.detect(picture)[0]) for picture in pictures)
    similarity = float(one @ other)
    assert similarity > SAME_PERSON
    numbers = section(help_page("DynamicIDCompareFaces"), "How to read the numbers")
    tips = section(help_page("DynamicIDMiniatureLoader"), "Tips")
    assert [text for text in (numbers, tips) if f"{similarity:.2f}" not in text or f"{SAME_PERSON}" not in text] == []


def test_a_face_without_an_embedding_cannot_be_compared(face_analysis):
    with pytest.raises(ValueError, match="Face 1 has no ArcFace embedding"):
        compare(face_analysis, photos.astronaut(), {"face_1": faces(1)[0]})


def test_people_placed_in_a_wide_picture_are_looked_for_at_their_own_places(face_analysis, family):
    """In the same column, one above the other: confusing width and height would swap them."""
    photo = photos.group_of_six()
    boxes = sorted((face.box for face in face_analysis.detect(photo)), key=lambda box: box[0])
    x0, y0, x1, y1 = (round(float(edge)) for edge in boxes[0])
    side = 2 * max(x1 - x0, y1 - y0)
    cuts = [photos_around(photo, box, side) for box in (boxes[0], boxes[5])]
    picture = np.zeros((2 * side, 6 * side, 3), np.uint8)
    picture[:side, :side], picture[side:, :side] = cuts
    make, box = core("face").Placement, core("regions").Box
    above, below = box(0.0, 0.0, 1 / 6, 0.5), box(0.0, 0.5, 1 / 6, 1.0)
    for regions, swapped in (((above, below), False), ((below, above), True)):
        placed = tuple(make(family[name], region) for name, region in zip(("face_1", "face_6"), regions, strict=True))
        given = {"image": photos.image(picture), "face_analysis": face_analysis, "placements": placed}
        table = run("DynamicIDCompareFaces", **given)[2]
        assert ("swapped" in table) == swapped


def photos_around(photo, box, side):
    """A square of the photo, centred on a box."""
    middle_x, middle_y = (float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2)
    bordered = np.pad(photo, ((side, side), (side, side), (0, 0)))
    left, top = round(middle_x + side / 2), round(middle_y + side / 2)
    return bordered[top : top + side, left : left + side]


def test_placements_of_nobody_are_not_replaced_by_the_faces(face_analysis, family):
    nobody = (core("face").Placement(family["face_1"], weight=0.0),)
    given = {"image": photos.image(photos.group_of_six()), "face_analysis": face_analysis, "placements": nobody}
    with pytest.raises(ValueError, match="no faces to compare with"):
        run("DynamicIDCompareFaces", face_1=family["face_1"], **given)


def test_a_place_in_a_wide_picture_is_the_middle_of_its_region():
    box = core("regions").PixelBox(100, 0, 100, 100)
    place = sys.modules[node("DynamicIDCompareFaces").__module__]._place
    assert place(box, np.zeros((100, 400, 3), np.uint8)) == (150, 50)


def test_a_batch_is_captioned_in_full(family, face_analysis):
    """The mean over its pictures, and a table of each."""
    group, one = photos.group_of_six(), dict(list(family.items())[:1])
    both = photos.image(group, np.zeros_like(group))
    _, similarity, table = run("DynamicIDCompareFaces", image=both, face_analysis=face_analysis, **one)
    assert similarity == pytest.approx(0.5, abs=0.01)
    assert "1.000*" in table or "0.999*" in table
    assert "No face was found" in table
