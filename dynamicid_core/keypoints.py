"""The 106 face keypoints: the keypoint encoder's input, and their file format."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import files
from .errors import InputError
from .head import Head
from .images import Photo
from .imr import RASTER_SIZE

KEYPOINT_COUNT = 106
ARCFACE_POINTS = [38, 88, 86, 52, 61]
"""The points that align a face for ArcFace: both eyes, the tip of the nose, both mouth corners."""
_HEAD_TENSORS = ("head_scale", "head_middle", "head_individual")  # the pose is stored once, as the keypoints'
FILES = files.FileKind(
    what="keypoints",
    writer="Save Keypoints",
    format="dynamicid-keypoints",
    version="1",
    needed=("keypoints",),
    optional=("pose", *_HEAD_TENSORS),
)
# The released model scales keypoints to a picture of this size before it divides them into raster cells.
_RELEASED_SIZE = 512


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Where a face's features are; they encode its head pose and expression.

    points: [106, 2] (x, y) in fractions of the square crop around the face, float32. pose: [3] pitch, yaw, roll in
    degrees, if measured. expression: one of EXPRESSIONS, if known. head: the points in three dimensions, once they have
    been edited. portrait: the crop itself, for previews; not saved.
    """

    points: Tensor
    pose: Tensor | None = None
    expression: str | None = None
    head: Head | None = None
    portrait: Photo | None = None

    def __post_init__(self) -> None:
        check_points(self.points)
        check_pose(self.pose)


def check_points(points: Tensor) -> None:
    """Raises InputError for anything but 106 finite points."""
    if points.shape != (KEYPOINT_COUNT, 2):
        raise InputError(
            f"Face keypoints must be {KEYPOINT_COUNT} points (x, y) in fractions of the square around the face; found "
            f"the shape {list(points.shape)}. Keypoints of other kinds (68 or 468 points, OpenPose) cannot be "
            "converted: use Face Keypoints on a picture."
        )
    if not points.isfinite().all():
        raise InputError("The face keypoints hold values that are not numbers. Measure them again with Face Keypoints.")


def check_pose(pose: Tensor | None) -> None:
    """Raises InputError for a pose that is not three finite angles."""
    if pose is not None and (pose.shape != (3,) or not pose.isfinite().all()):
        found = pose.tolist() if pose.shape == (3,) else f"the shape {list(pose.shape)}"
        raise InputError(
            f"A head pose must be pitch, yaw and roll in degrees; found {found}. Measure it again with Face "
            "Keypoints or Encode Face."
        )


def rasterise(points: Tensor) -> Tensor:
    """Points [106, 2] in fractions of the crop -> uint8 [96, 96]: 255 in the cell of each point, else 0.

    As in the released model, coordinates are truncated to whole cells; points on or outside the border are not drawn.
    """
    cells = points.float() * _RELEASED_SIZE / (_RELEASED_SIZE / RASTER_SIZE)
    inside = ((cells > 0) & (cells < RASTER_SIZE)).all(dim=1)
    x, y = cells[inside].long().unbind(dim=1)
    picture = torch.zeros(RASTER_SIZE, RASTER_SIZE, dtype=torch.uint8)
    picture[y, x] = 255
    return picture


def encoder_input(points: Tensor) -> Tensor:
    """Points [106, 2] -> the keypoint encoder's input: float32 [1, 1, 96, 96], 1 at points, else -1."""
    return (rasterise(points).float() / 127.5 - 1)[None, None]


def save_keypoints(keypoints: Keypoints, folder: str | Path, name: str) -> Path:
    """Writes ``name``.safetensors into the folder and returns its path; see ``files.save``."""
    tensors = {"keypoints": keypoints.points}
    if keypoints.pose is not None:
        tensors["pose"] = keypoints.pose
    if keypoints.head is not None:
        tensors |= {key: getattr(keypoints.head, key.removeprefix("head_")) for key in _HEAD_TENSORS}
    metadata = {} if keypoints.expression is None else {"expression": keypoints.expression}
    return files.save(FILES, tensors, metadata, folder, name)


def load_keypoints(path: str | Path) -> Keypoints:
    """Reads a keypoints file. Raises InputError if it is missing, damaged or of another kind."""
    tensors, metadata = files.load(FILES, path)
    pose = tensors.get("pose")
    head = {name.removeprefix("head_"): tensors[name] for name in _HEAD_TENSORS if name in tensors}
    whole = pose is not None and len(head) == len(_HEAD_TENSORS) and head["individual"].shape == (KEYPOINT_COUNT, 3)
    lifted = Head(pose, **head) if pose is not None and whole else None
    return Keypoints(tensors["keypoints"], pose, metadata.get("expression"), lifted)
