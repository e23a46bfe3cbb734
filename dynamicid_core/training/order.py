"""The order in which training sees a data set: shuffled differently each epoch, the same for the same seed."""

import json
import logging
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..face_packs import RECOGNITION_PACKS
from .data.manifest import MANIFEST
from .data.sample import Sample
from .data.shards import SampleIndex

_log = logging.getLogger(__name__)
SampleLocation = tuple[str, str]
"""Shard and key of a sample."""


class ShardSource:
    """A finished data set in the order of training."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Raises InputError when the folder holds no finished data set, or one without people."""
        self._index, self._seed = SampleIndex(folder), seed
        self._locations = [location for locations in self._index.people.values() for location in locations]
        if not self._locations:
            raise InputError(f"The data set in {folder} is empty. Build it from more photos.")

    @property
    def recognition(self) -> str:
        """The recognition model of the data set's embeddings, from the InsightFace pack in its manifest; "" if that
        names no known model.
        """
        manifest = self._index.folder / MANIFEST
        if not manifest.is_file():
            return ""
        models = json.loads(manifest.read_text(encoding="utf-8"))["settings"].get("models", {})
        return next((name for name in RECOGNITION_PACKS if f"{name}.onnx" in models), "")

    def samples(self, process: int, processes: int, skip: int = 0) -> Iterator[Sample]:
        """Every picture of every person, for one of several processes, without its first ``skip``."""
        locations = (self._locations[i] for i in self._shuffled(len(self._locations)))
        for shard, key in islice(locations, process + skip * processes, None, processes):
            yield self._index.read(shard, key)

    def people(self, process: int, processes: int, photos: int, skip: int = 0) -> Iterator[list[Sample]]:
        """Every person with several photos: a source and ``photos`` - 1 others, repeated where there are too few."""
        several = [locations for locations in self._index.people.values() if len(locations) > 1]
        if not several:
            raise InputError(
                f"Nobody in {self._index.folder} has two photos, and reconfiguration learns from pairs. Add photos of "
                "the same people with other expressions and poses."
            )
        if len(several) < len(self._index.people):
            _log.info("%d people have only one photo and are left out", len(self._index.people) - len(several))
        order = enumerate(self._shuffled(len(several)))
        for number, i in islice(order, process + skip * processes, None, processes):
            yield [self._index.read(*location) for location in self._choose_photos(several[i], photos, number)]

    def _shuffled(self, length: int) -> Iterator[int]:
        for epoch in count():
            yield from np.random.default_rng((self._seed, epoch)).permutation(length).tolist()

    def _choose_photos(self, locations: list[SampleLocation], photos: int, number: int) -> list[SampleLocation]:
        rng = np.random.default_rng((self._seed, number, len(locations)))
        source, *others = (locations[i] for i in rng.permutation(len(locations)))
        repeated = [others[i % len(others)] for i in range(photos - 1)]
        return [source, *repeated]
