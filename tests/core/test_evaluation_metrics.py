"""The measures of an evaluation, on single pictures."""

import math

import numpy as np
import pytest
import torch

from dynamicid_core.evaluation import metrics
from tests.core.evaluated_faces import seen, unit


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
    """Each alone would match the first face."""
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


def test_people_are_in_place_in_their_own_column():
    left, right = unit(1), unit(0, 1)
    found = metrics.assign([seen(right, x=30), seen(left, x=19)], [left, right])
    assert metrics.in_place(found, width=40) == 1
    assert metrics.in_place(found, width=36) == 0.5
    assert metrics.in_place(metrics.assign([seen(right, x=10), seen(left, x=30)], [left, right]), width=40) == 0
    assert metrics.in_place(metrics.assign([seen(right, x=30)], [left, right]), width=40) == 0.5


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


def test_a_face_at_the_upper_left_edge_is_left_out_of_the_disruption():
    base = np.zeros((20, 20, 3), np.uint8)
    picture = base.copy()
    picture[:6, :6] = 255
    assert metrics.disruption(picture, base, [np.array([1, 1, 5, 5], np.float32)]) == 0


def test_face_boxes_grow_by_their_longer_side():
    base = np.zeros((40, 40, 3), np.uint8)
    picture = base.copy()
    picture[10:30, 10:30] = 255
    assert metrics.disruption(picture, base, [np.array([18, 15, 22, 25], np.float32)], margin=0.8) == 0
