"""Pictures of a person: random expression, head pose, gaze, light, background and camera, with exact labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import ndimage

from ...expression import EXPRESSIONS
from ...images import Photo
from ...portrait import MARGIN
from . import people
from .actions import face_actions
from .figure import Figure, Posed, move
from .mesh import Array
from .people import CLOTH_COLOURS
from .render import View
from .shading import Lamp, blurred, develop, draw

SAMPLES = 2  # pixels in each direction that are averaged into one
BACKGROUNDS = {
    "plain": "in front of a plain {} wall",
    "gradient": "in front of a {} studio backdrop",
    "room": "in a room with a {} wall",
    "outdoors": "outdoors under a clear sky",
    "lights": "in front of {} lights out of focus",
}
"""Kind -> its wording in captions."""

_Kind = TypeVar("_Kind")
_Range = tuple[float, float]
# Head poses of a series, as (yaw, pitch) ranges in degrees: half frontal, the others by the classes of face prompts.
_POSES: tuple[tuple[_Range, _Range], ...] = (
    ((-9, 9), (-8, 8)),
    ((15, 60), (-8, 8)),
    ((-9, 9), (-8, 8)),
    ((-60, -15), (-8, 8)),
    ((-9, 9), (-8, 8)),
    ((-20, 20), (13, 28)),
    ((-9, 9), (-8, 8)),
    ((-20, 20), (-28, -13)),
)
_ROLL, _GAZE_SIDEWAYS, _GAZE_UP = 6.0, 12.0, 6.0  # standard deviations, degrees
_BOX_ABOVE = 0.08  # by how much InsightFace's box, which is to be centred, lies above the face, in sides of the face
_NOISE = 0.008


@dataclass(frozen=True)
class Shot:
    """The settings of a picture. expression: one of EXPRESSIONS, strength about 0.7 to 1.1. pose: pitch, yaw, roll, and
    gaze: to the picture's right and up, in degrees. background: a key of BACKGROUNDS, background_colour of
    CLOTH_COLOURS. zoom: 1 for a portrait, less for more around it. shift: of the face's middle, in sides of the face.
    """

    seed: int
    expression: str
    strength: float
    pose: tuple[float, float, float]
    gaze: tuple[float, float]
    lamp: Lamp
    background: str
    background_colour: str
    zoom: float
    shift: tuple[float, float]

    def labels(self) -> dict[str, Any]:
        """All settings, for files."""
        return asdict(self)


def random_shot(person: int, number: int, attempt: int = 0) -> Shot:
    """The settings of a person's picture with this number. Seven in a row have every expression, eight every kind of
    pose; the first is neutral and frontal.

    attempt: another picture with the same expression and kind of pose, in place of one without a detected face.
    """
    rng = np.random.default_rng([3, person, number, attempt])
    expression, pose = _motion(person, number)
    yaw, pitch = (rng.uniform(*limits) for limits in pose)
    warmth = float(rng.uniform(-0.7, 0.9))
    side = rng.uniform(-1.2, 1.2)
    lamp = Lamp(
        direction=(float(np.sin(side)), float(-rng.uniform(0.1, 0.9)), float(np.cos(side))),
        key=float(rng.uniform(0.45, 0.95)),
        ambient=float(rng.uniform(0.35, 0.7)),
        warmth=warmth,
    )
    return Shot(
        seed=int(rng.integers(2**31)),
        expression=expression,
        strength=float(rng.uniform(0.75, 1.1)),
        pose=(float(pitch), float(yaw), float(rng.normal(0, _ROLL))),
        gaze=(float(rng.normal(0, _GAZE_SIDEWAYS)), float(rng.normal(0, _GAZE_UP))),
        lamp=lamp,
        background=str(rng.choice(list(BACKGROUNDS))),
        background_colour=str(rng.choice(list(CLOTH_COLOURS))),
        zoom=float(rng.uniform(1.05, 1.2)),
        shift=(float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03))),
    )


def _motion(person: int, number: int) -> tuple[str, tuple[_Range, _Range]]:
    """Expression and kind of pose, (yaw, pitch) ranges, each in the person's own order: with the same order for all,
    short series would correlate them, for example smiling with turning right.
    """
    orders = np.random.default_rng([8, person])
    return _pick(EXPRESSIONS, number, orders), _pick(_POSES, number, orders)


def _pick(kinds: Sequence[_Kind], number: int, orders: np.random.Generator) -> _Kind:
    """The kind with a number: the first kind, then the others in random order, repeated cyclically."""
    first, *others = kinds
    return (first, *(others[place] for place in orders.permutation(len(others))))[number % len(kinds)]


def take(figure: Figure, shot: Shot, size: int) -> Photo:
    """The picture [size, size, 3]; the face is about half as wide."""
    return take_with_landmarks(figure, shot, size)[0]


def take_with_landmarks(figure: Figure, shot: Shot, size: int) -> tuple[Photo, dict[str, tuple[float, float]]]:
    """The picture, and the positions of Figure.landmarks in it, visible or not: (x, y) in fractions."""
    posed = pose_figure(figure, shot)
    view = portrait_view(figure, posed, shot, (size, size))
    layer = draw(figure, posed, view.finer(SAMPLES), shot.lamp)
    photo = finish(layer.onto(paint_background(shot, (size * SAMPLES, size * SAMPLES))), shot)
    # Whole numbers are pixel centres.
    middles = {
        name: (view.project(posed.skin[rows]).mean(axis=0) + 0.5) / size for name, rows in figure.landmarks.items()
    }
    return photo, {name: (float(x), float(y)) for name, (x, y, _) in middles.items()}


def pose_figure(figure: Figure, shot: Shot) -> Posed:
    """The figure as the shot has it."""
    return move(figure, face_actions(figure.mesh, shot.expression, shot.strength, shot.gaze), shot.pose)


def portrait_view(
    figure: Figure, posed: Posed, shot: Shot, size: tuple[int, int], middle: tuple[float, float] | None = None
) -> View:
    """The camera for a picture of size (height, width). middle: of the face, pixels (x, y); by default the picture's
    middle.
    """
    face = posed.skin[figure.face, :2]
    low, high = face.min(axis=0), face.max(axis=0)
    side = float((high - low).max())
    scale = size[0] / (MARGIN * side) * shot.zoom
    x, y = middle or (size[1] / 2, size[0] / 2)
    shift = np.array([shot.shift[0], shot.shift[1] + _BOX_ABOVE])
    place = np.array([x, y]) + shift * side * scale - (low + high) / 2 * scale
    return View((0.0, 0.0, 0.0), scale, (float(place[0]), float(place[1])), size)


def finish(linear: Array, shot: Shot) -> Photo:
    """The final picture from linear RGB with SAMPLES times its pixels in each direction, with a camera's grain."""
    rng = np.random.default_rng(shot.seed)
    height, width = (side // SAMPLES for side in linear.shape[:2])
    return develop(linear, SAMPLES, rng.normal(0, _NOISE, (height, width, 1)).astype(np.float32))


def paint_background(shot: Shot, size: tuple[int, int]) -> Array:
    """Linear RGB [H, W, 3]."""
    rng = np.random.default_rng([4, shot.seed])
    colour = np.array(CLOTH_COLOURS[shot.background_colour], np.float32) * 0.8 + 0.05
    height, width = size
    down, across = np.mgrid[0:height, 0:width].astype(np.float32) / max(size)
    if shot.background == "plain":
        shade = 0.85 + 0.3 * across
        return shade[..., None] * colour
    if shot.background == "gradient":
        bright = np.exp(-4 * ((across - 0.5) ** 2 + (down - 0.4) ** 2))
        return (0.35 + 0.9 * bright)[..., None] * colour
    if shot.background == "room":
        edge = rng.uniform(0.15, 0.85)
        other = colour * rng.uniform(0.4, 0.7) + 0.08
        return blurred(np.where((across > edge)[..., None], colour, other).astype(np.float32), max(size) / 80)
    if shot.background == "outdoors":
        return _outdoors(rng, down)
    spread = np.zeros((height, width), np.float32)
    for row, column, bright in rng.uniform((0, 0, 0.3), (height / max(size), width / max(size), 1), (30, 3)):
        spread[(down - row) ** 2 + (across - column) ** 2 < 1 / 24**2] = bright
    return blurred((spread[..., None] * (colour + 0.25) + 0.03).astype(np.float32), max(size) / 200)


def describe(figure: Figure, shot: Shot) -> str:
    """The caption: who, in what, where."""
    where = BACKGROUNDS[shot.background].format(shot.background_colour)
    identity = figure.identity
    return f"a portrait of {people.describe(identity)}, wearing {people.describe_clothes(identity)}, {where}"


def _outdoors(rng: np.random.Generator, down: Array) -> Array:
    horizon = rng.uniform(0.45, 0.7)
    sky = np.array([0.32, 0.52, 0.86], np.float32) * (1.15 - 0.5 * (1 - down))[..., None]
    ground = np.array([0.10, 0.19, 0.05], np.float32) * (0.7 + 0.6 * down)[..., None]
    noise = ndimage.gaussian_filter(rng.normal(0, 1, down.shape), 6).astype(np.float32)
    land = down > horizon + 0.6 * noise
    return blurred(
        np.where(land[..., None], ground * (1 + 2 * noise[..., None]), sky).clip(0.01), max(down.shape) / 100
    )
