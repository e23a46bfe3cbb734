"""Measures a face in a photo: its square portrait, the keypoints in it, pose and expression."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import InputError
from .expression import classify_expression
from .face_analysis import DetectedFace
from .head import solve_pose
from .images import Photo, Square, square_around
from .keypoints import Keypoints

MARGIN = 2.0
"""Side of the portrait relative to the face box: with hair and some shoulder, as in the released examples."""
_PREVIEW_SIZE = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredKeypoints(Keypoints):
    """Keypoints measured in a photo, with pose and expression."""

    pose: Tensor
    expression: str


def portrait_square(photo: Photo, face: DetectedFace) -> Square:
    """The square of a face's portrait in the photo."""
    return square_around(photo, face.box, MARGIN)


def missing_keypoints_model() -> InputError:
    """The error for packs that detect faces, but no keypoints."""
    return InputError(
        "This InsightFace pack has no model for keypoints (landmark_2d_106). Choose one that has it, such as buffalo_l "
        "(in Load Face Analysis, or as --pack)."
    )


def keypoints_in(square: Square, face: DetectedFace) -> Tensor:
    """The face's keypoints [106, 2] in fractions of a square. Raises InputError if the pack has no model for them."""
    if face.keypoints is None:
        raise missing_keypoints_model()
    return torch.from_numpy(square.fractions(face.keypoints))


def measure_keypoints(photo: Photo, face: DetectedFace, square: Square) -> MeasuredKeypoints:
    """Keypoints in a square of the photo, with pose and expression. Raises InputError like ``keypoints_in``.

    The pose is that of the pack's own model (landmark_3d_68) if it has one, else solved from the keypoints.
    """
    points = keypoints_in(square, face)
    probabilities = classify_expression(photo, face)
    return MeasuredKeypoints(
        points,
        pose=solve_pose(points) if face.pose is None else torch.from_numpy(face.pose),
        expression=max(probabilities, key=lambda name: probabilities[name]),
        portrait=_preview(square.crop(photo)),
    )


def _preview(portrait: Photo) -> Photo:
    return np.asarray(Image.fromarray(portrait).resize((_PREVIEW_SIZE, _PREVIEW_SIZE), Image.Resampling.LANCZOS))
