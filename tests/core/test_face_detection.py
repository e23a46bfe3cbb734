"""Faces that are hard to find in real photographs: very large, very small, not upright."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.face_detection import FaceDetector
from dynamicid_core.face_packs import open_pack
from dynamicid_core.images import square_around
from tests import photos

HEADS = Path(__file__).parents[1] / "heads"


@pytest.fixture(scope="module")
def known(analysis):
    """The astronaut's face, upright and large enough."""
    return analysis.embed(photos.astronaut(), analysis.detect(photos.astronaut())[0])


def similarity(analysis, known, found):
    return known @ analysis.embed(found.photo, found.chosen)


def resized(photo, width, height):
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(("detection_size", "sides"), [(640, 1.25), (1024, 1.25), (2048, 2.5)])
def test_a_close_up_is_chosen_before_a_small_face_in_the_background(known, detection_size, sides, pack):
    analysis = open_pack(pack, "CPU", detection_size)
    astronaut, group = photos.astronaut(), photos.group_of_six()
    own, other = (analysis.choose(photo, "largest", 0).chosen.box for photo in (astronaut, group))
    photo = resized(square_around(astronaut, own, sides).crop(astronaut), 1024, 1024).copy()
    photo[:130, :130] = resized(square_around(group, other, 2.0).crop(group), 130, 130)
    found = analysis.choose(photo, "largest", 0)
    assert len(found.faces) == 2
    assert similarity(analysis, known, found) > 0.8


@pytest.mark.parametrize("width", [60, 100])
def test_a_small_face_in_a_large_photo_is_found(analysis, known, width):
    whole, box = photos.astronaut(), analysis.detect(photos.astronaut())[0].box
    side = round(whole.shape[0] * width / (box[2] - box[0]))
    photo = resized(photos.coffee(), 6000, 4000).copy()
    photo[2000 : 2000 + side, 3000 : 3000 + side] = resized(whole, side, side)
    found = analysis.choose(photo, "largest", 0)
    assert found.chosen.box[2] - found.chosen.box[0] == pytest.approx(width, rel=0.2)
    assert similarity(analysis, known, found) > 0.8


def test_a_face_found_with_a_border_is_where_it_is_without_one(analysis):
    """The border is for faces that are not found without it; this one is found either way, so that both compare."""
    photo, detector = photos.astronaut(), analysis._detector
    close = resized(square_around(photo, analysis.detect(photo)[0].box, 1.0).crop(photo), 1000, 1000)
    bgr = np.ascontiguousarray(close[..., ::-1])
    (bordered,), (plain, *_) = detector._find_with_border(bgr), detector.find(bgr)
    np.testing.assert_allclose(bordered.landmarks, plain.landmarks, atol=15)
    np.testing.assert_allclose(bordered.box, plain.box, atol=60)


@pytest.mark.parametrize("name", ["astronaut", "group_of_six"])
@pytest.mark.parametrize(
    ("turns", "back"), [(1, "90 degrees to the right"), (2, "180 degrees"), (3, "90 degrees to the left")]
)
def test_a_photo_that_is_not_upright_is_turned_and_reported(analysis, caplog, name, turns, back):
    photo = getattr(photos, name)()
    found = analysis.choose(np.rot90(photo, turns), "largest", 0, number=2, total=3)
    assert np.array_equal(found.photo, photo)
    assert len(found.faces) == len(analysis.detect(photo))
    assert f"Photo 2 of 3 is not upright; turned it by {back}" in caplog.text


@pytest.mark.parametrize("degrees", [-35, -25, 0, 25, 35])
def test_an_upright_photo_stays_as_it_is_however_heads_are_tilted(analysis, degrees):
    heads = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(HEADS.glob("*.jpg"))]
    for photo in (photos.astronaut(), photos.actor(), photos.group_of_six(), *heads):
        tilted = np.asarray(Image.fromarray(photo).rotate(degrees))
        assert analysis.turn_upright(tilted)[0] is tilted


def test_a_person_lying_beside_an_upright_one_does_not_turn_the_photo(analysis):
    group = photos.group_of_six()
    lying = resized(square_around(group, analysis.choose(group, "largest", 0).chosen.box, 2.2).crop(group), 150, 150)
    for path in sorted(HEADS.glob("*.jpg")):
        photo = np.full((300, 460, 3), 125, np.uint8)
        photo[:, :300] = resized(np.asarray(Image.open(path).convert("RGB")), 300, 300)
        photo[80:230, 305:455] = np.rot90(lying)
        assert analysis.turn_upright(photo)[0] is photo


def test_all_sizes_are_tried_before_a_photo_is_said_to_have_no_face(analysis, monkeypatch):
    tried = []
    monkeypatch.setattr(FaceDetector, "_find_at", lambda self, photo, size: tried.append((photo.shape[:2], size)) or [])
    with pytest.raises(
        InputError, match="Tried detection at 640, 320, 160, 1280 pixels, with a border added, and rotated"
    ):
        analysis.choose(np.zeros((1000, 2000, 3), np.uint8), "largest", 0)
    upright = [(1000, 2000), 640], [(1000, 2000), 320], [(1000, 2000), 160]
    assert {*map(tuple, upright), ((960, 1280), 640), ((1000, 2000), 1280), ((2000, 1000), 160)} <= set(tried)


def test_the_border_of_a_long_photo_takes_no_memory_to_speak_of(analysis, monkeypatch):
    bordered = []
    monkeypatch.setattr(FaceDetector, "_find_at", lambda self, photo, size: bordered.append(photo.nbytes) or [])
    analysis._detector._find_with_border(np.zeros((20_000, 1080, 3), np.uint8))
    assert bordered[0] < 3 * 1300**2


@pytest.mark.parametrize(
    ("asked", "side", "tried"),
    [(320, 600, "320, 160"), (700, 600, "672, 320, 160"), (200, 600, "192, 384"), (200, 1600, "192, 384, 768, 1536")],
)
def test_the_detection_size_asked_for_comes_first(asked, side, tried, pack):
    with pytest.raises(InputError, match=f"Tried detection at {tried} pixels"):
        open_pack(pack, "CPU", asked).choose(np.zeros((side, side, 3), np.uint8), "largest", 0)
