"""Automatic layouts for several people: columns, rows, or as in a reference picture."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .regions import Box

MAX_PEOPLE = 8
COLUMNS, ROWS, REFERENCE = "equal columns", "rows", "as in the reference image"
LAYOUTS = (COLUMNS, ROWS, REFERENCE)

_MAX_ROW = 3
_HEADROOM = 0.1
# A face box ends at brow and chin; these fractions of its size are added for hair, ears and neck.
_HEAD_SIDES, _HEAD_TOP, _HEAD_BOTTOM = 0.35, 0.5, 0.25


def equal_columns(people: int) -> list[Box]:
    """Columns of full height, from left to right, as in the released model without boxes."""
    _check(people)
    return [Box(i / people, 0.0, (i + 1) / people, 1.0) for i in range(people)]


def head_and_shoulder_rows(people: int) -> list[Box]:
    """As in a group photo: up to three people in one row, up to eight in two, back row first; from left to right."""
    _check(people)
    if people <= _MAX_ROW:
        return _row(people, _HEADROOM, 1.0)
    back = people // 2
    middle = (_HEADROOM + 1.0) / 2
    return _row(back, _HEADROOM, middle) + _row(people - back, middle, 1.0)


def from_faces(boxes: Sequence[NDArray[np.float32]], height: int, width: int, people: int) -> list[Box]:
    """The faces of a picture, from left to right, enlarged to heads.

    boxes: [4] x0, y0, x1, y1 in pixels of a picture of this size. With more faces than people, the largest are used.
    Raises InputError with fewer.
    """
    _check(people)
    if len(boxes) < people:
        raise InputError(
            f"The reference image shows {len(boxes)} face{'' if len(boxes) == 1 else 's'} for {people} people. Use one "
            f"with at least {people} faces, disconnect some people, or choose another layout."
        )
    largest = sorted(boxes, key=lambda box: float((box[2] - box[0]) * (box[3] - box[1])), reverse=True)[:people]
    return [_head(box, height, width) for box in sorted(largest, key=lambda box: float(box[0] + box[2]))]


def _row(people: int, top: float, bottom: float) -> list[Box]:
    return [Box(i / people, top, (i + 1) / people, bottom) for i in range(people)]


def _head(box: NDArray[np.float32], height: int, width: int) -> Box:
    x0, y0, x1, y1 = (float(edge) for edge in box)
    across, down = x1 - x0, y1 - y0
    return Box(
        max((x0 - _HEAD_SIDES * across) / width, 0.0),
        max((y0 - _HEAD_TOP * down) / height, 0.0),
        min((x1 + _HEAD_SIDES * across) / width, 1.0),
        min((y1 + _HEAD_BOTTOM * down) / height, 1.0),
    )


def _check(people: int) -> None:
    if not 1 <= people <= MAX_PEOPLE:
        raise InputError(f"A layout takes 1 to {MAX_PEOPLE} people; found {people}.")
