"""What a data set holds, for humans: counts, the rejected photos and why, and a contact sheet of samples."""

import csv
import io
import json
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ...drawing import sheet_font
from ...expression import EXPRESSIONS
from .sample import Sample
from .shards import SampleIndex
from .storage import write_atomically

MANIFEST, REJECTED, SHEET = "manifest.json", "rejected.csv", "contact_sheet.jpg"
VARIFACE_PHOTOS = 35
"""Photos per person in VariFace, the data set of the paper, which is not published."""
_PACKAGES = ("insightface", "onnxruntime", "numpy", "Pillow", "torch", "webdataset")
_ROWS, _COLUMNS, _TILE, _LABEL = 12, 8, 128, 18


@dataclass(frozen=True)
class Contents:
    """people: as ``Progress`` stores them. rejected: (photo, reason, detail) of every rejected photo. empty: names of
    people without any photo.
    """

    people: list[dict[str, Any]]
    rejected: list[tuple[str, str, str]]
    empty: Sequence[str] = ()

    @property
    def photos_per_person(self) -> dict[str, int]:
        """Number of photos of each person in the data set."""
        return {person["name"]: len(person["keys"]) for person in self.people if person["keys"]}


def contents(
    people: Sequence[Mapping[str, Any]], strays: Sequence[tuple[str, str, str]] = (), empty: Sequence[str] = ()
) -> Contents:
    """The contents of a ``ShardWriter``'s people. strays, empty: photos and people that were left out before."""
    rejected = [tuple(found) for person in people for found in person.get("rejected", ())]
    return Contents([dict(person) for person in people], [*rejected, *strays], empty)


def manifest(found: Contents, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, versions, counts, and how the data set compares with VariFace."""
    kept = found.photos_per_person
    photos = list(kept.values())
    expressions, views = (_sum(person.get(key, {}) for person in found.people) for key in ("expressions", "views"))
    return {
        "settings": dict(settings),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "people": {
            "given": len(found.people) + len(found.empty),
            "kept": len(kept),
            "left_out": sorted([*(person["name"] for person in found.people if not person["keys"]), *found.empty]),
        },
        "photos": {
            "given": sum(photos) + len(found.rejected),
            "accepted": sum(photos),
            "rejected": len(found.rejected),
            "rejected_by_reason": dict(Counter(reason for _, reason, _ in found.rejected).most_common()),
        },
        "photos_per_person": kept,
        "expressions": expressions,
        "views": views,
        "variface": {
            "photos_per_person": VARIFACE_PHOTOS,
            "people_with_as_many": sum(count >= VARIFACE_PHOTOS for count in photos),
            "median_photos_per_person": statistics.median(photos) if photos else 0,
            "photos_missing": sum(max(0, VARIFACE_PHOTOS - count) for count in photos),
            "expressions_missing": [name for name in EXPRESSIONS if name not in expressions],
        },
    }


def summary(metadata: Mapping[str, Any]) -> str:
    """A manifest in a few lines."""
    people, photos, target = metadata["people"], metadata["photos"], metadata["variface"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in photos["rejected_by_reason"].items())
    missing = ", ".join(target["expressions_missing"])
    return "\n".join(
        [
            f"{people['kept']} of {people['given']} people, {photos['accepted']} of {photos['given']} photos",
            f"left out: {reasons or 'none'}",
            f"expressions: {_listed(metadata['expressions'])}{'; none ' + missing if missing else ''}",
            f"poses: {_listed(metadata['views'])}",
            f"against VariFace's N people x {target['photos_per_person']} photos: {people['kept']} x "
            f"{target['median_photos_per_person']:g} (median), {target['people_with_as_many']} people have as many, "
            f"{target['photos_missing']} photos are missing",
        ]
    )


def write_manifest(folder: Path, found: Contents, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes manifest.json, rejected.csv and contact_sheet.jpg of a finished data set; returns the first.

    Raises InputError when the disk is full.
    """
    metadata = manifest(found, settings)
    write_atomically(folder / MANIFEST, json.dumps(metadata, indent=2).encode())
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("photo", "reason", "detail"), *found.rejected])
    write_atomically(folder / REJECTED, table.getvalue().encode(errors="backslashreplace"))
    sheet = io.BytesIO()
    contact_sheet(SampleIndex(folder)).save(sheet, "JPEG", quality=90)
    write_atomically(folder / SHEET, sheet.getvalue())
    return metadata


def contact_sheet(index: SampleIndex) -> Image.Image:
    """Up to 12 people, evenly spaced, with up to 8 photos each: names, and each photo's expression, yaw and pitch."""
    names = _evenly(list(index.people), _ROWS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, max(1, len(names)) * (_TILE + 2 * _LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        top = row * (_TILE + 2 * _LABEL)
        places = index.people[name]
        _write(draw, f"{name}: {len(places)} photos", 0, top, _COLUMNS * _TILE)
        for column, (shard, key) in enumerate(_evenly(places, _COLUMNS)):
            sample = index.read(shard, key)
            tile = Image.fromarray(sample.picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (column * _TILE, top + _LABEL))
            _write(draw, _short(sample), column * _TILE, top + _LABEL + _TILE, _TILE)
    return sheet


def _short(sample: Sample) -> str:
    pitch, yaw, _ = sample.pose.tolist()
    return f"{sample.expression or '-'} {yaw:+.0f} {pitch:+.0f}"


def _write(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int) -> None:
    font = sheet_font(12)
    while text and draw.textlength(text, font) > width - 4:
        text = text[:-1]
    draw.text((left + 2, top + 2), text, fill="black", font=font)


def _evenly(things: list[Any], most: int) -> list[Any]:
    if len(things) <= most:
        return things
    return [things[round(i * (len(things) - 1) / (most - 1))] for i in range(most)]


def _sum(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total.most_common())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
