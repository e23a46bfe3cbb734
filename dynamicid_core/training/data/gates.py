"""The gates that reject photos, and their measures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...comparison import SAME_PERSON
from ...errors import InputError
from ...face_analysis import DetectedFace
from ...images import Photo

UNREADABLE = "unreadable"
NO_FACE = "no face"
SEVERAL_FACES = "several faces"
SMALL_FACE = "small face"
BLURRED = "blurred"
DUPLICATE = "duplicate"
ANOTHER_PERSON = "another person"
TOO_FEW = "too few photos"
STRAY = "outside of a person's folder"

LEAST_PHOTOS = 2
"""Per person: reconfiguration learns from pairs of photos. Anchoring needs only one."""
SHARP = 0.01
"""See ``sharpness``. Measured on 31 faces of at least 128 pixels in photographs that packages ship: 0.021 to 0.77,
median 0.07. Blurred by 1 % of the face (standard deviation), 26 of them are below 0.01; by 1.5 %, all."""
OTHER_FACE = 0.25
"""Area, relative to the largest face, from which on a second face counts."""

_SHARPNESS_SIZE = 128
_THUMBNAIL_SIZE = 16
_LEAST_CONTRAST = 1.0  # standard deviation of a thumbnail, of 255
# Measured on 9 faces in photographs and on 42 renders. Copies saved at JPEG quality 40, also at 75 % of the size, at
# half size, darker (0.6), with more contrast, and in grey: correlations of 0.966 to 1, and keypoints that differ by 0
# to 0.9 % of the picture. Of much darker (0.4) and brighter (1.4) copies, one render of 42 each escapes, by 0.937 and
# 1.05 %; of 54 photographs put before plain walls, one (0.934). Other renders of the same person: correlations of -0.26
# to 0.870, at least 0.86 %; 7 expressions of 6 heads: at least 1.4 %. Mirrored photographs: at most 0.67, turned by 12
# degrees 0.80.
_SAME_THUMBNAILS = 0.95
_SAME_POINTS = 0.01
_REMOVED_PER_ROUND = 0.05  # of the strangers among a person's photos


@dataclass(frozen=True)
class Gates:
    """Requirements on a photo.

    size: of the cropped pictures, pixels. min_face: minimum pixels of the face's longer side. sharpness: minimum
    ``sharpness``. agreement: minimum cosine of a face to the median of the person's other faces. least_photos: minimum
    photos per person; people with fewer are left out.
    """

    size: int = 512
    min_face: int = 128
    sharpness: float = SHARP
    agreement: float = SAME_PERSON
    least_photos: int = LEAST_PHOTOS

    def __post_init__(self) -> None:
        if self.size < 64 or self.size % 8:
            raise InputError(f"--size is {self.size}; the VAE needs a multiple of 8 from 64 on, such as 512.")
        if self.min_face < 1:
            raise InputError(f"--min-face is {self.min_face}; it must be at least 1 pixel.")
        if not self.sharpness >= 0:
            raise InputError(f"--sharpness is {self.sharpness:g}; it must be 0 (keep all) or more, such as {SHARP:g}.")
        if not -1 <= self.agreement <= 1:
            raise InputError(f"--agreement is {self.agreement:g}; a cosine is from -1 (keep all) to 1.")
        if self.least_photos < 1:
            raise InputError(f"--least-photos is {self.least_photos}; it must be at least 1.")


@dataclass(frozen=True)
class Rejection:
    """Why a photo is left out. photo: its path below the folder of photos. reason: UNREADABLE, NO_FACE, … detail: what
    was measured.
    """

    photo: str
    reason: str
    detail: str


def longer_side(face: DetectedFace) -> float:
    """The longer side of the face's box, in pixels."""
    return float(max(face.box[2] - face.box[0], face.box[3] - face.box[1]))


def sharpness(photo: Photo, face: DetectedFace) -> float:
    """The variance of the face's Laplacian at 128 pixels, divided by the variance of its brightness.

    The division makes the measure independent of exposure: at 0.4 of the brightness the variance of the Laplacian alone
    falls to a sixth, below that of a blurred face.
    """
    square = np.array([*face.centre, *face.centre]) + longer_side(face) / 2 * np.array([-1, -1, 1, 1])
    box = tuple(np.clip(square, 0, [photo.shape[1], photo.shape[0]] * 2).tolist())
    grey = Image.fromarray(photo).convert("L")
    small = grey.resize((_SHARPNESS_SIZE, _SHARPNESS_SIZE), Image.Resampling.BOX, box=box)
    pixels = np.asarray(small, np.float64)
    across = pixels[1:-1, :-2] + pixels[1:-1, 2:]
    down = pixels[:-2, 1:-1] + pixels[2:, 1:-1]
    return float((4 * pixels[1:-1, 1:-1] - across - down).var() / max(pixels.var(), 1.0))


def thumbnail(picture: Photo) -> NDArray[np.float32]:
    """A picture as 16 x 16 greys [256] of mean 0 and length 1, so that the product of two is their correlation.

    That of a picture without contrast is shorter, or 0, and matches nothing.
    """
    grey = Image.fromarray(picture).convert("L").resize((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.float32).flatten()
    centred = pixels - pixels.mean()
    least = _LEAST_CONTRAST * _THUMBNAIL_SIZE  # the length of one with that standard deviation
    normal: NDArray[np.float32] = centred / max(float(np.linalg.norm(centred)), least)
    return normal


def is_duplicate(
    small: NDArray[np.float32], points: NDArray[np.float32], other: NDArray[np.float32], others: NDArray[np.float32]
) -> bool:
    """Whether two square portraits are one photo, resaved, rescaled or relit: by thumbnails and keypoints [106, 2].

    By both, since the next frame of a video has nearly the same thumbnail but another expression.
    """
    return bool(small @ other >= _SAME_THUMBNAILS and np.abs(points - others).mean() <= _SAME_POINTS)


def strangers(embeddings: Sequence[NDArray[np.float32]], agreement: float) -> dict[int, float]:
    """The embeddings [512] of another person, by index, with their cosines to the median of the others.

    The one that agrees least is removed first and the rest compared again, so that a few strangers do not get the
    person rejected. Where there are many, a twentieth of them is removed at a time: one by one took minutes for
    hundreds of photos of all sorts of people. No face is compared with a median that it is part of: each of two
    different people would pass.
    """
    rows, remaining = np.asarray(embeddings), np.arange(len(embeddings))
    removed: dict[int, float] = {}
    while len(remaining) > 1:
        cosines = _cosines_to_the_others(rows[remaining])
        count = int((cosines < agreement).sum())
        if not count:
            break
        worst = cosines.argsort(kind="stable")[: max(1, int(count * _REMOVED_PER_ROUND))]
        removed |= zip(remaining[worst].tolist(), cosines[worst].tolist(), strict=True)
        remaining = np.delete(remaining, worst)
    return removed


def _cosines_to_the_others(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of each row to the median of all other rows, [n, 512] -> [n]."""
    ordered = np.sort(embeddings, axis=0)
    rank = embeddings.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    others = len(embeddings) - 1
    # Positions of the middle two (or the middle one, twice) of the others; they shift by one past the row left out.
    low, high = ((middle + (middle >= rank)) for middle in ((others - 1) // 2, others // 2))
    median = (np.take_along_axis(ordered, low, axis=0) + np.take_along_axis(ordered, high, axis=0)) / 2
    cosines: NDArray[np.float32] = (embeddings * median).sum(axis=1) / np.linalg.norm(median, axis=1).clip(1e-9)
    return cosines
