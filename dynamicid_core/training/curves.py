"""Figures of a run as they come in: a CSV file that survives interruptions, and a picture of the curves."""

import csv
from pathlib import Path


class Metrics:
    """Rows of figures by step, in ``metrics.csv`` and ``curves.png`` of a folder."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        """resumed_at: later rows of an interrupted run are dropped, since their steps come again."""
        self._file, self._picture = folder / "metrics.csv", folder / "curves.png"
        self._rows = [row for row in self._read() if row["step"] <= resumed_at]
        self._write()

    def add(self, step: int, figures: dict[str, float]) -> None:
        """One more row."""
        self._rows.append({"step": step, **figures})
        self._write()

    def draw(self) -> None:
        """The curves, with a running mean over a twentieth of the run."""
        from matplotlib.figure import Figure

        names = [name for name in (self._rows[-1] if self._rows else {}) if name != "step"]
        if not names:
            return
        figure = Figure(figsize=(8, 2.5 * len(names)), layout="constrained")
        for number, name in enumerate(names, start=1):
            axes = figure.add_subplot(len(names), 1, number)
            steps = [row["step"] for row in self._rows if name in row]
            values = [row[name] for row in self._rows if name in row]
            axes.plot(steps, values, color="#bbbbbb", linewidth=0.8)
            axes.plot(steps, running_mean(values, max(1, len(values) // 20)), color="#0072b2")
            axes.set_ylabel(name)
        axes.set_xlabel("step")
        figure.savefig(self._picture, dpi=100)

    def _read(self) -> list[dict[str, float]]:
        if not self._file.is_file():
            return []
        with self._file.open(encoding="utf-8", newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row)) or ["step"]
        with self._file.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self._rows)


def running_mean(values: list[float], width: int) -> list[float]:
    """The mean of each value and up to ``width`` - 1 before it."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]
