"""A person as the pack passes them between nodes and keeps them in files; a person in a picture."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError
from .regions import Box

FILE_FORMAT, FILE_VERSION = "dynamicid-face", "1"
SUFFIX = ".safetensors"
_TENSORS = ("tokens", "uncond_tokens", "embedding", "keypoints", "pose")


@dataclass(frozen=True, eq=False)
class Face:
    """One person.

    tokens, uncond_tokens: [1, T, D] float32, what the face encoder made of the photo and of nothing. embedding: [512],
    length 1, ArcFace in its own channel order, for comparing faces. keypoints: [106, 2] (x, y) in fractions of the
    square crop. pose: [3] pitch, yaw, roll in degrees. base_model: whose token size this is ("sd15", "sdxl").
    """

    tokens: Tensor
    uncond_tokens: Tensor
    base_model: str
    embedding: Tensor | None = None
    keypoints: Tensor | None = None
    pose: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.shape[0] != 1 or self.tokens.shape != self.uncond_tokens.shape:
            raise InputError(
                f"A face needs tokens and uncond_tokens of one shape [1, count, size]; "
                f"found {list(self.tokens.shape)} and {list(self.uncond_tokens.shape)}."
            )
        if not (self.tokens.isfinite().all() and self.uncond_tokens.isfinite().all()):
            raise InputError("The face's tokens hold values that are not numbers. Encode the photo again.")

    @property
    def token_size(self) -> int:
        """D: 768 for SD1.5, 2048 for SDXL."""
        return self.tokens.shape[-1]


@dataclass(frozen=True)
class Placement:
    """A person in the picture. box: where, None for anywhere. weight: how strongly, 0 leaves the person out."""

    face: Face
    box: Box | None = None
    weight: float = 1.0


def average_faces(faces: Sequence[Face]) -> Face:
    """One face from several photos of a person: tokens and embedding averaged; keypoints and pose are the first
    photo's.
    """
    first = faces[0]
    if len(faces) == 1:
        return first
    embeddings = [face.embedding for face in faces if face.embedding is not None]
    return Face(
        tokens=torch.cat([face.tokens for face in faces]).mean(dim=0, keepdim=True),
        uncond_tokens=first.uncond_tokens,
        base_model=first.base_model,
        embedding=torch.nn.functional.normalize(torch.stack(embeddings).mean(dim=0), dim=0) if embeddings else None,
        keypoints=first.keypoints,
        pose=first.pose,
    )


def save_face(face: Face, folder: str | Path, name: str) -> Path:
    """Writes ``name``.safetensors into the folder and returns its path; the file appears whole or not at all.

    A different face that already has the name is kept: the new one then becomes ``name_2``, ``name_3`` and so on.
    """
    path = _free_path(Path(folder) / (_valid_name(name) + SUFFIX), face)
    metadata = {"format": FILE_FORMAT, "version": FILE_VERSION, "base_model": face.base_model}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(_tensors(face), unfinished, metadata=metadata)
    os.replace(unfinished, path)
    return path


def load_face(path: str | Path) -> Face:
    """Reads a face file. Raises InputError when it is missing, damaged or something else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no face file {path}. Make one with Save Face, or copy it there.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in _TENSORS if key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name} is damaged or no safetensors file. Save the face again. ({path})") from error
    if metadata.get("format") != FILE_FORMAT or "tokens" not in tensors or "uncond_tokens" not in tensors:
        raise InputError(f"{path.name} is a safetensors file, but not one that Save Face wrote. ({path})")
    if metadata.get("version") != FILE_VERSION:
        raise InputError(
            f"{path.name} has version {metadata.get('version')} of the face format; this pack reads version "
            f"{FILE_VERSION}. Update the pack. ({path})"
        )
    return Face(base_model=metadata.get("base_model", "sd15"), **tensors)


def _valid_name(name: str) -> str:
    stem = name.strip().removesuffix(SUFFIX).replace("\\", "/")
    parts = stem.split("/")
    if not stem or any(part in ("", ".", "..") or re.search(r'[<>:"|?*\x00-\x1f]', part) for part in parts):
        raise InputError(
            f'"{name}" cannot be a file name. Use letters, digits, spaces, - and _, and / for a folder inside the '
            "faces folder."
        )
    return stem


def _tensors(face: Face) -> dict[str, Tensor]:
    tensors = {key: getattr(face, key) for key in _TENSORS if getattr(face, key) is not None}
    return {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in tensors.items()}


def _free_path(wanted: Path, face: Face) -> Path:
    """The first of name, name_2, … that is unused or already holds this very face."""
    path, number = wanted, 1
    while path.exists() and not _holds(path, face):
        number += 1
        path = wanted.with_stem(f"{wanted.stem}_{number}")
    return path


def _holds(path: Path, face: Face) -> bool:
    try:
        there = load_face(path)
    except InputError:
        return False
    mine, theirs = _tensors(face), _tensors(there)
    return (
        there.base_model == face.base_model
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[key], theirs[key]) for key in mine)
    )
