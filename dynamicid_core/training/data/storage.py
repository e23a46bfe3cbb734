"""A data set on disk: files that are written atomically, and the progress so far."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import atomic_write, explain_write_errors

PROGRESS = "progress.jsonl"
_FORMAT, _VERSION = "dynamicid-shards", 1
RESUME_HINT = ", or choose another --out folder; the same command then resumes from what is complete."
"""See ``files.writing``."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that gets its name only once it is complete. Raises InputError when it cannot be written."""
    with explain_write_errors(path, RESUME_HINT), atomic_write(path) as unfinished:
        unfinished.write_bytes(content)


class Progress:
    """The file progress.jsonl of a data set: its settings, then a line per finished shard.

    A line is {"shard": its file name, or null if all its people were left out, "people": [an object each]}. Each person
    has "name" and "keys", the keys of their samples.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Opens a data set, or creates one in a missing or empty folder. settings: distinguish it from others.

        Raises InputError when the folder holds something else, or a data set with other settings.
        """
        self._path = folder / PROGRESS
        self.lines: list[dict[str, Any]] = []
        if self._path.is_file():
            self._resume(settings)
            return
        unfinished = self._path.with_name(PROGRESS + ".part")  # left by a run that was killed at its start
        if folder.exists() and (not folder.is_dir() or any(path != unfinished for path in folder.iterdir())):
            raise InputError(f"{folder} is not empty and holds no data set. Choose a new or empty folder for --out.")
        self._create(settings)

    @property
    def people(self) -> list[dict[str, Any]]:
        """All finished people, in the order they were added."""
        return [person for line in self.lines for person in line["people"]]

    def add(self, shard: str | None, people: Sequence[Mapping[str, Any]]) -> None:
        """Appends a line; it is on disk when this returns. When this raises OSError, the file is unchanged."""
        line = {"shard": shard, "people": list(people)}
        size = self._path.stat().st_size
        try:
            with open(self._path, "ab") as file:
                file.write(_encoded(line))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self._path, size)
            raise
        self.lines.append(line)

    def _create(self, settings: Mapping[str, Any]) -> None:
        with explain_write_errors(self._path.parent, RESUME_HINT):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, _encoded({"format": _FORMAT, "version": _VERSION, "settings": settings}))

    def _resume(self, settings: Mapping[str, Any]) -> None:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            header, *self.lines = [json.loads(line) for line in content[:whole].splitlines()]
            known = (header["format"], header["version"]) == (_FORMAT, _VERSION)
            theirs = header["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._path} is damaged ({error}). Choose another --out folder.") from error
        if not known:
            raise InputError(f"{self._path} is of another version of this program. Choose another --out folder.")
        mine = json.loads(json.dumps(settings))
        differing = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
        if differing and not self.lines:  # nothing is made with them yet
            self._create(settings)
            return
        if differing:
            changes = ", ".join(f"{name} {theirs.get(name)} (now {mine.get(name)})" for name in differing)
            raise InputError(
                f"{self._path.parent} holds a data set that was made with other settings: {changes}. Use those again "
                "to resume it, or choose another --out folder."
            )
        os.truncate(self._path, whole)  # a line that a killed run did not finish


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"
