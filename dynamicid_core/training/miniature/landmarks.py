"""Where InsightFace's keypoint model sees the features of a face: eyes, brows and mouth of a painted one should be
where those of the true one are, which is most of an expression.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...face_analysis import open_pack
from ...keypoints import COUNT
from .from_onnx import differentiable

_SIZE = 192  # pixels of what the model sees
_SQUARE, _ABOVE = 1.95, 0.17
"""The square that it sees around a face, and how far its middle lies above that of the keypoints, in longer sides of
the box around them: as it is on average when InsightFace makes it of the detector's box."""


class Landmarks:
    """The keypoint model, letting gradients through."""

    def __init__(self, network: nn.Module) -> None:
        """network: frozen, [B, 3, 192, 192] of 0 to 255 -> [B, 212], -1 to 1 from edge to edge."""
        self._network = network

    def errors(self, pictures: Tensor, keypoints: Tensor) -> Tensor:
        """How far from ``keypoints`` it sees those of faces, [B]: mean over the points, in longer sides of the box
        around them. pictures: [B, H, W, 3], 0 to 1. keypoints: [B, 106, 2] in fractions of them.
        """
        height, width = pictures.shape[1:3]
        points = keypoints * torch.tensor((width, height), device=keypoints.device)
        low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
        side = (high - low).amax(2, keepdim=True)
        middle = (low + high) / 2 - side * torch.tensor((0.0, _ABOVE), device=side.device)
        seen = self._network(_squares(pictures, middle, side * _SQUARE) * 255).view(-1, COUNT, 2)
        apart = seen * _SQUARE / 2 - (points - middle) / side
        return apart.square().sum(2).clamp(min=1e-10).sqrt().mean(1)


def open_landmarks(pack: Path, device: torch.device) -> Landmarks:
    """The 106 keypoint model of a pack. Raises InputError if it has none, or the package onnx2torch is missing."""
    return Landmarks(differentiable(open_pack(pack, "CPU").keypoint_file, device))


def _squares(pictures: Tensor, middle: Tensor, side: Tensor) -> Tensor:
    """Squares of pictures, [B, 3, 192, 192]. middle: [B, 1, 2], side: [B, 1, 1], in pixels."""
    steps = (torch.arange(float(_SIZE), device=middle.device) - _SIZE / 2) / _SIZE
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    places = middle.unsqueeze(1) + torch.stack((across, down), dim=-1) * side.unsqueeze(1)
    size = torch.tensor((pictures.shape[2], pictures.shape[1]), device=places.device)
    grid = (2 * places + 1) / size - 1
    return F.grid_sample(pictures.movedim(-1, 1), grid.to(pictures), align_corners=False)
