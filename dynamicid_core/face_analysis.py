"""Faces in photographs, by InsightFace: where they are, whose they are, their 106 keypoints and their head pose.

The models come from ``face_packs``.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .images import Photo

DETECTION, RECOGNITION, KEYPOINTS, POSE = "detection", "recognition", "landmark_2d_106", "landmark_3d_68"
ALIGNED_SIZE = 112
_CLIP_SIZE = 224
_BORDER = 0.5  # of the longer side, for faces that fill the picture
_SMALLEST_DETECTION = 160
_GRAIN = 32  # pixels: the detector takes multiples of it
_SMALL_FACE = 40  # pixels of width, below which ArcFace tells people apart less well

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """A face found in a photo, in pixels of that photo.

    box: [4] x0, y0, x1, y1. score: the detector's certainty, 0 to 1. landmarks: [5, 2] eyes, nose, mouth corners.
    keypoints: [106, 2] or None, when the pack has no model for them. pose: [3] pitch, yaw, roll in degrees, likewise.
    """

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    keypoints: NDArray[np.float32] | None = None
    pose: NDArray[np.float32] | None = None

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box, (x, y)."""
        return float(self.box[0] + self.box[2]) / 2, float(self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, eq=False)
class ChosenFace:
    """All faces of a photo in the order asked for, and the one at the index asked for."""

    faces: list[DetectedFace]
    chosen: DetectedFace


ORDERS = ("largest", "left to right", "right to left", "top to bottom", "nearest to the centre", "most certain")


def in_order(faces: Iterable[DetectedFace], order: str, photo: Photo) -> list[DetectedFace]:
    """The faces sorted by one of ORDERS."""
    middle = (photo.shape[1] / 2, photo.shape[0] / 2)
    keys = {
        "largest": lambda face: -face.area,
        "left to right": lambda face: face.centre[0],
        "right to left": lambda face: -face.centre[0],
        "top to bottom": lambda face: face.centre[1],
        "nearest to the centre": lambda face: math.dist(face.centre, middle),
        "most certain": lambda face: -face.score,
    }
    if order not in keys:
        raise InputError(f'"{order}" is no order of faces. Choose one of: {", ".join(ORDERS)}.')
    return sorted(faces, key=keys[order])


class FaceAnalysis:
    """An opened InsightFace pack."""

    def __init__(self, models: dict[str, Any], detection_size: int = 640) -> None:
        """models: InsightFace models by task; detection and recognition are needed (``open_pack`` checks).

        detection_size: pixels, rounded down to a multiple of 32.
        """
        self._models = models
        self._detection_size = max(_GRAIN, detection_size // _GRAIN * _GRAIN)

    @property
    def recognition(self) -> str:
        """The name of the recognition model's file, without its ending."""
        return self.recognition_file.stem

    @property
    def recognition_file(self) -> Path:
        """The recognition model's file."""
        return Path(getattr(self._models[RECOGNITION], "model_file", ""))

    def detect(self, photo: Photo) -> list[DetectedFace]:
        """All faces of a photo; tries smaller detection sizes, then a border around the picture, before giving up."""
        bgr = _bgr(photo)
        for size in self._sizes():
            found = self._detect_at(bgr, size)
            if found:
                return found
        return self._detect_with_border(bgr)

    def choose(self, photo: Photo, order: str, index: int, number: int = 1, total: int = 1) -> ChosenFace:
        """The face at ``index`` in the given order. number, total: which photo of how many this is, for messages."""
        faces = in_order(self.detect(photo), order, photo)
        which = f"photo {number} of {total}" if total > 1 else "the photo"
        height, width = photo.shape[:2]
        if not faces:
            sizes = ", ".join(str(size) for size in self._sizes())
            raise InputError(
                f"No face found in {which} ({width} x {height}). Tried detection at {sizes} pixels and with a border "
                f"added. Use a picture in which one face is sharp and at least {_SMALL_FACE} pixels wide, or lower the "
                "detection threshold in Load Face Analysis."
            )
        if not 0 <= index < len(faces):
            raise InputError(
                f"There is no face {index} in {which} ({width} x {height}): {len(faces)} found, so the index goes from "
                f"0 to {len(faces) - 1} ({order}). Index 0 shows their numbers in the preview."
            )
        if len(faces) > 1:
            _log.info("%s shows %d faces; took number %d, %s", which.capitalize(), len(faces), index, order)
        across = float(faces[index].box[2] - faces[index].box[0])
        if across < _SMALL_FACE:
            _log.warning("The face in %s is only %d pixels wide: too few to know a person well by", which, across)
        return ChosenFace(faces, faces[index])

    def embed(self, photo: Photo, face: DetectedFace, channel_order: str = "bgr") -> NDArray[np.float32]:
        """The ArcFace embedding [512] of a face, of length 1.

        channel_order: "bgr" as ArcFace was trained, "rgb" with red and blue swapped, as the released DynamicID saw it.
        """
        seen = _bgr(photo) if channel_order == "bgr" else np.ascontiguousarray(photo)
        feature = self._models[RECOGNITION].get_feat(align(seen, face.landmarks, ALIGNED_SIZE)).flatten()
        return (feature / np.linalg.norm(feature)).astype(np.float32)

    def _sizes(self) -> list[int]:
        sizes = [self._detection_size]
        while (half := sizes[-1] // 2 // _GRAIN * _GRAIN) >= _SMALLEST_DETECTION:
            sizes.append(half)
        return sizes

    def _detect_at(self, bgr: Photo, size: int) -> list[DetectedFace]:
        if min(bgr.shape[:2]) * size < max(bgr.shape[:2]):
            return []  # so narrow that nothing would be left of it
        boxes, landmarks = self._models[DETECTION].detect(bgr, input_size=(size, size))
        return [self._measure(bgr, box, points) for box, points in zip(boxes, landmarks, strict=True)]

    def _detect_with_border(self, bgr: Photo) -> list[DetectedFace]:
        margin = round(max(bgr.shape[:2]) * _BORDER)
        bordered = np.pad(bgr, ((margin, margin), (margin, margin), (0, 0)))
        boxes, landmarks = self._models[DETECTION].detect(bordered, input_size=(self._detection_size,) * 2)
        shift = np.array([margin, margin, margin, margin, 0], np.float32)
        return [self._measure(bgr, box - shift, points - margin) for box, points in zip(boxes, landmarks, strict=True)]

    def _measure(self, bgr: Photo, box: NDArray[np.float32], landmarks: NDArray[np.float32]) -> DetectedFace:
        from insightface.app.common import Face as InsightFace

        face = InsightFace(bbox=box[:4], kps=landmarks, det_score=float(box[4]))
        for task in (KEYPOINTS, POSE):
            if task in self._models:
                self._models[task].get(bgr, face)
        return DetectedFace(box[:4], float(box[4]), landmarks, face.get(KEYPOINTS), face.get("pose"))


def align(photo: Photo, landmarks: NDArray[np.float32], size: int) -> Photo:
    """The face with these landmarks, see ``DetectedFace``, turned upright and scaled as ArcFace wants it,
    [size, size, 3].

    size: a multiple of 112 or of 128.
    """
    from insightface.utils import face_align

    return face_align.norm_crop(photo, landmark=landmarks, image_size=size)


def align_for_clip(photo: Photo, landmarks: NDArray[np.float32]) -> Photo:
    """What FaceID Plus shows to CLIP, [224, 224, 3]."""
    return align(photo, landmarks, _CLIP_SIZE)


def _bgr(photo: Photo) -> Photo:
    return np.ascontiguousarray(photo[..., ::-1])
