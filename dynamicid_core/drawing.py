"""Pictures for people to check: which face was found, and what the encoder saw of it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .face_analysis import DetectedFace
from .images import Photo
from .regions import Box

PREVIEW_SIZE = 512
_PEOPLE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (187, 187, 187),
)
_CHOSEN, _OTHER, _POINT = (64, 220, 90), (240, 170, 60), (255, 255, 255)


def draw_faces(photo: Photo, faces: Sequence[DetectedFace], chosen: DetectedFace) -> Photo:
    """The photo in a square of PREVIEW_SIZE, each face boxed with its number, the chosen one with its keypoints."""
    scale = PREVIEW_SIZE / max(photo.shape[:2])
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    picture = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for number, face in enumerate(faces):
        _draw_box(draw, face, scale, f"{number}  {face.score:.2f}", _CHOSEN if _same(face, chosen) else _OTHER)
    points = chosen.landmarks if chosen.keypoints is None else chosen.keypoints
    for x, y in points * scale:
        draw.ellipse((x - 1.2, y - 1.2, x + 1.2, y + 1.2), fill=_POINT)
    canvas = Image.new("RGB", (PREVIEW_SIZE, PREVIEW_SIZE))
    canvas.paste(picture, ((PREVIEW_SIZE - size[0]) // 2, (PREVIEW_SIZE - size[1]) // 2))
    return np.asarray(canvas)


def draw_layout(boxes: Sequence[Box], picture: Photo | None = None) -> Photo:
    """The places of people, numbered from 1, on a picture or on an empty square of PREVIEW_SIZE."""
    if picture is None:
        picture = np.full((PREVIEW_SIZE, PREVIEW_SIZE, 3), 40, np.uint8)
    height, width = picture.shape[:2]
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for number, box in enumerate(boxes):
        colour = person_colour(number)
        edges = (box.x0 * width, box.y0 * height, box.x1 * width - 1, box.y1 * height - 1)
        draw.rectangle(edges, outline=colour, width=max(2, width // 200))
        _draw_label(draw, (edges[0] + 4, edges[1] + 4), f"Face {number + 1}", colour, max(14, width // 32))
    return np.asarray(canvas)


def person_colour(number: int) -> tuple[int, int, int]:
    """A colour for each of up to eight people, told apart by people with red-green blindness too (Okabe and Ito)."""
    return _PEOPLE[number % len(_PEOPLE)]


def fit_square(photo: Photo) -> Photo:
    """A square photo at PREVIEW_SIZE."""
    return np.asarray(Image.fromarray(photo).resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.LANCZOS))


def _draw_box(
    draw: ImageDraw.ImageDraw, face: DetectedFace, scale: float, label: str, colour: tuple[int, int, int]
) -> None:
    x0, y0, x1, y1 = (float(edge) * scale for edge in face.box)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=2)
    _draw_label(draw, (x0, max(0.0, y0 - 18)), label, colour, 14)


def _draw_label(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], label: str, colour: tuple[int, int, int], size: int
) -> None:
    font = ImageFont.load_default(size)
    draw.rectangle(draw.textbbox(corner, label, font=font), fill=colour)
    draw.text(corner, label, fill=(0, 0, 0), font=font)


def _same(face: DetectedFace, other: DetectedFace) -> bool:
    return face is other or bool(np.array_equal(face.box, other.box))
