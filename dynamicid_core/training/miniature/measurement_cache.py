"""Measurements that are stored one by one, so that an interrupted run can resume."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...files import atomic_write, explain_write_errors


class MeasurementCache:
    """A folder with a small file for each measurement of the same files. folder: also for the measured pictures."""

    def __init__(self, folder: Path, files: Iterable[Path], settings: Any) -> None:
        """files: everything measured, and measured with. settings: all else that results depend on, as JSON values."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for file in sorted(files):
            digest.update(file.read_bytes())
        self.folder = folder / f"pieces-{digest.hexdigest()[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get_or_measure(self, name: str, measure: Callable[[], Any], picture: Path | None = None) -> Any:
        """The result of ``measure``, from the cache if there is one under this name; after a round trip through JSON.

        picture: a file that ``measure`` saves besides; if it is missing, the measurement is repeated.
        """
        file = self.folder / f"{name}.json"
        if picture is None or picture.is_file():
            try:
                return json.loads(file.read_bytes())
            except (FileNotFoundError, ValueError):  # missing, or truncated by a crash
                pass
        found = json.dumps(measure())
        with explain_write_errors(file, "; the same command then resumes."), atomic_write(file) as unfinished:
            unfinished.write_text(found, encoding="utf-8")
        return json.loads(found)
