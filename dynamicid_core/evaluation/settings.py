"""The settings that an evaluation compares, and which of its rows are comparable."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .cases import Case
from .results import Row


@dataclass(frozen=True)
class Setting:
    """What is enabled. name: in files. label: in tables. gate: SAA's gate. edit: expression and pose by the IMR."""

    name: str
    label: str
    gate: bool
    edit: bool


FULL = Setting("full", "DynamicID", gate=True, edit=True)
NO_GATE = Setting("no_gate", "without SAA (gate off)", gate=False, edit=True)
NO_IMR = Setting("no_imr", "without IMR", gate=True, edit=False)
NEITHER = Setting("neither", "without SAA and IMR", gate=False, edit=False)
BASE = Setting("base", "base model alone", gate=False, edit=False)
SETTINGS = (FULL, NO_GATE, NO_IMR, NEITHER, BASE)


def settings_for(imr: bool) -> tuple[Setting, ...]:
    """The settings to paint cases with, besides the base model; without an IMR, only those that need none."""
    return (FULL, NO_GATE, NO_IMR) if imr else (NO_IMR, NEITHER)


def comparable_rows(rows: Sequence[Row], cases: Sequence[Case], settings: Sequence[Setting]) -> list[Row]:
    """The rows of the cases that all settings have, and of the base model's pictures of them, in the order of ``rows``.

    A folder may hold rows of other runs with other people, seeds or limits, over which means would not be comparable.
    A case whose faces cover the whole picture with one setting gets no disruption with the others either.
    """
    present = {(row.setting, row.case) for row in rows}
    complete = [case for case in cases if all((setting.name, case.key) in present for setting in settings)]
    wanted = {(setting.name, case.key) for case in complete for setting in settings}
    wanted |= {(BASE.name, case.base_key) for case in complete}
    chosen = [row for row in rows if (row.setting, row.case) in wanted]
    covered = {row.case for row in chosen if row.setting != BASE.name and row.disruption is None}
    return [replace(row, disruption=None) if row.case in covered else row for row in chosen]
