"""Faces and photos that evaluations are tried on."""

import numpy as np
import torch
from PIL import Image

from dynamicid_core.evaluation.metrics import SeenFace
from dynamicid_core.face_analysis import DetectedFace

SIDE = 32
"""Of photos, in pixels."""


def unit(*values):
    vector = np.zeros(512, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def seen(embedding, x=10.0, expression="happy", pose=(0.0, 0.0, 0.0)):
    box = np.array([x - 2, 8, x + 2, 12], np.float32)
    return SeenFace(DetectedFace(box, 0.9, np.zeros((5, 2), np.float32)), embedding, expression, torch.tensor(pose))


def save_photo(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), colour).save(path)
