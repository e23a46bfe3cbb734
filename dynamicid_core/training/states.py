"""Where a run stands, on disk: complete or not there, the newest few kept."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import InputError

_PROGRESS = "progress.json"


class States:
    """The folders ``states/step-…`` of a run's output."""

    def __init__(self, output: Path, keep: int) -> None:
        self._folder, self._keep = output / "states", keep

    def newest(self) -> Path | None:
        """The last complete state; None for a run that begins."""
        found = self._all()
        return found[-1] if found else None

    def save(self, step: int, about: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Lets ``write`` fill a folder, which gets its name when it is whole. Raises InputError when the disk is full;
        the states before it stay.
        """
        target = self._folder / f"step-{step:08d}"
        unfinished = target.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            write(unfinished)
            (unfinished / _PROGRESS).write_text(json.dumps({"step": step, **about}), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(unfinished, target)
        except (OSError, SafetensorError) as error:  # the latter for a full disk, too
            shutil.rmtree(unfinished, ignore_errors=True)
            last = self.newest()
            raise InputError(
                f"The state of step {step} could not be written to {self._folder}: {error}. Make room; running the "
                f"same command again goes on from {last.name if last else 'the beginning'}."
            ) from error
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)
        return target

    @staticmethod
    def about(state: Path) -> dict[str, Any]:
        """What was said when the state was saved, and its "step"."""
        found: dict[str, Any] = json.loads((state / _PROGRESS).read_text(encoding="utf-8"))
        return found

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if (path / _PROGRESS).is_file() and not path.suffix)
