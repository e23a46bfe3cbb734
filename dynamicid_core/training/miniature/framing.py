"""How the miniature frames people: closer than the data does, so that more of its few latents cover the face."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...comfy_host.miniature import DATA_SIZE, PICTURE_HEIGHT, PICTURE_WIDTH
from ...regions import LATENT_CELL

_TOP, _BOTTOM = 10 / 128, 118 / 128  # fractions of the data's pictures: from above the hair to the collar
_FLATNESS = 0.5, 2.5  # limits, so that a face of a single colour does not dominate
FACE_WEIGHT = 3.0
"""Weight of an error on a face, relative to one elsewhere."""


def close_up(pictures: Tensor) -> Tensor:
    """Pictures [B, H, W, C] of the data -> [B, PICTURE_HEIGHT, w, C], both 0 to 1. Square ones of one person become
    PICTURE_WIDTH wide; wider ones of several people keep their full width.
    """
    top, bottom, left, right = _window(*pictures.shape[1:3])
    cut = pictures[:, top:bottom, left:right].movedim(-1, 1)
    size = (PICTURE_HEIGHT, round((right - left) * PICTURE_HEIGHT / (bottom - top)))
    return F.interpolate(cut, size, mode="bicubic", align_corners=False).clamp(0, 1).movedim(1, -1)


def in_close_up(points: Tensor, height: int = DATA_SIZE, width: int = DATA_SIZE) -> Tensor:
    """Points [..., 2], (x, y) in fractions of a picture of the data -> in fractions of its close-up."""
    top, bottom, left, right = _window(height, width)
    low, high = points.new_tensor(((left / width, top / height), (right / width, bottom / height)))
    return (points - low) / (high - low)


def face_weights(keypoints: Tensor, height: int, width: int, weight: float) -> Tensor:
    """The weight of each latent, [B, 1, height, width], of mean 1: on the face ``weight`` times that elsewhere.

    keypoints: [B, 106, 2] in fractions of the picture.
    """
    weights = 1 + (weight - 1) * _on_faces(keypoints, height, width)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def face_flatness(keypoints: Tensor, pictures: Tensor) -> Tensor:
    """How flat each face is compared to the others of a batch, [B]: the mean contrast by its own, 0.5 to 2.5.

    keypoints: [B, 106, 2] in fractions of the pictures. pictures: [B, C, h, w].

    Dark faces in even light have as little as half the contrast of bright ones, so that equal errors hurt them more.
    """
    on_face = _on_faces(keypoints, *pictures.shape[2:]).to(pictures)
    cells = on_face.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (pictures * on_face).sum((2, 3), keepdim=True) / cells
    variance = ((pictures - mean).square() * on_face).sum((2, 3), keepdim=True) / cells
    contrast = variance.mean((1, 2, 3)).sqrt()
    return (contrast.mean() / contrast.clamp(min=1e-6)).clamp(*_FLATNESS)


def _on_faces(keypoints: Tensor, height: int, width: int) -> Tensor:
    """A mask of the faces' bounding boxes, [B, 1, height, width]."""
    down = ((torch.arange(height, device=keypoints.device) + 0.5) / height).view(1, height, 1)
    across = ((torch.arange(width, device=keypoints.device) + 0.5) / width).view(1, 1, width)
    low, high = keypoints.amin(1), keypoints.amax(1)
    inside = (
        (across >= low[:, 0].view(-1, 1, 1))
        & (across <= high[:, 0].view(-1, 1, 1))
        & (down >= low[:, 1].view(-1, 1, 1))
        & (down <= high[:, 1].view(-1, 1, 1))
    )
    return inside.float().unsqueeze(1)


def close_up_weights(keypoints: Tensor, latents: Tensor) -> Tensor:
    """``face_weights`` for latents [B, C, h, w] of close-ups. keypoints: [B, 106, 2] in fractions of the data's
    pictures.
    """
    height, width = latents.shape[2:]
    return face_weights(in_close_up(keypoints), height, width, FACE_WEIGHT).to(latents.device)


def _window(height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels that are kept: top, bottom, left, right."""
    top, bottom = round(height * _TOP), round(height * _BOTTOM)
    cell = LATENT_CELL * (bottom - top) / PICTURE_HEIGHT
    cells = PICTURE_WIDTH // LATENT_CELL if width == height else int(width / cell)
    left = (width - round(cells * cell)) // 2
    return top, bottom, left, left + round(cells * cell)
