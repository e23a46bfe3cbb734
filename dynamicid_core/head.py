"""A head model for the 106 keypoints: solves the pose, and moves the points with turns and expressions.

Head frame: x to the picture's right, y down, z towards the viewer, the distance between the outer eye corners is 1. A
pose is (pitch, yaw, roll) in degrees as InsightFace gives it: up, to the picture's right, and clockwise are positive.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

# Grid search for the pose: coarse over the template's own views, then halving steps.
_FIRST_STEP, _LAST_STEP = 8.0, 0.05
_FIT_RIDGE = 0.02
_FIT_ROUNDS = 300


@dataclass(frozen=True, eq=False)
class FaceTemplate:
    """The positions of the 106 points on an average head (made by scripts/face_template.py).

    pitch [P], yaw [Y]: views in degrees, ascending. points: [P, Y, 106, 3] in the head frame; they depend on the view
    since the contour of a turned face is another line on the head. rigidity: [106], 0 to 1, how little a point moves
    with the expression. actions: name -> [106, 3], displacement at full strength. groups: feature name -> indices of
    its points; left is the picture's left.
    """

    pitch: Tensor
    yaw: Tensor
    points: Tensor
    rigidity: Tensor
    actions: Mapping[str, Tensor]
    groups: Mapping[str, list[int]]

    def view(self, pitch: Tensor, yaw: Tensor) -> Tensor:
        """The points [B, 106, 3] as seen at pitch [B] and yaw [B], interpolated, and clamped to the grid."""
        row, down = _locate(self.pitch, pitch)
        column, right = _locate(self.yaw, yaw)
        next_row, next_column = (row + 1).clamp(max=len(self.pitch) - 1), (column + 1).clamp(max=len(self.yaw) - 1)
        down, right = down[:, None, None], right[:, None, None]
        upper = torch.lerp(self.points[row, column], self.points[row, next_column], right)
        lower = torch.lerp(self.points[next_row, column], self.points[next_row, next_column], right)
        return torch.lerp(upper, lower, down)


@dataclass(frozen=True, eq=False)
class Head:
    """Points in three dimensions. pose: [3]. scale: from the head frame to the picture. middle: [2], of the box around
    the points in the picture. individual: [106, 3], this face's difference from the template.
    """

    pose: Tensor
    scale: Tensor
    middle: Tensor
    individual: Tensor

    @property
    def average(self) -> Tensor:
        """The template's points for this pose, [106, 3] in the head frame."""
        return template().view(self.pose[:1], self.pose[1:2])[0]

    @property
    def points(self) -> Tensor:
        """This face's points, [106, 3] in the head frame."""
        return self.average + self.individual

    def turned(self, pose: Tensor) -> "Head":
        """The head in another pose [3]. The middle of the face stays in place, as in photos cropped around the face."""
        return replace(self, pose=pose)

    def displaced(self, displacement: Tensor) -> "Head":
        """The head with points moved by [106, 3] in the head frame, as by facial actions; the others stay in place."""
        flat = self._flat()
        moved = replace(self, individual=self.individual + displacement)
        return replace(moved, middle=self.middle + (_middle(moved._flat()) - _middle(flat)))

    def project(self) -> Tensor:
        """The points [106, 2] in the picture."""
        flat = self._flat()
        return flat - _middle(flat) + self.middle

    def _flat(self) -> Tensor:
        return self.scale * (self.points @ rotation_matrix(self.pose).T)[:, :2]


@cache
def template() -> FaceTemplate:
    """The template that comes with the pack."""
    with safe_open(Path(__file__).parent / "data" / "face_template.safetensors", "pt") as file:
        names, groups = (json.loads(file.metadata()[key]) for key in ("action_names", "groups"))
        actions = dict(zip(names, file.get_tensor("actions"), strict=True))
        tensors = {name: file.get_tensor(name) for name in ("pitch", "yaw", "points", "rigidity")}
    return FaceTemplate(**tensors, actions=actions, groups=groups)


