"""Real photographs that packages ship, as ComfyUI images [1, H, W, 3]."""

from importlib.resources import files

import numpy as np
import torch
from PIL import Image


def photo(package: str, *path: str) -> np.ndarray:
    with Image.open(files(package).joinpath(*path)) as picture:
        return np.asarray(picture.convert("RGB"))


def astronaut() -> np.ndarray:
    return photo("skimage", "data", "astronaut.png")


def actor() -> np.ndarray:
    return photo("insightface", "data", "images", "Tom_Hanks_54745.png")


def group_of_six() -> np.ndarray:
    return photo("insightface", "data", "images", "t1.jpg")


def coffee() -> np.ndarray:
    """A picture without a face."""
    return photo("skimage", "data", "coffee.png")


def image(*photos: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(photos).astype(np.float32) / 255.0)
