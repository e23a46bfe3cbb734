"""Heads of the mesh in many poses, and what a real detector sees in pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamicid_core.face_analysis import FaceAnalysis
    from dynamicid_core.training.synthetic.mesh import HeadMesh
    from dynamicid_core.training.synthetic.render import Light, Look, Surface, View

Array = Any  # numpy is not imported before the environment is there

YAWS = tuple(range(-75, 76, 15))
PITCHES = (-30, -15, 0, 15, 30)
SIZE, SCALE = 384, 84.0  # pixels, and pixels per unit of the head frame
FACE_MIDDLE = (0.0, 0.15, 0.5)  # shown in the middle of the picture
MARGIN = 6  # pixels around a point in which its surface is searched
LAYER, NEAR = 0.35, 0.08  # units of depth: between a head's edge and what is behind it; between two looks at one place
POINTS = 106

GROUPS = {
    "jaw contour": [*range(33)],
    "left brow": [*range(43, 52)],
    "right brow": [*range(97, 106)],
    "left eye": [33, 35, 36, 37, 39, 40, 41, 42],
    "right eye": [87, 89, 90, 91, 93, 94, 95, 96],
    "left pupil": [34, 38],
    "right pupil": [88, 92],
    "nose": [*range(72, 87)],
    "mouth outer": [52, 53, 55, 56, 58, 59, 61, 63, 64, 67, 68, 71],
    "mouth inner": [54, 57, 60, 62, 65, 66, 69, 70],
}


@dataclass(frozen=True)
class Person:
    """A head to measure: a shape and its colours."""

    shape: dict[str, float]
    look: Look


def people() -> list[Person]:
    """Eight heads, as different as the shape allows."""
    from dynamicid_core.training.synthetic.mesh import person

    african, asian, caucasian = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    kinds: list[tuple[float, float, float, float, Sequence[float]]] = [
        (0, 0.1, 0.5, 0.4, caucasian),
        (1, 0.1, 0.6, 0.5, caucasian),
        (0, 0.2, 0.5, 0.6, asian),
        (1, 0.4, 0.4, 0.4, asian),
        (0, 0.3, 0.5, 0.3, african),
        (1, 0.2, 0.7, 0.6, african),
        (0, 0.8, 0.4, 0.7, (0.3, 0.3, 0.4)),
        (1, 0.7, 0.5, 0.8, (0.2, 0.3, 0.5)),
    ]
    shapes = [person(male=m, age=a, muscle=s, weight=w, race=r) for m, a, s, w, r in kinds]
    return [Person(shape, look_of(race, age)) for shape, (_, age, _, _, race) in zip(shapes, kinds, strict=True)]


def look_of(race: Sequence[float], age: float) -> Look:
    """Colours that go with an origin (shares of RACES) and an age of 0 to 1."""
    import numpy as np

    from dynamicid_core.training.synthetic.render import Look

    def mixed(*colours: tuple[float, float, float]) -> tuple[float, float, float]:
        red, green, blue = (float(channel) for channel in np.array(race) @ np.array(colours))
        return red, green, blue

    grey = age > 0.6
    return Look(
        skin=mixed((0.20, 0.10, 0.06), (0.60, 0.39, 0.26), (0.68, 0.44, 0.34)),
        lips=mixed((0.16, 0.06, 0.05), (0.42, 0.15, 0.13), (0.45, 0.17, 0.16)),
        brows=(0.175, 0.17, 0.165) if grey else (0.015, 0.01, 0.008),
        hair=(0.35, 0.34, 0.33) if grey else (0.03, 0.02, 0.016),
    )


def average_shape() -> dict[str, float]:
    """The head whose vertices stand for the points."""
    from dynamicid_core.training.synthetic.mesh import person

    return person(male=0.5, age=0.3, muscle=0.5, weight=0.5, race=(1 / 3, 1 / 3, 1 / 3))


def lights() -> list[Light]:
    """From the upper left, and softer from the right."""
    from dynamicid_core.training.synthetic.render import Light

    return [
        Light(),
        Light(direction=(0.5, -0.3, 0.8), key=0.55, ambient=0.6, background=(0.6, 0.58, 0.55)),
    ]


def view_of(pose: tuple[float, float, float], size: int = SIZE, scale: float = SCALE) -> View:
    """A view with the face in the middle of the picture."""
    import numpy as np

    from dynamicid_core.training.synthetic.render import View

    x, y, _ = View(pose, scale, (0, 0), (size, size)).project(np.array(FACE_MIDDLE, np.float32))
    return View(pose, scale, (size / 2 - float(x), size / 2 - float(y)), (size, size))


def keypoints_in(analysis: FaceAnalysis, picture: Array) -> Array | None:
    """The keypoints [106, 2] of the face nearest to the middle of a picture, None without one."""
    from dynamicid_core.face_analysis import sort_faces

    faces = sort_faces(analysis.detect(picture), "nearest to the centre", picture)
    return faces[0].keypoints if faces else None


def see(mesh: HeadMesh, analysis: FaceAnalysis, who: Person, vertices: Array, view: View) -> tuple[Surface, Array]:
    """The surface that a view shows, and the keypoints [lights, 106, 2] found in it, NaN where no face was."""
    import numpy as np

    from dynamicid_core.training.synthetic import render

    surface = render.surface(mesh, vertices, view)
    found = []
    for light in lights():
        points = keypoints_in(analysis, render.shade(mesh, vertices, view, surface, who.look, light))
        found.append(np.full((POINTS, 2), np.nan) if points is None else points)
    return surface, np.stack(found)


def lift(points: Array, surface: Surface, view: View, anchors: Array | None) -> Array:
    """Points [106, 2] of a picture -> the places [106, 3] on the head that they show, in the head frame.

    anchors: [106, 3], where each point is on the same head seen from the front; None for that view itself.
    """
    import numpy as np

    depth = np.pad(surface.depth, MARGIN, constant_values=-np.inf)
    expected = None if anchors is None else view.project(anchors)[:, 2]
    jaw = set(GROUPS["jaw contour"])
    depths = []
    for index, point in enumerate(points):
        x, y = point.round().astype(int).clip(0, np.array(surface.depth.shape[::-1]) - 1)
        around = depth[y : y + 2 * MARGIN + 1, x : x + 2 * MARGIN + 1]
        if expected is None or index in jaw:
            depths.append(depth_at_edge(around, view.scale))
        else:
            depths.append(depth_of_feature(around, float(expected[index]), view.scale))
    return view.unproject(np.column_stack([points, depths]).astype(np.float32))


def depth_at_edge(around: Array, scale: float) -> float:
    """The depth of the nearest pixel that shows a head, and not what the head's edge has just uncovered behind it."""
    import numpy as np

    front = around > around.max() - LAYER * scale
    rows, columns = np.nonzero(front)
    nearest = ((rows - MARGIN) ** 2 + (columns - MARGIN) ** 2).argmin()
    return float(around[rows[nearest], columns[nearest]]) if np.isfinite(around.max()) else float("nan")


