"""Atomic writes, and the pack's own files of faces and keypoints."""

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError

SUFFIX = ".safetensors"
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[\d¹²³]|lpt[\d¹²³]) *(\..*)?", re.IGNORECASE)
_MAX_NAME_BYTES = 200  # bytes; file systems allow 255, with suffix and number


@dataclass(frozen=True)
class FileKind:
    """A kind of file. what: its name in messages ("face"). writer: the node that writes it. format, version: in its
    metadata. needed, optional: tensor names.
    """

    what: str
    writer: str
    format: str
    version: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which replaces ``path`` on success and is deleted on failure."""
    unfinished = path.with_name(path.name + ".part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def explain_write_errors(what: object, advice: str) -> Iterator[None]:
    """Raises InputError for a full disk, or a folder that may not be written to. what: the beginning of the message, a
    path or words. advice: what else can be done, after "Free some space on that disk".
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # SafetensorError for a full disk, too
        why, where = (getattr(error, name, None) for name in ("strerror", "filename"))
        why = why or error
        if where is not None and Path(where).parent != Path(str(what)).parent:  # the error is about another file
            why = f"{why}: {where}"
        raise InputError(f"{what} could not be written: {why}. Free some space on that disk{advice}") from error


def save(
    kind: FileKind, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: str | Path, name: str
) -> Path:
    """Writes ``name``.safetensors into the folder and returns its path; the write is atomic.

    Tensors are written as float32. If a different file has that name, it is kept, and the new one becomes ``name_2``,
    ``name_3`` and so on. Raises InputError for an invalid file name.
    """
    plain = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in tensors.items()}
    full = {"format": kind.format, "version": kind.version, **metadata}
    wanted = Path(folder) / (_valid_name(kind, name) + SUFFIX)
    with explain_write_errors(wanted, ", or check that the folder is writable."):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        unfinished = wanted.with_name(f"{uuid.uuid4().hex}.part")
        try:
            save_file(plain, unfinished, metadata=full)
            return _publish(kind, unfinished, wanted, plain, full)
        finally:
            unfinished.unlink(missing_ok=True)


def load(kind: FileKind, path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of such a file. Raises InputError if it is missing, damaged or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no {kind.what} file {path}. Make one with {kind.writer}, or copy it there.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            there = set(file.keys())
            # Copies: the originals are memory-mapped, and the file may be overwritten. Other programs may have stored
            # other dtypes.
            tensors = {
                key: file.get_tensor(key).to(torch.float32, copy=True)
                for key in (*kind.needed, *kind.optional)
                if key in there
            }
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path.name} is damaged or not a safetensors file. Save the {kind.what} again. ({path})"
        ) from error
    if metadata.get("format") != kind.format or any(key not in tensors for key in kind.needed):
        raise InputError(f"{path.name} is a safetensors file, but not one that {kind.writer} wrote. ({path})")
    if metadata.get("version") != kind.version:
        raise InputError(
            f"{path.name} has version {metadata.get('version')} of the {kind.what} format; this pack reads version "
            f"{kind.version}. Update the pack. ({path})"
        )
    return tensors, metadata


def with_suffix(name: Any) -> Any:
    """The name with the suffix of these files, once. What is not text stays as it is: looking for it reports it."""
    return name if not isinstance(name, str) or name.endswith(SUFFIX) else name + SUFFIX


def _valid_name(kind: FileKind, name: str) -> str:
    stem = name.strip().removesuffix(SUFFIX).replace("\\", "/")
    if not all(map(_is_file_name, stem.split("/"))):
        raise InputError(
            f'"{name}" cannot be a file name. Use letters, digits, spaces, - and _, and / for a folder inside the '
            f"folder of {kind.what} files."
        )
    return stem


def _is_file_name(part: str) -> bool:
    """Whether a part of a path is a valid name on Linux, macOS and Windows."""
    printable = part.encode("utf-8", "replace").decode("utf-8") == part
    reserved = part == ".git" or _WINDOWS_DEVICE.fullmatch(part)  # ComfyUI lists nothing in .git
    wrong = re.search(r'[<>:"|?*\x00-\x1f]|[. ]$', part)
    return bool(part) and printable and not reserved and not wrong and len(part.encode()) <= _MAX_NAME_BYTES


def _publish(
    kind: FileKind, unfinished: Path, wanted: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Path:
    """Gives a file the first unused name of name, name_2, …, unless one of these files has the same content.

    A hard link fails if the file exists, even if another process has just created it; a rename would replace it.
    """
    path, number = wanted, 1
    while True:
        if os.path.lexists(path):  # a dangling link exists, too
            if _holds(kind, path, tensors, metadata):
                return path
            number += 1
            path = wanted.with_stem(f"{wanted.stem}_{number}")
            continue
        try:
            os.link(unfinished, path)
        except FileExistsError:
            continue
        except OSError:  # a disk without hard links
            os.replace(unfinished, path)
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
