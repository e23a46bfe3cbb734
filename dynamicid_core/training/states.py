"""Saved states of a run: each complete or absent, the newest few kept."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import explain_write_errors

_STEP = "step-"
_PROGRESS = "progress.json"


class States:
    """The folders ``states/step-…`` of a run's output."""

    def __init__(self, output: Path, keep: int) -> None:
        self._folder, self._keep = output / "states", keep

    def newest(self) -> Path | None:
        """The last complete state; None for a new run."""
        return next(iter(self.newest_first()), None)

    def newest_first(self) -> list[Path]:
        """All complete states, the newest first."""
        return self._all()[::-1]

    def save(self, step: int, metadata: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Lets ``write`` fill a folder, which gets its name once it is complete. Raises InputError when the disk is
        full; earlier states stay.
        """
        target = self._folder / f"{_STEP}{step:08d}"
        unfinished = target.with_suffix(".part")
        for left_over in self._folder.glob("*.part"):  # of runs that were killed
            shutil.rmtree(left_over, ignore_errors=True)
        last = self.newest()
        hint = f"; running the same command again resumes from {last.name if last else 'the beginning'}."
        try:
            with explain_write_errors(f"The state of step {step}, {target},", hint):
                unfinished.mkdir(parents=True)
                write(unfinished)
                (unfinished / _PROGRESS).write_text(json.dumps({"step": step, **metadata}), encoding="utf-8")
                _force_to_disk(unfinished)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        states = self._all()
        here = states.index(target)
        for other in states[: max(0, here + 1 - self._keep)] + states[here + 1 :]:  # later ones were damaged
            shutil.rmtree(other)
        return target

    def last_step(self) -> int:
        """The step of the last complete state, even if it is damaged; 0 for a new run."""
        newest = self.newest()
        return int(newest.name.removeprefix(_STEP)) if newest else 0

    @staticmethod
    def metadata(state: Path) -> dict[str, Any]:
        """The ``metadata`` that the state was saved with, and its "step"."""
        found: dict[str, Any] = json.loads((state / _PROGRESS).read_text(encoding="utf-8"))
        return found

    def _all(self) -> list[Path]:
        return sorted(
            path for path in self._folder.glob(f"{_STEP}*") if (path / _PROGRESS).is_file() and not path.suffix
        )


def _force_to_disk(folder: Path) -> None:
    """Flushes all files to disk, so that a power cut leaves no complete-looking folder with empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
