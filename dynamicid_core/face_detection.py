"""Detects faces of any size in a photo, by InsightFace's detector."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .images import Photo

TURNS = ("0 degrees", "90 degrees to the left", "180 degrees", "90 degrees to the right")
"""Names of the quarter turns, in the order of ``numpy.rot90``."""

DETECTION_SIZE, DETECTION_THRESHOLD = 640, 0.5
"""Defaults: the pixels to which photos are scaled, and the least confidence."""

DETECTION_SIZES, DETECTION_THRESHOLDS = (160, 2048), (0.05, 0.95)
"""Their ranges."""

_BORDER = 0.5  # relative to the longer side, for faces that fill the picture
_SMALLEST, _LARGEST = 160, 2560
_STRIDE = 32  # pixels: the detector takes sizes that are multiples of it
_LARGE_FACE = 0.25  # relative to the longer side of a photo; larger faces may be found at small detection sizes only
# When to turn a photo. Confidence, with buffalo_s' detector (buffalo_l's was not measured): upright faces in 11
# photographs and renders had 0.74 to 0.89, the same faces turned by 90 or 180 degrees 0 to 0.78. Size and roll exclude
# other people in the photo who are lying down.
_UPRIGHT_SCORE, _UPRIGHT_BONUS = 0.8, 0.08
_MIN_RELATIVE_HEIGHT, _MAX_ROLL = 0.6, 45.0  # of the height of the largest face; degrees


class FoundFace(NamedTuple):
    """box: [4] x0, y0, x1, y1 in pixels. score: confidence, 0 to 1. landmarks: [5, 2] eyes, nose, mouth corners."""

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]

    @property
    def height(self) -> float:
        """Of the box, in pixels."""
        return float(self.box[3] - self.box[1])

    @property
    def roll(self) -> float:
        """From the eyes to the mouth, in degrees: 0 upright, 90 sideways, 180 upside down."""
        x, y = self.landmarks[3:].mean(axis=0) - self.landmarks[:2].mean(axis=0)
        return abs(math.degrees(math.atan2(x, y)))


class FaceDetector:
    """Tries several detection sizes: a face is found only where it is neither too small nor too large."""

    def __init__(self, model: Any, size: int) -> None:
        """model: InsightFace's. size: of the first try, in pixels, rounded down to a multiple of 32."""
        self._model = model
        self._size = max(_STRIDE, size // _STRIDE * _STRIDE)

    def find(self, bgr: Photo) -> list[FoundFace]:
        """All faces of a photo.

        Smaller sizes add faces that are too large for the first one. If none is found, a border around the picture is
        tried, then larger sizes for a larger photo.
        """
        found = self._find_large_and_small(bgr) or self._find_with_border(bgr)
        for size in self._larger_sizes(bgr):
            found = found or self._find_at(bgr, size)
        return found

    def sizes(self, photo: Photo) -> list[int]:
        """The sizes that are tried until a face is found."""
        return [*self._smaller_sizes(), *self._larger_sizes(photo)]

    def turns_to_upright(self, bgr: Photo, found: Sequence[FoundFace]) -> int:
        """The number of quarter turns (see TURNS) after which upright faces are found with clearly higher confidence;
        else 0. found: the faces of the photo as it is.
        """
        if any(face.score >= _UPRIGHT_SCORE for face in found):
            return 0
        turned = [self._find_large_and_small(np.ascontiguousarray(np.rot90(bgr, turns))) for turns in (1, 2, 3)]
        largest = max((face.height for faces in (found, *turned) for face in faces), default=0.0)
        counting = [
            [face for face in faces if face.height >= _MIN_RELATIVE_HEIGHT * largest] for faces in (found, *turned)
        ]
        scores = [max((face.score for face in faces if turn == 0 or face.roll <= _MAX_ROLL), default=0.0)
                  for turn, faces in enumerate(counting)]  # fmt: skip
        scores[0] += _UPRIGHT_BONUS
        return int(np.argmax(scores))

    def _find_large_and_small(self, bgr: Photo) -> list[FoundFace]:
        found: list[FoundFace] = []
        for size in self._smaller_sizes():
            least = _LARGE_FACE * max(bgr.shape[:2]) if found else 0.0
            found += [
                face
                for face in self._find_at(bgr, size)
                if face.height >= least and not any(_is_same_face(face, other) for other in found)
            ]
        return found

    def _smaller_sizes(self) -> list[int]:
        sizes = [self._size]
        while (half := sizes[-1] // 2 // _STRIDE * _STRIDE) >= _SMALLEST:
            sizes.append(half)
        return sizes

    def _larger_sizes(self, photo: Photo) -> list[int]:
        longest = min(max(photo.shape[:2]), _LARGEST)
        return [size for times in (2, 4, 8) if (size := times * self._size) <= longest]

    def _find_at(self, bgr: Photo, size: int) -> list[FoundFace]:
        if min(bgr.shape[:2]) * size < max(bgr.shape[:2]):
            return []  # too narrow: its shorter side would vanish
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
    return np.asarray(cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _is_same_face(face: FoundFace, other: FoundFace) -> bool:
    """Whether the middle of each box lies in the other box."""
    return _contains_centre(face.box, other.box) and _contains_centre(other.box, face.box)


def _contains_centre(box: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    middle = (other[:2] + other[2:]) / 2
    return bool((box[:2] < middle).all() and (middle < box[2:]).all())
