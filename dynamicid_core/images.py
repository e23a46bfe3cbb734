"""Conversions between ComfyUI's IMAGE tensors, photos, and CLIP's input."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InputError

Photo = NDArray[np.uint8]
"""A picture as [height, width, 3] RGB, 0 to 255."""

_NOT_PHOTOS = (".txt", ".json", ".csv", ".md", ".db", ".ini")
_MAX_OVERSHOOT = 8.0  # sharpening and upscaling exceed 1 by less


@dataclass(frozen=True)
class Square:
    """A square part of a photo, in pixels."""

    left: int
    top: int
    side: int

    def crop(self, photo: Photo) -> Photo:
        """That part of the photo, [side, side, 3]."""
        return photo[self.top : self.top + self.side, self.left : self.left + self.side]

    def fractions(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points [n, 2] (x, y) in pixels of the photo -> in fractions of the square."""
        return ((points - np.array([self.left, self.top])) / self.side).astype(np.float32)


def photos_from_image(image: Tensor) -> list[Photo]:
    """A ComfyUI IMAGE [B, H, W, C] with values 0 to 1 -> photos. Grey becomes RGB, transparency becomes white.

    Raises InputError for other shapes, empty pictures, values that are not numbers, and values far beyond 1.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(
            f"An image must have the shape [batch, height, width, 1, 3 or 4 channels] and at least one pixel; "
            f"found {list(image.shape)}."
        )
    finite = image.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        bad = int(finite.logical_not().nonzero()[0]) + 1
        raise InputError(
            f"Photo {bad} of {len(image)} holds values that are not numbers (NaN or infinity). "
            "It was probably broken by the node before this one; use a picture from Load Image."
        )
    if image.max() > _MAX_OVERSHOOT:
        raise InputError(
            f"The picture has values up to {float(image.max()):g}; they must be from 0 to 1. The node before this one "
            "probably gives 0 to 255: use a picture from Load Image."
        )
    return to_photos(_on_white(image.detach().float()))


def single_photo_from_image(image: Tensor, taken: str) -> Photo:
    """The photo of an IMAGE of one. taken: the beginning of the message ("Auto Layout takes one reference image").

    Raises InputError for a batch, and as ``photos_from_image`` does.
    """
    photo, *more = photos_from_image(image)
    if more:
        raise InputError(
            f"{taken}; found a batch of {1 + len(more)}. Choose one with ImageFromBatch (Get Image from Batch in later "
            "versions)."
        )
    return photo


def is_photo(path: Path) -> bool:
    """Whether a file counts as a photo: all but hidden files, texts, and those of Windows. Other files that are not
    pictures are then reported as unreadable instead of being skipped.
    """
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in _NOT_PHOTOS


def list_photos(folder: Path) -> list[str]:
    """The photos in a folder and its subfolders, without hidden ones: relative paths with /, sorted."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if is_photo(path))
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def open_photo(path: Path) -> Photo:
    """Opens a photo, turned by its EXIF orientation; grey becomes RGB, transparency white. Raises InputError."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow's many decoders raise many types
        raise _unreadable_error(path, error) from error


def check_photo(path: Path) -> None:
    """Raises InputError for a file that is not a picture. Only its header is read; the rest may still be damaged."""
    try:
        with Image.open(path):
            pass
    except Exception as error:
        raise _unreadable_error(path, error) from error


def central_square(photo: Photo) -> Square:
    """The largest central square, which is what CLIP's own preprocessing keeps."""
    height, width = photo.shape[:2]
    side = min(height, width)
    return Square((width - side) // 2, (height - side) // 2, side)


def square_around(photo: Photo, box: NDArray[np.float32], margin: float) -> Square:
    """The square around a box (x0, y0, x1, y1), ``margin`` times its longer side, moved and shrunk into the photo."""
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = (float(edge) for edge in box)
    side = max(1, min(round(max(x1 - x0, y1 - y0) * margin), height, width))
    left = round((x0 + x1 - side) / 2)
    top = round((y0 + y1 - side) / 2)
    return Square(min(max(left, 0), width - side), min(max(top, 0), height - side), side)


def clip_pixels(photo: Photo, size: int) -> Tensor:
    """The photo as CLIP's reference preprocessing sees it before normalisation: float32 [size, size, 3], 0 to 1.

    The shorter side becomes ``size`` with PIL's bicubic filter, the longer side is cropped to the middle (both
    truncated to whole pixels), as in transformers' CLIPImageProcessor. The host's own resize rounds differently, which
    shifts the picture by up to half a pixel.
    """
    height, width = photo.shape[:2]
    short = min(height, width)
    new_height, new_width = int(size * height / short), int(size * width / short)
    resized = Image.fromarray(photo).resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    cut = np.asarray(resized)[top : top + size, left : left + size]
    return torch.from_numpy(cut.astype(np.float32) / 255.0)


def clip_input(photos: Sequence[Photo], size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A vision model's input for photos: ``clip_pixels``, normalised, float32 [B, 3, size, size]."""
    pixels = torch.stack([clip_pixels(photo, size) for photo in photos])
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).movedim(-1, 1)


def to_image(photos: Sequence[Photo]) -> Tensor:
    """Photos of one size -> a ComfyUI IMAGE [B, H, W, 3]: float32, 0 to 1."""
    return torch.from_numpy(np.stack(photos).astype(np.float32) / 255.0)


def to_photos(image: Tensor) -> list[Photo]:
    """A ComfyUI IMAGE on any device -> photos, clamped to 0 to 1, without the checks of ``photos_from_image``."""
    return list((image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _unreadable_error(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} could not be read as a picture ({error})")


def _on_white(image: Tensor) -> Tensor:
    """[B, H, W, 3], blended onto white where it is transparent."""
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha)
    return image.expand(-1, -1, -1, 3)
