"""Sheets of pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def sheet(
    rows: Sequence[Sequence[tuple[str, Image.Image]]], height: int, gap: int = 8, caption: int = 26
) -> Image.Image:
    """Rows of pictures, all scaled to one height, each with its caption above it.

    gap: between pictures. caption: height of a line, 0 if there are none. All in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    scaled = [[(text, scale(picture, height)) for text, picture in row] for row in rows]
    width = max(sum(picture.width + gap for _, picture in row) for row in scaled) - gap
    whole = Image.new("RGB", (width, len(rows) * (caption + height + gap) - gap), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(max(1, caption // 2))
    for number, row in enumerate(scaled):
        left, top = 0, number * (caption + height + gap)
        for text, picture in row:
            draw.text((left, top + caption / 2), text, fill="black", font=font, anchor="lm")
            whole.paste(picture, (left, top + caption))
            left += picture.width + gap
    return whole


def scale(picture: Image.Image, height: int) -> Image.Image:
    """The picture at another height."""
    from PIL import Image

    return picture.resize((round(height * picture.width / picture.height), height), Image.Resampling.LANCZOS)
