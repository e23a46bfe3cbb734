"""Pictures for people to check: which face was found, what the encoders see of it, who is who."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .comparison import SAME_PERSON, Comparison
from .face_analysis import DetectedFace
from .images import Photo
from .keypoints import Keypoints, raster
from .regions import Box

PREVIEW_SIZE = 512
NUMBER_SIZE = PREVIEW_SIZE // 12
"""Of the numbers of faces: on a node, the preview is a quarter as large."""
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
_STRANGER = (150, 150, 150)
# Cividis at five stops: even in brightness, readable with colour blindness.
_HEAT_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEAT_COLOURS = ((0, 59, 124, 188, 254), (34, 73, 123, 175, 232), (78, 107, 120, 111, 56))
_CHOSEN, _OTHER, _POINT = (64, 220, 90), (240, 170, 60), (255, 255, 255)


def draw_faces(photo: Photo, faces: Sequence[DetectedFace], chosen: DetectedFace) -> Photo:
    """The photo in a square of PREVIEW_SIZE, each face boxed with its number, the chosen one with its keypoints."""
    scale = PREVIEW_SIZE / max(photo.shape[:2])
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    picture = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    # The chosen one last: where faces are close, its box and number lie over those of others.
    for number, face in sorted(enumerate(faces), key=lambda numbered: _same(numbered[1], chosen)):
        _draw_box(picture, face, scale, str(number), _CHOSEN if _same(face, chosen) else _OTHER)
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
        _draw_label(canvas, (edges[0] + 4, edges[1] + 4), f"Face {number + 1}", colour, max(14, width // 32))
    return np.asarray(canvas)


def draw_keypoints(keypoints: Keypoints, earlier: Keypoints | None = None) -> Photo:
    """The points on their portrait, or on an empty square where it is not known, with lines from where they were."""
    picture: Photo
    if keypoints.portrait is None:
        picture = np.full((PREVIEW_SIZE, PREVIEW_SIZE, 3), 40, np.uint8)
    else:
        picture = fit_square(keypoints.portrait)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    now = (keypoints.points * PREVIEW_SIZE).tolist()
    before = now if earlier is None else (earlier.points * PREVIEW_SIZE).tolist()
    for start, end in zip(before, now, strict=True):
        draw.line((*start, *end), fill=_OTHER, width=1)
    for x, y in now:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_CHOSEN)
    return np.asarray(canvas)


def draw_raster(keypoints: Keypoints) -> Photo:
    """What the keypoint encoder sees of the points, each cell enlarged."""
    cells = Image.fromarray(raster(keypoints.points).numpy())
    return np.asarray(cells.resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.NEAREST).convert("RGB"))


def draw_comparison(photo: Photo, comparison: Comparison) -> Photo:
    """The picture with every face boxed: who it is and how similar, in the person's colour; grey for a stranger."""
    picture = Image.fromarray(photo)
    draw = ImageDraw.Draw(picture)
    size = max(14, photo.shape[1] // 40)
    who = {face: person for person, face in comparison.matches.items()}
    for number, face in enumerate(comparison.found):
        person = who.get(number)
        label, colour = f"{number + 1}: {_unmatched(comparison.similarities[number])}", _STRANGER
        if person is not None:
            label = f"{number + 1}: face {person + 1}  {comparison.similarities[number, person]:.2f}"
            colour = person_colour(person)
        edges = tuple(float(edge) for edge in face.box)
        draw.rectangle(edges, outline=colour, width=max(2, size // 6))
        _draw_label(picture, (edges[0], edges[1] - size - 6), label, colour, size)
    return np.asarray(picture)


def _unmatched(similarities: NDArray[np.float32]) -> str:
    nearest = int(similarities.argmax())
    again = similarities[nearest] >= SAME_PERSON
    return f"face {nearest + 1} again  {similarities[nearest]:.2f}" if again else "a stranger"


def draw_heat(photo: Photo, heat: NDArray[np.float32], title: str) -> Photo:
    """A map [H, W], 0 to 1, as colour over the grey picture, with a title: blue is none, yellow is much."""
    height, width = photo.shape[:2]
    grey = np.asarray(Image.fromarray(photo).convert("L").convert("RGB"), np.float32)
    stretched = Image.fromarray((heat.clip(0, 1) * 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    amount = np.asarray(stretched, np.float32)[..., None] / 255
    colours = np.concatenate([np.interp(amount, _HEAT_STOPS, channel) for channel in _HEAT_COLOURS], axis=-1)
    picture = Image.fromarray((0.45 * grey + 0.55 * colours).clip(0, 255).astype(np.uint8))
    _draw_label(picture, (4, 4), title, (255, 255, 255), max(12, width // 24))
    return np.asarray(picture)


@functools.cache
def sheet_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """For names on sheets: matplotlib's, which has Latin, Greek, Cyrillic and more, but no signs of East Asia.

    Where matplotlib is not installed, or without its fonts, it is Pillow's own, which draws boxes for most of these.
    """
    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of whole words, up to ``width`` pixels wide in ``sheet_font``; a word that is wider has one of its own."""
    font, lines = sheet_font(size), list[str]()
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def sheet(rows: Sequence[Sequence[Photo]]) -> Photo:
    """Pictures of one size, side by side and below each other."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def person_colour(number: int) -> tuple[int, int, int]:
    """A colour for each of up to eight people, told apart by people with red-green blindness too (Okabe and Ito)."""
    return _PEOPLE[number % len(_PEOPLE)]


def fit_square(photo: Photo) -> Photo:
    """A square photo at PREVIEW_SIZE."""
    return np.asarray(Image.fromarray(photo).resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.LANCZOS))


def _draw_box(picture: Image.Image, face: DetectedFace, scale: float, label: str, colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (float(edge) * scale for edge in face.box)
    ImageDraw.Draw(picture).rectangle((x0, y0, x1, y1), outline=colour, width=2)
    _draw_label(picture, (x0, y0), label, colour, NUMBER_SIZE, above=True)


def _draw_label(
    picture: Image.Image,
    corner: tuple[float, float],
    label: str,
    colour: tuple[int, int, int],
    size: int,
    *,
    above: bool = False,
) -> None:
    """At its upper left corner, or above it, or as near to that as it is whole."""
    draw, font, margin = ImageDraw.Draw(picture), ImageFont.load_default(size), max(2, size // 5)
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x, y = corner[0], corner[1] - (height if above else 0)
    x, y = max(0, min(x, picture.width - width)), max(0, min(y, picture.height - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + margin - left, y + margin - top), label, fill=(0, 0, 0), font=font)


def _same(face: DetectedFace, other: DetectedFace) -> bool:
    return face is other or bool(np.array_equal(face.box, other.box))
