"""Automatic layouts of several people."""

import numpy as np
import pytest

from dynamicid_core import layouts
from dynamicid_core.errors import InputError
from dynamicid_core.regions import Box


def overlap(a, b):
    return max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))


@pytest.mark.parametrize("arrange", [layouts.equal_columns, layouts.head_and_shoulder_rows])
@pytest.mark.parametrize("people", range(1, 9))
def test_everybody_has_a_place_of_their_own_in_the_picture(arrange, people):
    boxes = arrange(people)
    assert len(boxes) == people
    assert all(overlap(a, b) < 1e-9 for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_columns_are_the_released_models_strips():
    assert layouts.equal_columns(2) == [Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)]


def test_four_and_more_people_stand_in_two_rows_the_front_row_no_shorter():
    boxes = layouts.head_and_shoulder_rows(7)
    tops = [box.y0 for box in boxes]
    assert len(set(tops)) == 2
    assert tops == sorted(tops)
    assert tops.count(max(tops)) == 4


def face(x, size=40, y=50):
    return np.array([x, y, x + size, y + size], np.float32)


def test_people_stand_where_the_faces_are_from_left_to_right_with_room_for_the_head():
    first, second = layouts.from_faces([face(300), face(100)], 400, 400, people=2)
    assert first.x0 < 100 / 400 < 140 / 400 < first.x1 < second.x0
    assert first.y0 < 50 / 400 < 90 / 400 < first.y1


def test_of_more_faces_than_people_the_largest_count():
    boxes = layouts.from_faces([face(100, 20), face(300, 60), face(200, 50)], 400, 400, people=2)
    centres = [(box.x0 + box.x1) / 2 * 400 for box in boxes]
    assert centres == pytest.approx([225, 330], abs=1)


def test_heads_at_the_edge_stay_in_the_picture():
    (box,) = layouts.from_faces([face(0, 390, 5)], 400, 400, people=1)
    assert (box.x0, box.y0, box.x1, box.y1) == (0, 0, 1, 1)


def test_too_few_faces_or_people_are_refused():
    with pytest.raises(InputError, match="shows 1 face for 2 people"):
        layouts.from_faces([face(0)], 400, 400, people=2)
    with pytest.raises(InputError, match="1 to 8 people; found 9"):
        layouts.equal_columns(9)


def test_the_largest_faces_are_those_of_the_largest_area():
    tall, wide = np.array([0, 0, 40, 100], np.float32), np.array([200, 0, 250, 50], np.float32)
    (box,) = layouts.from_faces([wide, tall], 400, 400, people=1)
    assert box.x0 == 0


def test_a_head_has_more_room_above_the_brow_than_below_the_chin():
    (box,) = layouts.from_faces([np.array([100, 100, 140, 140], np.float32)], 400, 400, people=1)
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((86 / 400, 80 / 400, 154 / 400, 150 / 400))


def test_rows_leave_room_above_the_heads():
    assert layouts.head_and_shoulder_rows(2)[0] == Box(0, 0.1, 0.5, 1)


def test_a_head_in_a_wide_picture_is_as_wide_as_high_in_pixels():
    (box,) = layouts.from_faces([np.array([100, 100, 140, 140], np.float32)], 200, 400, people=1)
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((86 / 400, 80 / 200, 154 / 400, 150 / 200))
