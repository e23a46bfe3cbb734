"""Photos on disk: a folder per person."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...images import is_photo, list_photos

DEFAULT_CAPTION = "a photo of a person"
_CAPTION = ".txt"


@dataclass(frozen=True)
class Person:
    """One person's folder. name: the folder's. folder: its path. photos: paths below it, with /, sorted."""

    name: str
    folder: Path
    photos: tuple[str, ...]

    def checksum(self) -> str:
        """A checksum of the names and sizes of photos and captions, independent of where the folder is."""
        digest = hashlib.sha256()
        for photo in self.photos:
            path = self.folder / photo
            for file in (path, path.with_suffix(_CAPTION)):
                digest.update(os.fsencode(f"{photo} {file.stat().st_size if file.is_file() else None}\n"))
        return digest.hexdigest()[:16]

    def caption(self, photo: str) -> str:
        """The text of the .txt file beside a photo, else a caption that fits every photo."""
        path = (self.folder / photo).with_suffix(_CAPTION)
        # With or without the byte order mark of Windows programs.
        text = path.read_text(encoding="utf-8-sig", errors="replace").strip() if path.is_file() else ""
        return text or DEFAULT_CAPTION


def find_people(folder: Path) -> tuple[list[Person], list[str], list[str]]:
    """The people of a folder, sorted by name, photos outside of people's folders, and folders without a photo.

    Raises InputError when there is no such folder, or no person's folder with a photo.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. --photos names a folder that holds a folder per person.")
    people = [
        Person(place.name, place, tuple(list_photos(place)))
        for place in sorted(folder.iterdir())
        if place.is_dir() and not place.name.startswith(".")
    ]
    strays = [path.name for path in sorted(folder.iterdir()) if is_photo(path)]
    empty = [person.name for person in people if not person.photos]
    people = [person for person in people if person.photos]
    if not people:
        found = f"{len(strays)} photos, but none" if strays else "no photo"
        raise InputError(
            f"{folder} holds {found} in a folder of a person. Make a folder per person in it, with the photos of that "
            "person."
        )
    return people, strays, empty
