"""Means with their uncertainty, beside the paper's figures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .results import MEASURES, Row
from .settings import FULL, NO_GATE, NO_IMR, SETTINGS, Setting

ONE, SEVERAL = "One person", "Several people"
PAPER: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    ONE: {
        FULL.name: {"clip_t": 0.239, "face_sim": 0.671, "expression": 0.456, "pose": 0.878},
        NO_GATE.name: {"clip_t": 0.224},
        NO_IMR.name: {"expression": 0.161, "pose": 0.253},
    },
    SEVERAL: {FULL.name: {"clip_t": 0.237, "face_sim": 0.664, "expression": 0.431, "pose": 0.867}},
}
"""The paper's figures (arXiv 2503.06505), by table, setting and measure."""

NO_CLIP_T = "CLIP-T is missing where no CLIP with projections was given (--clip-score)."
_RESAMPLES = 2000
_NONE = "-"


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Line:
    """A setting in a table. pictures: how many were painted. differences: to FULL, case by case.
    measured, paper: by measure; unknown ones are missing."""

    setting: Setting
    pictures: int
    measured: Mapping[str, Estimate]
    paper: Mapping[str, float]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class Table:
    """The settings for one number of people, or for several numbers."""

    title: str
    lines: list[Line]


def estimate(groups: Sequence[Sequence[float]]) -> Estimate:
    """The mean of all values with a 95 % percentile bootstrap interval over groups; deterministic.

    groups: dependent values. Resampled one by one, values of the same picture would count as that many pictures.
    """
    rng = np.random.default_rng(0)
    sums, counts = np.array([(sum(group), len(group)) for group in groups], np.float64).T
    draws = (rng.integers(len(groups), size=len(groups)) for _ in range(_RESAMPLES))
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in draws]
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def make_tables(rows: Sequence[Row]) -> list[Table]:
    """Tables for one person, for several people, and, if there are several such numbers, for each of them."""
    numbers = sorted({row.people for row in rows if row.people > 1})
    chosen = {ONE: [1], SEVERAL: numbers}
    if len(numbers) > 1:
        chosen |= {f"{number} people": [number] for number in numbers}
    tables = [Table(title, list(_lines(title, rows, people))) for title, people in chosen.items()]
    return [table for table in tables if table.lines]


def render(tables: Sequence[Table]) -> str:
    """The tables as Markdown with aligned columns, so that they also read well in a terminal."""
    parts = [f"## {table.title}\n\n{_aligned(_cells(table))}" for table in tables]
    if any("clip_t" not in line.measured for table in tables for line in table.lines):
        parts.append(NO_CLIP_T)
    parts.append(
        "Means over cases, with 95 % bootstrap intervals; cases with the same people, scene and noise are drawn "
        "together. In place: share of several people whose face is in their own column. Disruption: mean absolute "
        "difference to the base model's picture outside the faces, 0 to 1. Paper: arXiv 2503.06505. EVALUATION.md says "
        "how each is measured."
    )
    return "\n\n".join(parts) + "\n"


def _lines(title: str, rows: Sequence[Row], people: Sequence[int]) -> Iterator[Line]:
    full = {row.case: row for row in rows if row.setting == FULL.name}
    for setting in SETTINGS:
        mine = [row for row in rows if row.setting == setting.name and row.people in people]
        if not mine:
            continue
        measured = {name: estimate(groups) for name in MEASURES if (groups := _grouped(mine, name))}
        pictures = len({row.picture for row in mine})
        differences = {name: estimate(groups) for name in MEASURES if (groups := _differences(mine, full, name))}
        yield Line(setting, pictures, measured, PAPER.get(title, {}).get(setting.name, {}), differences)


def _grouped(rows: Sequence[Row], measure: str) -> list[list[float]]:
    """Its values where it is known, those of the same people, scene and noise together."""
    return _in_groups((row, getattr(row, measure)) for row in rows)


def _differences(rows: Sequence[Row], full: Mapping[str, Row], measure: str) -> list[list[float]]:
    """As ``_grouped``, by how much each value is above that of the same case with FULL."""
    pairs = [(row, full[row.case]) for row in rows if row.setting != FULL.name and row.case in full]
    values = [(row, getattr(row, measure), getattr(other, measure)) for row, other in pairs]
    return _in_groups((row, None if mine is None or other is None else mine - other) for row, mine, other in values)


def _in_groups(values: Iterable[tuple[Row, float | None]]) -> list[list[float]]:
    groups: dict[tuple[str, str, int], list[float]] = {}
    for row, value in values:
        if value is not None:
            groups.setdefault((row.names, row.prompt, row.seed), []).append(value)
    return list(groups.values())


def _cells(table: Table) -> Iterator[list[str]]:
    yield ["", *MEASURES.values(), "Pictures"]
    for line in table.lines:
        measured = [str(line.measured.get(name, _NONE)) for name in MEASURES]
        yield [line.setting.label, *measured, str(line.pictures)]
        if line.differences:
            differences = [str(line.differences.get(name, _NONE)) for name in MEASURES]
            yield [f"{line.setting.label}, difference to {FULL.label}", *differences, _NONE]
        if line.paper:
            figures = (line.paper.get(name) for name in MEASURES)
            yield [f"{line.setting.label}, paper", *(_NONE if f is None else f"{f:.3f}" for f in figures), _NONE]


def _aligned(cells: Iterator[list[str]]) -> str:
    rows = list(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
