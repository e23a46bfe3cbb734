"""The descriptions of a folder's scenes: layout.json, and its predecessor while they are being rendered."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..data.storage import write_atomically


class LayoutFile:
    """The description of each scene, by the name of its picture, in the order they were added.

    layout.json is written last, once all are there. Until then layout.jsonl has a line per scene, from which an
    interrupted run resumes.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a damaged file, and OSError."""
        self._whole, self._partial = folder / "layout.json", folder / "layout.jsonl"
        self.scenes: dict[str, Any] = {}
        if self._whole.is_file():
            self.scenes |= _scenes(self._whole, self._whole.read_bytes())
        if self._partial.is_file():
            self._resume()

    def add(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Adds a scene whose picture has been written; it is on disk when this returns. Raises OSError."""
        with open(self._partial, "ab") as file:
            file.write(json.dumps({name: metadata}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.scenes[name] = metadata

    def finish(self) -> None:
        """Writes layout.json. Raises InputError when the disk is full."""
        write_atomically(self._whole, json.dumps(self.scenes, indent=1).encode())
        self._partial.unlink(missing_ok=True)

    def _resume(self) -> None:
        content = self._partial.read_bytes()
        whole = content.rfind(b"\n") + 1
        for line in content[:whole].splitlines():
            self.scenes |= _scenes(self._partial, line)
        os.truncate(self._partial, whole)  # a line that a killed run did not finish


def _scenes(file: Path, text: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file} is damaged ({error}). Delete it, and run the same command again: it renders the scenes again."
        ) from error
    return found