def depth_of_feature(around: Array, expected: float, scale: float) -> float:
    """The depth around a point that is nearest to the expected one, or the expected one if something hides the place.

    A point at an edge, such as the nostril's, may have fallen on what is behind it.
    """
    middle = around[MARGIN // 2 : -MARGIN // 2 + 1, MARGIN // 2 : -MARGIN // 2 + 1]
    closest = float(middle.flat[abs(middle - expected).argmin()])
    return closest if abs(closest - expected) < NEAR * scale else expected


def measure(mesh: HeadMesh, analysis: FaceAnalysis, who: Person, tick: Any) -> Array:
    """Where a head's points are in each view: [pitches, yaws, 106, 3], NaN where no face was found."""
    import numpy as np

    vertices = mesh.vertices(who.shape)
    surface, seen = see(mesh, analysis, who, vertices, view_of((0, 0, 0)))
    anchors = lift(seen.mean(axis=0), surface, view_of((0, 0, 0)), None)
    table = np.full((len(PITCHES), len(YAWS), POINTS, 3), np.nan, np.float32)
    for i, pitch in enumerate(PITCHES):
        for j, yaw in enumerate(YAWS):
            view = view_of((pitch, yaw, 0))
            surface, seen = see(mesh, analysis, who, vertices, view)
            if np.isfinite(seen).any():
                table[i, j] = lift(np.nanmean(seen, axis=0), surface, view, anchors)
            tick()
    return table
