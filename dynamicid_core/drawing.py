"""Pictures for people to check: which face was found, and what the encoder saw of it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .face_analysis import DetectedFace
from .images import Photo

PREVIEW_SIZE = 512
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


def fit_square(photo: Photo) -> Photo:
    """A square photo at PREVIEW_SIZE."""
    return np.asarray(Image.fromarray(photo).resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.LANCZOS))


def _draw_box(
    draw: ImageDraw.ImageDraw, face: DetectedFace, scale: float, label: str, colour: tuple[int, int, int]
) -> None:
    x0, y0, x1, y1 = (float(edge) * scale for edge in face.box)
    font = ImageFont.load_default(14)
    corner = (x0, max(0.0, y0 - 18))
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=2)
    draw.rectangle(draw.textbbox(corner, label, font=font), fill=colour)
    draw.text(corner, label, fill=(0, 0, 0), font=font)


def _same(face: DetectedFace, other: DetectedFace) -> bool:
    return face is other or bool(np.array_equal(face.box, other.box))
