"""Expressions of real faces, by the network that comes with the pack."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dynamicid_core import expression
from dynamicid_core.errors import InputError
from dynamicid_core.expression import EXPRESSIONS, classify_expression
from dynamicid_core.face_analysis import DetectedFace
from tests import photos


@pytest.fixture
def no_session():
    """As in a process that has not classified a face yet."""
    expression._open_session.cache_clear()
    yield
    expression._open_session.cache_clear()


def largest(analysis, photo: np.ndarray) -> DetectedFace:
    return analysis.choose(photo, "largest", 0).chosen


def test_the_astronaut_is_happy(analysis):
    photo = photos.astronaut()
    assert classify_expression(photo, largest(analysis, photo))["happy"] > 0.9


def test_people_of_a_group_are_distinguished(analysis):
    group = photos.group_of_six()
    shown = [classify_expression(group, analysis.choose(group, "left to right", index).chosen) for index in range(6)]
    assert [max(each, key=each.get) for each in shown[1:4]] == ["neutral", "happy", "happy"]
    assert shown[4]["happy"] < 0.1 < 0.9 < shown[5]["happy"]


def test_the_probabilities_of_all_expressions_sum_to_one(analysis):
    group = photos.group_of_six()
    for face in analysis.detect(group):
        probabilities = classify_expression(group, face)
        assert tuple(probabilities) == EXPRESSIONS
        assert sum(probabilities.values()) == pytest.approx(1)
        assert all(0 <= value <= 1 for value in probabilities.values())


def test_the_same_face_gives_the_same_twice(analysis):
    photo = photos.astronaut()
    face = largest(analysis, photo)
    assert classify_expression(photo, face) == classify_expression(photo, face)


def test_a_mirrored_photo_shows_the_same_expression(analysis):
    group = photos.group_of_six()
    width = group.shape[1]
    for face in analysis.detect(group):
        x0, y0 = face.box[:2].round()
        # Whole pixels with whole margins, or the two squares would differ by one pixel.
        box = np.array([x0, y0, x0 + 100, y0 + 100], np.float32)
        mirrored = replace(face, box=np.array([width - box[2], y0, width - box[0], y0 + 100], np.float32))
        probabilities = classify_expression(group, replace(face, box=box))
        assert classify_expression(group[:, ::-1], mirrored) == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize("scale", [0.5, 2.5])
def test_the_size_of_the_photo_makes_no_difference(analysis, scale):
    photo = photos.astronaut()
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    resized = np.asarray(Image.fromarray(photo).resize(size))
    assert classify_expression(resized, largest(analysis, resized))["happy"] > 0.9


def test_a_face_at_the_edges_of_its_photo_is_classified(analysis):
    photo = photos.astronaut()
    x0, y0, x1, y1 = largest(analysis, photo).box.astype(int)
    for cut in (photo[y0:, x0:], photo[:y1, :x1], photo[y0:y1, x0:x1]):
        cut = np.ascontiguousarray(cut)
        assert classify_expression(cut, largest(analysis, cut))["happy"] > 0.9


def test_a_box_that_reaches_beyond_a_narrow_photo_is_no_error():
    face = DetectedFace(np.array([-5, 30, 15, 90], np.float32), 1.0, np.zeros((5, 2), np.float32))
    assert set(classify_expression(photos.astronaut()[:100, :20], face)) == set(EXPRESSIONS)


def test_the_network_names_the_classes_in_this_order_and_whose_it_is(no_session):
    about = expression._open_session().get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["classes"])) == EXPRESSIONS
    assert about["licence"] == "MIT"
    source = about["source"].removeprefix("npm ").rpartition(" ")
    licences = expression.MODEL_FILE.with_name("LICENSES.md").read_text(encoding="utf-8")
    assert source[0] in licences
    assert source[2] in licences


def test_a_machine_without_onnxruntime_is_told_what_to_install(monkeypatch, no_session):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    face = DetectedFace(np.array([170, 60, 270, 190], np.float32), 1.0, np.zeros((5, 2), np.float32))
    with pytest.raises(InputError, match=r"needs the Python package onnxruntime.* pip install onnxruntime"):
        classify_expression(photos.astronaut(), face)


def test_what_is_left_of_an_onnxruntime_that_was_removed_is_reported(monkeypatch, no_session):
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    face = DetectedFace(np.array([170, 60, 270, 190], np.float32), 1.0, np.zeros((5, 2), np.float32))
    with pytest.raises(InputError, match=r"package onnxruntime, which is installed but .* install onnxruntime"):
        classify_expression(photos.astronaut(), face)
