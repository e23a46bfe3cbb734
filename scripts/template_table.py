"""One face template of what was seen of many heads: without outliers, smooth and symmetric."""

from __future__ import annotations

from repository import SetupError
from template_heads import GROUPS, PITCHES, POINTS, YAWS, Array

OUTER_CORNERS = (35, 93)
NOSE_BRIDGE = [72, 73, 74, 75, 81]
SLID, MOVED = 0.08, 0.05  # units at which a point counts half for the pose


def mirror_of(front: Array) -> Array:
    """Each point's partner on the other half of the face, [106] int64, from points [106, 3] seen from the front."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    flipped = front[:, :2] * [-1, 1]
    cost = np.linalg.norm(front[:, None, :2] - flipped[None], axis=-1)
    group = np.zeros(POINTS, int)
    for number, (name, indices) in enumerate(GROUPS.items()):
        group[indices] = -1 - min(number, list(GROUPS).index(name.replace("right", "left")))
    cost += 10.0 * (group[:, None] != group[None])
    mirror = linear_sum_assignment(cost + cost.T)[1].astype(np.int64)
    if not (mirror[mirror] == np.arange(POINTS)).all():
        raise SetupError("The keypoints of the two halves of the face do not pair up.")
    return mirror


def combine(tables: Array, mirror: Array) -> Array:
    """Tables of heads [heads, pitches, yaws, 106, 3] -> one without outliers, smooth and symmetric."""
    import numpy as np
    from scipy.signal import savgol_filter

    table = filled(without_outliers(tables))
    table = savgol_filter(table, 5, 2, axis=1)
    table = savgol_filter(table, 5, 2, axis=0)
    table = (table + mirrored(table, mirror)) / 2
    corners = table[PITCHES.index(0), YAWS.index(0), list(OUTER_CORNERS)]
    return (table / np.linalg.norm(corners[0] - corners[1])).astype(np.float32)


def mirrored(table: Array, mirror: Array) -> Array:
    """The table of the mirrored head, [pitches, yaws, 106, 3]."""
    return table[:, ::-1, mirror] * [-1, 1, 1]


def without_outliers(tables: Array) -> Array:
    """The mean over heads of what is near their median, [pitches, yaws, 106, 3], NaN where no head was seen."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of views in which nothing was found
        off = np.linalg.norm(tables - np.nanmedian(tables, axis=0), axis=-1, keepdims=True)
        limit = 2.5 * np.nanmedian(off, axis=0) + 0.02
        return np.nanmean(np.where(off <= limit, tables, np.nan), axis=0)


def filled(table: Array) -> Array:
    """Views without any face, from the nearest yaw that has one."""
    import numpy as np

    seen = np.isfinite(table).all(axis=(2, 3))
    result = table.copy()
    for i, row in enumerate(seen):
        if not row.any():
            raise SetupError(f"No face was found at pitch {PITCHES[i]} in any view.")
        for j in np.flatnonzero(~row):
            result[i, j] = table[i, min(np.flatnonzero(row), key=lambda k: abs(k - j))]
    return result


def front_of(table: Array) -> Array:
    """The points [106, 3] in the view from the front."""
    return table[PITCHES.index(0), YAWS.index(0)]


def rigidity_of(table: Array, actions: Array, mirror: Array) -> Array:
    """How well each point serves to solve the pose, [106] 0 to 1: less the more it slides or moves."""
    import numpy as np

    near = [j for j, yaw in enumerate(YAWS) if abs(yaw) <= 45]
    slide = table[:, near].std(axis=(0, 1)).max(axis=-1)
    move = np.linalg.norm(actions, axis=-1).max(axis=0)
    weight = 1 / (1 + (slide / SLID) ** 2 + (move / MOVED) ** 2)
    weight = (weight + weight[mirror]) / 2
    return (weight / weight[[*OUTER_CORNERS, *NOSE_BRIDGE]].mean()).clip(0, 1).astype(np.float32)
