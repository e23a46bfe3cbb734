"""What is measured of a face in a photo: its square portrait, keypoints in it, pose and expression."""

import numpy as np
import torch
from PIL import Image

from .expression import classify_expression
from .face_analysis import DetectedFace
from .head import solve_pose
from .images import Photo, Square, square_around
from .keypoints import Keypoints

MARGIN = 2.0
"""Side of the portrait in lengths of the face box: hair and some shoulder too, as in the released examples."""
_PREVIEW_SIZE = 256


def portrait_square(photo: Photo, face: DetectedFace) -> Square:
    """Where the portrait of a face is in the photo."""
    return square_around(photo, face.box, MARGIN)


def measure(photo: Photo, face: DetectedFace, square: Square) -> Keypoints | None:
    """Keypoints in a square of the photo, with pose and expression; None when the pack has no model for keypoints.

    The pose is that of the pack's own model (landmark_3d_68) where it has one, else it is solved from the keypoints.
    """
    if face.keypoints is None:
        return None
    points = torch.from_numpy(square.fractions(face.keypoints))
    probabilities = classify_expression(photo, face)
    return Keypoints(
        points,
        pose=solve_pose(points) if face.pose is None else torch.from_numpy(face.pose),
        expression=max(probabilities, key=lambda name: probabilities[name]),
        portrait=_preview(square.cut(photo)),
    )


def _preview(portrait: Photo) -> Photo:
    return np.asarray(Image.fromarray(portrait).resize((_PREVIEW_SIZE, _PREVIEW_SIZE), Image.Resampling.LANCZOS))
