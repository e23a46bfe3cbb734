"""Metrics of a run as they come in: a CSV file that survives interruptions, and a plot of the curves."""

import csv
import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..files import atomic_write, explain_write_errors

_log = logging.getLogger(__name__)


class Metrics:
    """Rows of metrics by step, in ``metrics.csv`` and ``curves.png`` of a folder.

    A row that cannot be written, because the disk is full or the file is open elsewhere, does not end training: it is
    logged, and written with the next row or plot.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        """resumed_at: later rows of an interrupted run are dropped, since their steps are repeated.

        Raises InputError when the file cannot be written at the start.
        """
        self._file, self._picture = folder / "metrics.csv", folder / "curves.png"
        self._names: list[str] = []
        self._up_to_date = False
        self._rows = [row for row in self._read() if row["step"] <= resumed_at]
        hint = ", or close the file elsewhere; running the same command again resumes from the last state."
        with explain_write_errors(f"The metrics of the run, {self._file},", hint):
            self._rewrite()

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Appends a row."""
        row = {"step": step, **figures}
        self._rows.append(row)
        with self._logging_errors(self._file):
            if self._up_to_date and row.keys() <= set(self._names):
                self._up_to_date = False
                with self._file.open("a", encoding="utf-8", newline="") as file:
                    file.write(self._lines([row]))
                self._up_to_date = True
            else:
                self._rewrite()

    def draw(self) -> None:
        """Plots the curves, with a running mean over a twentieth of the run. Also writes rows that could not be written
        before.
        """
        from matplotlib.figure import Figure

        if not self._up_to_date:
            with self._logging_errors(self._file):
                self._rewrite()
        names = [name for name in (self._rows[-1] if self._rows else {}) if name != "step"]
        if not names:
            return
        figure = Figure(figsize=(8, 2.5 * len(names)), layout="constrained")
        for number, name in enumerate(names, start=1):
            axes = figure.add_subplot(len(names), 1, number)
            rows = [row for row in self._rows if not math.isnan(row.get(name, math.nan))]
            steps, values = [row["step"] for row in rows], [row[name] for row in rows]
            axes.plot(steps, values, color="#bbbbbb", linewidth=0.8)
            axes.plot(steps, running_mean(values, max(1, len(values) // 20)), color="#0072b2")
            axes.set_ylabel(name)
        axes.set_xlabel("step")
        with self._logging_errors(self._picture):
            figure.savefig(self._picture, dpi=100)

    def _read(self) -> list[dict[str, float]]:
        if not self._file.is_file():
            return []
        text = self._file.read_text(encoding="utf-8-sig")  # a spreadsheet may have added a byte order mark
        whole = text[: text.rfind("\n") + 1]  # a crash may have left half a row
        rows = csv.DictReader(io.StringIO(whole))
        found = [{name: float(figure) for name, figure in row.items() if figure} for row in rows]
        return [row | {"step": int(row["step"])} for row in found if math.isfinite(row.get("step", math.inf))]

    def _rewrite(self) -> None:
        """Writes all rows, with a column for every metric. The old file stays until the new one is complete."""
        self._names = list(dict.fromkeys(name for row in self._rows for name in row)) or ["step"]
        self._up_to_date = False
        with atomic_write(self._file) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(",".join(self._names) + "\n" + self._lines(self._rows))
        self._up_to_date = True

    def _lines(self, rows: list[dict[str, float]]) -> str:
        lines = io.StringIO(newline="")
        csv.DictWriter(lines, self._names, lineterminator="\n").writerows(rows)
        return lines.getvalue()

    @contextmanager
    def _logging_errors(self, file: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning("%s could not be written: %s", file, error)


def running_mean(values: list[float], width: int) -> list[float]:
    """The mean of each value and up to ``width`` - 1 before it."""
    count = len(values)
    # In blocks as long as the window, every window is the end of one block and the beginning of the next. Differences
    # of a single cumulative sum would let one huge or non-finite value spoil every later mean.
    blocks = np.pad(np.asarray(values, np.float64), (width, -count % width)).reshape(-1, width)
    sums = blocks.cumsum(axis=1)[1:]
    sums[:, :-1] += blocks[:-1, :0:-1].cumsum(axis=1)[:, ::-1]
    means: list[float] = (sums.ravel()[:count] / np.minimum(np.arange(1, count + 1), width)).tolist()
    return means
