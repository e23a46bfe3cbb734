"""What is measured of a face in a photo: its square portrait, keypoints in it, pose and expression."""

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
"""Side of the portrait in lengths of the face box: hair and some shoulder too, as in the released examples."""
_PREVIEW_SIZE = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured(Keypoints):
    """Keypoints of a photo, which shows pose and expression, too."""

    pose: Tensor
    expression: str


def portrait_square(photo: Photo, face: DetectedFace) -> Square:
    """Where the portrait of a face is in the photo."""
    return square_around(photo, face.box, MARGIN)


def no_keypoints_model() -> InputError:
    """Of packs that find faces, but nothing in them."""
    return InputError(
        "This InsightFace pack has no model for keypoints (landmark_2d_106). Choose one that has it, such as buffalo_l "
        "(in Load Face Analysis, or as --pack)."
    )


def points_in(square: Square, face: DetectedFace) -> Tensor:
    """The face's keypoints [106, 2] in fractions of a square. Raises InputError when the pack has no model for them."""
    if face.keypoints is None:
        raise no_keypoints_model()
    return torch.from_numpy(square.fractions(face.keypoints))


def measured(photo: Photo, face: DetectedFace, square: Square) -> Measured:
    """Keypoints in a square of the photo, with pose and expression. Raises InputError like ``points_in``.

    The pose is that of the pack's own model (landmark_3d_68) where it has one, else it is solved from the keypoints.
    """
    points = points_in(square, face)
    probabilities = classify_expression(photo, face)
    return Measured(
        points,
        pose=solve_pose(points) if face.pose is None else torch.from_numpy(face.pose),
        expression=max(probabilities, key=lambda name: probabilities[name]),
        portrait=_preview(square.cut(photo)),
    )


def _preview(portrait: Photo) -> Photo:
    return np.asarray(Image.fromarray(portrait).resize((_PREVIEW_SIZE, _PREVIEW_SIZE), Image.Resampling.LANCZOS))
