"""Scenes of two and three people side by side, with everyone's position and a caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...expression import EXPRESSIONS
from ...face_prompt import face_prompt
from ...images import Photo
from ...regions import Box
from . import people
from .figure import Figure
from .mesh import Array
from .shading import draw
from .shots import BACKGROUNDS, SAMPLES, Shot, finish, paint_background, portrait_view, pose_figure, random_shot

_ASPECT = {2: 1.75, 3: 2.5}  # width of the picture in heights
_ZOOM = 1.05
_PLACES = {2: ("on the left", "on the right"), 3: ("on the left", "in the middle", "on the right")}
_MIDDLE = 0.5  # of the faces, in heights of the picture
_LEAST_TURN, _MOST_TURN = -20.0, 20.0


@dataclass(frozen=True, eq=False)
class Scene:
    """picture: [H, W, 3]. caption: who is where. Lists from left to right: boxes, each person's column; faces, each
    face's box; shots.
    """

    picture: Photo
    caption: str
    boxes: list[Box]
    faces: list[Box]
    shots: list[Shot]

    def layout(self, names: Sequence[str]) -> dict[str, Any]:
        """The scene's description, for a file. names: of the people."""
        return {
            "caption": self.caption,
            "people": [
                {"name": name, "box": _edges(box), "face": _edges(face), "face_prompt": _face_prompt(shot)}
                | {"expression": shot.expression, "pose": list(shot.pose)}
                for name, box, face, shot in zip(names, self.boxes, self.faces, self.shots, strict=True)
            ],
        }


def arrange(figures: Sequence[Figure], seed: int, height: int) -> Scene:
    """Renders two or three people in equal columns, each with their own expression, in a common light."""
    count = len(figures)
    rng = np.random.default_rng([5, seed])
    scene = random_shot(seed, 0, 9)
    width = int(_ASPECT[count] * height) // 8 * 8
    size = (height * SAMPLES, width * SAMPLES)
    linear = paint_background(scene, size)
    boxes, faces, shots = [], [], []
    for place, figure in enumerate(figures):
        shot = _one_of_several(scene, rng, _ZOOM)
        posed = pose_figure(figure, shot)
        middle = (width * (place + 0.5) / count, height * _MIDDLE)
        view = portrait_view(figure, posed, shot, (height, width), middle)
        linear = draw(figure, posed, view.finer(SAMPLES), shot.lamp).onto(linear)
        boxes.append(Box(place / count, 0.0, (place + 1) / count, 1.0))
        faces.append(_face_box(view.project(posed.skin[figure.face])[:, :2] / (width, height)))
        shots.append(shot)
    return Scene(finish(linear, scene), _caption(figures, scene), boxes, faces, shots)


def _one_of_several(scene: Shot, rng: np.random.Generator, zoom: float) -> Shot:
    return Shot(
        seed=int(rng.integers(2**31)),
        expression=str(rng.choice(EXPRESSIONS)),
        strength=1.0,
        pose=(float(rng.uniform(-6, 6)), float(rng.uniform(_LEAST_TURN, _MOST_TURN)), 0.0),
        gaze=(0.0, 0.0),
        lamp=scene.lamp,
        background=scene.background,
        background_colour=scene.background_colour,
        zoom=zoom,
        shift=(0.0, 0.0),
    )


def _face_box(points: Array) -> Box:
    """The bounding box of a face's points [n, 2], fractions of the picture."""
    (x0, y0), (x1, y1) = points.min(axis=0).clip(0, 1), points.max(axis=0).clip(0, 1)
    return Box(float(x0), float(y0), float(x1), float(y1))


def _edges(box: Box) -> list[float]:
    return [box.x0, box.y0, box.x1, box.y1]


def _caption(figures: Sequence[Figure], scene: Shot) -> str:
    who = [
        f"{place} {people.describe(figure.identity)}, wearing {people.describe_clothes(figure.identity)}"
        for place, figure in zip(_PLACES[len(figures)], figures, strict=True)
    ]
    number = {2: "two", 3: "three"}[len(figures)]
    where = BACKGROUNDS[scene.background].format(scene.background_colour)
    return f"{number} people {where}: {'; '.join(who)}"


def _face_prompt(shot: Shot) -> str:
    import torch

    return face_prompt(shot.expression, torch.tensor(shot.pose))