def rotation_matrix(pose: Tensor) -> Tensor:
    """Pose [..., 3] in degrees -> rotation [..., 3, 3], roll after yaw after pitch."""
    (cp, cy, cr), (sp, sy, sr) = (part.unbind(-1) for part in (pose.deg2rad().cos(), pose.deg2rad().sin()))
    rows = (
        (cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp),
        (sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp),
        (-sy, cy * sp, cy * cp),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def solve_pose(points: Tensor) -> Tensor:
    """The pose [3] in which the template fits points [106, 2] (fractions or pixels) best."""
    pitch, yaw = (grid.flatten() for grid in torch.meshgrid(template().pitch, template().yaw, indexing="ij"))
    pitch, yaw = _best_view(points, pitch, yaw)
    around = torch.tensor([0.0, -1.0, 1.0])  # the centre first: if all views fit equally well, it stays
    step = _FIRST_STEP
    while step > _LAST_STEP:
        pitches, yaws = torch.meshgrid(pitch + step * around, yaw + step * around, indexing="ij")
        better_pitch, better_yaw = _best_view(points, pitches.flatten(), yaws.flatten())
        if torch.equal(better_pitch, pitch) and torch.equal(better_yaw, yaw):
            step /= 2
        pitch, yaw = better_pitch, better_yaw
    roll = _fit_views(points, pitch[None], yaw[None])[1][0]
    return torch.stack((pitch, yaw, roll))


def lift(points: Tensor, pose: Tensor | None = None) -> Head:
    """The head for points [106, 2]. pose: [3]; None to solve it.

    Depth is the template's; across the line of sight the points keep their positions.
    """
    pose = solve_pose(points) if pose is None else pose.float()
    rotation = rotation_matrix(pose)
    flat = (template().view(pose[:1], pose[1:2])[0] @ rotation.T)[:, :2]
    scale, shift = _scale_and_shift(flat, points)
    across = torch.cat(((points - shift) / scale - flat, torch.zeros(len(points), 1)), dim=1)
    return Head(pose, scale, _middle(points), across @ rotation)


def fit_actions(head: Head, names: tuple[str, ...]) -> Tensor:
    """The strength of each of the named actions in a face, [names], 0 to 1."""
    rotation = rotation_matrix(head.pose)
    moves = torch.stack([(template().actions[name] @ rotation.T)[:, :2].flatten() for name in names], dim=1)
    seen = (head.individual @ rotation.T)[:, :2].flatten()
    normal = moves.T @ moves + _FIT_RIDGE * torch.eye(len(names))
    rate = 1.0 / normal.norm()
    amount = torch.zeros(len(names))
    for _ in range(_FIT_ROUNDS):
        amount = (amount - rate * (normal @ amount - moves.T @ seen)).clamp(0, 1)
    return amount


def _best_view(points: Tensor, pitch: Tensor, yaw: Tensor) -> tuple[Tensor, Tensor]:
    error, _ = _fit_views(points, pitch, yaw)
    best = error.argmin()
    return pitch[best], yaw[best]


def _fit_views(points: Tensor, pitch: Tensor, yaw: Tensor) -> tuple[Tensor, Tensor]:
    """For views [B]: squared error [B] of the best similarity from the template to the points, and its roll [B] in
    degrees.
    """
    weight = (template().rigidity / template().rigidity.sum())[:, None]
    pose = torch.stack((pitch, yaw, torch.zeros_like(yaw)), dim=-1)
    model = (template().view(pitch, yaw) @ rotation_matrix(pose).mT)[..., :2]
    model = model - (weight * model).sum(dim=1, keepdim=True)
    seen = points - (weight * points).sum(dim=0)
    along = (weight * model * seen).sum(dim=(1, 2))
    across = (weight[:, 0] * (model[..., 0] * seen[:, 1] - model[..., 1] * seen[:, 0])).sum(dim=1)
    explained = (along.square() + across.square()) / (weight * model.square()).sum(dim=(1, 2))
    return (weight * seen.square()).sum() - explained, torch.atan2(across, along).rad2deg()


def _scale_and_shift(flat: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift [2] that fit flat [106, 2] to points best."""
    weight = (template().rigidity / template().rigidity.sum())[:, None]
    from_middle, to_middle = (weight * flat).sum(dim=0), (weight * points).sum(dim=0)
    flat, points = flat - from_middle, points - to_middle
    scale = (weight * flat * points).sum() / (weight * flat * flat).sum()
    return scale, to_middle - scale * from_middle


def _locate(grid: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the last grid point at or before each value, and the fraction of the way to the next."""
    if len(grid) == 1:
        return torch.zeros_like(value, dtype=torch.long), torch.zeros_like(value)
    value = value.clamp(grid[0], grid[-1])
    index = (torch.searchsorted(grid, value, right=True) - 1).clamp(0, len(grid) - 2)
    return index, (value - grid[index]) / (grid[index + 1] - grid[index])


def _middle(points: Tensor) -> Tensor:
    """The middle [2] of the box around points [106, 2]."""
    return (points.amin(dim=0) + points.amax(dim=0)) / 2
