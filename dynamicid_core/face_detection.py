"""Where faces are in a photo, however large or small they are, by InsightFace's detector."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .images import Photo

TURNS = ("0 degrees", "90 degrees to the left", "180 degrees", "90 degrees to the right")
"""Quarter turns, as ``numpy.rot90`` counts them, in words."""

DETECTION_SIZE, DETECTION_THRESHOLD = 640, 0.5
"""What is taken where nothing else is asked for: pixels to which photos are shrunk, and the least certainty."""

DETECTION_SIZES, DETECTION_THRESHOLDS = (160, 2048), (0.05, 0.95)
"""From where to where they can be."""

_BORDER = 0.5  # of the longer side, for faces that fill the picture
_SMALLEST, _LARGEST = 160, 2560
_GRAIN = 32  # pixels: the detector takes multiples of it
_LARGE_FACE = 0.25  # of the longer side of a photo; larger faces may show at small detection sizes only
# When a photo is turned. Certainty, by buffalo_s' detector (buffalo_l's was not measured): upright faces in 11
# photographs and renders had 0.74 to 0.89, the same turned by 90 or 180 degrees 0 to 0.78. Size and roll: other people
# in the photo, who lie, do not count.
_CERTAINLY_UPRIGHT, _MORE_UPRIGHT = 0.8, 0.08
_NEARLY_AS_LARGE, _UPRIGHT = 0.6, 45.0  # of the height of the largest face; degrees


class FoundFace(NamedTuple):
    """box: [4] x0, y0, x1, y1 in pixels. score: certainty, 0 to 1. landmarks: [5, 2] eyes, nose, mouth corners."""

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]

    @property
    def height(self) -> float:
        """Of the box, in pixels."""
        return float(self.box[3] - self.box[1])

    @property
    def roll(self) -> float:
        """From the eyes to the mouth, in degrees: 0 upright, 90 lying to a side, 180 on its head."""
        x, y = self.landmarks[3:].mean(axis=0) - self.landmarks[:2].mean(axis=0)
        return abs(math.degrees(math.atan2(x, y)))


class FaceDetector:
    """Tries several detection sizes: a face shows at those that make it neither too small nor too large."""

    def __init__(self, model: Any, size: int) -> None:
        """model: InsightFace's. size: of the first try, in pixels, rounded down to a multiple of 32."""
        self._model = model
        self._size = max(_GRAIN, size // _GRAIN * _GRAIN)

    def find(self, bgr: Photo) -> list[FoundFace]:
        """All faces of a photo.

        Smaller sizes add faces that are too large for the first one. A border around the picture, and larger sizes for
        a larger photo, are tried when nothing is found without.
        """
        found = self._find_down(bgr) or self._find_with_border(bgr)
        for size in self._larger_sizes(bgr):
            found = found or self._find_at(bgr, size)
        return found

    def sizes(self, photo: Photo) -> list[int]:
        """What is tried until a face is found."""
        return [*self._smaller_sizes(), *self._larger_sizes(photo)]

    def turns_to_upright(self, bgr: Photo, found: Sequence[FoundFace]) -> int:
        """By how many quarter turns, see TURNS, the photo gets surer faces than those found in it, which stand upright;
        0 if it does not.
        """
        if any(face.score >= _CERTAINLY_UPRIGHT for face in found):
            return 0
        turned = [self._find_down(np.ascontiguousarray(np.rot90(bgr, turns))) for turns in (1, 2, 3)]
        largest = max((face.height for faces in (found, *turned) for face in faces), default=0.0)
        counting = [[face for face in faces if face.height >= _NEARLY_AS_LARGE * largest] for faces in (found, *turned)]
        scores = [max((face.score for face in faces if turn == 0 or face.roll <= _UPRIGHT), default=0.0)
                  for turn, faces in enumerate(counting)]  # fmt: skip
        scores[0] += _MORE_UPRIGHT
        return int(np.argmax(scores))

    def _find_down(self, bgr: Photo) -> list[FoundFace]:
        found: list[FoundFace] = []
        for size in self._smaller_sizes():
            least = _LARGE_FACE * max(bgr.shape[:2]) if found else 0.0
            found += [
                face
                for face in self._find_at(bgr, size)
                if face.height >= least and not any(_are_one(face, other) for other in found)
            ]
        return found

    def _smaller_sizes(self) -> list[int]:
        sizes = [self._size]
        while (half := sizes[-1] // 2 // _GRAIN * _GRAIN) >= _SMALLEST:
            sizes.append(half)
        return sizes

    def _larger_sizes(self, photo: Photo) -> list[int]:
        longest = min(max(photo.shape[:2]), _LARGEST)
        return [size for times in (2, 4, 8) if (size := times * self._size) <= longest]

    def _find_at(self, bgr: Photo, size: int) -> list[FoundFace]:
        if min(bgr.shape[:2]) * size < max(bgr.shape[:2]):
            return []  # so narrow that nothing would be left of it
        boxes, landmarks = self._model.detect(bgr, input_size=(size, size))
        return [FoundFace(box[:4], float(box[4]), points) for box, points in zip(boxes, landmarks, strict=True)]

    def _find_with_border(self, bgr: Photo) -> list[FoundFace]:
        # Shrunk first: with its border, a long photo of 60 MB would take gigabytes.
        scale = min(1.0, self._size / max(bgr.shape[:2]))
        small = bgr if scale == 1 else _shrunk(bgr, scale)
        margin = round(max(small.shape[:2]) * _BORDER)
        bordered = np.pad(small, ((margin, margin), (margin, margin), (0, 0)))
        return [
            FoundFace((face.box - margin) / scale, face.score, (face.landmarks - margin) / scale)
            for face in self._find_at(bordered, self._size)
        ]


def _shrunk(bgr: Photo, scale: float) -> Photo:
    import cv2

    height, width = (max(1, round(side * scale)) for side in bgr.shape[:2])
    return cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)


def _are_one(face: FoundFace, other: FoundFace) -> bool:
    """Whether the middle of each box lies in the other box."""
    return _holds(face.box, other.box) and _holds(other.box, face.box)


def _holds(box: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    middle = (other[:2] + other[2:]) / 2
    return bool((box[:2] < middle).all() and (middle < box[2:]).all())
