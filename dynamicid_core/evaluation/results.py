"""The rows of an evaluation, in a file that an interrupted run goes on with."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import writing, written_whole


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case with a setting. setting: by name. case: its key. people: how many. names, asked, seen, similarities: one
    for each person, see ``joined``. The measures are means over the people of the picture, None where there is nothing
    to measure. disruption: see ``metrics.disruption``. picture: below the folder of the file; several cases may have
    one together.
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
    disruption: float | None
    picture: str


MEASURES: Mapping[str, str] = {
    "clip_t": "CLIP-T",
    "face_sim": "FaceSim",
    "expression": "Expr",
    "pose": "Pose",
    "faces": "Faces found",
    "disruption": "Disruption",
}
"""Column of a measure -> heading in tables and plots."""
SEPARATOR = ";"
"""Stands between what a column has of several people."""
_COLUMNS = [field.name for field in fields(Row)]
_NUMBERS = {"people": int, "seed": int}

RESUME_HINT = ", close the file elsewhere, or choose another folder for --out; the same command then goes on."
"""See ``files.writing``."""


def join_people(parts: Iterable[str]) -> str:
    """Something of each person, for one column."""
    return f"{SEPARATOR} ".join(parts)


def split_people(text: str) -> list[str]:
    """What was joined."""
    return text.split(f"{SEPARATOR} ")


class Results:
    """Rows in ``results.csv`` of a folder, each written as soon as it is there."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """about: settings by which the pictures differ. Raises InputError when the folder holds rows of others; what
        was not set before, such as a further person's photo, is added.
        """
        with writing(folder, RESUME_HINT):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._file = folder, folder / "results.csv"
        self.rows = self._read()
        self._check_settings(folder / "settings.json", about)
        self._write_all()
        self._measured = {(row.setting, row.case) for row in self.rows}

    def has(self, setting: str, case: str) -> bool:
        """Whether that picture has been measured."""
        return (setting, case) in self._measured

    def add(self, row: Row) -> None:
        """One more row, on the disk when this returns."""
        with writing(self._file, RESUME_HINT), self._file.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(_texts(row))
        self.rows.append(row)
        self._measured.add((row.setting, row.case))

    def _read(self) -> list[Row]:
        if not self._file.is_file():
            return []
        # Line ends within names stay as they are; spreadsheets may have put a mark before UTF-8.
        text = self._file.read_bytes().decode("utf-8-sig")
        whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a row
        header, *rows = csv.reader(io.StringIO(whole, newline="")) if whole else [_COLUMNS]
        if header != _COLUMNS:
            raise InputError(f"{self._file} has other columns than this version writes. Choose another folder.")
        return [_row(values) for values in rows]

    def _check_settings(self, file: Path, about: Mapping[str, Any]) -> None:
        before = json.loads(file.read_text(encoding="utf-8")) if self.rows and file.is_file() else {}
        changed = [name for name in about if name in before and before[name] != about[name]]
        if changed:
            raise InputError(
                f"{self.folder} holds another evaluation: {', '.join(changed)} differ ({file.name}). Choose another "
                "folder for --out."
            )
        with writing(file, RESUME_HINT), written_whole(file) as unfinished:
            unfinished.write_text(json.dumps({**before, **about}, indent=1), encoding="utf-8")

    def _write_all(self) -> None:
        with (
            writing(self._file, RESUME_HINT),
            written_whole(self._file) as unfinished,
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
