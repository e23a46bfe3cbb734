"""The rows of an evaluation, in a file from which an interrupted run resumes."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_write, explain_write_errors


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case with a setting. setting: by name. case: its key. people: how many. names, asked, seen, similarities: one
    entry per person, see ``join_people``. The measures are means over the people of the picture, None where there is
    nothing to measure. in_place: None for one person. disruption: see ``metrics.disruption``. picture: path relative to
    the file; several cases may share one.
    """

    setting: str
    case: str
    people: int
    names: str
    prompt: str
    seed: int
    asked: str
    seen: str
    similarities: str
    clip_t: float | None
    face_sim: float | None
    expression: float | None
    pose: float | None
    faces: float | None
    in_place: float | None
    disruption: float | None
    picture: str


MEASURES: Mapping[str, str] = {
    "clip_t": "CLIP-T",
    "face_sim": "FaceSim",
    "expression": "Expr",
    "pose": "Pose",
    "faces": "Faces found",
    "in_place": "In place",
    "disruption": "Disruption",
}
"""Column of each measure -> heading in tables and plots."""
SEPARATOR = ";"
"""Separates the people's entries in a column."""
_COLUMNS = [field.name for field in fields(Row)]
_NUMBERS = {"people": int, "seed": int}

RESUME_HINT = ", close the file elsewhere, or choose another folder for --out; the same command then resumes."
"""See ``files.writing``."""


def join_people(parts: Iterable[str]) -> str:
    """One column's text from an entry per person."""
    return f"{SEPARATOR} ".join(parts)


def split_people(text: str) -> list[str]:
    """The inverse of ``join_people``."""
    return text.split(f"{SEPARATOR} ")


class Results:
    """Rows in ``results.csv`` of a folder, each written at once."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """settings: those that the pictures depend on. Raises InputError when the folder holds rows of other settings;
        new settings, such as a further person's photo, are added.
        """
        with explain_write_errors(folder, RESUME_HINT):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._file = folder, folder / "results.csv"
        self.rows = self._read()
        self._check_settings(folder / "settings.json", settings)
        self._write_all()
        self._measured = {(row.setting, row.case) for row in self.rows}

    def has(self, setting: str, case: str) -> bool:
        """Whether a case has been measured with a setting."""
        return (setting, case) in self._measured

    def add(self, row: Row) -> None:
        """Appends a row; it is in the file when this returns."""
        with explain_write_errors(self._file, RESUME_HINT), self._file.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(_texts(row))
        self.rows.append(row)
        self._measured.add((row.setting, row.case))

    def _read(self) -> list[Row]:
        if not self._file.is_file():
            return []
        # Line breaks within names are preserved; spreadsheets may have added a byte order mark.
        text = self._file.read_bytes().decode("utf-8-sig")
        whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a row
        header, *rows = csv.reader(io.StringIO(whole, newline="")) if whole else [_COLUMNS]
        if header != _COLUMNS:
            raise InputError(f"{self._file} has other columns than this version writes. Choose another folder.")
        return [_row(values) for values in rows]

    def _check_settings(self, file: Path, settings: Mapping[str, Any]) -> None:
        before = json.loads(file.read_text(encoding="utf-8")) if self.rows and file.is_file() else {}
        changed = [name for name in settings if name in before and before[name] != settings[name]]
        if changed:
            raise InputError(
                f"{self.folder} holds another evaluation: {', '.join(changed)} differ ({file.name}). Choose another "
                "folder for --out."
            )
        with explain_write_errors(file, RESUME_HINT), atomic_write(file) as unfinished:
            unfinished.write_text(json.dumps({**before, **settings}, indent=1), encoding="utf-8")

    def _write_all(self) -> None:
        with (
            explain_write_errors(self._file, RESUME_HINT),
            atomic_write(self._file) as unfinished,
            unfinished.open("w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file).writerows([_COLUMNS, *map(_texts, self.rows)])


def _texts(row: Row) -> list[str]:
    values = [getattr(row, name) for name in _COLUMNS]
    return ["" if value is None else str(value) for value in values]


def _row(values: list[str]) -> Row:
    given: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
    for name, kind in _NUMBERS.items():
        given[name] = kind(given[name])
    for name in MEASURES:
        given[name] = float(given[name]) if given[name] else None
    return Row(**given)
