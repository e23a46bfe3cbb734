"""Measurements that are kept one by one, so that an interrupted run goes on."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..data.storage import write_whole


class Pieces:
    """A folder of small files, one for each measurement of these weights."""

    def __init__(self, folder: Path, weights: Iterable[Path], about: Any) -> None:
        """weights: the files that are measured. about: what else the measurements depend on; goes into JSON."""
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for file in sorted(weights):
            digest.update(file.read_bytes())
        self._folder = folder / f"pieces-{digest.hexdigest()[:12]}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def kept(self, name: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` returned when it was first asked for under this name, as JSON gives it back."""
        file = self._folder / f"{name}.json"
        if not file.is_file():
            write_whole(file, json.dumps(measure()).encode())
        return json.loads(file.read_bytes())
