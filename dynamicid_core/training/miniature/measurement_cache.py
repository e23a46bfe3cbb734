"""Measurements that are kept one by one, so that an interrupted run goes on."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...files import writing, written_whole


class MeasurementCache:
    """A folder of small files, one for each measurement with these files. folder: also for the pictures measured."""

    def __init__(self, folder: Path, files: Iterable[Path], about: Any) -> None:
        """files: what is measured, and with what. about: what else counts; goes into JSON."""
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for file in sorted(files):
            digest.update(file.read_bytes())
        self.folder = folder / f"pieces-{digest.hexdigest()[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get_or_measure(self, name: str, measure: Callable[[], Any], picture: Path | None = None) -> Any:
        """What ``measure`` returned when it was first asked for under this name, as JSON gives it back.

        picture: what it leaves beside; without it, it measures anew.
        """
        file = self.folder / f"{name}.json"
        if picture is None or picture.is_file():
            try:
                return json.loads(file.read_bytes())
            except (FileNotFoundError, ValueError):  # not there, or cut off by a computer that went off
                pass
        found = json.dumps(measure())
        with writing(file, "; the same command then goes on."), written_whole(file) as unfinished:
            unfinished.write_text(found, encoding="utf-8")
        return json.loads(found)
