"""Faces in real photographs, by real InsightFace models."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.face_analysis import align
from dynamicid_core.face_packs import open_pack
from tests import photos


def test_the_astronaut_has_one_face_with_keypoints_on_it(analysis):
    face = analysis.choose(photos.astronaut(), "largest", 0).chosen
    assert len(analysis.detect(photos.astronaut())) == 1
    assert face.keypoints.shape == (106, 2)
    x0, y0, x1, y1 = face.box
    assert 150 < x0 < 200 < x1 < 290
    inside = (face.keypoints > [x0 - 10, y0 - 10]) & (face.keypoints < [x1 + 10, y1 + 10])
    assert inside.all()


def test_embeddings_have_length_one_and_tell_people_apart(analysis):
    astronaut, actor = photos.astronaut(), photos.actor()
    mirrored = astronaut[:, ::-1].copy()
    embeddings = [analysis.embed(p, analysis.choose(p, "largest", 0).chosen) for p in (astronaut, mirrored, actor)]
    assert all(abs(np.linalg.norm(e) - 1) < 1e-5 for e in embeddings)
    assert embeddings[0] @ embeddings[1] > 0.6
    assert embeddings[0] @ embeddings[2] < 0.2


def test_embeddings_and_keypoints_are_those_of_insightface(analysis):
    from insightface.app.common import Face as InsightFace

    photo = photos.astronaut()
    face = analysis.choose(photo, "largest", 0).chosen
    theirs = InsightFace(bbox=face.box, kps=face.landmarks, det_score=face.score)
    for task in ("recognition", "landmark_2d_106"):
        analysis._models[task].get(np.ascontiguousarray(photo[..., ::-1]), theirs)
    assert analysis.embed(photo, face) @ theirs.normed_embedding > 0.9999
    for found in (face, *analysis.detect(photo)):
        np.testing.assert_allclose(found.keypoints, theirs.landmark_2d_106, atol=1e-3)


def test_swapped_colour_channels_give_another_embedding(analysis):
    photo = photos.astronaut()
    face = analysis.choose(photo, "largest", 0).chosen
    swapped = np.ascontiguousarray(photo[..., ::-1])
    assert np.allclose(analysis.embed(photo, face, "rgb"), analysis.embed(swapped, face, "bgr"), atol=1e-6)
    assert analysis.embed(photo, face, "rgb") @ analysis.embed(photo, face, "bgr") < 0.99


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("largest", lambda face: -face.area),
        ("left to right", lambda face: face.centre[0]),
        ("right to left", lambda face: -face.centre[0]),
        ("top to bottom", lambda face: face.centre[1]),
        ("most certain", lambda face: -face.score),
    ],
)
def test_faces_of_a_group_come_in_the_order_asked_for(analysis, order, key):
    group = photos.group_of_six()
    faces = [analysis.choose(group, order, i).chosen for i in range(6)]
    assert all(key(a) <= key(b) for a, b in pairwise(faces))
    assert len({tuple(face.box) for face in faces}) == 6


def test_the_face_nearest_to_the_centre_comes_first(analysis):
    group = photos.group_of_six()
    middle = (group.shape[1] / 2, group.shape[0] / 2)
    distances = [np.hypot(f.centre[0] - middle[0], f.centre[1] - middle[1]) for f in analysis.detect(group)]
    first = analysis.choose(group, "nearest to the centre", 0).chosen
    assert np.isclose(np.hypot(first.centre[0] - middle[0], first.centre[1] - middle[1]), min(distances))


def test_an_index_past_the_last_face_says_how_many_there_are(analysis):
    with pytest.raises(InputError, match=r"no face 6 in photo 2 of 3 .* 6 found, so the index goes from 0 to 5"):
        analysis.choose(photos.group_of_six(), "largest", 6, number=2, total=3)


def test_a_photo_without_a_face_says_what_was_tried(analysis):
    with pytest.raises(
        InputError, match=r"No face found in photo 1 of 2 \(600 x 400\)\. Tried detection at 640, 320, 160 pixels, with"
    ):
        analysis.choose(photos.coffee(), "largest", 0, number=1, total=2)


def test_an_unknown_order_is_refused(analysis):
    with pytest.raises(InputError, match='"smallest" is not an order'):
        analysis.choose(photos.astronaut(), "smallest", 0)


def test_a_face_that_fills_the_photo_is_found(analysis):
    photo = photos.astronaut()
    x0, y0, x1, y1 = analysis.choose(photo, "largest", 0).chosen.box.astype(int)
    close = np.asarray(Image.fromarray(photo[y0:y1, x0:x1]).resize((900, 1100)))
    face = analysis.choose(close, "largest", 0).chosen
    centre = np.array(face.centre) / [900, 1100]
    assert (abs(centre - 0.5) < 0.2).all(), "found where it is, whatever border was added"


def test_the_aligned_crop_has_the_eyes_at_one_height(analysis):
    photo = np.asarray(Image.fromarray(photos.astronaut()).rotate(20))
    upright = align(photo, analysis.choose(photo, "largest", 0).chosen.landmarks, 224)
    assert upright.shape == (224, 224, 3)
    bordered = np.pad(upright, ((60, 60), (60, 60), (0, 0)))
    left, right = analysis.choose(bordered, "largest", 0).chosen.landmarks[:2]
    assert abs(left[1] - right[1]) < 0.1 * abs(right[0] - left[0])


@pytest.mark.parametrize("size", [160, 224, 500, 672, 800, 1056, 2048])
def test_a_photo_without_a_face_is_reported_at_every_detection_size(size, pack):
    analysis = open_pack(pack, "CPU", size)
    with pytest.raises(InputError, match="No face found in the photo"):
        analysis.choose(np.full((300, 200, 3), 128, np.uint8), "largest", 0)


def test_a_photo_too_narrow_to_look_at_is_reported(analysis):
    with pytest.raises(InputError, match=r"No face found in the photo \(8 x 4000\)"):
        analysis.choose(np.full((4000, 8, 3), 128, np.uint8), "largest", 0)


def test_a_face_too_small_to_know_a_person_by_is_taken_with_a_warning(analysis, caplog):
    small = np.asarray(Image.fromarray(photos.astronaut()[:256, 100:356]).resize((64, 64), Image.Resampling.LANCZOS))
    chosen = analysis.choose(small, "largest", 0).chosen
    assert chosen.box[2] - chosen.box[0] < 40
    assert "pixels wide: too small to recognise a person well" in caplog.text
