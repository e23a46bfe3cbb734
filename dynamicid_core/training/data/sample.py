"""One training picture of one person, and its record in a shard."""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...errors import InputError
from ...images import Photo
from ...keypoints import KEYPOINT_COUNT, rasterise

EMBEDDING_SIZE = 512
Record = dict[str, bytes]
"""A sample as the members of a tar file: file extension -> content."""

_PICTURE, _LABELS, _EMBEDDINGS, _RASTER = "jpg", "json", "npy", "raster.png"
_QUALITY = 95
_LONGEST_NAME = 60  # in a key; a tar file's names end at 100 characters


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture of one person with everything that training needs.

    key: unique in the data set, see ``sample_key``. identity: name of the person's folder. picture: uint8 [S, S, 3].
    expression: one of EXPRESSIONS, None if unknown. pose: float32 [3], pitch, yaw, roll in degrees. keypoints: float32
    [106, 2] in fractions of the picture. embedding: float32 [512], in ArcFace's own channel order; embedding_rgb: with
    red and blue swapped, as the released model saw it. labels: anything else, for example about a rendered picture.
    """

    key: str
    identity: str
    picture: Photo
    caption: str
    face_prompt: str
    expression: str | None
    pose: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    embedding: NDArray[np.float32]
    embedding_rgb: NDArray[np.float32]
    labels: Mapping[str, Any] = field(default_factory=dict)


def sample_key(identity: str, number: int) -> str:
    """A key such as "anna_0003", of characters that any file system allows: others become -, and a checksum keeps such
    names distinct.
    """
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", identity)[:_LONGEST_NAME].strip("-")
    if plain != identity:
        plain = f"{plain}-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]}".strip("-")
    return f"{plain}_{number:04d}"


def to_record(sample: Sample) -> Record:
    """The members of a sample: jpg (the picture, quality 95), json (texts and measurements), npy (both embeddings,
    [2, 512]) and raster.png (the keypoints as the keypoint encoder sees them, [96, 96]).
    """
    labels = {
        "key": sample.key,
        "identity": sample.identity,
        "caption": sample.caption,
        "face_prompt": sample.face_prompt,
        "expression": sample.expression,
        "pose": sample.pose.tolist(),
        "keypoints": sample.keypoints.tolist(),
        "labels": dict(sample.labels),
    }
    embeddings = io.BytesIO()
    np.save(embeddings, np.stack([sample.embedding, sample.embedding_rgb]).astype(np.float32))
    return {
        # Without chroma subsampling, which would blur the colour of lips and irises.
        _PICTURE: _encoded(sample.picture, format="JPEG", quality=_QUALITY, subsampling=0),
        _LABELS: json.dumps(labels).encode(),
        _EMBEDDINGS: embeddings.getvalue(),
        _RASTER: _encoded(rasterise(torch.from_numpy(sample.keypoints)).numpy(), format="PNG"),
    }


# What the readers of JSON, pictures and arrays raise for damaged content; TokenError comes from some headers of arrays.
_FAULTS = (
    *(KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, SyntaxError, TokenError),
    *(MemoryError, RecursionError, Image.DecompressionBombError),
)


def from_record(record: Mapping[str, Any]) -> Sample:
    """The sample with these members; others, such as WebDataset's own, are ignored.

    Raises InputError when a member is missing or damaged.
    """
    try:
        labels = json.loads(record[_LABELS])
        embedding, embedding_rgb = np.load(io.BytesIO(record[_EMBEDDINGS]), allow_pickle=False).astype(np.float32)
        with Image.open(io.BytesIO(record[_PICTURE])) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        pose = np.asarray(labels.pop("pose"), np.float32)
        keypoints = np.asarray(labels.pop("keypoints"), np.float32)
        sample = Sample(
            picture=pixels, pose=pose, keypoints=keypoints, embedding=embedding, embedding_rgb=embedding_rgb, **labels
        )
    except _FAULTS as error:
        raise _damaged(record, f"{type(error).__name__}: {error}") from error
    height, width, _ = pixels.shape
    if height != width:
        raise _damaged(record, f"its picture is {width} x {height}, not square")
    vector = (EMBEDDING_SIZE,)
    shapes = {"pose": (3,), "keypoints": (KEYPOINT_COUNT, 2), "embedding": vector, "embedding_rgb": vector}
    for name, shape in shapes.items():
        values = getattr(sample, name)
        if values.shape != shape or not np.isfinite(values).all():
            raise _damaged(record, f"its {name} is not {list(shape)} numbers")
    return sample


def _damaged(record: Mapping[str, Any], what: str) -> InputError:
    name, shard = record.get("__key__", "a sample"), record.get("__url__", "this data set")
    return InputError(f"{name} in {shard} is damaged ({what}). Copy that shard again, or rebuild the data set.")


def _encoded(pixels: NDArray[np.uint8], **how: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, **how)
    return content.getvalue()
