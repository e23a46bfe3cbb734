"""The pack's own small safetensors files, of faces and of keypoints: written whole, never over a different one."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class FileKind:
    """What a file holds. what: in words ("face"). writer: the node that writes it. needed, optional: tensor names."""

    what: str
    writer: str
    format: str
    version: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


def save(
    kind: FileKind, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: str | Path, name: str
) -> Path:
    """Writes ``name``.safetensors into the folder and returns its path; the file appears whole or not at all.

    Tensors are written as float32. A different file that already has the name is kept: the new one then becomes
    ``name_2``, ``name_3`` and so on. Raises InputError for what cannot be a file name.
    """
    plain = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in tensors.items()}
    full = {"format": kind.format, "version": kind.version, **metadata}
    path = _free_path(kind, Path(folder) / (_valid_name(kind, name) + SUFFIX), plain, full)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(plain, unfinished, metadata=full)
    os.replace(unfinished, path)
    return path


def load(kind: FileKind, path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of such a file. Raises InputError when it is missing, damaged or something else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no {kind.what} file {path}. Make one with {kind.writer}, or copy it there.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            there = set(file.keys())
            tensors = {key: file.get_tensor(key) for key in (*kind.needed, *kind.optional) if key in there}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path.name} is damaged or no safetensors file. Save the {kind.what} again. ({path})"
        ) from error
    if metadata.get("format") != kind.format or any(key not in tensors for key in kind.needed):
        raise InputError(f"{path.name} is a safetensors file, but not one that {kind.writer} wrote. ({path})")
    if metadata.get("version") != kind.version:
        raise InputError(
            f"{path.name} has version {metadata.get('version')} of the {kind.what} format; this pack reads version "
            f"{kind.version}. Update the pack. ({path})"
        )
    return tensors, metadata


def with_suffix(name: str) -> str:
    """The name with the ending of these files, once."""
    return name if name.endswith(SUFFIX) else name + SUFFIX


def _valid_name(kind: FileKind, name: str) -> str:
    stem = name.strip().removesuffix(SUFFIX).replace("\\", "/")
    parts = stem.split("/")
    if not stem or any(part in ("", ".", "..") or re.search(r'[<>:"|?*\x00-\x1f]', part) for part in parts):
        raise InputError(
            f'"{name}" cannot be a file name. Use letters, digits, spaces, - and _, and / for a folder inside the '
            f"folder of {kind.what} files."
        )
    return stem


def _free_path(kind: FileKind, wanted: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """The first of name, name_2, … that is unused or already holds the very same."""
    path, number = wanted, 1
    while path.exists() and not _holds(kind, path, tensors, metadata):
        number += 1
        path = wanted.with_stem(f"{wanted.stem}_{number}")
    return path


def _holds(kind: FileKind, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    try:
        theirs, about = load(kind, path)
    except InputError:
        return False
    return (
        about == metadata
        and tensors.keys() == theirs.keys()
        and all(torch.equal(tensors[key], theirs[key]) for key in tensors)
    )
