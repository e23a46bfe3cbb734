"""Previews: detected faces, layouts, keypoints, comparisons and heatmaps."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .comparison import SAME_PERSON, Comparison
from .face_analysis import DetectedFace
from .images import Photo
from .keypoints import Keypoints, rasterise
from .regions import Box

PREVIEW_SIZE = 512
NUMBER_SIZE = PREVIEW_SIZE // 12
"""Font size of face numbers, large enough for a node, where the preview is a quarter as large."""
_PERSON_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (187, 187, 187),
)
_STRANGER_COLOUR = (150, 150, 150)
# Cividis at five stops: even in brightness, readable for the colour-blind.
_HEAT_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEAT_COLOURS = ((0, 59, 124, 188, 254), (34, 73, 123, 175, 232), (78, 107, 120, 111, 56))
_CHOSEN_COLOUR, _OTHER_COLOUR, _POINT_COLOUR = (64, 220, 90), (240, 170, 60), (255, 255, 255)


def draw_faces(photo: Photo, faces: Sequence[DetectedFace], chosen: DetectedFace) -> Photo:
    """The photo in a square of PREVIEW_SIZE, with a numbered box on each face, and keypoints on the chosen one."""
    scale = PREVIEW_SIZE / max(photo.shape[:2])
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    picture = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    # The chosen one last: where faces are close, its box and number are on top.
    for number, face in sorted(enumerate(faces), key=lambda numbered: _same(numbered[1], chosen)):
        _draw_box(picture, face, scale, str(number), _CHOSEN_COLOUR if _same(face, chosen) else _OTHER_COLOUR)
    points = chosen.landmarks if chosen.keypoints is None else chosen.keypoints
    for x, y in points * scale:
        draw.ellipse((x - 1.2, y - 1.2, x + 1.2, y + 1.2), fill=_POINT_COLOUR)
    canvas = Image.new("RGB", (PREVIEW_SIZE, PREVIEW_SIZE))
    canvas.paste(picture, ((PREVIEW_SIZE - size[0]) // 2, (PREVIEW_SIZE - size[1]) // 2))
    return np.asarray(canvas)


def draw_layout(boxes: Sequence[Box], picture: Photo | None = None) -> Photo:
    """People's boxes, numbered from 1, on a picture or on an empty square of PREVIEW_SIZE."""
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
    """The points on their portrait (on an empty square if unknown), with lines from their earlier positions."""
    picture: Photo
    if keypoints.portrait is None:
        picture = np.full((PREVIEW_SIZE, PREVIEW_SIZE, 3), 40, np.uint8)
    else:
        picture = resize_to_preview(keypoints.portrait)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    now = (keypoints.points * PREVIEW_SIZE).tolist()
    before = now if earlier is None else (earlier.points * PREVIEW_SIZE).tolist()
    for start, end in zip(before, now, strict=True):
        draw.line((*start, *end), fill=_OTHER_COLOUR, width=1)
    for x, y in now:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_CHOSEN_COLOUR)
    return np.asarray(canvas)


def draw_raster(keypoints: Keypoints) -> Photo:
    """The keypoint encoder's input, enlarged."""
    cells = Image.fromarray(rasterise(keypoints.points).numpy())
    return np.asarray(cells.resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.NEAREST).convert("RGB"))


def draw_comparison(photo: Photo, comparison: Comparison) -> Photo:
    """The picture with a box on every face: the match and its similarity in the person's colour, grey for strangers."""
    picture = Image.fromarray(photo)
    draw = ImageDraw.Draw(picture)
    size = max(14, photo.shape[1] // 40)
    who = {face: person for person, face in comparison.matches.items()}
    for number, face in enumerate(comparison.found):
        person = who.get(number)
        label, colour = f"{number + 1}: {_label_unmatched(comparison.similarities[number])}", _STRANGER_COLOUR
        if person is not None:
            label = f"{number + 1}: face {person + 1}  {comparison.similarities[number, person]:.2f}"
            colour = person_colour(person)
        edges = tuple(float(edge) for edge in face.box)
        draw.rectangle(edges, outline=colour, width=max(2, size // 6))
        _draw_label(picture, (edges[0], edges[1] - size - 6), label, colour, size)
    return np.asarray(picture)


def _label_unmatched(similarities: NDArray[np.float32]) -> str:
    nearest = int(similarities.argmax())
    again = similarities[nearest] >= SAME_PERSON
    return f"face {nearest + 1} again  {similarities[nearest]:.2f}" if again else "a stranger"


def draw_heatmap(photo: Photo, heat: NDArray[np.float32], title: str) -> Photo:
    """A map [H, W], 0 to 1, in colour over the grey picture, with a title: blue is low, yellow is high."""
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
    """The font for names on sheets: matplotlib's, with Latin, Greek, Cyrillic and more, but no East Asian scripts.

    Without matplotlib or its fonts it is Pillow's own, which draws boxes for most of these.
    """
    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def wrap_text(text: str, size: int, width: int) -> list[str]:
    """Splits a text into lines of up to ``width`` pixels in ``sheet_font``; a wider word has a line of its own."""
    font, lines = sheet_font(size), list[str]()
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def image_grid(rows: Sequence[Sequence[Photo]]) -> Photo:
    """Pictures of one size in rows and columns."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def person_colour(number: int) -> tuple[int, int, int]:
    """A colour for each of up to eight people, distinct with red-green blindness too (Okabe and Ito)."""
    return _PERSON_COLOURS[number % len(_PERSON_COLOURS)]


def resize_to_preview(photo: Photo) -> Photo:
    """A square photo resized to PREVIEW_SIZE."""
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
    """Draws a label with its upper left corner at ``corner``, or above it, moved so that it is inside the picture."""
    draw, font, margin = ImageDraw.Draw(picture), ImageFont.load_default(size), max(2, size // 5)
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x, y = corner[0], corner[1] - (height if above else 0)
    x, y = max(0, min(x, picture.width - width)), max(0, min(y, picture.height - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + margin - left, y + margin - top), label, fill=(0, 0, 0), font=font)


def _same(face: DetectedFace, other: DetectedFace) -> bool:
    return face is other or bool(np.array_equal(face.box, other.box))
