"""Plots of the results: bars beside the paper's figures, and sheets of the pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ..drawing import image_grid, person_colour, sheet_font, wrap_text
from ..errors import InputError
from ..images import Photo, open_photo
from .cases import Reference
from .results import MEASURES, Row, split_people
from .settings import BASE, SETTINGS
from .tables import Table

_THUMBNAIL, _MARGIN = 256, 3
_FONT_SIZE, _LINE = 13, 16  # pixels; the second of a line
_CASES_SHOWN = 8


def draw_bars(tables: Sequence[Table], file: Path) -> None:
    """Plots a row per table, a column per measure and a bar per setting; diamonds are the paper's figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "The results and tables are written, but plots need the Python package matplotlib. Run: python -m pip "
            "install matplotlib, and the same command again."
        ) from error
    figure = Figure(figsize=(3.2 * len(MEASURES), 3.4 * len(tables)), layout="constrained")
    for row, table in enumerate(tables):
        for column, (name, heading) in enumerate(MEASURES.items(), start=1):
            axes = figure.add_subplot(len(tables), len(MEASURES), row * len(MEASURES) + column)
            axes.set_title(f"{table.title}: {heading}", fontsize=9)
            lines = [line for line in table.lines if name in line.measured]
            axes.set_xticks(range(len(lines)), [line.setting.name for line in lines], rotation=30, fontsize=8)
            for place, line in enumerate(lines):
                found = line.measured[name]
                # The interval contains the mean except for rounding.
                spread = [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]
                colour = [part / 255 for part in person_colour(SETTINGS.index(line.setting))]
                axes.bar(place, found.mean, yerr=spread, color=colour, capsize=3)
                if name in line.paper:
                    axes.plot(place, line.paper[name], marker="D", color="black", linestyle="none")
    figure.savefig(file, dpi=110)


def draw_sheets(rows: Sequence[Row], folder: Path, references: Sequence[Reference]) -> None:
    """Saves ``sheet_N.jpg`` for each number N of people: rows of cases with references and a picture of each setting.

    folder: of the pictures, and for the sheets. references: of all people in the rows.
    """
    for people in sorted({row.people for row in rows}):
        some = [row for row in rows if row.people == people]
        _draw_sheet(some, folder, references, folder / f"sheet_{people}.jpg")


def _draw_sheet(rows: Sequence[Row], folder: Path, references: Sequence[Reference], file: Path) -> None:
    known = {reference.name: reference for reference in references}
    base = {(row.prompt, row.seed): row for row in rows if row.setting == BASE.name}
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.setting != BASE.name:
            cases.setdefault(row.case, {})[row.setting] = row
    lines: list[list[_Cell]] = []
    for painted in list(cases.values())[:_CASES_SHOWN]:
        first = next(iter(painted.values()))
        cells = [_Cell(known[name].read(), name) for name in split_people(first.names)]
        cells.append(_painted(base.get((first.prompt, first.seed)), folder, BASE.label))
        for setting in SETTINGS:
            if any(setting.name in others for others in cases.values()):
                cells.append(_painted(painted.get(setting.name), folder, f"{setting.name}: {first.asked}"))
        lines.append(cells)
    if lines:
        longest = max(len(cell.caption) for cells in lines for cell in cells)
        Image.fromarray(image_grid([[cell.draw(longest) for cell in cells] for cells in lines])).save(file, quality=90)


def _painted(row: Row | None, folder: Path, caption: str) -> "_Cell":
    if row is None or not (folder / row.picture).is_file():
        return _Cell(np.full((8, 8, 3), 40, np.uint8), caption)
    return _Cell(open_photo(folder / row.picture), caption)


class _Cell:
    """A thumbnail above its wrapped caption."""

    def __init__(self, photo: Photo, caption: str) -> None:
        self.picture = ImageOps.pad(Image.fromarray(photo), (_THUMBNAIL, _THUMBNAIL), color=(255, 255, 255))
        self.caption = wrap_text(caption, _FONT_SIZE, _THUMBNAIL - 2 * _MARGIN)

    def draw(self, lines: int) -> Photo:
        """The cell [height, _THUMBNAIL, 3], with room for that many lines."""
        cell = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL + lines * _LINE + 2 * _MARGIN), (255, 255, 255))
        cell.paste(self.picture)
        draw = ImageDraw.Draw(cell)
        for number, line in enumerate(self.caption):
            place = (_MARGIN, _THUMBNAIL + _MARGIN + number * _LINE)
            draw.text(place, line, fill=(0, 0, 0), font=sheet_font(_FONT_SIZE))
        return np.asarray(cell)
