"""Face analysis by InsightFace: detection, embeddings, 106 keypoints and head pose.

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
from .face_detection import DETECTION_SIZE, TURNS, FaceDetector, FoundFace
from .images import Photo

DETECTION, RECOGNITION, KEYPOINTS, POSE = "detection", "recognition", "landmark_2d_106", "landmark_3d_68"
ALIGNED_SIZE = 112
_CLIP_SIZE = 224
_SMALL_FACE = 40  # pixels of width; below, ArcFace distinguishes people less well

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """A face found in a photo, in pixels of that photo.

    box: [4] x0, y0, x1, y1. score: the detector's confidence, 0 to 1. landmarks: [5, 2] eyes, nose, mouth corners.
    keypoints: [106, 2], None if the pack has no model for them. pose: [3] pitch, yaw, roll in degrees, likewise.
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
class FaceSelection:
    """All faces of a photo in the requested order, and the chosen one.

    photo: the photo, turned if its faces were sideways or upside down.
    """

    photo: Photo
    faces: list[DetectedFace]
    chosen: DetectedFace


ORDERS = ("largest", "left to right", "right to left", "top to bottom", "nearest to the centre", "most certain")


def sort_faces(faces: Iterable[DetectedFace], order: str, photo: Photo) -> list[DetectedFace]:
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
        raise InputError(f'"{order}" is not an order of faces. Choose one of: {", ".join(ORDERS)}.')
    return sorted(faces, key=keys[order])


class FaceAnalysis:
    """An opened InsightFace pack."""

    def __init__(self, models: dict[str, Any], detection_size: int = DETECTION_SIZE) -> None:
        """models: InsightFace models by task; detection and recognition are needed (``open_pack`` checks).

        detection_size: pixels, rounded down to a multiple of 32.
        """
        self._models = models
        self._detector = FaceDetector(models[DETECTION], detection_size)

    @property
    def recognition(self) -> str:
        """The name of the recognition model's file, without its ending."""
        return self.recognition_file.stem

    @property
    def recognition_file(self) -> Path:
        """The recognition model's file."""
        return Path(getattr(self._models[RECOGNITION], "model_file", ""))

    def detect(self, photo: Photo) -> list[DetectedFace]:
        """Detects all faces of a photo."""
        bgr = _bgr(photo)
        return self._measure_all(bgr, self._detector.find(bgr))

    def turn_upright(self, photo: Photo) -> tuple[Photo, list[DetectedFace], int]:
        """The photo turned so that its faces are upright, these faces, and the number of quarter turns (see TURNS).

        Embeddings and keypoints of faces that are sideways or upside down are wrong.
        """
        bgr = _bgr(photo)
        found = self._detector.find(bgr)
        turns = self._detector.turns_to_upright(bgr, found)
        if turns == 0:
            return photo, self._measure_all(bgr, found), 0
        photo = np.ascontiguousarray(np.rot90(photo, turns))
        return photo, self.detect(photo), turns

    def choose(self, photo: Photo, order: str, index: int, number: int = 1, total: int = 1) -> FaceSelection:
        """The face at ``index`` in the given order. number, total: of the photo, for messages."""
        which = f"photo {number} of {total}" if total > 1 else "the photo"
        height, width = photo.shape[:2]
        upright, faces, turns = self.turn_upright(photo)
        if turns:
            _log.warning("%s is not upright; turned it by %s", which.capitalize(), TURNS[turns])
        faces = sort_faces(faces, order, upright)
        if not faces:
            sizes = ", ".join(str(size) for size in self._detector.sizes(photo))
            raise InputError(
                f"No face found in {which} ({width} x {height}). Tried detection at {sizes} pixels, with a border "
                f"added, and rotated. Use a picture in which one face is sharp and at least {_SMALL_FACE} pixels wide, "
                "or crop the photo to the face. A lower detection threshold in Load Face Analysis finds less certain "
                "faces, but also things that are not faces."
            )
        if not 0 <= index < len(faces):
            raise InputError(
                f"There is no face {index} in {which} ({width} x {height}): {len(faces)} found, so the index goes from "
                f"0 to {len(faces) - 1} ({order}). Index 0 shows their numbers in the preview."
            )
        if len(faces) > 1:
            _log.info("%s shows %d faces; using number %d, %s", which.capitalize(), len(faces), index, order)
        across = float(faces[index].box[2] - faces[index].box[0])
        if across < _SMALL_FACE:
            _log.warning("The face in %s is only %d pixels wide: too small to recognise a person well", which, across)
        return FaceSelection(upright, faces, faces[index])

    def embed(self, photo: Photo, face: DetectedFace, channel_order: str = "bgr") -> NDArray[np.float32]:
        """The ArcFace embedding [512] of a face, of length 1.

        channel_order: "bgr" as ArcFace was trained; "rgb", with red and blue swapped, as the released DynamicID was.
        """
        seen = _bgr(photo) if channel_order == "bgr" else np.ascontiguousarray(photo)
        feature = self._models[RECOGNITION].get_feat(align(seen, face.landmarks, ALIGNED_SIZE)).flatten()
        return (feature / np.linalg.norm(feature)).astype(np.float32)

    def _measure_all(self, bgr: Photo, found: Iterable[FoundFace]) -> list[DetectedFace]:
        return [self._measure(bgr, face) for face in found]

    def _measure(self, bgr: Photo, found: FoundFace) -> DetectedFace:
        from insightface.app.common import Face as InsightFace

        face = InsightFace(bbox=found.box, kps=found.landmarks, det_score=found.score)
        for task in (KEYPOINTS, POSE):
            if task in self._models:
                self._models[task].get(bgr, face)
        return DetectedFace(*found, face.get(KEYPOINTS), face.get("pose"))


def align(photo: Photo, landmarks: NDArray[np.float32], size: int) -> Photo:
    """The face with these landmarks, see ``DetectedFace``, aligned for ArcFace, [size, size, 3].

    size: a multiple of 112 or of 128.
    """
    from insightface.utils import face_align

    return face_align.norm_crop(photo, landmark=landmarks, image_size=size)


def align_for_clip(photo: Photo, landmarks: NDArray[np.float32]) -> Photo:
    """The crop that FaceID Plus gives to CLIP, [224, 224, 3]."""
    return align(photo, landmarks, _CLIP_SIZE)


def _bgr(photo: Photo) -> Photo:
    return np.ascontiguousarray(photo[..., ::-1])
